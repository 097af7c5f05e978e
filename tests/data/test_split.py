from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.data.base import Sample
from imgtool.data.split import Split, given_split, make_split, positions
from imgtool.errors import DataError


class Listed:
    """A data set without pixels: (name, group, content) each."""

    fingerprint, decoded, palette = "f", False, ()
    mask_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    targets: frozenset[str] = frozenset()

    def __init__(self, images: list[tuple[str, str, str]]) -> None:
        self.images = images
        self.hashed = 0

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images[index][0]

    def group(self, index: int) -> str:
        return self.images[index][1]

    def num_bytes(self, index: int) -> int:
        return len(self.images[index][2])

    def content_hash(self, index: int) -> str:
        self.hashed += 1
        return self.images[index][2]

    def size(self, index: int) -> tuple[int, int]:
        raise NotImplementedError

    def read(self, index: int) -> Sample:
        raise NotImplementedError


def numbered(*group_sizes: int) -> Listed:
    sizes = list(enumerate(group_sizes))
    return Listed([(f"{g}/{i}", f"g{g}", f"{g}-{i}") for g, n in sizes for i in range(n)])


images = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40)), min_size=1, max_size=60).map(
    lambda rows: Listed([(f"n{i}", f"g{g}", f"c{c}") for i, (g, c) in enumerate(rows)])
)
fractions = st.floats(0, 0.49)


@given(images, fractions, fractions, st.integers(0, 2**70))
def test_parts_are_disjoint_by_group_and_complete(
    data: Listed, val: float, test: float, seed: int
) -> None:
    first = {content: name for name, _, content in reversed(data.images)}
    group_of = {name: group for name, group, _ in data.images}
    num_groups = len({group_of[name] for name in first.values()})
    if val > 0 and num_groups < 2:
        with pytest.raises(DataError, match="one image only"):
            make_split(data, val, test, seed)
        return
    split = make_split(data, val, test, seed)
    parts = [split.train, split.val, split.test]
    assert sorted(name for part in parts for name in part) == sorted(first.values())
    assert sorted(split.duplicates) == sorted(set(group_of) - set(first.values()))
    groups = [{group_of[name] for name in part} for part in parts]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert split.train
    assert bool(split.val) == (val > 0)
    if num_groups >= 3 or (num_groups == 2 and val == 0):
        assert bool(split.test) == (test > 0)
    order = {name: i for i, (name, _, _) in enumerate(data.images)}
    assert all(part == sorted(part, key=order.__getitem__) for part in parts)
    assert make_split(data, val, test, seed) == split
    assert Split.from_json(split.to_json()) == split


def test_fractions_are_met_where_groups_are_small() -> None:
    data = numbered(*[3] * 100)
    split = make_split(data, 0.1, 0.2, 42)
    assert (len(split.val), len(split.test), len(split.train)) == (30, 60, 210)
    assert make_split(data, 0.1, 0.2, 43).val != split.val


def test_a_huge_scene_stays_in_training() -> None:
    for seed in range(20):
        split = make_split(numbered(100, 2, 2, 2, 2, 2), 0.02, 0.02, seed)
        assert {name.split("/")[0] for name in split.train} >= {"0"}


def test_eight_photos_leave_six_to_train() -> None:
    split = make_split(numbered(*[1] * 8), 0.1, 0.1, 42)
    assert (len(split.train), len(split.val), len(split.test)) == (6, 1, 1)


def test_only_equal_lengths_are_hashed() -> None:
    data = Listed([("a", "1", "x"), ("b", "2", "yy"), ("c", "3", "yy"), ("d", "4", "zz")])
    split = make_split(data, 0.3, 0.0, 0)
    assert split.duplicates == ["c"]
    assert data.hashed == 3


@given(images, st.integers(1, 70), st.integers(0, 100))
def test_max_images_is_a_seeded_draw(data: Listed, count: int, seed: int) -> None:
    split = make_split(data, 0.0, 0.0, seed, max_images=count)
    everything = make_split(data, 0.0, 0.0, seed).train
    assert len(split.train) == min(count, len(everything))
    assert set(split.train) <= set(everything)
    assert make_split(data, 0.0, 0.0, seed, max_images=count) == split


def test_given_parts_share_no_file() -> None:
    train = Listed([("a", "a", "same"), ("b", "b", "bb"), ("c", "c", "bb"), ("d", "d", "d")])
    val = Listed([("a", "a", "other"), ("v", "v", "same"), ("w", "w", "same")])
    split = given_split(train, val, 7)
    assert (split.train, split.val, split.test) == (["b", "d"], ["a", "v"], [])
    assert split.duplicates == ["a", "c", "w"]
    assert len(given_split(train, val, 7, max_images=1).train) == 1
    with pytest.raises(DataError, match="also a validation image"):
        given_split(Listed([("x", "x", "same")]), val, 7)


def test_positions_name_what_is_missing() -> None:
    data = numbered(3)
    assert positions(data, ["0/2", "0/0"], "train") == [2, 0]
    with pytest.raises(DataError, match="'0/7'.*and 1 more.*train part"):
        positions(data, ["0/0", "0/7", "0/8"], "train")


def test_files(tmp_path: Path) -> None:
    split = Split(["a", "\udcff"], ["b"], [], ["c"], 3)
    split.write(tmp_path / "split.json")
    assert Split.read(tmp_path / "split.json") == split
    with pytest.raises(DataError, match=r"gone\.json"):
        Split.read(tmp_path / "gone.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"train": 1, "val": [], "test": [], "duplicates": [], "seed": 0}',
        "[" * 9999,
    ],
)
def test_files_that_are_no_split(tmp_path: Path, text: str) -> None:
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match=r"split\.json: not a split"):
        Split.read(tmp_path / "split.json")


def test_nothing_but_data_errors_from_any_json() -> None:
    @given(
        st.recursive(
            st.none() | st.integers() | st.text(),
            lambda x: (
                st.lists(x)
                | st.dictionaries(
                    st.sampled_from(["train", "val", "test", "duplicates", "seed"]), x
                )
            ),
        )
    )
    def check(value: Any) -> None:
        import json

        with pytest.raises(DataError):
            Split.from_json(json.dumps({"seed": value, "train": [], "val": []}))

    check()
