"""Autoencoders judged by what probes generate from their latents."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from imgtool.errors import NoAnswer, UsageError
from imgtool.selection.correlation import correlations, told
from imgtool.selection.gather import read_evidence
from imgtool.selection.generation import of_autoencoders
from imgtool.selection.report import write_report
from imgtool.selection.rule_file import load_rule
from imgtool.selection.rules import select, warnings
from imgtool.selection.sources import find_sources

from .making import run

DIMS = {"small": 64, "middle": 256, "large": 1024}


def experiment(root, name, dims, mse):
    """An autoencoder that has been trained."""
    folder = root / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/best.safetensors").write_bytes(b"")
    (folder / "config.yaml").write_text(f"name: {name}\nfamily: autoencoder\n")
    (folder / f"{name}_metrics.csv").write_text(f"epoch,iteration,val_mse\n1,10,{mse}\n")
    facts = {"latent_dims": dims, "latent_shape": [1, 1, dims]}
    status = {"state": "completed", "facts": facts, "best": {"metric": "val_mse", "iteration": 10}}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "latents.json").write_text(json.dumps({"midpoint_energy": mse * 3}))
    return folder


def probe(name, autoencoder, seed, fid=None, *, state="completed", group=None, **more):
    facts = {
        "autoencoder": {
            "path": str(autoencoder / "checkpoints/best.safetensors"),
            "hash": f"{autoencoder.name:x>16}",
            "name": autoencoder.name,
        },
        **more,
    }
    return run(name, None, seed=seed, group=group or f"probe {autoencoder.name}", facts=facts,
                state=state, **({} if fid is None else {"fid": fid, "fid_se": 0.1}))  # fmt: skip


def nothing(_):
    return None


@pytest.fixture
def study(tmp_path):
    """Three autoencoders, the probes of two seeds each, and how to read the former."""
    folders = {name: experiment(tmp_path, name, dims, 1 / dims) for name, dims in DIMS.items()}
    fids = {"small": (20.3, 19.9), "middle": (20.0, 19.8), "large": (31.0, 30.2)}
    probes = [
        probe(f"p{seed}", folders[name], seed, fid)
        for name, pair in fids.items()
        for seed, fid in enumerate(pair)
    ]

    def read(folder):
        return read_evidence(find_sources([str(folder)]), load_rule("best"))[0]

    return probes, read, folders


def test_within_the_noise_the_smaller_latent_wins(study):
    probes, read, folders = study
    found = select(of_autoencoders(probes, read), load_rule("generation"))
    assert [v.candidate.name for v in found.verdicts] == ["small", "middle", "large"]
    assert list(found.ties) == ["middle"]  # which has the lower mean
    assert "small has the lower latent_dims, which decided" in found.reason
    winner = found.winner.candidate
    assert winner.metrics["gfid"] == pytest.approx(20.1)
    assert winner.metrics["val_mse"] == pytest.approx(1 / 64)
    assert winner.metrics["midpoint_energy"] == pytest.approx(3 / 64)
    assert winner.num_seeds == 2
    assert winner.runs[0].exp_dir == folders["small"]
    assert winner.runs[0].checkpoint == folders["small"] / "checkpoints/best.safetensors"


def test_features_of_chance_are_no_judge(study):
    probes, read, _ = study
    for one in probes:
        one.facts["fid_measure"] = {"weights": "random"}
    rule = load_rule("generation")
    found = select(of_autoencoders(probes, read), rule)
    assert any("no judge" in line for line in warnings(found, rule))
    for one in probes:
        one.facts["fid_measure"] = {"weights": "f58cb9b6"}
    found = select(of_autoencoders(probes, read), rule)
    assert not any("no judge" in line for line in warnings(found, rule))


def test_a_gap_beyond_the_noise_decides(study):
    probes, read, folders = study
    rest = [one for one in probes if one.facts["autoencoder"]["name"] != "middle"]
    sharp = [probe(f"q{s}", folders["middle"], s, 15 + s / 10) for s in (0, 1)]
    found = select(of_autoencoders([*rest, *sharp], read), load_rule("generation"))
    assert found.winner.candidate.name == "middle"
    assert list(found.ties) == []


def test_a_probe_that_is_not_measured_is_a_lost_seed(study):
    probes, read, folders = study
    found = select(
        of_autoencoders([*probes, probe("late", folders["small"], 2, state="running")], read),
        load_rule("generation"),
    )
    assert found.winner.candidate.name == "middle"
    (out,) = [v for v in found.verdicts if v.candidate.name == "small"]
    assert "1 of 3 unfinished" in out.reason


def test_an_autoencoder_that_is_gone_keeps_its_judgement(tmp_path):
    probes = [probe(f"p{s}", tmp_path / "gone", s, 5.0 + s) for s in (0, 1)]
    (one, _) = of_autoencoders(probes, nothing)
    assert (one.name, one.exp_dir, one.checkpoint) == ("gone", None, None)
    assert one.metrics["gfid"] == 5.0


def test_autoencoders_of_one_name_are_told_apart(tmp_path):
    probes = [probe("a", tmp_path / "x/S1", 0, 5.0), probe("b", tmp_path / "y/S1", 0, 6.0)]
    probes[1].facts["autoencoder"]["hash"] = "f" * 16
    names = {one.group for one in of_autoencoders(probes, nothing)}
    assert len(names) == 2
    assert all(name.startswith("S1-") for name in names)


def test_what_cannot_be_ranked_together_is_refused(tmp_path):
    with pytest.raises(NoAnswer, match="no experiment was trained on"):
        of_autoencoders([run("A", 0.1, 64)], nothing)
    a, b = (probe(n, tmp_path / n, 0, 5.0) for n in "ab")
    a, b = (_with(one, {"train.max_iter": n, "train.seed": n}) for one, n in ((a, 100), (b, 200)))
    with pytest.raises(UsageError, match="max_iter is 100 in a and 200 in b"):
        of_autoencoders([a, b], nothing)


def _with(one, config):
    from dataclasses import replace

    return replace(one, config=config)


# --- rank correlations ------------------------------------------------------------------------


def judged(rows):
    return select([run(n, mse, d, gfid=g, **more) for n, mse, d, g, more in rows],
                  load_rule("generation"))  # fmt: skip


def test_rank_correlations_are_those_of_scipy_and_point_the_same_way():
    rng = np.random.default_rng(3)
    g, mse, ssim = rng.random((3, 6))
    found = judged(
        [
            (f"S{i}", mse[i], 64.0, g[i], {"val_ms_ssim": ssim[i], "val_loss": mse[i]})
            for i in range(6)
        ]
    )
    known = {one.measure: one for one in correlations(found)}
    assert set(known) == {"val_mse", "val_ms_ssim"}  # one size tells nothing, a loss is none
    for name, values in (("val_mse", mse), ("val_ms_ssim", -ssim)):
        tau = stats.kendalltau(values, g)  # exact, as there are no ties
        assert known[name].kendall == pytest.approx(tau.statistic)
        assert known[name].p == pytest.approx(tau.pvalue)
        assert known[name].spearman == pytest.approx(stats.spearmanr(values, g).statistic)
        low, high = known[name].interval
        assert low < known[name].spearman < high


def test_four_points_say_little():
    found = judged([(f"S{i}", float(i + 1), 2.0**i, i + 5.0, {}) for i in range(4)])
    rows = correlations(found)
    assert {one.measure for one in rows} == {"val_mse", "latent_dims"}
    assert all((one.kendall, one.interval) == (1.0, None) for one in rows)
    assert all(one.p == pytest.approx(2 / 24) for one in rows)
    assert "n = 4" in told(rows)
    assert "it says little" in told(rows)
    assert correlations(judged([("A", 1.0, 2.0, 3.0, {}), ("B", 2.0, 3.0, 4.0, {})])) == []


def test_a_perfect_order_of_five_is_not_certain():
    found = judged([(f"S{i}", float(i + 1), 64.0, i + 5.0, {}) for i in range(5)])
    (one,) = correlations(found)
    low, high = one.interval
    assert low < 0.5 < high < 1


def test_the_report_shows_reconstruction_against_generation(tmp_path):
    rows = [(f"S{i}", 0.1 / (i + 1), 64.0 * 2**i, i + 5.0, {"gfid_floor": 2.0}) for i in range(5)]
    text = Path(write_report(judged(rows), tmp_path)).read_text()
    assert "Reconstruction against generation against size" in text
    assert "Which cheap measure ranks as generation does" in text
    assert "says little" in text
    assert (tmp_path / "generation.png").stat().st_size > 10_000
    plain = write_report(
        select([run("A", 0.1, 64), run("B", 0.2, 32)], load_rule("best")), tmp_path / "p"
    )
    assert "generation" not in plain.read_text()
