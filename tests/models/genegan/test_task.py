"""Losses and steps against the plain transcription, and what an iteration consists of."""

from collections import Counter
from fractions import Fraction

import pytest
import torch

from imgtool.data.pyramid import unpack
from imgtool.models.base import Noise, StepResult
from imgtool.models.genegan.losses import scale_weights
from tests.models.genegan.transcription import Reference

OPTIMISER = {"lr": 5e-5, "alpha": 0.8}


def real_images(task, batch):
    found = unpack(batch["image"], task.data_sizes)
    return {s: (image[0::2].float(), image[1::2].float()) for s, image in found.items()}


def check_step(mine, theirs):
    """Equal but for rounding: where a gradient is nearly nothing, RMSprop's first step has a whole
    step's size (lr / sqrt(1 - alpha), 1.1e-4) all the same.
    """
    off = (mine - theirs.detach()).abs()
    assert off.max() < 2.3e-4
    assert off.gt(2e-5).float().mean() < 2e-3


def step(update, batch, optimizer):
    optimizer.zero_grad()
    losses = Counter()
    for piece in update.pieces(batch):
        found = update(piece)
        found["loss"].backward()
        losses.update({name: value.detach() for name, value in found.items()})
    optimizer.step()
    with torch.no_grad():
        update.after_step(StepResult(torch.tensor(True), batch["noise"], lambda t: t))
    return losses


@pytest.mark.parametrize("weights", ["equal", "s2", "inv_s2"])
def test_losses_and_whole_steps_are_the_references(make_task, pyramids, weights):
    task = make_task(loss__scale_weights=weights)
    sizes = task.data_sizes
    reference = Reference(task.modules.state_dict(), sizes, task.networks.splitter.num_object)
    of_sizes = scale_weights(weights, sizes)
    theirs = {
        "critic": torch.optim.RMSprop(reference.critic_parameters(), **OPTIMISER),
        "generator": torch.optim.RMSprop(reference.generator_parameters(), **OPTIMISER),
    }
    ours = {
        update.name: torch.optim.RMSprop(
            [p for p in update.parameters() if p.requires_grad], **OPTIMISER
        )
        for update in task.all_updates()
    }
    for number, update in enumerate(task.updates(2)):
        batch = pyramids(task, seed=number)
        images = real_images(task, batch)
        losses = step(update, batch, ours[update.name])
        loss = getattr(reference, f"{update.name}_loss")(images, of_sizes)
        theirs[update.name].zero_grad()
        loss.backward()
        theirs[update.name].step()
        if update.name == "critic":
            reference.clip()
        torch.testing.assert_close(losses["loss"], loss, rtol=1e-4, atol=1e-5)
    state = task.modules.state_dict()
    for number in range(3):
        check_step(state[f"splitter.layers.{number}.conv.weight"], reference.s[f"conv{number}"])
    for number in range(2):
        check_step(state[f"joiner.layers.{number}.conv.weight"], reference.j[f"up{number}"])
    check_step(state["joiner.to_rgb.weight"], reference.j["rgb"])
    for name, critic in reference.d.items():
        check_step(state[f"{name}.layers.2.conv.weight"], critic["conv2"])
        assert state[f"{name}.layers.1.norm.norms.64.weight"].max() <= 0.01
    for size in sizes:
        mean = reference.norms["j1"].by_size[size][2]
        mine = state[f"joiner.layers.1.norm.norms.{size}.running_mean"]
        torch.testing.assert_close(mine, mean, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["critic", "generator"])
@pytest.mark.parametrize("norm", ["switchable_bn", "group_norm"])
def test_the_sizes_one_after_another_add_up_to_all_at_once(make_task, pyramids, name, norm):
    task = make_task(loss__scale_weights="s2", model__norm=norm, model__norm_groups=4)
    update, batch = getattr(task, name), pyramids(task)
    whole = update(batch)
    whole["loss"].backward()
    parameters = [p for p in update.parameters() if p.requires_grad]
    expected = [p.grad.clone() for p in parameters]
    update.zero_grad()
    pieces = update.pieces(batch)
    assert [piece["sizes"] for piece in pieces] == [(96,), (64,), (32,)]
    parts = [update(piece) for piece in pieces]
    for part in parts:
        part["loss"].backward()
    for key, value in whole.items():
        torch.testing.assert_close(sum(part[key] for part in parts), value, rtol=1e-4, atol=1e-5)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_a_critic_step_leaves_the_generator_and_its_statistics_alone(make_task, pyramids):
    task = make_task()
    before = {k: v.clone() for k, v in task.modules.state_dict().items()}
    update = task.updates(2)[0]
    step(update, pyramids(task), torch.optim.RMSprop(update.parameters(), **OPTIMISER))
    for name, value in task.modules.state_dict().items():
        if name.startswith(("splitter", "joiner")):
            assert torch.equal(value, before[name]), name
    assert all(p.abs().max() <= 0.01 for p in update.parameters())


