"""`--compile` takes every family whole, once a size and way to call it, and changes no number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from imgtool.models import registry
from imgtool.models.base import Noise, StepResult, Task
from tests.small import ALL_LOSSES as ALL
from tests.small import SMALL_FACES, SMOOTH_CRITICS, keys_and_values

SIZES = {"data.image_sizes": (64, 96), "data.image_size": 96}
ALL_LOSSES = keys_and_values(ALL)
SMOOTH = keys_and_values((*SMOOTH_CRITICS, *SMALL_FACES))
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "genegan": [
        {**SIZES, "loss.multi_res_mode": "random"},
        {**SIZES, "model.multiscale_loss": True, "model.obj_blockconv": True},
        {**SMOOTH, "loss.critic_penalty_every": 1},
        {**SMOOTH, "loss.critic_penalty": "none"},
    ],
    "autoencoder": [
        {},
        {"model.norm": "none", "model.upsampling": "nearest"},
        {"model.architecture": "kl", "model.downsampling_steps": 2, "train.freeze": "encoder"},
        {**ALL_LOSSES, "loss.lpips": 0.0, "loss.eq": 99.0, "model.downsampling_steps": 3},
    ],
    "flow": [{"model.condition": "label"}, {"model.condition": "mask"}],
}
CASES = [
    pytest.param(
        family,
        changes,
        # of genegan half a minute each, of hpcm five seconds
        marks=[pytest.mark.slow] if number or family in ("genegan", "hpcm") else [],
        id=f"{family}{number}",
    )
    for family in registry.FAMILIES
    for number, changes in enumerate(VARIANTS.get(family, [{}]))
]


@pytest.fixture(autouse=True)
def _random_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGTOOL_LPIPS_WEIGHTS", "random")


@pytest.fixture(autouse=True)
def _a_compiler_of_its_own() -> Iterator[None]:
    limit = torch.compiler.config.recompile_limit
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    counters.clear()
    torch.compiler.config.recompile_limit = limit


@pytest.fixture
def make_task(build: Callable[..., Task]) -> Callable[..., Task]:
    def make(family: str, changes: dict[str, Any]) -> Task:
        torch.manual_seed(0)
        task = build(family, **changes)
        task.modules.train()
        return task

    return make


def train(task: Task, iterations: int, batch_of: Callable[..., Any]) -> list[dict[str, float]]:
    """The losses of every update, after which a small step is taken."""
    said = []
    for iteration in range(2, 2 + iterations):  # without the critics' burst
        for number, update in enumerate(task.updates(iteration)):
            noise = Noise(0, 10 * iteration + number)
            losses = update(batch_of(task, seed=noise.step, noise=noise) | {"epoch": 0.0})
            said.append({name: loss.item() for name, loss in losses.items()})
            parameters = [p for params in update.parameter_sets().values() for p in params]
            gradients = torch.autograd.grad(losses["loss"], parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:  # of a size that was not drawn
                        parameter -= 1e-4 * gradient
                update.after_step(StepResult(torch.tensor(True), noise, lambda t: t))
    return said


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_every_call_of_a_target_is_one_graph(
    make_task: Callable[..., Task],
    batch_of: Callable[..., Any],
    family: str,
    changes: dict[str, Any],
) -> None:
    iterations = 5 if "loss.multi_res_mode" in changes else 2
    eager, compiled = make_task(family, changes), make_task(family, changes)
    calls: list[nn.Module] = []
    for target in eager.compile_targets():
        target.register_forward_hook(lambda module, *_: calls.append(module))
    expected = train(eager, iterations, batch_of)

    runs: list[None] = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            runs.append(None)
            return graph(*inputs)

        return run

    compiled.compile(backend=backend)
    found = train(compiled, iterations, batch_of)
    assert found == [pytest.approx(losses, rel=1e-5, abs=1e-6) for losses in expected]
    assert not counters["graph_break"]
    assert len(runs) == len(calls) > 0  # none was left to eager, where the limit is reached
    assert counters["stats"]["unique_graphs"] <= compiled.num_graphs()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "changes"), CASES)
def test_inductor_trains_as_eager_does(
    make_task: Callable[..., Task],
    batch_of: Callable[..., Any],
    family: str,
    changes: dict[str, Any],
) -> None:
    expected = train(make_task(family, changes), 3, batch_of)
    compiled = make_task(family, changes)
    compiled.compile()
    found = train(compiled, 3, batch_of)
    assert not counters["graph_break"]
    assert found == [pytest.approx(losses, rel=1e-3, abs=1e-4) for losses in expected]
