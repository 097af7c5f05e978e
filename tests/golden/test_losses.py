"""The first losses of every preset, as pinned in losses.json.

What only moves code leaves them as they are. What changes them on purpose writes them anew, and
says so: `pytest tests/golden -m "slow or not slow" --regen`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from imgtool.config import presets
from imgtool.config.load import load
from imgtool.config.schema import Experiment
from imgtool.files import write_text
from imgtool.models.registry import schema

PINNED = Path(__file__).with_name("losses.json")
GRADIENT = "grad_norm"

# (relative, absolute) tolerance up to iteration 2 and after it. Measured between AVX2 and plain
# SSE kernels of torch, oneDNN and MKL, one thread: 7e-6 at most for smooth losses; 6e-3 from
# iteration 3 on where vectors of a codebook change hands; RMSprop's first steps have one size for
# all gradients, tiny ones too: 7e-5 for losses, 4e-3 for a gradient's norm, 1.4e-6 (absolute) for
# what critics say. A learning rate of 2 % more is seen in every kind of preset.
SMOOTH = ((1e-4, 1e-7), (2e-4, 1e-7))  # a gradient of phase1_1/S2: 1.005e-4 on an AMD Zen 3
CODEBOOK = ((1e-4, 1e-7), (3e-2, 1e-5))
ADVERSARIAL = ((4e-4, 0.0), (4e-4, 0.0))
ADVERSARIAL_GRADIENT = ((2e-3, 0.0), (2e-2, 0.0))
JUDGEMENT = ((2e-3, 1e-5), (2e-3, 2e-5))
OF_CRITICS = {"Ax_Bx", "Be_Ae", "loss_D", "Ae", "Bx"}  # near zero, differences of large sums


@cache
def experiment(name: str) -> Experiment:
    return load(name, family=None, schema_of=schema, tiny=True).experiment


def kind(name: str) -> tuple[Any, ...]:
    """The family, and what its networks are called."""
    model = experiment(name).model
    words = (getattr(model, key, None) for key in ("architecture", "bottleneck", "vqvae"))
    return (experiment(name).family, *words)


def every_preset() -> list[Any]:
    """All names; of one kind, the first is in the default suite."""
    first = {kind(name): name for name in reversed(presets.names())}
    return [
        pytest.param(name, marks=() if first[kind(name)] == name else pytest.mark.slow)
        for name in presets.names()
    ]


def tolerance(name: str, loss: str, iteration: int) -> tuple[float, float]:
    """Relative and absolute."""
    of = experiment(name)
    if of.family == "genegan" and loss in OF_CRITICS:
        found = JUDGEMENT
    elif of.family == "genegan":
        found = ADVERSARIAL_GRADIENT if loss.startswith(GRADIENT) else ADVERSARIAL
    else:
        found = CODEBOOK if getattr(of.model, "bottleneck", None) == "vq" else SMOOTH
    return found[0] if iteration <= 2 else found[1]


@pytest.mark.parametrize("name", every_preset())
def test_the_first_losses_are_those_that_are_pinned(
    name: str,
    five_iterations: Callable[..., list[dict[str, float]]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    begins = getattr(experiment(name).model, "init_vqvae_ckpt", None)
    sets = [f"model.init_vqvae_ckpt={request.getfixturevalue('vqvae')}"] if begins else []
    rows = five_iterations(name, tmp_path, *sets)
    found = {loss: [row[loss] for row in rows] for loss in sorted(rows[0])}
    pinned = _read()
    if request.config.getoption("regen"):
        _write(pinned | {name: found})
        return
    assert name in pinned, f"{name} is new: pytest {PINNED.parent} --regen"
    assert _losses(found) == _losses(pinned[name])
    for loss in found.keys() & pinned[name].keys():
        for number, (ours, theirs) in enumerate(zip(found[loss], pinned[name][loss], strict=True)):
            relative, absolute = tolerance(name, loss, number + 1)
            expected = pytest.approx(theirs, rel=relative, abs=absolute)
            assert ours == expected, f"{loss} at iteration {number + 1}"


def test_nothing_is_pinned_but_the_presets() -> None:
    assert set(_read()) == set(presets.names())


def _losses(values: dict[str, Any]) -> set[str]:
    return {name for name in values if not name.startswith(GRADIENT)}


def _read() -> dict[str, dict[str, list[float]]]:
    content: dict[str, dict[str, list[float]]] = json.loads(PINNED.read_text())
    return content


def _write(values: dict[str, dict[str, list[float]]]) -> None:
    """One line a loss, so that a change of one is a change of one line."""
    parts = []
    for name in presets.names():
        if name not in values:
            continue
        lines = [
            f"  {json.dumps(loss)}: [{', '.join(f'{value:.7g}' for value in row)}]"
            for loss, row in values[name].items()
        ]
        parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    write_text(PINNED, "{\n " + ",\n ".join(parts) + "\n}\n")
