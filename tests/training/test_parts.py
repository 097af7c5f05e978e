"""What is saved comes back, and what does not fit is refused by name."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from imgtool.config.schema import Train
from imgtool.errors import CheckpointError
from imgtool.experiment.checkpoint_file import Checkpoint, CheckpointHeader, read, write
from imgtool.nn.convolution import Conv2d, Pointwise
from imgtool.nn.kernels import KERNELS
from imgtool.training.averages import Averages
from imgtool.training.optim import build_optimizer
from imgtool.training.optimizer_state import load_optimizer, optimizer_tensors
from imgtool.training.parts import (
    ChosenKernels,
    Ema,
    Model,
    Optimizers,
    Part,
    Rng,
    collect,
    restore,
)
from imgtool.training.weights import Misfit, load_weights

KINDS = get_args(get_type_hints(Train)["optimizer"])
HEADER = CheckpointHeader(iteration=7, epoch=1.0, metrics={"loss": 0.5}, identity="x")


class Net(nn.Module):
    """One of its layers never gets a gradient; it has floating buffers and others."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.used(x)).square().mean()


def trained(kind, momentum=0.9, seed=0):
    net = Net(seed)
    train = Train(optimizer=kind, lr=0.1, momentum=momentum)
    optimizer = build_optimizer(train, list(net.parameters()))
    for _ in range(2):
        (net(torch.randn(4, 3)) + net.used.weight.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer, {id(p): name for name, p in net.named_parameters()}


def fresh(kind, momentum=0.9):
    net = Net(1)
    train = Train(optimizer=kind, lr=0.1, momentum=momentum)
    return net, build_optimizer(train, list(net.parameters()))


def names_of(net):
    return {id(p): name for name, p in net.named_parameters()}


def parts_of(net, optimizer):
    return {
        "model": Model(net),
        "optimizer": Optimizers({"net": {"main": optimizer}}, {"net": names_of(net)}),
        "rng": Rng(torch.device("cpu")),
    }


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_come_back_through_a_file(tmp_path, kind, momentum):
    net, optimizer, _ = trained(kind, momentum)
    path = tmp_path / "iter_000007.safetensors"
    tensors, facts = collect(parts_of(net, optimizer))
    write(path, tensors, replace(HEADER, parts=facts))
    drawn = torch.randn(3)
    other, again = fresh(kind, momentum)
    restore(parts_of(other, again), read(path))
    assert torch.equal(torch.randn(3), drawn)
    kept = collect(parts_of(other, again))[0]
    assert kept.keys() == tensors.keys()
    same = [name for name in kept if torch.equal(kept[name], tensors[name])]
    assert kept.keys() - same == {"rng.cpu"}  # which has gone on


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_each_tensor_of_an_optimizer_is_missed_by_name(kind, momentum):
    _, optimizer, names = trained(kind, momentum)
    whole = optimizer_tensors(optimizer, names)
    of_one = [name for name in whole if name.startswith("used.weight.")]
    assert of_one or (kind, momentum) == ("sgd", 0.0)  # which has no state
    for name in of_one:
        key = name.rpartition(".")[2]
        lost = {other: value for other, value in whole.items() if other != name}
        spoilt = {
            f"lacks the optimizer's {key} of used.weight": lost,
            f"lacks the optimizer's {key} of used": {**lost, f"used.weight.x{key}": whole[name]},
            f"the optimizer's {key} of used.weight as": {**whole, name: torch.ones(5)},
            "state of gone.weight, which nothing": {**lost, f"gone.weight.{key}": whole[name]},
        }
        if len(of_one) == 1:  # then without it the parameter has no state, as one never trained
            del spoilt[f"lacks the optimizer's {key} of used.weight"]
        for words, tensors in spoilt.items():
            net, again = fresh(kind, momentum)
            with pytest.raises(Misfit, match=words):
                load_optimizer(again, names_of(net), tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_that_never_got_a_gradient_has_no_state(kind):
    _, optimizer, names = trained(kind)
    whole = optimizer_tensors(optimizer, names)
    net, again = fresh(kind)
    load_optimizer(again, names_of(net), {k: v for k, v in whole.items() if "idle" not in k})
    assert optimizer_tensors(again, names_of(net)).keys() >= {k for k in whole if "idle" not in k}
    load_optimizer(again, names_of(net), {})


def test_state_of_an_optimizer_that_is_not_here_is_refused_with_the_file():
    net, optimizer, _ = trained("adamw")
    tensors, _ = collect(parts_of(net, optimizer))
    renamed = {name.replace("net.main", "net.other"): value for name, value in tensors.items()}
    with pytest.raises(CheckpointError, match=r"^\. has optimizer state .* net\.other\."):
        restore(parts_of(*fresh("adamw")), Checkpoint(renamed, HEADER))


@dataclass
class Counter(Part):
    """Something that a later version saves."""

    count: int = 0

    def facts(self):
        return {"count": self.count}

    def restore(self, facts, tensors):
        self.count = 0 if facts is None else int(facts["count"])


def test_a_new_thing_to_save_is_one_entry(tmp_path):
    path = tmp_path / "iter_000007.safetensors"
    tensors, facts = collect({"model": Model(Net()), "counter": Counter(5)})
    write(path, tensors, replace(HEADER, parts=facts))
    found = Counter()
    restore({"counter": found}, read(path))
    assert found.count == 5
    restore({"counter": found}, Checkpoint({}, HEADER))  # a file of before
    assert found.count == 0
    with pytest.raises(CheckpointError, match="its counter cannot be used"):
        restore({"counter": found}, Checkpoint({}, replace(HEADER, parts={"counter": {}})))


def averages_of(averages):
    return dict(zip(averages.names, averages.averages, strict=True))


def test_averages_of_buffers_may_be_absent_and_those_of_parameters_not():
    net = Net()
    net.norm.running_mean.fill_(3.0)
    stored = {name: p.detach() + 1 for name, p in net.named_parameters()}
    ema = Ema(net, Averages(net, [], 0.9))
    ema.restore(None, stored)
    assert torch.equal(averages_of(ema.averages)["norm.running_mean"], net.norm.running_mean)
    assert torch.equal(averages_of(ema.averages)["used.bias"], stored["used.bias"])
    ema.restore(None, {})  # a file without any begins with the weights themselves
    assert torch.equal(averages_of(ema.averages)["used.bias"], net.used.bias)
    with pytest.raises(Misfit, match=r"lacks the average of used\.bias"):
        ema.restore(None, {k: v for k, v in stored.items() if k != "used.bias"})
    with pytest.raises(Misfit, match=r"also has the average of other"):
        ema.restore(None, {**stored, "other": torch.ones(1)})
    with pytest.raises(Misfit, match=r"another model's average of used\.bias"):
        ema.restore(None, {**stored, "used.bias": torch.ones(9)})


def test_weights_to_look_at_are_the_averages_of_parameters_and_buffers():
    net, shown = Net(), Net(1)
    model = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    averages = {"ema.used.bias": torch.ones(2), "ema.norm.running_var": torch.full((2,), 5.0)}
    load_weights(shown, Checkpoint({**model, **averages}, HEADER))
    assert torch.equal(shown.used.bias, torch.ones(2))
    assert torch.equal(shown.norm.running_var, torch.full((2,), 5.0))
    assert torch.equal(shown.norm.running_mean, net.norm.running_mean)
    assert torch.equal(shown.used.weight, net.used.weight)


CPU = torch.device("cpu")


@pytest.mark.parametrize("layer", [Pointwise(2, 2), Conv2d(2, 2, 1)], ids=repr)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_resumed_training_keeps_its_kernels(layer, kernel):
    part, other = ChosenKernels(layer, CPU), next(k for k in KERNELS if k != kernel)
    with ExitStack() as stack:
        for choice in layer.choices:
            stack.enter_context(choice.using(kernel, CPU))
        facts = part.facts()
        for choice in layer.choices:
            choice.use(other, CPU)
        part.restore({**facts, "processor": "another one"}, {})  # where no bit would be kept
        assert {choice.of(CPU) for choice in layer.choices} == {other}
        part.restore(facts, {})
        assert {choice.of(CPU) for choice in layer.choices} == {kernel}
        part.restore(None, {})  # a checkpoint of before there was a choice
        assert all(choice.of(CPU) == choice.before for choice in layer.choices)


def test_an_unknown_kernel_of_a_checkpoint_is_damage():
    part = ChosenKernels(Pointwise(2, 2), CPU)
    header = replace(HEADER, parts={"kernels": {**part.facts(), "pointwise": "other"}})
    with pytest.raises(CheckpointError, match="its kernels cannot be used"):
        restore({"kernels": part}, Checkpoint({}, header))


def test_the_kernels_of_networks_without_a_choice_are_not_saved():
    assert ChosenKernels(nn.Conv2d(2, 2, 1), CPU).facts() is None
