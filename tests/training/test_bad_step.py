"""A bad step leaves no trace: parameters, buffers, optimizer state and averages are as before.

Over the registry: each update of each family, with a forward that is not finite and with a
gradient that is not.
"""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch

from imgtool.config.faces import FacesData, LabelledFacesData
from imgtool.config.latents import LatentsData
from imgtool.config.load import load
from imgtool.data.base import LatentInfo
from imgtool.data.pyramid import pyramid_size
from imgtool.models import registry
from imgtool.models.base import DataInfo
from imgtool.training import optim
from imgtool.training.batches import Batches
from imgtool.training.device import Precision
from imgtool.training.ranks import Ranks
from imgtool.training.step import Stepper
from imgtool.training.throughput import Throughput
from tests.small import ALL_LOSSES, SMALL_FACES, SMOOTH_CRITICS

# Beside what `--tiny` chooses, what else of a family has a state that a forward may change.
VARIANTS = {
    "autoencoder": ["model.bottleneck=vq", "model.codebook_size=16"],
    "genegan": ["model.base_channels=8"],
    "hpcm": ["loss.phase2_reg=true"],
    "flow": ["model.condition=mask"],
}
LATENTS = LatentInfo(
    shape=(4, 8, 8),
    mean=(0.0,) * 4,
    std=(1.0,) * 4,
    has_logvar=False,
    downsampling=8,
    autoencoder={},
)
SMALLER = {"genegan": SMALL_FACES}
CASES = [(family, ()) for family in registry.FAMILIES] + [
    (family, tuple(sets)) for family, sets in VARIANTS.items()
]
CASES.append(("autoencoder", (*VARIANTS["autoencoder"], *ALL_LOSSES)))
CASES.append(("genegan", ("model.base_channels=8", *SMOOTH_CRITICS)))


@pytest.fixture(autouse=True)
def _random_trunk(monkeypatch):
    monkeypatch.setenv("IMGTOOL_LPIPS_WEIGHTS", "random")


def endless(experiment, start):
    number = start
    while True:
        random = torch.Generator().manual_seed(number)
        if isinstance(experiment.data, FacesData):
            shape = (4, 3, pyramid_size(experiment.data.image_sizes)[0], 1)
        else:
            shape = (2, 3, 64, 64)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        held, side = {"image": image}, 64
        if isinstance(experiment.data, LatentsData):
            held, side = {"latent": torch.randn(2, *LATENTS.shape, generator=random)}, 8
        several = (2,) if isinstance(experiment.data, LabelledFacesData) else ()
        yield {
            **held,
            "index": torch.arange(len(image)),
            "mask": torch.randint(
                0, 2, (len(image), side, side), dtype=torch.uint8, generator=random
            ),
            "label": torch.randint(0, 2, (len(image), *several), generator=random),
        }
        number += 1


def make(family, sets, *more):
    given = ["data.root=x", "train.ema_decay=0.9", "train.device=cpu"]
    given += [*SMALLER.get(family, ()), *sets, *more]
    experiment = load(
        None, family=family, schema_of=registry.schema, sets=given, tiny=True
    ).experiment
    info = DataInfo(
        targets=frozenset(
            {"labels"} if isinstance(experiment.data, LabelledFacesData) else {"mask", "label"}
        ),
        image_size=(64, 64),
        num_train_images=8,
        mask_names=("wall", "floor"),
        label_names=("room", "hall"),
        latents=LATENTS if isinstance(experiment.data, LatentsData) else None,
    )
    torch.manual_seed(0)
    task = registry.family(family).build(experiment, info)
    task.modules.to(memory_format=torch.channels_last).train()
    batches = Batches(
        lambda start: endless(experiment, start),
        torch.device("cpu"),
        Throughput(),
        held=any(not update.fresh_batch for update in task.all_updates()),
    )
    return Stepper(Ranks(), task, experiment.train, batches, Precision(torch.device("cpu")))


