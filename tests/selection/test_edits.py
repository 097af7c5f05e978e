"""Editors compared on one page: of any number of variants, whatever was not measured of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from imgtool.selection.edits import ends_of, faces
from imgtool.selection.gather import read_evidence
from imgtool.selection.records import Candidate, Selection
from imgtool.selection.report import write_report
from imgtool.selection.rule_file import load_rule
from imgtool.selection.rules import select
from imgtool.selection.sources import find_sources
from imgtool.selection.style import Style
from tests.selection.making import run
from tests.selection.test_report import Page

RULE = load_rule("edit")
SIDE, TILE = 16, 148  # of a strip's tile; of one on the sheet, with its gap


def variant(
    folder: Path, number: int, *, fid: bool = True, identity: bool = True, pairs: int = 12
) -> None:
    """A trained editor with what `eval edit` and `eval-fid` leave; its colour is its number's."""
    exp_dir = folder / f"EXP{number:02d}"
    (exp_dir / "samples").mkdir(parents=True)
    config = f"family: genegan\nname: {exp_dir.name}\ntrain: {{lr: {number + 1}.0e-4}}\n"
    (exp_dir / "config.yaml").write_text(config)
    facts = {"num_parameters": 1_000_000 + number, "iteration_sec": 0.25}
    (exp_dir / "status.json").write_text(json.dumps({"state": "completed", "facts": facts}))
    record = {"attribute": "Smiling", "judge": {"hash": "j"}, "image_size": 64, "others": ["Male"]}
    for name, value in (("success", 0.9 - number / 100), ("preservation", 0.95), ("psnr", 28.0)):
        record |= {name: value, f"{name}_se": 0.01}
        record |= {f"{name}_low": value - 0.02, f"{name}_high": value + 0.01}
    record |= {"success_Bu": 0.5, "success_A0": 0.5, "identity": 0.8 if identity else None}
    compared = []
    for pair in range(pairs):
        file = f"samples/edit_{pair:02d}.png"
        Image.new("RGB", (6 * SIDE, SIDE), (number, pair, 7)).save(exp_dir / file)
        # Each has numbered them in an order of its own.
        place = (pair + number) % 12
        compared.append({"Au": f"a{place}.jpg", "B0": f"b{place}.jpg", "file": file})
    (exp_dir / "edit.json").write_text(json.dumps({**record, "compared": compared}) + "\n")
    if fid:
        values = {"fid": 20.0 + number, "fid_se": 0.5, "num_images": 5000}
        (exp_dir / "fid.json").write_text(json.dumps(values))


def chosen(folder: Path) -> Selection:
    found = find_sources([str(folder)])
    return select(read_evidence(found, RULE), RULE)


def report(folder: Path, selection: Selection) -> tuple[Page, str]:
    path = write_report(selection, folder / "report")
    page = Page(path.read_text(encoding="utf-8"))
    return page, "".join(page.words)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_a_page_of_any_number_of_variants(tmp_path: Path, count: int) -> None:
    for number in range(count):
        variant(tmp_path / "out", number)
    page, words = report(tmp_path, chosen(tmp_path / "out"))
    stems = {file.stem for file in (tmp_path / "report").glob("*.png")}
    assert {"edits", "faces", "fid", "efficiency"} <= stems
    assert len(page.images) == len(stems)
    assert words.count("90.0\u00a0%") == 1
    assert "88.0 to\u00a091.0" in words
    assert "20 ±\u00a00.98" in words  # 1.96 standard errors
    assert words.count("0.25\u00a0s") == count
    assert "not measured" not in words
    assert "val_mse <" not in words  # the criteria of autoencoders
    rows = 6 if count <= 3 else 4
    with Image.open(tmp_path / "report/faces.png") as sheet:
        assert sheet.width == 6 * TILE
        assert sheet.height > count * rows * TILE
        assert sheet.height < count * (rows + 1) * TILE


def test_the_faces_are_the_same_in_every_block(tmp_path: Path) -> None:
    variant(tmp_path, 0)
    variant(tmp_path, 3, pairs=5)  # places 3 to 7
    selection = chosen(tmp_path)
    data = faces(selection, Style(selection))
    assert data is not None
    (tmp_path / "sheet.png").write_bytes(data)
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = {pixel for _, pixel in sheet.convert("RGB").getcolors(1 << 20) if pixel[2] == 7}
    assert colours == {
        *((0, pair, 7) for pair in range(3, 8)),
        *((3, pair, 7) for pair in range(5)),
    }
    variant(tmp_path, 9, pairs=2)  # places 9 and 10: none that all have
    selection = chosen(tmp_path)
    assert faces(selection, Style(selection)) is None


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    variant(tmp_path / "out", 0)
    variant(tmp_path / "out", 1, fid=False, identity=False, pairs=0)
    selection = chosen(tmp_path / "out")
    _, words = report(tmp_path, selection)
    assert words.count("not measured") == 3  # FID, its images, identity
    assert "Not measured: 1 of 2." in words
    assert "1 of 2 have no pictures." in words
    assert selection.winner is not None
    assert selection.winner.candidate.name == "EXP00"


def test_pictures_are_those_of_the_experiment_alone(tmp_path: Path) -> None:
    variant(tmp_path / "out", 0, pairs=1)
    path = tmp_path / "out/EXP00/edit.json"
    Image.new("RGB", (6 * SIDE, SIDE)).save(tmp_path / "secret.png")
    text = path.read_text().replace("samples/edit_00.png", "../../secret.png")
    path.write_text(text)
    selection = chosen(tmp_path / "out")
    assert faces(selection, Style(selection)) is None
    for broken in ('{"compared": 3}', '{"compared": [{"Au": 1}]}', "[" * 5000):
        path.write_text(broken)
        assert faces(selection, Style(selection)) is None


def test_intervals_are_a_run_s_own_or_student_s_over_seeds() -> None:
    own = {"edit_success": 0.9, "edit_success_low": 0.8, "edit_success_high": 0.93, "fid": 9.0}
    one = Candidate(name="a", runs=[run("a", None, seed=0)], metrics={**own, "fid_se": 0.1})
    assert ends_of(one, "edit_success") == (0.8, 0.93)
    assert ends_of(one, "fid") == pytest.approx((9 - 0.196, 9 + 0.196), abs=1e-3)
    runs = [run("a", None, seed=seed) for seed in range(3)]
    three = Candidate(name="a", runs=runs, metrics=own, deviations={"edit_success": 0.03})
    reach = 4.3027 * 0.03 / 3**0.5
    assert ends_of(three, "edit_success") == pytest.approx((0.9 - reach, 0.9 + reach), abs=1e-5)
    assert ends_of(three, "fid") is None
