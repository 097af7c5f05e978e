"""What bounds the critics, and how the joiner enlarges: formulas against plain ones."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imgtool.models.base import Noise, StepResult
from imgtool.models.genegan.layers import At, ResizedConv2d
from imgtool.models.genegan.losses import critic_loss, judged_real
from imgtool.models.genegan.network import Critic, Joiner
from imgtool.models.genegan.penalties import penalty, squared_slopes
from imgtool.models.genegan.schema import Model

SMALL = {"data__image_sizes": (16, 32), "data__image_size": 32, "model__base_channels": 8}
ALONE = {**SMALL, "model__critic_norm": "group_norm", "model__norm_groups": 4}
PENALISED = {
    "gp": {**ALONE, "loss__critic_penalty": "gp"},
    "r1": {**ALONE, "loss__critic_penalty": "r1", "loss__critic_loss": "logistic"},
    "r1r2": {**ALONE, "loss__critic_penalty": "r1r2", "loss__critic_loss": "logistic"},
}
SPECTRAL = {
    **SMALL,
    "model__critic_norm": "none",
    "model__critic_spectral_norm": True,
    "loss__critic_penalty": "none",
}


def critic_and_faces(norm, size=16):
    """A critic in double precision, and real faces, made ones and shares."""
    model = Model(base_channels=4, critic_norm=norm, norm_groups=2)
    critic = Critic(model, (size,)).double()
    for parameter in critic.parameters():  # the reference's are too small to tell apart
        nn.init.normal_(parameter, std=0.3)
    shape = (3, 3, size, size)
    faces = [torch.rand(shape, dtype=torch.float64) * 255 for _ in range(2)]
    return critic, *faces, torch.rand(3, 1, 1, 1, dtype=torch.float64)


def plain_judgement(weights, norm, face):
    """The critic written out for one face (3, 16, 16) on -1..1."""
    x = ((face + 1) / 2)[None]
    for number in range(4):
        x = F.conv2d(x, weights[f"layers.{number}.conv.weight"], stride=2, padding=1)
        if norm == "none":
            x = x + weights[f"layers.{number}.shift"][:, None, None]
        elif number:
            parts = x.unflatten(1, (2, -1))
            mean = parts.mean((2, 3, 4), keepdim=True)
            var = parts.var((2, 3, 4), correction=0, keepdim=True)
            x = ((parts - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
            scale, shift = (weights[f"layers.{number}.norm.{part}"] for part in ("weight", "bias"))
            x = x * scale[:, None, None] + shift[:, None, None]
        x = torch.where(x > 0, x, 0.2 * x)
    x = x.expand(-1, -1, 4, 4).reshape(-1)  # one value, of which the pool makes 4x4
    return x @ weights["judge.weight"][0] + weights["judge.bias"][0]


def plain_penalty(kind, critic, norm, real, made, share, weight):
    """Face by face, by derivatives of the critic that is written out."""
    weights = dict(critic.named_parameters())

    def slope(face):
        face = face.clone().requires_grad_()
        (found,) = torch.autograd.grad(
            plain_judgement(weights, norm, face), face, create_graph=True
        )
        return found

    real, made = real / 127.5 - 1, made / 127.5 - 1
    total = 0.0
    for r, m, e in zip(real, made, share, strict=True):
        if kind == "gp":
            total = total + weight * (slope(m + e * (r - m)).norm() - 1) ** 2
        else:
            total = total + weight / 2 * slope(r).pow(2).sum()
        if kind == "r1r2":
            total = total + weight / 2 * slope(m).pow(2).sum()
    return total / len(real)


@pytest.mark.parametrize("norm", ["none", "group_norm"])
@pytest.mark.parametrize("kind", ["gp", "r1", "r1r2"])
def test_penalties_and_their_gradients_are_those_of_plain_code(kind, norm):
    critic, real, made, share = critic_and_faces(norm)
    found = penalty(kind, partial(critic, at=At(16)), real, made, share, 3.0)
    expected = plain_penalty(kind, critic, norm, real, made, share, 3.0)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)
    parameters = list(critic.parameters())
    wanted = torch.autograd.grad(expected, parameters, materialize_grads=True)
    gradients = torch.autograd.grad(found, parameters, materialize_grads=True)
    assert sum(bool(gradient.any()) for gradient in gradients) >= 5
    torch.testing.assert_close(gradients, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("norm", ["none", "group_norm"])
def test_a_critic_has_right_second_derivatives(norm):
    """Activations are in place."""
    critic, real, _, _ = critic_and_faces(norm)
    face = (real[:1] / 255).requires_grad_()

    def judge(face, weight):
        names = {"layers.1.conv.weight": weight}
        return torch.func.functional_call(critic, names, (255 * face, At(16)))

    weight = critic.layers[1].conv.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradgradcheck(judge, (face, weight), atol=1e-6, fast_mode=True)


def test_penalties_of_a_linear_critic_are_known():
    weight = torch.randn(3, 8, 8, dtype=torch.float64).requires_grad_()
    faces = torch.rand(2, 5, 3, 8, 8, dtype=torch.float64) * 255
    share = torch.rand(5, 1, 1, 1, dtype=torch.float64)

    def judge(faces):
        return ((faces / 127.5 - 1) * weight).sum((1, 2, 3))

    square = weight.detach().square().sum()
    found = {k: penalty(k, judge, *faces, share, 10.0).item() for k in ("gp", "r1", "r1r2")}
    assert found["r1"] == pytest.approx(5 * square.item())
    assert found["r1r2"] == pytest.approx(10 * square.item())
    assert found["gp"] == pytest.approx(10 * (square.sqrt().item() - 1) ** 2)


def test_a_flat_critic_has_a_penalty_without_nan():
    weight = torch.zeros(3, 4, 4, requires_grad=True)
    faces = torch.rand(2, 2, 3, 4, 4)
    of = penalty("gp", lambda x: (x * weight).sum((1, 2, 3)), *faces, torch.rand(2, 1, 1, 1), 10.0)
    of.backward()
    assert of.item() == pytest.approx(10, rel=1e-4)
    assert weight.grad.isfinite().all()


def test_each_face_is_penalised_by_itself():
    critic, real, _, _ = critic_and_faces("group_norm")
    judge = partial(critic, at=At(16))
    together = squared_slopes(judge, real)
    alone = torch.cat([squared_slopes(judge, face[None]) for face in real])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=0)


def test_penalties_are_in_float32_whatever_the_precision():
    critic, real, made, share = (each.float() for each in critic_and_faces("none"))
    judge = partial(critic, at=At(16))
    wanted = penalty("gp", judge, real, made, share, 10.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = penalty("gp", judge, real, made, share, 10.0)
        assert judge(real).dtype == torch.bfloat16
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", PENALISED)
def test_an_update_penalises_each_size_and_clips_nothing(make_task, pyramids, kind):
    task = make_task(**PENALISED[kind])
    update, batch = task.critic, pyramids(task)
    whole = update(batch)
    whole["loss"].backward()
    names = ("Ax_Bx", "Be_Ae", "penalty_Ax", "penalty_Be")
    torch.testing.assert_close(whole["loss"], sum(whole[name] for name in names))
    assert whole["penalty_Ax"] > 0
    expected = [p.grad.clone() for p in update.parameters()]
    update.zero_grad()
    for piece in update.pieces(batch):
        found = update(piece)
        assert found["penalty_Be"] > 0
        found["loss"].backward()
    for parameter, gradient in zip(update.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    for parameter in task.networks.splitter.parameters():
        assert parameter.grad is None
    before = [p.detach().clone() for p in update.parameters()]
    update.after_step(StepResult(torch.tensor(True), Noise(0, 1), lambda t: t))
    assert all(map(torch.equal, update.parameters(), before))
    critics = [task.networks.critic_Ax, task.networks.critic_Be]
    assert not set(critics) & set(task.compile_targets())  # they need second derivatives
    plain = make_task()
    assert set(plain.compile_targets()) == set(plain.modules.values())


def test_halves_of_a_batch_have_the_penalty_of_the_whole(make_task, pyramids):
    """As `train.accumulate` and ranks cut it: with the same places between the faces."""
    task = make_task(**PENALISED["gp"], model__norm="group_norm")
    batch = pyramids(task, pairs=4)
    whole = task.critic({**batch, "noise": Noise(0, 0)})["penalty_Ax"]
    halves = [
        task.critic({"image": batch["image"][rows], "noise": Noise(0, 0, part=part, parts=2)})
        for part, rows in enumerate((slice(0, 4), slice(4, 8)))
    ]
    mean = (halves[0]["penalty_Ax"] + halves[1]["penalty_Ax"]) / 2
    torch.testing.assert_close(mean, whole, rtol=1e-5, atol=0)
    other = task.critic({**batch, "noise": Noise(1, 0)})["penalty_Ax"]
    assert other != whole


def test_a_lazy_penalty_is_of_every_few_critic_updates_and_as_many_times_as_large(
    make_task, pyramids
):
    changes = {"loss__critic_burst": 5, "loss__critic_burst_every": 3, "loss__critic_steps": 2}
    task = make_task(**PENALISED["r1"], **changes, loss__critic_penalty_every=4)
    steps, due = 0, []
    for iteration in range(1, 8):
        for update in task.updates(iteration):
            if update is task.critic:
                due.append(task.is_penalised(Noise(0, steps)))
            steps += 1
    assert due == [number % 4 == 0 for number in range(len(due))]
    task.updates(1)
    batch = pyramids(task)
    lazy, not_due = (task.critic({**batch, "noise": Noise(0, step)}) for step in (0, 1))
    assert not_due["penalty_Ax"] == 0
    torch.testing.assert_close(not_due["loss"], lazy["Ax_Bx"] + lazy["Be_Ae"])
    eager = make_task(**PENALISED["r1"], **changes)
    eager.modules.load_state_dict(task.modules.state_dict())
    each = eager.critic({**batch, "noise": Noise(0, 0)})
    torch.testing.assert_close(lazy["penalty_Ax"], 4 * each["penalty_Ax"])


def test_losses_of_both_kinds():
    made, real = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    assert critic_loss("wasserstein", made, real).item() == pytest.approx(-2.25)
    assert judged_real("wasserstein", made).item() == pytest.approx(0.5)
    # Cross-entropy of the classes real and made, and of taking what was made as real.
    as_real, as_made = torch.ones(2), torch.zeros(2)
    entropy = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(
        critic_loss("logistic", made, real), entropy(made, as_made) + entropy(real, as_real)
    )
    torch.testing.assert_close(judged_real("logistic", made), entropy(made, as_real))


def test_spectral_norm_holds_each_weight_at_one(make_task, pyramids):
    task = make_task(**SPECTRAL)
    update, batch = task.critic, pyramids(task)
    for _ in range(5):
        update(batch)["loss"].backward()
        with torch.no_grad():
            for parameter in update.parameters():
                parameter -= 0.1 * parameter.grad
        update.zero_grad()
    critic = task.networks.critic_Ax
    for _ in range(50):
        critic(torch.rand(1, 3, 32, 32) * 255, At(32))
    critic.eval()
    bounded = [part for part in critic.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    assert len(bounded) == 5
    for part in bounded:
        largest = torch.linalg.svdvals(part.weight.flatten(1))[0].item()
        assert largest == pytest.approx(1, abs=0.01)


REFUSED = [
    ({"loss__critic_penalty": "gp"}, "batch norm mixes them"),
    ({**PENALISED["r1"], "loss__critic_loss": "wasserstein"}, "must be logistic"),
    ({"loss__critic_penalty": "none"}, "without a bound"),
    ({**SPECTRAL, "loss__critic_penalty": "clip"}, "in place of loss.critic_penalty clip"),
    ({**SPECTRAL, "model__critic_norm": "same"}, "critic_norm must be none"),
    ({"model__critic_norm": "group_norm", "model__norm_groups": 7}, "does not divide"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_bounds_nothing_is_refused(make_task, changes, words):
    with pytest.raises(ValueError, match=words):
        make_task(**changes)


# The joiner's way of enlarging ------------------------------------------------------------------


def test_a_resized_convolution_is_one_of_repeated_features():
    layer = ResizedConv2d(3, 5).double()
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64).requires_grad_()
    wanted = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), layer.weight, padding=1)
    torch.testing.assert_close(layer(x), wanted)
    weights = torch.randn_like(wanted)
    found = torch.autograd.grad((layer(x) * weights).sum(), (x, layer.weight))
    expected = torch.autograd.grad((wanted * weights).sum(), (x, layer.weight))
    torch.testing.assert_close(found, expected)


def test_even_features_stay_even_where_they_are_resized():
    """Transposed convolutions of random weights make chequers of them."""
    made = {}
    for kind in ("resize", "transposed"):
        layer = Joiner(Model(base_channels=4, upsampling=kind), (64,)).layers[0].conv
        made[kind] = layer(torch.ones(1, 16, 8, 8))[:, :, 2:-2, 2:-2]
    spread = {kind: x.std((2, 3)).max().item() for kind, x in made.items()}
    assert spread["resize"] < 1e-6 < 1e-2 < spread["transposed"]


@pytest.mark.parametrize("size", [64, 96])
def test_a_resizing_joiner_shares_its_first_layer_too(size):
    joiner = Joiner(Model(base_channels=4, upsampling="resize"), (64, 96)).double().eval()
    side = 16 if size == 64 else 12
    ground = torch.randn(2, 12, side, side, dtype=torch.float64)
    thing = torch.randn(2, 4, side, side, dtype=torch.float64)
    made = joiner.logits([ground], [thing], [(0, 0)], At(size))
    x = torch.cat([ground, thing], dim=1)
    for layer in joiner.layers[: 2 if size == 64 else 3]:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = F.relu(layer.norm(F.conv2d(x, layer.conv.weight, padding=1), At(size)))
    torch.testing.assert_close(made, joiner.to_rgb(x) + joiner.bias.view(3, 1, 1))
