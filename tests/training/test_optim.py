import math
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from imgtool.config.schema import Train
from imgtool.training import optim
from imgtool.training.optim import (
    build_optimizer,
    clip_gradients,
    gradient_norm,
    masked_step,
    set_lr,
    undoable_step,
)

OPTIMIZERS = get_args(get_type_hints(Train)["optimizer"])


STEPS = [*((kind, masked_step) for kind in OPTIMIZERS), ("rmsprop", undoable_step)]


def trained(kind, gradients, *, momentum=0.9, step=masked_step):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(
        Train(optimizer=kind, lr=0.1, momentum=momentum), list(layer.parameters())
    )
    for gradient, bad in gradients:
        for p in layer.parameters():
            p.grad = torch.full_like(p, gradient)
        step(optimizer, torch.tensor(bad))
    return layer, optimizer


def everything(layer, optimizer):
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return [*layer.parameters(), *state]


@pytest.mark.parametrize(("kind", "step"), STEPS)
def test_a_bad_step_changes_nothing_at_all(kind, step):
    good = [(0.5, False), (-0.2, False)]
    with_bad = [(0.5, False), (float("nan"), True), (float("inf"), True), (-0.2, False)]
    for a, b in zip(
        everything(*trained(kind, good, step=step)),
        everything(*trained(kind, with_bad, step=step)),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("kind", "step"), STEPS)
def test_a_bad_first_step_leaves_fresh_state(kind, step):
    layer, optimizer = trained(kind, [(float("nan"), True)], step=step)
    assert all(torch.isfinite(t).all() for t in everything(layer, optimizer))
    again, _ = trained(kind, [], step=step)
    assert all(
        torch.equal(a, b) for a, b in zip(layer.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize(("kind", "step"), STEPS)
def test_a_bad_first_step_leaves_nothing_uninitialised(kind, step):
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    try:
        layer, optimizer = trained(kind, [(0.5, True), (0.5, False)], step=step)
        assert all(torch.isfinite(t).all() for t in everything(layer, optimizer))
        expected = trained(kind, [(0.5, False)], step=step)
        for a, b in zip(everything(layer, optimizer), everything(*expected), strict=True):
            assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


def calls_of_a_step(kind, num_layers, monkeypatch):
    """Operators that a masked step calls, as on a GPU: those within another are its own affair."""
    monkeypatch.setattr(optim, "on_host", lambda flag: False)
    layers = [nn.Linear(3, 2) for _ in range(num_layers)]
    parameters = [p for layer in layers for p in layer.parameters()]
    optimizer = build_optimizer(Train(optimizer=kind, momentum=0.9), parameters)
    for p in parameters:
        p.grad = torch.ones_like(p)
    bad = torch.tensor(False)
    masked_step(optimizer, bad)  # makes the state
    masked_step(optimizer, bad)  # and what is remembered of it
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        masked_step(optimizer, bad)
    found = [event for event in profiled.events() if event.name.startswith("aten::")]
    parents = (event.cpu_parent for event in found)
    return sum(each is None or not each.name.startswith("aten::") for each in parents)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_more_parameters_do_not_take_more_calls(kind, monkeypatch):
    few = calls_of_a_step(kind, 2, monkeypatch)
    assert 0 < calls_of_a_step(kind, 40, monkeypatch) <= few < 20


def test_undoing_follows_gradients_and_state_that_come_and_go(monkeypatch):
    monkeypatch.setattr(optim, "on_host", lambda flag: False)
    layers = [nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last), nn.Linear(3, 2)]
    parameters = [p for layer in layers for p in layer.parameters()]
    optimizer = build_optimizer(Train(optimizer="rmsprop", lr=0.1, momentum=0.9), parameters)
    for bad, trained in ((False, 0), (True, 1), (False, 0), (True, 0), (False, 1), (True, 1)):
        for number, layer in enumerate(layers):
            for p in layer.parameters():
                p.grad = torch.full_like(p, math.nan if bad else 0.5) if number == trained else None
        before = {id(p): p.detach().clone() for p in parameters}
        masked_step(optimizer, torch.tensor(bad))
        for p in parameters:
            assert torch.equal(p, before[id(p)]) == (bad or p.grad is None)
            assert all(torch.isfinite(t).all() for t in optimizer.state.get(p, {}).values())


def test_what_lies_on_the_host_does_not_wait_for_the_device():
    layer = nn.Linear(3, 2, device="meta")  # reading anything of it back would raise
    optimizer = build_optimizer(Train(optimizer="rmsprop"), list(layer.parameters()))
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    for _ in range(2):
        masked_step(optimizer, torch.tensor(False, device="meta"))
    assert all(state["step"] == 2 for state in optimizer.state.values())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_good_step_is_the_plain_optimizers_step(kind):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(layer.state_dict())
    ours = build_optimizer(Train(optimizer=kind, lr=0.1), list(layer.parameters()))
    plain = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, weight_decay=0.01, alpha=0.99),
    }[kind](twin.parameters())
    for step in range(3):
        for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
            a.grad = torch.full_like(a, 0.3 - 0.2 * step)
            b.grad = a.grad.clone()
        masked_step(ours, torch.tensor(False))
        plain.step()
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_norm_and_clipping_match_torch():
    torch.manual_seed(1)
    parameters = [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(7))]
    for p in parameters:
        p.grad = torch.randn_like(p) * 10
    expected = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters))
    norm = gradient_norm(parameters)
    assert float(norm) == pytest.approx(expected, rel=1e-5)
    clip_gradients(parameters, norm, 1.0)
    assert float(gradient_norm(parameters)) == pytest.approx(1.0, rel=1e-4)


def test_learning_rate_reaches_every_group():
    optimizer = build_optimizer(Train(), [nn.Parameter(torch.zeros(2))])
    set_lr(optimizer, 0.25)
    assert [g["lr"] for g in optimizer.param_groups] == [0.25]
