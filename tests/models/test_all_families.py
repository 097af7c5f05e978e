"""What every family of the registry must do."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imgtool.config.load import to_dict
from imgtool.config.schema import Experiment
from imgtool.config.validate import MAX_NAME_BYTES
from imgtool.errors import NoAnswer
from imgtool.evaluation.encoding.encode import Options, make_plan
from imgtool.evaluation.metrics import bootstrap, put, sums_by_scene
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoint_file import CheckpointHeader
from imgtool.models import registry
from imgtool.models.base import Noise, StepResult, Task
from imgtool.training.ranks import Ranks


@pytest.fixture(params=list(registry.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def task(family: str, build: Callable[..., Task]) -> Task:
    return build(family)


def step(task: Task, batch: dict[str, Any]) -> None:
    for update in task.updates(2):
        losses = update(batch)
        assert all(loss.ndim == 0 for loss in losses.values()), losses
        assert all(math.isfinite(loss.item()) for loss in losses.values()), losses
        parameters = [p for params in update.parameter_sets().values() for p in params]
        gradients = torch.autograd.grad(losses["loss"], parameters)
        assert all(gradient.isfinite().all() for gradient in gradients)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 1e-3 * gradient
        update.after_step(StepResult(torch.tensor(True), batch["noise"], lambda t: t))


def test_an_update_trains_finite_losses(task: Task, batch_of: Callable[..., Any]) -> None:
    task.modules.train()
    for iteration in range(2):
        step(task, batch_of(task, noise=Noise(0, iteration)))


def test_parameter_sets_are_disjoint_and_cover_what_is_trained(task: Task) -> None:
    names = [update.name for update in task.all_updates()]
    assert len(set(names)) == len(names)
    trained: set[int] = set()
    for update in task.all_updates():
        of_sets = [id(p) for params in update.parameter_sets().values() for p in params]
        assert len(set(of_sets)) == len(of_sets)
        assert set(of_sets) == {id(p) for p in update.parameters() if p.requires_grad}
        trained |= set(of_sets)
    assert trained == {id(p) for p in task.modules.parameters() if p.requires_grad}


def test_the_schema_knows_what_the_task_calls_best(family: str, task: Task) -> None:
    """`select-winner` asks it, without torch."""
    schema = registry.schema(family)
    assert (schema.monitor, schema.has_best) == (task.monitor, task.has_best)


def test_the_evaluator_names_the_monitored_metric(task: Task, batch_of: Callable[..., Any]) -> None:
    task.modules.eval()
    evaluator = task.evaluator()
    with torch.no_grad():
        for seed in range(2):
            evaluator.update(batch_of(task, seed=seed))
    metrics = evaluator.compute()
    monitored = metrics[task.monitor.removeprefix("val_")]
    assert task.monitor.startswith("val_")
    assert task.monitor_mode in ("min", "max")
    assert monitored is not None
    assert math.isfinite(monitored)
    assert all(total.dtype == torch.float64 for total in evaluator.totals.values())


def test_metrics_do_not_depend_on_what_shares_a_batch(
    task: Task, batch_of: Callable[..., Any]
) -> None:
    """Whole images are evaluated as many at a time as there is room for."""
    task.modules.eval()
    batch = batch_of(task, batch_size=4)
    parts = [{**batch, **{k: v[i : i + 2] for k, v in tensors(batch).items()}} for i in (0, 2)]
    found = []
    for batches in ([batch], parts):
        evaluator = task.evaluator()
        with torch.no_grad():
            for each in batches:
                evaluator.update(each)
        found.append({n: v for n, v in evaluator.compute().items() if v is not None})
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)


def tensors(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}


def test_evaluating_and_sampling_draw_nothing_from_the_global_generator(
    task: Task, batch_of: Callable[..., Any]
) -> None:
    before = torch.get_rng_state()
    task.modules.eval()
    task.facts()
    with torch.no_grad():
        task.evaluator().update(batch_of(task))
        task.sample(batch_of(task))
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_are_pictures(task: Task, batch_of: Callable[..., Any]) -> None:
    task.modules.eval()
    for size in ((64, 64), (72, 100)):  # where images may have any
        pictures = task.sample(batch_of(task, size=size))
        assert pictures
        for name, picture in pictures.items():
            assert MAX_NAME_BYTES + len(f"-12345678_iter_12345678_{name}.png") <= 255
            assert picture.dtype == torch.uint8
            assert picture.device.type == "cpu"
            assert picture.shape[0] == 3
            assert picture.shape[1] >= size[0]
            assert picture.shape[2] >= size[1]


def test_facts_know_the_parameters(task: Task) -> None:
    facts = task.facts()
    assert facts["num_parameters"] == sum(
        p.numel() for p in task.modules.parameters() if p.requires_grad
    )


def test_a_state_dict_restores_a_task(
    family: str, task: Task, build: Callable[..., Task], batch_of: Callable[..., Any]
) -> None:
    step(task, batch_of(task))
    state = {name: value.clone() for name, value in task.modules.state_dict().items()}
    other = build(family)
    other.modules.load_state_dict(state)
    found = []
    for each in (task, other):
        each.modules.eval()
        evaluator = each.evaluator()
        with torch.no_grad():
            evaluator.update(batch_of(task, seed=3))
        found.append(evaluator.compute())
    assert found[0] == found[1]


def test_compile_targets_are_modules_of_the_task(task: Task) -> None:
    within = set(task.modules.modules())
    assert all(target in within for target in task.compile_targets())


def test_metrics_of_single_images_add_up_to_those_of_all(
    task: Task, batch_of: Callable[..., Any]
) -> None:
    """As `eval metrics` adds them up, to draw images anew."""
    task.modules.eval()
    batch = batch_of(task, batch_size=4)
    parts = [{**batch, **{k: v[i : i + 2] for k, v in tensors(batch).items()}} for i in (0, 2)]
    whole, single = task.evaluator(), task.evaluator()
    with torch.no_grad():
        whole.update(batch)
        sums = sums_by_scene(single, parts, str)
        drawn = bootstrap(single, sums, 20)
        put(single, sums.sum(0))
    expected = {name: value for name, value in whole.compute().items() if value is not None}
    found = {name: value for name, value in single.compute().items() if value is not None}
    assert found == pytest.approx(expected, rel=1e-4)
    assert drawn.keys() == expected.keys()


def test_latents_decode_to_what_the_task_reconstructs(
    task: Task, batch_of: Callable[..., Any]
) -> None:
    batch = batch_of(task)
    task.modules.eval()
    with torch.no_grad():
        encoded = task.encode(batch.get("image", torch.zeros(1, 3, 64, 64, dtype=torch.uint8)))
        if encoded is None:
            assert task.decode(torch.zeros(1, 4, 2, 2)) is None
            return
        made, expected = task.decode(encoded.mean), task.reconstruct(batch)
    assert made is not None
    assert expected is not None
    assert torch.equal(made, expected)


def test_it_encodes_or_says_that_it_does_not(
    family: str, task: Task, make_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    encoded = task.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert (encoded is not None) == registry.schema(family).encodes
    if encoded is not None:
        assert task.decode(encoded.mean) is not None
        return
    path = tmp_path / "iter_000001.safetensors"
    header = CheckpointHeader(1, 0.0, "x", family, "0", config=to_dict(make_experiment(family)))
    checkpoint_file.write(path, dict(task.modules.state_dict()), header)
    with pytest.raises(NoAnswer, match=f"{path}: the family {family} makes no latents"):
        make_plan(str(path), None, Options(device="cpu"), Ranks())
