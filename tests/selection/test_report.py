"""The report: one page that needs nothing else, whatever is missing or spoilt."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from imgtool.errors import UsageError
from imgtool.selection.records import Candidate, Evidence, Selection, Step, Verdict
from imgtool.selection.report import write_report

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.images, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def candidate(tmp_path, number, name=None, **metrics):
    name = name or f"p_AE_S{number}_ch{number}"
    exp_dir = tmp_path / f"exp{number}"
    (exp_dir / "samples").mkdir(parents=True, exist_ok=True)
    for index in (3, 7):
        pair = Image.new("RGB", (32, 16), (number * 9 % 255, 90, 200))
        pair.save(exp_dir / f"samples/val_{index:06d}.png")
    rows = "".join(json.dumps({"iteration": i, "loss": 1 / i}) + "\n" for i in range(1, 9))
    (exp_dir / "metrics.jsonl").write_text(rows)
    values = {"val_mse": 0.1 / number, "val_psnr": 10.0 + number, "latent_dims": 64.0 * number}
    run = Evidence(
        name=name,
        group=name,
        exp_dir=exp_dir,
        table_path=None,
        state="completed",
        epochs=[1, 2, 3],
        iterations=[10, 20, 30],
        curves={"val_mse": [0.5, float("nan"), 0.1 / number], "train_loss": [1.0, 0.5, 0.2]},
        metrics={**values, **metrics},
    )
    return Candidate(name=name, runs=[run], metrics=run.metrics)


def selection(candidates, **fields):
    verdicts = [
        Verdict(
            candidate=one,
            rank=number + 1 if number < 9 else None,
            is_eligible=number < 9,
            on_frontier=number < 3,
            reason=f"because of {number}",
            criteria={"mse": True, "psnr": None, "size": False},
        )
        for number, one in enumerate(candidates)
    ]
    known = {
        "rule": "efficiency",
        "description": "the smallest & best",
        "quality": "val_mse",
        "quality_mode": "min",
        "size": "latent_dims",
        "threshold": 0.05,
        "verdicts": verdicts,
        "steps": [Step(smaller="a", larger="b", gain=0.2, growth=4, is_worth_it=True)],
        "winner": verdicts[0] if verdicts else None,
        "reason": "it is the smallest",
        "phase": "phase_x",
    }
    return Selection(**{**known, **fields})


@pytest.mark.parametrize("count", [1, 2, 12, 40])
def test_a_page_that_needs_nothing_else(tmp_path, count):
    found = selection([candidate(tmp_path, n) for n in range(1, count + 1)])
    path = write_report(found, tmp_path / "report")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert len(page.images) >= 3
    for source in page.images:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            picture.verify()
    words = " ".join(page.words)
    for verdict in found.verdicts:
        assert verdict.candidate.name in text
        assert (verdict.reason in words) is (verdict is not found.winner)
    assert "it is the smallest" in words
    pictures = {file.stem for file in path.parent.glob("*.png")}
    assert {"quality", "curves", "reconstructions"} <= pictures


def test_reconstructions_are_those_that_all_have(tmp_path):
    both = [candidate(tmp_path, 1), candidate(tmp_path, 2)]
    (tmp_path / "exp2/samples/val_000003.png").unlink()
    folder = write_report(selection(both), tmp_path / "report").parent
    with Image.open(folder / "reconstructions.png") as sheet:
        assert sheet.width == 3 * 132  # the original and two experiments
        assert sheet.height == 34 + 132  # one image


def test_hostile_names_are_text(tmp_path):
    name = "<script>alert(1)</script>&"
    path = write_report(selection([candidate(tmp_path, 1, name)]), tmp_path / "report")
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert name in " ".join(Page(text).words)


@pytest.mark.parametrize("spoil", [b"", b"\x89PNG\r\n\x1a\nrest", b"no picture"])
def test_spoilt_files_are_left_out(tmp_path, spoil):
    one = candidate(tmp_path, 1)
    for file in (tmp_path / "exp1/samples").iterdir():
        file.write_bytes(spoil)
    (tmp_path / "exp1/latents.json").write_bytes(b"[" * 100_000)
    (tmp_path / "exp1/metrics.jsonl").write_bytes(spoil)
    folder = write_report(selection([one]), tmp_path / "report").parent
    assert not (folder / "reconstructions.png").exists()
    assert (folder / "quality.png").exists()


def test_latents_are_shown(tmp_path):
    both = [candidate(tmp_path, 1), candidate(tmp_path, 2)]
    document = {
        "midpoint_energy": 0.875,
        "channel_std": [0.5, 0.1, None, "x"],
        "kld_per_channel": [0.2, 0.1],
        "pca": [[0, 1], [2, 3], [4, 5]],
        "active_units": 2,
    }
    (tmp_path / "exp1/latents.json").write_text(json.dumps(document))
    Image.new("RGB", (90, 10), "red").save(tmp_path / "exp1/samples/interpolation_00.png")
    path = write_report(selection(both), tmp_path / "report")
    assert "0.875" in path.read_text()
    assert (path.parent / "latents.png").exists()
    assert (path.parent / "interpolations.png").exists()


def test_the_winner_s_test_values_stand_beside_its_validation(tmp_path):
    both = [candidate(tmp_path, 1), candidate(tmp_path, 2)]
    document = {"metrics": ["mse"], "mse": 0.0625, "mse_low": 0.05, "mse_high": None}
    path = write_report(selection(both), tmp_path / "report")
    assert "on the test set" not in path.read_text()
    (tmp_path / "exp1/test_metrics.json").write_text(json.dumps({**document, "num_images": 7}))
    text = write_report(selection(both), tmp_path / "report").read_text()
    assert "on the test set" in text
    for value in ("0.0625", "0.05", "7 test images"):
        assert value in text


def test_no_winner_and_no_numbers(tmp_path):
    one = candidate(tmp_path, 1)
    bare = Candidate(name="bare", runs=one.runs, metrics={})
    path = write_report(
        selection([bare], winner=None, reason="nothing passed"), tmp_path / "report"
    )
    assert "nothing passed" in re.sub(r"<[^>]+>", "", path.read_text())


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "report").write_text("mine")
    with pytest.raises(UsageError) as caught:
        write_report(selection([candidate(tmp_path, 1)]), tmp_path / "report")
    assert caught.value.hint
    assert (tmp_path / "report").read_text() == "mine"


def test_what_is_counted_has_whole_ticks():
    from imgtool.selection.style import new_figure, whole_ticks

    axes = new_figure(4, 3).add_subplot()
    axes.plot([1, 2], [0, 1])
    whole_ticks(axes)
    assert all(tick == int(tick) for tick in axes.get_xticks())