def test_a_bad_step_clips_nothing(make_task, pyramids):
    update = make_task().updates(2)[0]
    before = [p.detach().clone() for p in update.parameters()]
    assert max(p.abs().max() for p in before) > 0.01
    for applied in (False, True):
        update.after_step(StepResult(torch.tensor(applied), Noise(0, 1), lambda t: t))
        assert applied != all(map(torch.equal, update.parameters(), before))
    assert all(p.abs().max() <= 0.01 for p in update.parameters())


def test_a_generator_step_trains_no_critic(make_task, pyramids):
    task = make_task()
    losses = task.generator(pyramids(task))
    losses["loss"].backward()
    for name, parameter in task.modules.named_parameters():
        is_critic = name.startswith("critic")
        assert (parameter.grad is None) == (is_critic or not parameter.requires_grad), name
        assert not is_critic or parameter.requires_grad


def test_the_critics_burst(make_task):
    task = make_task(loss__critic_burst=100, loss__critic_burst_every=500)
    counts = [len(task.updates(number)) - 1 for number in (1, 2, 500, 501, 502, 1001)]
    assert counts == [100, 1, 1, 100, 1, 100]
    assert task.updates(2)[-1].name == "generator"
    assert all(update.fresh_batch for update in task.all_updates())
    total = sum(len(task.updates(number)) for number in range(1, 1001))
    assert task.batches_per_iteration() == Fraction(total, 1000)


def test_random_mode_draws_one_size_an_iteration_and_repeats_it(make_task, pyramids):
    task = make_task(loss__multi_res_mode="random")
    drawn = []
    for number in range(1, 60):
        task.updates(number)
        drawn.append(task.sizes_now)
    assert {size for (size,) in drawn} == set(task.data_sizes)
    task.updates(7)
    assert task.sizes_now == drawn[6]
    assert len(task.real(pyramids(task), task.sizes_now)) == 1


def test_a_drawn_size_stands_for_all(make_task):
    task = make_task(loss__multi_res_mode="random", loss__scale_weights="s2")
    weights = {size: task.weights({size: {}}, task.data_sizes)[size] for size in task.data_sizes}
    mean = sum(weights.values()) / len(weights)
    assert mean == pytest.approx(1)
    assert weights[96] / weights[32] == pytest.approx(9)


def test_scale_weights_add_up():
    assert scale_weights("equal", (64, 96, 128)) == {64: 1 / 3, 96: 1 / 3, 128: 1 / 3}
    by_pixels = scale_weights("s2", (64, 128))
    assert by_pixels == {64: pytest.approx(0.2), 128: pytest.approx(0.8)}
    assert scale_weights("inv_s2", (64, 128)) == {64: pytest.approx(0.8), 128: pytest.approx(0.2)}


@pytest.mark.parametrize("critics", [False, True])
def test_multiscale_takes_in_the_largest_and_gives_all(make_task, pyramids, critics):
    task = make_task(model__multiscale_loss=True, model__multiscale_critics=critics)
    batch = pyramids(task)
    _, made = task.networks.all_four(task.real(batch, task.sizes_now), 96)
    assert sorted(made) == [32, 64, 96]
    assert all(faces.Bu.shape[-1] == size for size, faces in made.items())
    with torch.no_grad():
        judged = task.networks.exchange(task.real(batch, task.sizes_now), 96)
    assert sorted(judged) == ([32, 64, 96] if critics else [96])
    # A head begins as the resized face: the small output is the large one, made smaller.
    small = torch.nn.functional.interpolate(made[96].Bu, (32, 32), mode="bilinear", antialias=True)
    assert (small - made[32].Bu).abs().mean() < 2
    losses = task.generator(batch)
    losses["loss"].backward()
    assert all(head.weight.grad is not None for head in task.networks.joiner.heads.values())


def test_samples_leave_the_statistics_alone(make_task, pyramids):
    task = make_task()
    task.modules.train()
    before = {k: v.clone() for k, v in task.modules.state_dict().items()}
    picture = task.sample(pyramids(task))["faces"]
    assert picture.shape == (3, 3 * 98 - 2, 6 * 98 - 2)
    for name, value in task.modules.state_dict().items():
        if not name.startswith("critic"):
            assert torch.equal(value, before[name]), name


def test_fakes_say_what_they_are_compared_with(make_task, pyramids):
    task = make_task()
    task.modules.eval()
    fakes = task.fakes(pyramids(task, pairs=2))
    assert {name: fake.against for name, fake in fakes.items()} == {"Bu": "with", "A0": "without"}
    assert all(fake.images.shape == (2, 3, 96, 96) for fake in fakes.values())
    assert all(fake.images.dtype == torch.uint8 for fake in fakes.values())


def test_the_evaluator_counts_only_valid_pairs(make_task, pyramids):
    task = make_task()
    task.modules.eval()
    batch = pyramids(task, pairs=2)
    alone, padded = task.evaluator(), task.evaluator()
    with torch.no_grad():
        alone.update(batch)
        padded.update({**batch, "valid": torch.ones(4, dtype=torch.bool)})
        padded.update({**pyramids(task, 2, seed=9), "valid": torch.zeros(4, dtype=torch.bool)})
    assert padded.compute() == alone.compute()
    found = alone.compute()
    assert found["cycle"] == pytest.approx((found["cycle_Ax"] + found["cycle_Be"]) / 2)
