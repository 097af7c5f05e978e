"""`imgtool data make faces`, `data align` and `data check` of what they make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from commands.main import main
from imgtool.data.synthetic.make import make_faces


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def imgtool(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def run(*words: object) -> Answer:
        with pytest.raises(SystemExit) as left:
            main(["data", *map(str, words)])
        code = left.value.code
        return Answer(int(code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "faces"
    make_faces(folder, 3, seed=2)
    return folder


def test_make_faces_then_check_them(imgtool, tmp_path):
    out = tmp_path / "faces"
    dry = imgtool("make", "faces", out, "--n", 3, "--seed", 2, "--dry-run", "--json")
    assert (dry.code, out.exists()) == (0, False)
    made = imgtool("make", "faces", out, "--n", 3, "--seed", 2, "--json")
    record = json.loads(made.out)
    assert (made.code, record["num_images"], record["path"]) == (0, 3, str(out))
    assert record["num_bytes"] == sum(
        path.stat().st_size for path in out.rglob("*") if path.suffix in (".jpg", ".txt")
    )
    (out / "img_align_celeba" / "000002.jpg").unlink()
    (out / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    checked = imgtool("check", out, "--json")
    record = json.loads(checked.out)
    assert checked.code == 0
    assert (record["dataset"], record["num_images"], record["num_missing_images"]) == (
        "celeba",
        2,
        1,
    )
    assert record["sizes"] == {"178x218": 2}
    assert len(record["attribute_counts"]) == 40
    assert "listed and missing: 1 (000002.jpg)" in checked.err
    assert (record["num_without_part"], record["num_without_landmarks"]) == (2, 0)
    assert "in no part: 2 (000002.jpg, 000003.jpg)" in checked.err
    lines = (out / "list_attr_celeba.txt").read_text().splitlines()
    (out / "list_attr_celeba.txt").write_text("\n".join(lines[1:4]))
    checked = imgtool("check", out, "--json")
    assert json.loads(checked.out)["unlisted_images"] == ["000003.jpg"]
    assert "there and without attributes: 1 (000003.jpg)" in checked.err


def test_a_number_out_of_range_and_a_foreign_folder_are_usage_errors(imgtool, tmp_path):
    answer = imgtool("make", "faces", tmp_path / "out", "--n", 0)
    assert answer.code == 2
    assert answer.err.startswith("error: --n is 0")
    (tmp_path / "mine.txt").write_text("x")
    answer = imgtool("make", "faces", tmp_path, "--n", 1)
    assert (answer.code, answer.err.count("\n")) == (2, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_squares_are_made_and_their_size_is_told(imgtool, tmp_path):
    answer = imgtool("make", "faces", tmp_path / "out", "--n", 2, "--size", 64, "--json")
    assert (answer.code, json.loads(answer.out)["size_px"]) == (0, 64)
    assert imgtool("check", tmp_path / "out", "--json").out.count('"64x64": 2') == 1


def test_align_names_the_rows_that_it_leaves_out(imgtool, tmp_path):
    make_faces(tmp_path / "faces", 3, seed=2)
    table = tmp_path / "faces/list_landmarks_align_celeba.txt"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:4], "000003.jpg -9 9 40 9 20 30 2 50 38 50"]))
    words = ("align", tmp_path / "faces", tmp_path / "out", "--size", 64)
    answer = imgtool(*words)
    assert (answer.code, (tmp_path / "out").exists()) == (4, False)
    assert "000003.jpg: its left eye lies outside the picture (-9, 9 in 178x218)" in answer.err
    (tmp_path / "faces/list_eval_partition.txt").write_text("000001.jpg 0\n")
    answer = imgtool(*words, "--skip-bad", "--json")
    record = json.loads(answer.out)
    assert (answer.code, record["num_images"], record["num_bad_files"]) == (0, 2, 1)
    assert record["bad_files"][0]["name"] == "000003.jpg"
    assert "left out: 000003.jpg: its left eye lies outside" in answer.err
    assert "warning: with attributes and in no part: 2 (000002.jpg, 000003.jpg)" in answer.err


def test_align_tells_what_it_did(imgtool, faces, tmp_path):
    out = tmp_path / "aligned"
    answer = imgtool("align", faces, out, "--size", 64, "--image_format", "png", "--json")
    record = json.loads(answer.out)
    assert (answer.code, record["num_images"], record["size_px"]) == (0, 3, 64)
    assert sorted(path.name for path in out.iterdir()) == [
        "align_5p",
        "list_attr_celeba.txt",
        "list_eval_partition.txt",
        "list_landmarks_align_celeba.txt",
        "made.json",
    ]
    assert len(list((out / "align_5p").glob("*.png"))) == 3


def test_align_without_landmarks_is_one_clear_error(imgtool, tmp_path):
    answer = imgtool("align", tmp_path, tmp_path / "out")
    assert answer.code == 4
    error, hint = answer.err.splitlines()
    assert "no table of landmarks" in error
    assert "list_landmarks_align_celeba.txt" in hint
    assert not (tmp_path / "out").exists()


def test_align_finds_the_faces_of_photographs(imgtool, faces, tmp_path):
    root = tmp_path / "own"
    root.mkdir()
    with Image.open(faces / "img_align_celeba/000001.jpg") as face:
        pair = Image.new("RGB", (2 * face.width, face.height))
        pair.paste(face, (0, 0))
        pair.paste(face.resize((150, 184)), (face.width, 20))
        pair.save(root / "pair.png")
    Image.new("RGB", (64, 64)).save(root / "none.png")
    words = ("align", root, tmp_path / "out", "--detect")
    answer = imgtool(*words)
    assert (answer.code, (tmp_path / "out").exists()) == (4, False)
    assert "none.png: no face was found in it" in answer.err
    answer = imgtool(*words, "--skip-bad", "--json")
    record = json.loads(answer.out)
    assert (answer.code, record["num_images"], record["num_with_several_faces"]) == (0, 1, 1)
    assert "size_px" not in record
    assert "left out: none.png: no face" in answer.err
    assert "the largest was taken: 1 (pair.png: 2)" in answer.err
    assert (tmp_path / "out/img_align_celeba/pair.jpg").exists()


def test_a_number_of_a_face_is_of_faces_that_are_found(imgtool, faces, tmp_path):
    answer = imgtool("align", faces, tmp_path / "out", "--face", 2)
    assert (answer.code, answer.err.count("\n")) == (2, 2)
    assert "hint: add --detect" in answer.err
