"""The rule bd-rate: codecs at several lambdas, compared by their curves."""

import io
import json

import numpy as np
import pytest

from commands.main import main
from imgtool.config.load import load, to_yaml
from imgtool.models import registry

LAMBDAS = (0.0067, 0.013, 0.025, 0.05)
# Rate of each beside the first, and how far images scatter.
CODECS = {"plain": (1.0, 0.0), "same": (1.004, 0.02), "worse": (1.08, 0.02)}


@pytest.fixture
def trained(tmp_path):
    """Three codecs at four lambdas, as `train` leaves them, less their checkpoints."""
    for number, name in enumerate(CODECS):
        for lmbda in LAMBDAS:
            folder = tmp_path / f"{name}-{lmbda}"
            folder.mkdir()
            sets = [f"loss.lmbda={lmbda}", f"loss.delta={0.1 + number / 10}"]
            loaded = load(None, family="hpcm", schema_of=registry.schema, sets=sets)
            text = to_yaml(loaded).replace("name: hpcm", f"name: {name}", 1)
            (folder / "config.yaml").write_text(text)
            (folder / "status.json").write_text('{"state": "completed"}')
            table = f"iteration,val_rd_loss,val_mse\n1,{1 + lmbda},0.01\n"
            (folder / f"{name}_metrics.csv").write_text(table)
    return tmp_path


@pytest.fixture
def select(capsys, monkeypatch, trained):
    """select('--rule', 'best') -> exit code, records, stderr, and what was measured."""
    from imgtool.evaluation.rate_distortion import experiments
    from imgtool.evaluation.rate_distortion.compare import ImageCurves

    asked = {}

    def measured(studies, *, part, tell):
        """As `curves_of`, of codecs whose rates are known."""
        asked.update({study.name: study.seeds for study in studies}, part=part)
        draw = np.random.default_rng(0)
        images = tuple(f"{n}.png" for n in range(24))
        bits = np.linspace(0.1, 0.6, len(LAMBDAS))[:, None] * draw.uniform(0.8, 1.2, 24)
        quality = 30 + 5 * np.log2(bits / 0.1)
        curves = {}
        for study in studies:
            factor, spread = CODECS[study.name]
            own = bits * factor * np.exp(draw.normal(0, spread, 24))
            curves[study.name] = [ImageCurves(study.name, images, own, quality, LAMBDAS)]
        return curves

    monkeypatch.setattr(experiments, "curves_of", measured)
    monkeypatch.delenv("IMGTOOL_FORMAT", raising=False)

    def run(*words):
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        with pytest.raises(SystemExit) as caught:
            main(["select-winner", str(trained), *words])
        out, err = capsys.readouterr()
        return int(caught.value.code), list(map(json.loads, out.splitlines())), err, asked

    return run


def test_curves_are_compared_where_lambdas_vary(trained, select):
    code, (winner, *ranking), err, asked = select()
    assert code == 0
    assert "rule: bd-rate (4 lambdas, 0.0067 to 0.05)" in err
    assert asked["part"] == "val"
    assert asked["plain"] == {42: {x: trained / f"plain-{x}" for x in LAMBDAS}}
    assert (winner["name"], winner["ties"], winner["num_seeds"]) == ("plain", ["same"], 1)
    assert "worse is worse" in winner["reason"]
    rates = {row["name"]: row["metrics"]["bd_rate_percent"] for row in ranking}
    assert rates["plain"] == 0
    assert rates["worse"] == pytest.approx(8, abs=1)
    low, high = next(row["interval"] for row in ranking if row["name"] == "worse")
    assert 5 < low < 8 < high < 11
    assert "% more bits" in ranking[-1]["reason"]
    assert "one seed of" in err


def test_the_test_set_is_read_where_it_is_said(select):
    assert select("--split", "test")[3]["part"] == "test"
    code, _, err, _ = select("--rule", "best", "--set", "metric=val_mse", "--split", "test")
    assert code == 2
    assert "measures nothing" in err


def test_a_curve_that_lost_a_training_is_rejected_and_not_measured(trained, select):
    (trained / "plain-0.05" / "status.json").write_text('{"state": "diverged"}')
    _, (winner, *ranking), _, asked = select()
    assert winner["name"] == "same"
    assert set(asked) == {"same", "worse", "part"}
    assert (
        ranking[-1]["reason"].startswith("diverged") or "1 of 4 diverged" in ranking[-1]["reason"]
    )


def test_what_each_lambda_weighs_is_not_compared(select):
    code, _, err, _ = select("--rule", "best")
    assert code == 2
    assert "--rule bd-rate" in err


def test_one_curve_has_nobody_to_be_compared_with(trained, select):
    for path in [*trained.glob("same-*"), *trained.glob("worse-*")]:
        (path / "status.json").write_text('{"state": "failed"}')
    code, _, err, _ = select()
    assert code == 1
    assert "imgtool eval rd" in err
