"""Faces with and without an attribute: parts, order, batches, resuming."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imgtool.config.faces import FacesData
from imgtool.data.datasets import Datasets, expected_info, open_datasets
from imgtool.data.loader import eval_loader, train_loader
from imgtool.data.pairs import PairSampler
from imgtool.data.pyramid import pyramid_size, unpack
from imgtool.data.split import Split
from imgtool.errors import ConfigError, DataError

SIZES = (16, 24)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """30 faces with, 18 without; image number i is of grey level 5 i."""
    return write_faces(tmp_path_factory.mktemp("celeba"), 30, 18)


def write_faces(root: Path, num_with: int, num_without: int) -> Path:
    (root / "img_align_celeba").mkdir()
    lines, parts = ["Smiling"], []
    for number in range(num_with + num_without):
        name = f"{number:06d}.png"
        image = np.full((40, 30, 3), 5 * number, np.uint8)
        image[:, :15] += 2  # the left is lighter: a mirrored image can be told
        Image.fromarray(image).save(root / "img_align_celeba" / name)
        lines.append(f"{name} {1 if number < num_with else -1}")
        parts.append(f"{name} {number % 3}")
    (root / "list_attr_celeba.txt").write_text("\n".join(lines))
    (root / "list_eval_partition.txt").write_text("\n".join(parts))
    return root


def faces(root: Path, **options: Any) -> FacesData:
    defaults: dict[str, Any] = {"image_sizes": SIZES, "val_fraction": 0.2}
    return FacesData(root=str(root), **{**defaults, **options})


def batches(datasets: Datasets, data: FacesData, **options: Any) -> Iterator[dict[str, Any]]:
    defaults = {
        "seed": 1,
        "batch_size": 4,
        "start_batch": 0,
        "rank": 0,
        "world_size": 1,
        "num_workers": 0,
    }
    return train_loader(datasets.train, data, pin_memory=False, **{**defaults, **options})


def first(loader: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    found = list(itertools.islice(loader, count))
    loader.close()
    return found


def same(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(left, right, strict=True)
    )


# --- parts ----------------------------------------------------------------------------------


def test_each_part_has_its_share_of_each_set(root):
    data = faces(root, test_fraction=0.1)
    datasets = open_datasets(data)
    assert len(datasets.split.val) == 6 + 4
    assert len(datasets.split.test) == 3 + 2
    assert len(datasets.train) == 21 + 12
    assert (len(datasets.train.positives), len(datasets.train.negatives)) == (21, 12)
    parts = [datasets.split.train, datasets.split.val, datasets.split.test]
    assert len({name for part in parts for name in part}) == 48
    assert all(part == sorted(part) for part in parts)
    assert open_datasets(data).split == datasets.split
    assert open_datasets(faces(root, test_fraction=0.1, split_seed=1)).split != datasets.split


def test_what_is_held_out_to_evaluate_on_is_trimmed_to_equal_halves_in_turn(root):
    datasets = open_datasets(faces(root))
    assert len(datasets.split.val) == 10
    assert len(datasets.val) == 8
    assert [datasets.val.read(i).label for i in range(8)] == [1, 0] * 4


def test_the_official_parts_are_used_as_they_are(root, tmp_path):
    datasets = open_datasets(faces(root, official_split=True))
    assert len(datasets.split.train) == len(datasets.split.val) == len(datasets.split.test) == 16
    assert datasets.split.val[0] == "000001.png"
    assert datasets.without_part == []
    bare = write_faces(tmp_path, 6, 6)
    table = bare / "list_eval_partition.txt"
    table.write_text("\n".join(table.read_text().splitlines()[:-2]))
    short = open_datasets(faces(bare, official_split=True))
    assert len(short.without_part) == 2
    assert open_datasets(faces(bare)).without_part == []
    table.unlink()
    with pytest.raises(DataError, match="no table of CelebA's own parts"):
        open_datasets(faces(bare, official_split=True))


@pytest.mark.parametrize("count", [2, 3, 10, 16, 47])
def test_max_images_counts_both_sets_together_in_proportion(root, count):
    datasets = open_datasets(faces(root, max_images=count, val_fraction=0.0))
    assert len(datasets.train) == count
    share = len(datasets.train.positives) / count
    assert abs(share - 30 / 48) <= 1 / count
    assert min(len(datasets.train.positives), len(datasets.train.negatives)) >= 1


def test_a_split_that_was_kept_is_used_again(root):
    data = faces(root)
    kept = Split.from_json(open_datasets(faces(root, split_seed=7)).split.to_json())
    datasets = open_datasets(data, split=kept)
    assert datasets.split == kept
    assert [datasets.train.name(i) for i in range(3)] == kept.train[:3]


def test_too_few_images_and_an_empty_set_are_clear_errors(tmp_path):
    for number, (num_with, num_without, message) in enumerate(
        [(5, 1, "1 images without Smiling are too few"), (5, 0, "no images without Smiling")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(DataError, match=message):
            open_datasets(faces(write_faces(folder, num_with, num_without)))


def test_what_a_family_is_told(root):
    data = faces(root, attribute="Smiling", image_size=16)
    info = open_datasets(data).info
    assert info.targets == {"label"}
    assert info.label_names == ("without Smiling", "with Smiling")
    assert info.image_size == (16, 16)
    assert info.pyramid == SIZES
    unnamed = expected_info(FacesData(image_sizes=SIZES))
    assert unnamed is not None
    assert unnamed.pyramid == SIZES
    assert unnamed.image_size == (24, 24)
    assert expected_info(data) is None
    with pytest.raises(ConfigError, match=r"data\.root is not set"):
        open_datasets(FacesData())


def test_an_epoch_is_a_pass_over_the_larger_set(root):
    datasets = open_datasets(faces(root, val_fraction=0.0))
    assert [datasets.batches_per_epoch(size) for size in (1, 4, 30, 64)] == [30, 8, 1, 1]


# --- order ----------------------------------------------------------------------------------

counts = st.integers(1, 9)


@settings(max_examples=60)
@given(counts, counts, st.integers(1, 4), st.integers(1, 3), st.integers(0, 20), st.integers(0, 3))
def test_each_set_goes_round_by_itself(num_with, num_without, size, world, start, seed):
    sets = np.arange(num_with), 100 + np.arange(num_without)
    ranks = [PairSampler(*sets, size, seed, rank, world) for rank in range(world)]
    rounds = list(itertools.islice(zip(*ranks, strict=True), start + 6))
    for number in (0, 1):
        drawn = [draw.index for step in rounds for batch in step for draw in batch[number::2]]
        count = len(sets[number])
        assert set(drawn) <= set(sets[number].tolist())
        for begin in range(0, len(drawn) - count + 1, count):
            assert sorted(drawn[begin : begin + count]) == sets[number].tolist()
    later = [PairSampler(*sets, size, seed, rank, world, start) for rank in range(world)]
    assert list(itertools.islice(zip(*later, strict=True), 6)) == rounds[start:]


def test_passes_and_sets_and_seeds_are_shuffled_differently():
    def order(seed: int, number: int, begin: int) -> list[int]:
        sampler = PairSampler(np.arange(40), np.arange(40), 40, seed, start_batch=begin)
        return [draw.index for draw in next(iter(sampler))[number::2]]

    orders = {tuple(order(s, n, b)) for s in (0, 1) for n in (0, 1) for b in (0, 1)}
    assert len(orders) == 8
    epochs = [draw.epoch for draw in next(iter(PairSampler(np.arange(2), np.arange(9), 5, 0)))]
    assert epochs[0::2] == [0, 0, 1, 1, 2]
    assert epochs[1::2] == [0] * 5


# --- batches --------------------------------------------------------------------------------


def test_rows_take_turns_and_hold_pyramids(root):
    data = faces(root)
    datasets = open_datasets(data)
    for batch in first(batches(datasets, data), 3):
        assert batch["image"].shape == (8, 3, pyramid_size(SIZES)[0], 1)
        assert batch["image"].dtype == torch.uint8
        assert batch["label"].tolist() == [1, 0] * 4
        assert batch["index"].dtype == torch.int64
        squares = unpack(batch["image"], SIZES)
        assert [square.shape for square in squares.values()] == [(8, 3, s, s) for s in SIZES]
        for row, index in enumerate(batch["index"].tolist()):
            number = int(datasets.train.name(index)[:6])
            for square in squares.values():
                assert square[row, 0, 0, 0] == 5 * number + 2
                assert square[row, 2, -1, -1] == 5 * number


def test_the_order_is_that_of_earlier_versions(root):
    """Else a training that is resumed by a newer version sees some images twice, others never."""
    data = faces(root, val_fraction=0.0, flip="horizontal")
    found = first(batches(open_datasets(data), data), 3)
    assert [batch["index"].tolist() for batch in found] == [
        [3, 44, 5, 40, 24, 30, 27, 45],
        [26, 46, 2, 47, 23, 43, 9, 36],
        [22, 41, 7, 42, 10, 35, 14, 33],
    ]
    mirrored = [bool(row[0, 0, 0] < row[0, 15, 0]) for batch in found for row in batch["image"]]
    assert "".join(str(int(flag)) for flag in mirrored) == "101101100100000011011101"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_batch_follows_from_seed_rank_and_number_alone(root, workers):
    data = faces(root, cache="none")
    datasets = open_datasets(data)
    for rank in (0, 1):
        whole = first(batches(datasets, data, rank=rank, world_size=2), 7)
        later = batches(datasets, data, rank=rank, world_size=2, start_batch=3, num_workers=workers)
        assert same(first(later, 4), whole[3:])
    assert not same(whole[:1], first(batches(datasets, data, world_size=2), 1))


def test_ranks_together_see_what_one_process_sees(root):
    data = faces(root)
    datasets = open_datasets(data)
    one = first(batches(datasets, data, batch_size=6), 4)
    ranks = [
        first(batches(datasets, data, batch_size=3, rank=r, world_size=2), 4) for r in range(2)
    ]
    for number, batch in enumerate(one):
        together = torch.cat([rank[number]["index"] for rank in ranks])
        assert torch.equal(together, batch["index"])


def test_the_cache_changes_nothing(root):
    kept, plain = (faces(root, cache=cache) for cache in ("ram", "none"))
    datasets = open_datasets(kept)
    assert datasets.train.decoded
    assert same(first(batches(datasets, kept), 12), first(batches(open_datasets(plain), plain), 12))
    assert same(first(batches(datasets, kept), 5), first(batches(datasets, kept), 5))


def test_flips_mirror_every_size_of_half_of_the_images_and_only_when_asked(root):
    data = faces(root, flip="horizontal", val_fraction=0.0)
    datasets = open_datasets(data)
    flipped: Counter[bool] = Counter()
    for batch in first(batches(datasets, data), 16):
        squares = unpack(batch["image"], SIZES)
        for row in range(8):
            left = [bool(s[row, 0, 0, 0] > s[row, 0, 0, -1]) for s in squares.values()]
            assert left[0] == left[1]
            flipped[not left[0]] += 1
    assert 35 < flipped[True] < 93  # of 128


def test_evaluation_batches_are_even_and_repeat_for_idle_ranks(root):
    data = faces(root, val_fraction=0.5)
    val = open_datasets(data).val
    assert len(val) == 18
    options: dict[str, Any] = {"batch_size": 4, "num_workers": 0, "pin_memory": False}
    found = list(eval_loader(val, rank=0, world_size=1, **options))
    assert [len(batch["label"]) for batch in found] == [8, 8, 2]
    assert all(batch["label"].tolist() == [1, 0] * (len(batch["label"]) // 2) for batch in found)
    assert all(batch["valid"].all() for batch in found)
    spare = list(eval_loader(val, rank=1, world_size=2, **options))
    assert [bool(batch["valid"].any()) for batch in spare] == [True, False]


def test_a_damaged_image_arrives_as_an_error_that_names_it(tmp_path):
    folder = write_faces(tmp_path, 4, 4)
    (folder / "img_align_celeba" / "000002.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    data = faces(folder, val_fraction=0.0, cache="none")
    with pytest.raises(DataError, match=r"000002\.png: "):
        first(batches(open_datasets(data), data, num_workers=1), 2)
    kept = faces(folder, val_fraction=0.0, skip_bad=True)
    datasets = open_datasets(kept)
    assert datasets.bad_files == ["000002.png"]
    assert len(datasets.train) == 7


def test_missing_images_are_told(tmp_path):
    folder = write_faces(tmp_path, 4, 4)
    (folder / "img_align_celeba" / "000002.png").unlink()
    assert open_datasets(faces(folder)).missing == ["000002.png"]
