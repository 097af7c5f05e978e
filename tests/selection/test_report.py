"""The report: one page that needs nothing else, whatever is missing or spoilt."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from imgtool.errors import UsageError
from imgtool.selection.numbers import number
from imgtool.selection.page import LATENTS as LATENT_KEYS
from imgtool.selection.records import Candidate, Certainty, Evidence, Selection, Step, Verdict
from imgtool.selection.report import write_report
from imgtool.selection.style import Style

VOID = {"meta", "img", "br", "wbr"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LONG = "phase_" + "a_very_long_name" * 12 + "-" + "w" * 40
STRANGE = ["$\\alpha_{$x", "日本語の実験", LONG, LONG + "2", "a$b$c\\", "two\nlines", "\udcff", "$"]


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
    assert f"as {min(count, 3)} experiments are" in words or count == 1
    assert words.count("●") == min(count, 3) + 1  # and in the legend
    assert "it is the smallest" in words
    pictures = {file.stem for file in path.parent.glob("*.png")}
    assert {"quality", "curves", "reconstructions"} <= pictures


def test_reconstructions_are_those_that_all_have(tmp_path):
    both = [candidate(tmp_path, 1), candidate(tmp_path, 2)]
    (tmp_path / "exp2/samples/val_000003.png").unlink()
    folder = write_report(selection(both), tmp_path / "report").parent
    with Image.open(folder / "reconstructions.png") as sheet:
        assert sheet.width == 3 * 148  # the original and two experiments
        assert sheet.height == 36 + 148  # one image


def test_hostile_names_are_text(tmp_path):
    name = "<script>alert(1)</script>&"
    path = write_report(selection([candidate(tmp_path, 1, name)]), tmp_path / "report")
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert name in "".join(Page(text).words)


def strange(tmp_path):
    """Names that figures and tables find hard, with noise and long reasons."""
    ones = [candidate(tmp_path, n, name) for n, name in enumerate(STRANGE, 1)]
    for one in ones:
        one.runs[0].metrics.update(
            num_parameters=1.2e6, macs_per_image=4.45e7, peak_memory_bytes=3.2e9, images_per_sec=99.0,
            midpoint_energy=0.5, end_energy=0.5, path_length=0.1, active_units=3.0, stability=0.1,
            convergence_epochs=3.0, val_highpass_psnr=20.0, val_seg_boundary_miou=0.5, fid=9.0,
        )  # fmt: skip
        spread = dict.fromkeys(one.metrics, 0.00012345)
        (one.runs[0].exp_dir / "latents.json").write_text(
            json.dumps(dict.fromkeys(LATENT_KEYS, 0.12345) | {"channel_std": [1, 2]})
        )
        object.__setattr__(one, "deviations", spread)
    found = selection(ones)
    verdicts = [
        replace(v, interval=(0.012345, 0.023456), share=0.25, reason=f"worse than {LONG}")
        for v in found.verdicts
    ]
    return replace(found, verdicts=verdicts, winner=verdicts[0], phase=LONG, reason=LONG)


@pytest.fixture(scope="module")
def strange_report(tmp_path_factory):
    """(selection, page), drawn without a warning of letters that no font has."""
    folder = tmp_path_factory.mktemp("strange")
    found = strange(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return found, write_report(found, folder / "report")


def test_names_that_figures_cannot_draw_as_they_are(strange_report):
    found, path = strange_report
    words = "".join(Page(path.read_text(encoding="utf-8")).words)
    for name in STRANGE:
        assert name.encode("utf-8", "replace").decode() in words
    labels = Style(found).labels
    assert len(set(labels.values())) == len(STRANGE)
    assert labels[STRANGE[0]] == STRANGE[0]
    assert all(len(label) <= 28 for label in labels.values())
    assert "44.5 M MACs" in words
    assert "3.2\u00a0GB" in words


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")
@pytest.mark.parametrize("width", [1200, 800])
def test_nothing_overflows_in_a_browser(strange_report, tmp_path, width):
    _, path = strange_report
    script = """<script>
      const wide = [...document.querySelectorAll("body *")].filter(e =>
        e.getBoundingClientRect().right > innerWidth - 8 || e.scrollWidth > e.clientWidth + 1
          && getComputedStyle(e).display !== "inline");
      const flat = [...document.querySelectorAll("tr.why td:last-child")].filter(e =>
        e.getBoundingClientRect().height < e.firstChild.getBoundingClientRect().height);
      document.title = JSON.stringify({
        width: innerWidth, page: document.documentElement.scrollWidth,
        wide: wide.map(e => e.outerHTML.slice(0, 80)), flat: flat.length,
        images: [...document.images].map(e => e.complete && e.naturalWidth > 0)});
    </script>"""
    page = path.with_name("probe.html")
    page.write_text(path.read_text(encoding="utf-8").replace("</body>", script + "</body>"))
    answer = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={tmp_path / 'browser'}", f"--window-size={width},900",
         "--hide-scrollbars", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    told = re.search(r"<title>(.*?)</title>", answer.stdout, re.DOTALL)
    assert told, answer.stderr
    found = json.loads(html.unescape(told[1]))
    assert found["width"] == width
    assert found["wide"] == []
    assert found["page"] <= width
    assert found["flat"] == 0
    assert found["images"]
    assert all(found["images"])


def test_paths_are_told_from_the_report(tmp_path):
    both = [candidate(tmp_path, n) for n in (1, 2)]
    commands = [f"imgtool sweep {one.runs[0].exp_dir}/config.yaml" for one in both]
    known = Certainty(source=None, commands=commands)
    path = write_report(selection(both, certainty=known), tmp_path / "a" / "report")
    text = path.read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    (told,) = re.findall(r'<a href="([^"]*)"', text)
    assert (path.parent / told).resolve() == (tmp_path / "exp1").resolve()
    assert "imgtool sweep ../../exp1/config.yaml" in text


def test_curves_of_validation_are_what_the_caption_says(tmp_path):
    ones = [candidate(tmp_path, n) for n in (1, 2)]
    path = write_report(selection(ones), tmp_path / "report")
    assert "Val MSE and training loss, by iteration" in path.read_text(encoding="utf-8")
    for one in ones:
        one.runs[0].curves["val_rd_loss"] = [3.0, 2.0, 1.0]
    path = write_report(selection(ones, quality="val_rd_loss"), tmp_path / "report")
    assert "Val RD loss, val MSE and training loss, by" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "metric", "told"),
    [
        (44_500_000, "macs_per_image", "44.5 M"),
        (16384, "latent_dims", "16,384"),
        (999_999, "num_parameters", "1 M"),
        (9999, "num_parameters", "9,999"),
        (12_345, "num_parameters", "12.3 k"),
        (-25_000, "", "-25 k"),
        (0.0123449, "val_mse", "0.01234"),
        (3.2e9, "peak_memory_bytes", "3.2 GB"),
    ],
)
def test_numbers_are_short(value, metric, told):
    assert number(value, metric) == told


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
        "spectrum_slope": -1.875,
        "spectrum_slope_se": 0.0625,
        "spectrum_frequencies": [0.1, 0.2, 0.4],
        "spectrum_power": [9.0, 2.0, None],
        "picture_spectrum_power": [9.0, 1.0, 0.5],
        "active_units": 2,
    }
    (tmp_path / "exp1/latents.json").write_text(json.dumps(document))
    Image.new("RGB", (90, 10), "red").save(tmp_path / "exp1/samples/interpolation_00.png")
    path = write_report(selection(both), tmp_path / "report")
    assert "0.875" in path.read_text()
    assert "-1.875 ±\xa00.062" in path.read_text()
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

    axes = new_figure(3).add_subplot()
    axes.plot([1, 2], [0, 1])
    whole_ticks(axes)
    assert all(tick == int(tick) for tick in axes.get_xticks())
