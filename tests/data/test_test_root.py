"""A test set of its own: it neither trains nor selects, and is not quietly trained on."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from imgtool.data.datasets import open_datasets
from imgtool.errors import DataError
from imgtool.models.hpcm.schema import HpcmData


@pytest.fixture
def data(make_photos):
    train, test = make_photos(6, name="train"), make_photos(3, height=40, name="test")
    return HpcmData(root=str(train), test_root=str(test), crop=16, val_fraction=0.2)


def names(view):
    return {view.name(i) for i in range(len(view))}


def test_the_test_set_is_the_folder_and_validation_is_held_out_of_the_root(data):
    found = open_datasets(data)
    assert (len(found.train), len(found.val), len(found.test)) == (5, 1, 3)
    assert not names(found.train) & names(found.val)
    assert all(found.test.size(i)[0] == 40 for i in range(3))
    assert all(found.val.size(i)[0] == 24 for i in range(1))
    assert found.split.test == []
    assert found.tested_too == []
    assert found.test.read(0).image.shape[0] == 40


def test_a_test_set_changes_nothing_of_the_training(data):
    """Neither the split nor the data's fingerprint, which is part of the identity."""
    with_test, without = open_datasets(data), open_datasets(replace(data, test_root=None))
    assert with_test.fingerprint == without.fingerprint
    assert with_test.split == without.split
    assert len(without.test) == 0


def test_images_in_both_sets_are_named(data, tmp_path):
    """By their contents: the name may be another. Those of the validation part count too."""
    for number in (0, 3, 5):
        image = tmp_path / "train" / f"p{number:03d}.png"
        shutil.copy(image, tmp_path / "test" / f"copy_{number}.png")
    found = open_datasets(data)
    assert sorted(found.tested_too) == ["p000.png", "p003.png", "p005.png"]
    assert open_datasets(data, training=False).tested_too == ()


def test_a_test_set_that_is_gone_is_an_error_only_when_training(data, tmp_path):
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(DataError, match="no such folder"):
        open_datasets(data)
    assert len(open_datasets(data, training=False).test) == 0


def test_two_sources_of_a_test_set_are_refused(data):
    with pytest.raises(ValueError, match="test_fraction"):
        replace(data, test_fraction=0.1)
