"""What is learnt, and what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from imgtool.models.base import Noise, Task
from imgtool.models.flow.evaluator import FlowEvaluator


def test_the_first_loss_is_that_of_saying_nothing(
    build: Callable[..., Task], batch_of: Callable[..., Any]
) -> None:
    """1 + mean(z^2), z normalised: of unit noise and of what is learnt."""
    task: Any = build("flow")
    batch = batch_of(task, batch_size=64)
    del batch["logvar"]
    z = (batch["latent"] - task.flow.mean) / task.flow.std
    (update,) = task.all_updates()
    expected = 1 + z.square().mean().item()
    assert update(batch)["loss"].item() == pytest.approx(expected, rel=0.03)
    task.modules.eval()
    evaluator = task.evaluator()
    with torch.no_grad():
        evaluator.update(batch)
    assert evaluator.compute()["loss"] == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("condition", ["label", "mask"])
@pytest.mark.parametrize("times", ["logit_normal", "uniform"])
def test_how_a_batch_is_cut_changes_no_loss(
    build: Callable[..., Task], batch_of: Callable[..., Any], condition: str, times: str
) -> None:
    """Times, noise, posterior and what is left out are of the whole batch."""
    task = build(
        "flow",
        **{"model.condition": condition, "loss.times": times, "loss.condition_dropout": 0.5},
    )
    with torch.no_grad():
        for parameter in task.modules.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    batch = batch_of(task, batch_size=4)
    (update,) = task.all_updates()
    whole = update({**batch, "noise": Noise(3, 5)})["loss"]
    halves = []
    for part in (0, 1):
        rows = {k: v[2 * part : 2 * part + 2] for k, v in batch.items() if k != "noise"}
        halves.append(update({**rows, "noise": Noise(3, 5, part=part, parts=2)})["loss"])
    assert torch.stack(halves).mean().item() == pytest.approx(whole.item(), rel=1e-5)
    assert halves[0].item() != pytest.approx(halves[1].item(), rel=1e-3)


@pytest.mark.slow
def test_it_learns_eight_latents_by_heart(
    build: Callable[..., Task], batch_of: Callable[..., Any]
) -> None:
    """The loss falls to a third, and each sample is one of them rather than between two."""
    task: Any = build("flow", **{"model.width": 64, "output.num_steps": 20, "model.patch_size": 2})
    batch = batch_of(task, batch_size=8)
    del batch["logvar"]
    z = batch["latent"]
    batch["latent"] = task.flow.stored(z)
    (update,) = task.all_updates()
    optimizer = torch.optim.AdamW(task.modules.parameters(), lr=3e-3, betas=(0.9, 0.95))
    rows = {k: v.repeat(8, *[1] * (v.ndim - 1)) for k, v in batch.items() if k != "noise"}
    first, last = 0.0, 0.0
    for step in range(250):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (250 - step) / 150)
        loss = update({**rows, "noise": Noise(0, step)})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = first or loss.item(), 0.9 * last + 0.1 * loss.item()
    assert last < first / 3
    task.modules.eval()
    with torch.no_grad():
        made = task.generate(batch)
    made = (made - task.flow.mean) / task.flow.std
    nearest = (made[:, None] - z[None]).square().mean((2, 3, 4)).sort(1).values
    assert (nearest[:, 0] / nearest[:, 1]).median() < 0.5


def test_white_latents_have_the_floor_of_white_noise(build: Callable[..., Task]) -> None:
    """pi / 2 over all times; in the quarters its share of atan."""
    task: Any = build("flow")
    evaluator = FlowEvaluator(task.flow)
    random = torch.Generator().manual_seed(1)
    z = torch.randn(400, *task.flow.shape, generator=random)
    batch = {"latent": task.flow.stored(z), "index": torch.arange(400)}
    with torch.no_grad():
        evaluator.update(batch)
    found = evaluator.compute()
    assert found["floor"] == pytest.approx(math.pi / 2, rel=0.01)
    quarters = [found[f"floor_t{number}"] for number in (1, 2, 3, 4)]
    expected = [4 * (math.atan(b) - math.atan(a)) for a, b in
                ((-1, -0.5), (-0.5, 0), (0, 0.5), (0.5, 1))]  # fmt: skip
    assert quarters == pytest.approx(expected, rel=0.02)


def test_one_latent_has_no_floor(build: Callable[..., Task], batch_of: Callable[..., Any]) -> None:
    task = build("flow")
    evaluator = task.evaluator()
    with torch.no_grad():
        evaluator.update(batch_of(task, batch_size=1))
    assert evaluator.compute()["floor"] is None


@pytest.mark.parametrize("condition", ["none", "mask"])
def test_a_sample_is_of_its_index_and_not_of_its_batch(
    build: Callable[..., Task], batch_of: Callable[..., Any], condition: str
) -> None:
    task: Any = build("flow", **{"model.condition": condition})
    task.modules.eval()
    batch = batch_of(task, batch_size=4)
    whole = task.fakes(batch)["sample"]
    assert (whole.against, whole.images.shape) == ("all", (4, 3, 96, 128))
    rows = {k: v[2:] for k, v in batch.items() if k != "noise"}
    assert torch.equal(task.fakes(rows)["sample"].images, whole.images[2:])
    task.decoder = None
    assert task.fakes(batch) == task.sample(batch) == {}
