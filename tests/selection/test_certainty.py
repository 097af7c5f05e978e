"""How sure a choice is: ties, preferences between equals, shares, and what would decide."""

import math

import numpy as np
import pytest

from imgtool.selection import comparisons
from imgtool.selection.certainty import doubts
from imgtool.selection.noise import Sample, measure
from imgtool.selection.rule_file import load_rule
from imgtool.selection.rules import select
from tests.selection.making import run, winner

# Phase 1.1 as ImgiNav published it (outputs/phase1_1_latent_shape_sweep, analysis_summary.txt):
# channels, side of the latent, validation mse.
PUBLISHED = {
    "S1": (16, 32, 0.001101), "S2": (8, 64, 0.000978), "S3": (4, 64, 0.001175),
    "S4": (8, 32, 0.001591), "S5": (16, 16, 0.002469), "S6": (32, 32, 0.000950),
    "S7": (4, 32, 0.002618), "S8": (8, 16, 0.004035), "S9": (16, 64, 0.000838),
    "S10": (2, 64, 0.001669), "S11": (8, 8, 0.009273), "S12": (4, 128, 0.000804),
}  # fmt: skip


def seeds(name, values, dims=None, **more):
    return [
        run(f"{name}-{seed}", value, dims, group=name, seed=seed, **more)
        for seed, value in enumerate(values)
    ]


def published(spread, num_seeds=3):
    """The phase with seeds that lie `spread` apart around what was published."""
    for number, (name, (channels, side, mse)) in enumerate(PUBLISHED.items()):
        steps = [(seed + number) % num_seeds - (num_seeds - 1) / 2 for seed in range(num_seeds)]
        values = [mse * math.exp(spread * step) for step in steps]
        shape = {"latent_shape": [channels, side, side]}
        more = {"facts": shape, "latent_positions": side * side}
        yield from seeds(name, values, channels * side * side, **more)


def test_the_published_phase_keeps_its_winner():
    found = select(published(0.0, 1), load_rule("efficiency"))
    assert found.winner.candidate.name == "S1"
    assert found.certainty.source is None
    assert doubts(found) == ["nothing is known of the noise: --grid train.seed=0,1,2"]


def test_between_equals_of_one_size_the_finer_grid_is_preferred():
    found = select(published(0.06), load_rule("efficiency"))
    assert found.winner.candidate.name == "S3"
    assert list(found.ties) == ["S1"]
    assert "S3 has the higher spatial resolution, 64 x 64 against 32 x 32" in found.reason
    assert winner(published(0.06), "efficiency", "prefer=null") == "S1"
    # Where the difference is more than noise, the error decides.
    assert winner(published(0.005), "efficiency") == "S1"


def test_every_resample_is_a_choice_of_the_whole_rule():
    found = select(published(0.1), load_rule("efficiency"))
    shares = {v.candidate.name: v.share for v in found.verdicts}
    assert sum(shares.values()) == pytest.approx(1)
    assert found.winner.share == shares[found.winner.candidate.name] > 0.3
    # Who was outside of the threshold as seen may be inside in a rerun, and smaller.
    assert shares["S4"] > 0
    assert set(found.certainty.rivals) >= {name for name, s in shares.items() if s >= 0.05} - {
        found.winner.candidate.name
    }
    assert select(published(0.1), load_rule("efficiency")) == found


def test_more_seeds_would_decide_and_which_command_runs_them():
    facts = {"sweep": "preset phase1_1", "overrides": {}}
    rows = seeds("S1", [1.0, 1.04, 0.98], facts={**facts, "origin": "phase1_1/S1"})
    rows += seeds("S2", [1.05, 1.0, 1.06], facts={**facts, "origin": "phase1_1/S2"})
    rows += seeds("S3", [2.0, 2.04, 1.97], facts={**facts, "origin": "phase1_1/S3"})
    found = select(rows, load_rule("best"))
    assert list(found.ties) == ["S2"]
    assert found.certainty.more_seeds > 0
    more = ",".join(str(3 + i) for i in range(found.certainty.more_seeds))
    (command,) = found.certainty.commands
    assert command == f"imgtool sweep phase1_1 --only S1,S2 --grid train.seed={more}"
    assert any("would decide" in line and command in line for line in doubts(found))


def test_an_assumed_noise_serves_where_nothing_was_repeated():
    rows = [run("a", 1.0), run("b", 1.01), run("c", 1.5)]
    assert list(select(rows, load_rule("best")).ties) == []
    found = select(rows, load_rule("best", ["assumed_noise=0.02"]))
    assert (list(found.ties), found.certainty.source) == (["b"], "assumed")
    assert found.verdicts[0].interval[0] < 1.0 < found.verdicts[0].interval[1]


