"""imgtool eval edit: a judge and an editor that are trained here, on faces of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from commands.main import main
from imgtool.data.synthetic.make import make_faces

QUICK = ("--device", "cpu", "--threads", 1, "--num-workers", 0, "--max-iter", 2, "--quiet")


def run(*args):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, args)])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Sixty faces in CelebA's parts; a judge `judge`, one of another attribute, an editor `exp`."""
    folder = tmp_path_factory.mktemp("eval_edit")
    make_faces(folder / "faces", 60, seed=1)
    data = ("--data-root", folder / "faces", "--official-split")
    small = ("--tiny", "--max-images", 60, *data, *QUICK)
    for name, attributes in (
        ("judge", ("Smiling", "Male", "Bangs", "Wearing_Hat")),
        ("other", ("Bangs",)),
    ):
        words = ("--attributes", *attributes, "--exp-dir", folder / name)
        assert run("train", "attributes", *small, *words) == 0
    words = ("--img-sizes", 32, "--img-size", 32, "--base-channels", 8, "--critic-burst", 1)
    words += ("--batch-size", 2, *data, *QUICK, "--exp-dir", folder / "exp")
    assert run("train", "genegan", *words) == 0
    return folder


def judge(folder, *more):
    return run(
        "eval", "edit", folder / "exp", "--judge", folder / "judge", "--device", "cpu", *more
    )


def test_edits_are_judged_on_faces_that_nobody_has_seen(trained, tmp_path, capsys):
    capsys.readouterr()
    page = tmp_path / "page"
    more = ("--resamples", 100, "--out", tmp_path / "edit.json", "--report", page)
    more += ("--identity", trained / "other", "--json")
    assert judge(trained, *more) == 0
    told = capsys.readouterr()
    record = json.loads(told.out)
    assert json.loads((trained / "exp/edit.json").read_text()) == record
    assert json.loads((tmp_path / "edit.json").read_text()) == record
    split = json.loads((trained / "exp/split.json").read_text())
    held_out = len(split["val"]) + len(split["test"])
    assert (record["kind"], record["attribute"], record["num_steps"]) == ("edit", "Smiling", 5)
    assert record["num_held_out"] == held_out
    assert 0 < 2 * record["num_pairs"] <= held_out
    assert (record["num_seen_by_name"], record["num_seen_by_content"]) == (0, 0)
    assert record["background_region"] == "landmarks"
    assert "Wearing_Hat" in record["left_out"]
    assert "Wearing_Hat" not in record["others"]
    for name in record["metrics"]:
        if record[name] is not None and record["num_pairs"] > 1:
            assert record[f"{name}_low"] <= record[name] + 1e-9
            assert record[name] <= record[f"{name}_high"] + 1e-9
    for found in record["judge"]["attributes"]:
        if found["balanced_accuracy"] is not None:
            low, high = found["balanced_accuracy_low"], found["balanced_accuracy_high"]
            assert low <= found["balanced_accuracy"] <= high
    assert len(record["compared"]) == min(12, record["num_pairs"])
    labels = (trained / "faces/list_attr_celeba.txt").read_text()
    for one in record["compared"]:
        assert {one["Au"], one["B0"]} <= {*split["val"], *split["test"]}
        assert one["Au"] in labels
        with Image.open(trained / "exp" / one["file"]) as strip:
            assert strip.size == (6 * 32, 32)
    for name in ("success", "preservation", "identity", "strength_4", "background_l1"):
        assert record[name] is not None
    text = (page / "index.html").read_text()
    assert "best, median and worst" in text
    assert "faces in" in told.err


def test_faces_that_the_judge_has_seen_are_left_out(trained, tmp_path, capsys):
    knows = tmp_path / "knows"
    shutil.copytree(trained / "judge", knows, symlinks=True)
    split = json.loads((knows / "split.json").read_text())
    everything = [*split["train"], *split["val"], *split["test"]]
    (knows / "split.json").write_text(json.dumps({**split, "train": everything}))
    words = ("eval", "edit", trained / "exp", "--device", "cpu", "--judge")
    assert run(*words, knows) == 4
    assert "no pair of faces is left to judge" in capsys.readouterr().err
    (knows / "split.json").unlink()
    assert run(*words, knows) == 4
    assert "no split.json" in capsys.readouterr().err


