"""Which images train, which validate, which are held out for the final test."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from imgtool.data.base import ImageDataset
from imgtool.data.sampler import random_stream
from imgtool.errors import DataError
from imgtool.files import write_text


@dataclass(frozen=True)
class Split:
    """Names of images, each in at most one list.

    Attributes:
        train, val, test: in the order of the data set.
        duplicates: left out because an equal file is already there.
        seed: of the draw.
    """

    train: list[str]
    val: list[str]
    test: list[str]
    duplicates: list[str]
    seed: int

    def to_json(self) -> str:
        """As text, for a file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Write it atomically. Raises OSError."""
        write_text(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Split:
        """Read what write() wrote.

        Raises:
            DataError: it cannot be read, or is no split.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: {error}") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Split:
        """Read what to_json() wrote.

        Raises:
            DataError: it is something else.
        """
        try:
            raw = json.loads(text)
            lists = {key: raw[key] for key in ("train", "val", "test", "duplicates")}
            for key, names in lists.items():
                if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                    raise ValueError(f"{key} is no list of names")
            return cls(**lists, seed=int(raw["seed"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"not a split: {error}") from error


def make_split(
    dataset: ImageDataset,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    *,
    max_images: int | None = None,
) -> Split:
    """Draw a split by group, without duplicates; the same for the same data and seed.

    The parts hold about val_fraction and test_fraction of the images: as near as whole groups
    allow. A part with a fraction above 0 gets a group as soon as there are enough of them
    (train first, then val, then test).

    Args:
        max_images: use this many images at most, drawn before the split.

    Raises:
        DataError: images to validate on are wanted and there is only one group.
    """
    unique, duplicates = without_duplicates(dataset)
    chosen = some_of(unique, max_images, seed)
    groups: dict[str, list[int]] = {}
    for index in chosen:
        groups.setdefault(dataset.group(index), []).append(index)
    if val_fraction > 0 and len(groups) < 2:
        kind = "scene" if dataset.targets else "image"
        raise DataError(
            f"the data has one {kind} only: nothing is left to validate on",
            hint="add data, give --val-root, or set data.val_fraction=0",
        )
    names = sorted(groups)
    waiting = [names[i] for i in np.argsort(random_stream(seed, 0, len(names)), kind="stable")]
    lengths = {name: len(groups[name]) for name in names}
    keep = 2 if test_fraction > 0 and len(groups) > 2 else 1
    val = _take(waiting, lengths, val_fraction * len(chosen), keep=keep)
    rest = [name for name in waiting if name not in val]
    test = _take(rest, lengths, test_fraction * len(chosen), keep=1)

    def part(wanted: Iterable[str]) -> list[str]:
        return [dataset.name(i) for i in sorted(i for name in wanted for i in groups[name])]

    train = [name for name in rest if name not in test]
    return Split(part(train), part(val), part(test), [dataset.name(i) for i in duplicates], seed)


def given_split(
    train: ImageDataset, val: ImageDataset, seed: int, *, max_images: int | None = None
) -> Split:
    """The split of two data sets: each is one side; nothing is held out for a test.

    Duplicates within each are left out, and training images that are also validated on.

    Raises:
        DataError: every training image is also a validation image.
    """
    val_unique, val_duplicates = without_duplicates(val)
    val_chosen = some_of(val_unique, max_images, seed)
    train_unique, train_duplicates = without_duplicates(train)
    both = shared(train, train_unique, val, val_chosen)
    train_chosen = some_of([i for i in train_unique if i not in both], max_images, seed)
    if not train_chosen:
        raise DataError("every training image is also a validation image", hint="see --val-root")
    duplicates = [train.name(i) for i in sorted({*train_duplicates, *both})]
    return Split(
        [train.name(i) for i in train_chosen],
        [val.name(i) for i in val_chosen],
        [],
        duplicates + [val.name(i) for i in val_duplicates],
        seed,
    )


def positions(dataset: ImageDataset, names: Sequence[str], part: str) -> list[int]:
    """Where the images of a split are in the data set.

    Raises:
        DataError: one of them is not there.
    """
    position_of = {dataset.name(i): i for i in range(len(dataset))}
    missing = [name for name in names if name not in position_of]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            f"{missing[0]!r}{more} is in the split's {part} part and not in the data",
            hint="the data has changed since the split was drawn",
        )
    return [position_of[name] for name in names]


def without_duplicates(dataset: ImageDataset) -> tuple[list[int], list[int]]:
    """Positions of the first of equal files, and of the others. Only equal lengths are hashed."""
    by_length: dict[int, list[int]] = {}
    for index in range(len(dataset)):
        by_length.setdefault(dataset.num_bytes(index), []).append(index)
    duplicates = set()
    for indices in by_length.values():
        seen: set[str] = set()
        for index in indices if len(indices) > 1 else ():
            digest = dataset.content_hash(index)
            if digest in seen:
                duplicates.add(index)
            seen.add(digest)
    unique = [i for i in range(len(dataset)) if i not in duplicates]
    return unique, sorted(duplicates)


def shared(
    first: ImageDataset, indices: Sequence[int], second: ImageDataset, others: Sequence[int]
) -> set[int]:
    """Positions in `first` of files that `second` has too."""
    by_length: dict[int, list[int]] = {}
    for other in others:
        by_length.setdefault(second.num_bytes(other), []).append(other)
    return {
        index
        for index in indices
        for same in [by_length.get(first.num_bytes(index))]
        if same and first.content_hash(index) in {second.content_hash(other) for other in same}
    }


def some_of(indices: list[int], count: int | None, seed: int) -> list[int]:
    """At most `count` of them, drawn by the seed, in order."""
    if count is None or count >= len(indices):
        return indices
    order = np.argsort(random_stream(seed, 1, len(indices)), kind="stable")
    return sorted(indices[i] for i in order[:count])


def _take(
    waiting: list[str], lengths: dict[str, int], target: float, *, keep: int
) -> dict[str, None]:
    """Groups, in order, whose images add up to about `target`; `keep` groups stay behind."""
    taken: dict[str, None] = {}
    if target <= 0 or len(waiting) <= keep:
        return taken
    count = 0
    for name in waiting:
        # A group is taken when that brings the count nearer to the target.
        if len(waiting) - len(taken) > keep and lengths[name] < 2 * (target - count):
            taken[name] = None
            count += lengths[name]
    if not taken:
        taken[min(waiting, key=lambda name: lengths[name])] = None
    return taken
