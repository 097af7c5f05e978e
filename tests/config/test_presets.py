"""Presets by name, and copies that work where they are put."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.config import presets
from imgtool.config.load import load
from imgtool.errors import ConfigError, UsageError
from imgtool.models.registry import schema

pytestmark = pytest.mark.usefixtures("preset_folder")


def copy(name: str, dest: Path) -> list[Path]:
    copies = presets.plan_copy(name, dest)
    presets.refuse_overwriting(copies)
    presets.write_copies(copies)
    return [one.path for one in copies]


def test_names_are_in_the_order_people_count() -> None:
    assert presets.names() == [
        "common",
        "phase1_1/S2",
        "phase1_1/S10",
        "phase1_1/base",
        "phase1_2/V1",
    ]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/etc/passwd", "../packaged/common", "a\0b", "phase1_1"]
)
def test_what_is_no_preset_has_no_path(name: str) -> None:
    assert presets.path(name) is None


def test_text_and_description() -> None:
    assert presets.text("phase1_1/S10").startswith("# S10: a quarter.\n")
    assert presets.description("phase1_1/S10") == "S10: a quarter."
    assert presets.description("phase1_2/V1") == ""
    with pytest.raises(ConfigError, match="no preset 'phase1_1/S22'") as caught:
        presets.text("phase1_1/S22")
    assert caught.value.hint == "did you mean 'phase1_1/S2'?"


def test_groups() -> None:
    assert presets.groups() == ["phase1", "phase1_1", "phase1_2"]
    assert presets.members("phase1_1/") == ["phase1_1/S2", "phase1_1/S10", "phase1_1/base"]
    assert presets.members("phase1") == [*presets.members("phase1_1"), "phase1_2/V1"]
    with pytest.raises(ConfigError, match="no preset or group 'phase3'") as caught:
        presets.members("phase3")
    assert caught.value.hint == "did you mean 'phase1'?"


@pytest.mark.parametrize("dest", ["own.yaml", "folder", "folder.yaml/"])
def test_one_preset_goes_to_a_file_or_into_a_folder(dest: str, tmp_path: Path) -> None:
    if dest.endswith("/"):
        (tmp_path / dest).mkdir()
    (written,) = copy("phase1_1/S10", tmp_path / dest)
    assert written == tmp_path / (dest if dest == "own.yaml" else f"{dest}/S10.yaml")
    loaded = load(str(written), family=None, schema_of=schema)
    assert loaded.experiment.model.latent_channels == 4
    assert loaded.origins["train.lr"] == "preset phase1_1/base:7"  # the base was not copied


def test_copies_of_a_group_are_based_on_each_other(tmp_path: Path) -> None:
    written = copy("phase1", tmp_path / "experiments")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in written) == [
        "experiments/phase1_1/S10.yaml",
        "experiments/phase1_1/S2.yaml",
        "experiments/phase1_1/base.yaml",
        "experiments/phase1_2/V1.yaml",
    ]
    base = tmp_path / "experiments/phase1_1/base.yaml"
    base.write_text(base.read_text().replace("2e-4", "5e-4"))
    for path in written:
        loaded = load(str(path), family=None, schema_of=schema)
        assert loaded.experiment.train.lr == 5e-4
        assert loaded.origins["train.lr"].startswith(str(base))
    assert loaded.origins["train.epochs"] == "preset common:3"  # V1's other base stays a preset


def test_comments_and_everything_else_are_kept(tmp_path: Path) -> None:
    copy("phase1_2/V1", tmp_path)
    text = (tmp_path / "V1.yaml").read_text()
    assert text == "base: [phase1_1/S2, common]\nloss:\n  kld: 1e-3\n"


def test_files_that_exist_are_kept(tmp_path: Path) -> None:
    (tmp_path / "phase1_1").mkdir()
    kept = tmp_path / "phase1_1/S10.yaml"
    kept.write_text("mine")
    with pytest.raises(UsageError, match=r"S10\.yaml exists already") as caught:
        copy("phase1_1", tmp_path)
    assert caught.value.hint == "--force overwrites"
    assert kept.read_text() == "mine"
    assert not (tmp_path / "phase1_1/S2.yaml").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write .*file/S10.yaml: "):
        copy("phase1_1/S10", tmp_path / "file")