def test_a_face_that_is_there_twice_is_known_by_its_content(trained, capsys):
    split = json.loads((trained / "exp/split.json").read_text())
    folder = trained / "faces/img_align_celeba"
    held_out, learnt = folder / split["val"][0], folder / split["train"][0]
    kept = learnt.read_bytes()
    try:
        shutil.copy(held_out, learnt)
        capsys.readouterr()
        assert judge(trained, "--resamples", 100, "--json") == 0
    finally:
        learnt.write_bytes(kept)
    record = json.loads(capsys.readouterr().out)
    assert record["contents_compared"]
    assert (record["num_seen_by_name"], record["num_seen_by_content"]) == (0, 1)


def test_one_that_cannot_be_judged_costs_no_other_its_record(trained, tmp_path, capsys):
    words = (trained / "judge", trained / "exp", "--judge", trained / "judge", "--device", "cpu")
    more = ("--resamples", 100, "--json", "--out", tmp_path / "edits.json")
    assert run("eval", "edit", *words, *more) == 2
    told = capsys.readouterr()
    record, error = map(json.loads, told.out.splitlines())
    assert (record["name"], error["kind"]) == ("genegan", "error")
    assert "edits no faces" in error["message"]
    assert json.loads((tmp_path / "edits.json").read_text()) == record


def test_what_was_measured_is_kept_where_its_folder_refuses(trained, tmp_path, capsys):
    for name in ("damaged", "refusing"):
        shutil.copytree(trained / "exp", tmp_path / name, symlinks=True)
    for path in (tmp_path / "damaged/checkpoints").iterdir():
        path.write_bytes(b"cut")
    (tmp_path / "refusing/edit.json").unlink(missing_ok=True)
    (tmp_path / "refusing/edit.json").mkdir()
    exp_dirs = (tmp_path / "damaged", tmp_path / "refusing", trained / "exp")
    words = (*exp_dirs, "--judge", trained / "judge", "--device", "cpu", "--n", 2)
    capsys.readouterr()
    assert run("eval", "edit", *words, "--resamples", 100, "--json") == 4
    first, second, error = map(json.loads, capsys.readouterr().out.splitlines())
    assert [Path(row["path"]).parents[1].name for row in (first, second)] == ["refusing", "exp"]
    assert "no valid checkpoint" in error["message"]


def test_a_sweep_is_judged_by_its_folder(trained, tmp_path, capsys):
    exp_dirs = [str(trained / name) for name in ("exp", "judge", "gone")]
    trials = [{"name": Path(path).name, "exp_dir": path} for path in exp_dirs]
    trials[1]["first"] = True  # trained for the others to be judged by
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": trials}))
    words = ("--judge", trained / "judge", "--device", "cpu", "--dry-run", "--quiet")
    assert run("eval", "edit", "--sweep", tmp_path, *words) == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == [exp_dirs[0]]
    assert "gone has no checkpoint" in told.err
    assert run("eval", "edit", trained / "exp", "--sweep", tmp_path, *words) == 2
    assert run("eval", "edit", *words) == 2


def test_wrong_use_is_told_in_one_line(trained, capsys):
    exp, right = trained / "exp", trained / "judge"
    cases = [
        ((exp, "--judge", trained / "other"), 2, "does not judge Smiling"),
        ((exp, "--judge", exp), 2, "of the family genegan"),
        ((right, "--judge", right), 2, "edits no faces"),
        ((exp, "--judge", right, "--identity", right), 2, "is the judge itself"),
        ((exp, "--judge", right, "--identity", "no.onnx"), 4, "no such file"),
        ((exp, "--judge", right, "--identity-sha256", "0"), 2, "without --identity"),
        ((exp, "--judge", "nowhere"), 4, "nowhere"),
    ]
    for words, code, text in cases:
        assert run("eval", "edit", *words, "--device", "cpu") == code
        assert text in capsys.readouterr().err