def test_fids_within_their_standard_errors_tie():
    def measured(name, fid, error):
        more = {"fid": fid, "fid_se": error, "num_images": 5000}
        return run(name, None, **more)

    rows = [measured("a", 16.21, 0.4), measured("b", 16.25, 0.4), measured("c", 19.0, 0.4)]
    found = select(rows, load_rule("fid"))
    assert (found.winner.candidate.name, list(found.ties)) == ("a", ["b"])
    assert found.certainty.source == "measurement"
    sharp = [measured("a", 16.21, 0.01), measured("b", 16.25, 0.01)]
    assert list(select(sharp, load_rule("fid")).ties) == []


def test_criteria_can_be_a_gate():
    rows = [run("a", 0.02, 8, val_psnr=31.0), run("b", 0.009, 32, val_psnr=31.0)]
    rows += [run("c", 0.009, 16, val_psnr=29.0)]
    sets = ["threshold=null", "frontier=false"]
    assert winner(rows, "efficiency", *sets) == "a"
    found = select(rows, load_rule("efficiency", [*sets, "criteria=[mse, psnr]"]))
    assert found.winner.candidate.name == "b"
    reasons = {v.candidate.name: v.reason for v in found.verdicts}
    assert reasons["a"] == "does not meet the criterion val_mse < 0.01"
    assert reasons["c"] == "does not meet the criterion val_psnr > 30 dB"
    assert winner(rows, "efficiency", *sets, "criteria=gate") is None  # stability is not known
    assert winner(rows, "efficiency", *sets, "criteria=gate", "missing=use") == "b"


def test_a_vae_that_interpolates_better_by_noise_alone_is_no_winner():
    def pair(smooth):
        shape = {"facts": {"latent_shape": [8, 4, 4]}}
        vae = {"val_kld": 1.0, "val_active_units": 8.0, **shape}
        for name, more, values in (("V1", {}, (0.70, 0.74, 0.69)), ("V2", vae, smooth)):
            for seed, value in enumerate(values):
                yield run(
                    f"{name}-{seed}", 0.01 + 1e-4 * seed, group=name, seed=seed,
                    midpoint_energy=value, **more,
                )  # fmt: skip

    assert winner(pair((0.90, 0.92, 0.88)), "vae-test") == "V2"
    found = select(pair((0.72, 0.75, 0.70)), load_rule("vae-test"))
    assert found.winner.candidate.name == "V1"
    assert "by the noise" in found.reason


def test_of_many_experiments_of_unequal_noise_a_best_one_is_seldom_ruled_out(monkeypatch):
    """By Bonferroni's bounds, 8 equal experiments of 3 seeds, half of them four times as noisy."""
    from imgtool.selection import comparisons
    from imgtool.selection.noise import Noise, Sample

    monkeypatch.setattr(comparisons, "MOST_SIMULATED", 0)
    draw, stds = np.random.default_rng(1), np.array([1.0, 4.0] * 4)
    missed = 0
    for _ in range(400):
        rows = draw.normal(size=(8, 3)) * stds[:, None]
        own = {f"e{i}": (float(row.var(ddof=1)), 2.0) for i, row in enumerate(rows)}
        noise = Noise(std=1.0, dof=16, source="repeats", own=own)
        samples = [
            Sample(name=name, values=dict(enumerate(row.tolist())))
            for name, row in zip(own, rows, strict=True)
        ]
        means = rows.mean(1)
        missed += bool((means - means[0] > comparisons.reaches(samples, noise)[0]).any())
    assert missed / 400 < 0.07


def test_noise_of_orders_of_magnitude_is_no_fault():
    """Two seeds each, some a thousandfold apart: reruns of it leave what a float can hold."""
    samples = [
        Sample(name=name, values={0: 1.0e-2 * scale, 1: 3.0e1 * scale})
        for name, scale in (("a", 1.0), ("b", 1.1), ("c", 0.9))
    ]
    noise = measure(samples, positive=True)
    assert noise.is_log
    found = comparisons.shares(samples, noise, lambda means: min(means, key=means.__getitem__))
    assert sum(found.values()) == pytest.approx(1)
    seen = []
    comparisons.shares(samples, noise, lambda means: seen.extend(means.values()))
    assert all(0 < value < float("inf") and math.isfinite(math.log(value)) for value in seen)
