"""Which trainings are one experiment, and the BD-rates of a study from its folder to a record."""

from __future__ import annotations

import json

import pytest

from commands.main import main
from imgtool.config.load import load, to_yaml
from imgtool.data.synthetic.make import make_photos
from imgtool.errors import UsageError
from imgtool.evaluation.rate_distortion import experiments
from imgtool.evaluation.rate_distortion.anchors import Anchor
from imgtool.evaluation.rate_distortion.experiments import curves_of, group
from imgtool.models.registry import schema

LMBDAS = (0.0067, 0.013, 0.025, 0.05)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    make_photos(folder / "set", 6, size=64, seed=2)
    return folder / "set"


@pytest.fixture
def directory(tmp_path, photos):
    """directory(name, *sets): an exp_dir with its config and a file that stands for weights."""

    def make(name, *sets):
        path = tmp_path / "study" / name
        (path / "checkpoints").mkdir(parents=True)
        (path / "checkpoints/iter_000001.safetensors").write_bytes(b"")
        given = [f"data.root={photos}", "data.val_fraction=0.5", f"name={name}", *sets]
        loaded = load("hpcm/tiny", family=None, schema_of=schema, sets=given)
        (path / "config.yaml").write_text(to_yaml(loaded))
        return path

    return make


@pytest.fixture
def study(directory):
    """A baseline and a regularised codec at four lambdas, with two seeds of the latter."""
    made = [directory(f"base-{n:08x}", f"loss.lmbda={lmbda}") for n, lmbda in enumerate(LMBDAS)]
    for seed in (0, 1):
        for n, lmbda in enumerate(LMBDAS):
            sets = (f"loss.lmbda={lmbda}", "loss.phase2_reg=true", f"train.seed={seed}")
            made.append(directory(f"phase2-{seed}{n:07x}", *sets))
    return made


class Jpeg:
    def __init__(self, label, coder):
        self.label, self.facts, self.coder = label, {}, coder

    def __call__(self, image):
        return self.coder(image)


@pytest.fixture
def as_jpeg(monkeypatch):
    """Every checkpoint codes as JPEG; the regularised ones in bright colours (4:4:4)."""

    def open_coder(source, *, real_bytes, device):
        config = load(f"{source}/config.yaml", family=None, schema_of=schema).experiment
        quality = 20 + 20 * LMBDAS.index(config.loss.lmbda)
        chroma = "4:4:4" if config.loss.phase2_reg else "4:2:0"
        return Jpeg(source, Anchor("jpeg", quality + config.train.seed % 2, chroma))

    monkeypatch.setattr(experiments, "open_coder", open_coder)


def test_what_differs_in_lambda_and_seed_alone_is_one_experiment(study, directory):
    base, phase2 = group(study)
    assert (base.name, phase2.name) == ("base", "phase2")
    assert {seed: sorted(points) for seed, points in base.seeds.items()} == {42: sorted(LMBDAS)}
    assert sorted(phase2.seeds) == [0, 1]
    named = [directory(f"hpcm_lambda_{lmbda}", f"loss.lmbda={lmbda}") for lmbda in LMBDAS]
    (one,) = group(named)
    assert one.name == "hpcm_lambda"
    with pytest.raises(UsageError, match="are the same experiment"):
        group([*study, named[0]])


