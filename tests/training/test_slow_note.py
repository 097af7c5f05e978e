"""A training that will be slow on a CPU says so before its first iteration."""

from dataclasses import replace

import torch

from imgtool.config.load import load
from imgtool.data.datasets import expected_info
from imgtool.models.registry import schema
from imgtool.training import estimate


def note(monkeypatch, flops_per_sec, *, tiny=False, device="cpu", preset="phase1_1/S5"):
    monkeypatch.setattr(estimate, "_flops_per_sec", lambda: flops_per_sec)
    experiment = load(preset, family=None, schema_of=schema, tiny=tiny).experiment
    return estimate.slow_note(experiment, expected_info(experiment.data), torch.device(device))


def test_what_an_iteration_takes_and_what_takes_less(monkeypatch):
    before = torch.get_rng_state()
    text = note(monkeypatch, 50e9)
    assert torch.equal(torch.get_rng_state(), before)
    assert "an iteration will take about 30s (1.5 TFLOP)" in text
    assert "--tiny" in text
    assert "--crop 128" in text


def test_silence_where_it_is_soon_over(monkeypatch):
    assert note(monkeypatch, 1e15) is None
    assert note(monkeypatch, 1.0, tiny=True) is None
    assert note(monkeypatch, 1.0, device="cuda") is None


def test_more_batches_an_update_take_longer(monkeypatch):
    monkeypatch.setattr(estimate, "_flops_per_sec", lambda: 50e9)
    experiment = load("phase1_1/S5", family=None, schema_of=schema).experiment
    twice = replace(experiment, train=replace(experiment.train, accumulate=2))
    found = estimate.slow_note(twice, expected_info(twice.data), torch.device("cpu"))
    assert "3.0 TFLOP" in found


def test_the_speed_of_this_machine_is_measured():
    before = torch.get_rng_state()
    assert 1e7 < estimate._flops_per_sec() < 1e15
    assert torch.equal(torch.get_rng_state(), before)