def state(stepper):
    """Every tensor by name; optimizer state that does not exist yet counts as zeros."""
    found = {f"model.{n}": t for n, t in stepper.task.modules.state_dict().items()}
    averages = zip(stepper.averages.names, stepper.averages.averages, strict=True)
    found |= {f"ema.{name}": tensor for name, tensor in averages}
    for update, sets in stepper.optimizers.items():
        for name, optimizer in sets.items():
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for number, parameter in enumerate(parameters):
                for key, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, torch.Tensor) and value.any():
                        found[f"{update}.{name}.{number}.{key}"] = value
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@contextmanager
def spoilt_forward(update):
    """What convolutions give is not finite: nor is all that is computed from it."""
    hooks = [
        module.register_forward_hook(lambda module, inputs, out: out + math.nan)
        for module in update.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    assert hooks
    yield
    for hook in hooks:
        hook.remove()


@contextmanager
def spoilt_gradient(update):
    parameter = next(p for p in update.parameters() if p.requires_grad)
    hook = parameter.register_hook(lambda gradient: gradient * math.inf)
    yield
    hook.remove()


def iterate(stepper, number, spoil=None, only=None):
    """An iteration; for each update whose first step is spoilt, the state before and after it.

    Args:
        spoil: what is done to that step.
        only: the update that is spoilt; all of them when None.
    """
    seen = {}
    for index, update in enumerate(stepper.task.updates(number)):
        fresh = index == 0 or update.fresh_batch
        if spoil is None or update.name in seen or (only is not None and update is not only):
            stepper.step(update, 1.0, fresh=fresh)
            continue
        before = state(stepper)
        with spoil(update):
            stepper.step(update, 1.0, fresh=fresh)
        seen[update.name] = before, state(stepper)
    stepper.end_iteration(number)
    return seen


def differing(before, after):
    return [n for n, t in before.items() if not torch.equal(t, after[n])]


@pytest.mark.parametrize("spoil", [spoilt_forward, spoilt_gradient])
@pytest.mark.parametrize(("family", "sets"), CASES)
def test_a_bad_step_leaves_no_trace(family, sets, spoil):
    """Of each update: its very first step, and one that finds optimizer state."""
    stepper = make(family, sets)
    num_bad = 0
    for number in (1, 3):
        for update, (before, after) in iterate(stepper, number, spoil).items():
            assert before.keys() == after.keys(), update
            assert differing(before, after) == [], update
            num_bad += 1
        spoilt = state(stepper)
        iterate(stepper, number + 1)  # and the next steps are taken
        later = state(stepper)
        assert all(tensor.isfinite().all() for tensor in later.values())
        assert differing(spoilt, later)
    stepper.bad.read()
    assert stepper.bad.total == num_bad == 2 * len(stepper.task.all_updates())


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("family", list(registry.FAMILIES))
def test_a_bad_step_is_masked_without_reading_the_flag(family, optimizer, monkeypatch):
    """As on a GPU, where the flag stays on the device."""
    monkeypatch.setattr(optim, "on_host", lambda flag: False)
    sets = [*VARIANTS.get(family, []), f"train.optimizer={optimizer}", "train.momentum=0.9"]
    stepper = make(family, sets)
    iterate(stepper, 1)
    for before, after in iterate(stepper, 2, spoilt_forward).values():
        assert differing(before, after) == []


@pytest.mark.parametrize("family", list(registry.FAMILIES))
def test_averages_of_an_update_stay_after_its_bad_step(family):
    stepper = make(family, VARIANTS.get(family, []))
    iterate(stepper, 1)
    update = stepper.task.all_updates()[-1]
    own = {id(t) for t in (*update.parameters(), *update.buffers())}
    named = stepper.task.modules.state_dict(keep_vars=True)
    names = [n for n in stepper.averages.names if id(named[n]) in own]
    before = dict(
        zip(stepper.averages.names, map(torch.clone, stepper.averages.averages), strict=True)
    )
    iterate(stepper, 2, spoilt_forward, only=update)
    after = dict(zip(stepper.averages.names, stepper.averages.averages, strict=True))
    assert names
    assert all(torch.equal(before[n], after[n]) for n in names)