def test_a_ladder_is_a_curve_with_its_top(directory):
    def ladder(seed, *sets):
        above, made = None, []
        for n, lmbda in enumerate(reversed(LMBDAS)):
            begins = (
                [f"model.init_ckpt=root/{above.name}/checkpoints/best.safetensors"] if n else []
            )
            name = f"tiny-{seed}{n}{len(sets)}{0:05x}"
            above = directory(name, f"loss.lmbda={lmbda}", f"train.seed={seed}", *begins, *sets)
            made.append(above)
        return made

    steps = [ladder(seed) for seed in (0, 1)]
    (one,) = group([*steps[0], *steps[1]])
    assert one.name == "tiny-ladder"
    assert {seed: sorted(points) for seed, points in one.seeds.items()} == {
        0: sorted(LMBDAS), 1: sorted(LMBDAS),
    }  # fmt: skip
    alone = [
        directory(f"tiny-{seed}{n}f{0:05x}", f"loss.lmbda={lmbda}", f"train.seed={seed}")
        for seed in (0, 1)
        for n, lmbda in enumerate(LMBDAS[:-1])
    ]
    found = {one.name: one.seeds for one in group([*alone, *steps[0], *steps[1]])}
    assert sorted(found) == ["tiny", "tiny-ladder"]
    for seed in (0, 1):
        assert sorted(found["tiny"][seed]) == sorted(found["tiny-ladder"][seed]) == sorted(LMBDAS)
        top = steps[seed][0]
        assert found["tiny"][seed][LMBDAS[-1]] == found["tiny-ladder"][seed][LMBDAS[-1]] == top
    other = ladder(2, "loss.distortion=ms-ssim")
    assert len(group([*steps[0], *other])) == 2
    (outside,) = group([directory("x", "model.init_ckpt=elsewhere/a/checkpoints/best.safetensors")])
    assert outside.name == "x"


def test_curves_are_of_the_images_that_were_held_out(study, as_jpeg, photos):
    told = []
    found = curves_of(group(study), tell=lambda done, total: told.append((done, total)))
    assert {name: len(seeds) for name, seeds in found.items()} == {"base": 1, "phase2": 2}
    (base,) = found["base"]
    assert base.lmbdas == LMBDAS
    assert base.bpp.shape == (4, 3)
    assert (base.bpp[1:] > base.bpp[:-1]).all()
    assert told[-1] == (12 * 3, 12 * 3)
    everything = curves_of(group(study)[:1], data=str(photos))
    assert set(base.images) < set(everything["base"][0].images)


def run(*words):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words)])
    return int(caught.value.code or 0)


def test_the_command_ends_in_bd_rates_with_intervals(study, as_jpeg, tmp_path, capsys):
    words = ("eval", "bd-rate", "--sweep", tmp_path / "study")
    assert run(*words, "--anchor", "base", "--plot", tmp_path / "rd.png", "--json") == 0
    said = capsys.readouterr()
    (row,) = map(json.loads, said.out.splitlines())
    assert (row["kind"], row["name"], row["anchor"]) == ("bd-rate", "phase2", "base")
    assert row["low_percent"] < row["bd_rate_percent"] < row["high_percent"]
    assert row["curve_bd_rate_percent"] == pytest.approx(row["bd_rate_percent"], abs=10)
    assert (row["num_images"], row["num_seeds"], row["num_anchor_seeds"]) == (3, 2, 1)
    assert "one seed of base" in said.err
    assert (tmp_path / "rd.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--anchor", "bass"), 2, "did you mean 'base'"),
        (("--split", "test"), 4, "has no test images"),
        (("hpcm-base",), 2, "--sweep and curves are apart"),
        (("--metric", "ms-ssim"), 2, "compares by PSNR"),
    ],
)
def test_wrong_uses(words, code, said, study, as_jpeg, tmp_path, capsys):
    assert run("eval", "bd-rate", "--sweep", tmp_path / "study", *words) == code
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_hpcm_phases_from_sweep_to_bd_rate(tmp_path, monkeypatch, capfd):
    """One command trains sixteen codecs and ends in BD-rates of the phases."""
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos", 12, size=96, seed=0)
    sets = ("data.root=photos", "data.val_fraction=0.34", "train.device=cpu", "train.threads=1")
    words = [word for one in sets for word in ("--set", one)]
    assert run("sweep", "hpcm_phases", "--tiny", *words, "--slots", 2, "--json") == 0
    said = capfd.readouterr().err
    rows = [json.loads(line) for line in said.splitlines() if '"kind": "bd-rate"' in line]
    assert {row["name"] for row in rows} == {
        f"hpcm_phases_{name}" for name in ("phase1", "phase2", "both")
    }
    for row in rows:
        assert row["anchor"] == "hpcm_phases_baseline"
        assert row["low_percent"] <= row["bd_rate_percent"] <= row["high_percent"]
