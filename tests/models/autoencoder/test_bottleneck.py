from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imgtool.models.autoencoder.bottleneck import (
    LOGVAR_RANGE,
    Gaussian,
    Plain,
    VectorQuantizer,
    make_bottleneck,
)
from imgtool.models.autoencoder.schema import Model
from imgtool.models.base import Noise, StepResult
from imgtool.nn.codebook import REVIVE_BELOW


def result(
    *, applied: bool = True, all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> StepResult:
    return StepResult(torch.tensor(applied), Noise(0, 99), all_reduce)


def identity_quantizer(codes: list[list[float]] | None, **model: float) -> VectorQuantizer:
    """A quantiser of two channels whose 1x1 convolution changes nothing."""
    size = len(codes) if codes else int(model.pop("codebook_size"))
    made = VectorQuantizer(
        2, Model(bottleneck="vq", latent_channels=2, codebook_size=size, **model)
    )
    with torch.no_grad():
        made.to_latent.weight.copy_(torch.eye(2)[:, :, None, None])
        made.to_latent.bias.zero_()
    if codes:
        made.codebook.copy_(torch.tensor(codes))
        made.ema_count.fill_(4.0)
        made.ema_sum.copy_(4.0 * made.codebook)
        made.initialised.fill_(True)
    return made


def as_image(vectors: list[list[float]]) -> Tensor:
    """N vectors as one image (1, 2, 1, N)."""
    return torch.tensor(vectors).T[None, :, None, :].contiguous()


def test_names_make_their_bottleneck() -> None:
    kinds = {"none": Plain, "kl": Gaussian, "vq": VectorQuantizer}
    for name, kind in kinds.items():
        assert type(make_bottleneck(8, Model(bottleneck=name))) is kind


# Variational


def test_kl_samples_with_noise_and_is_the_mean_without() -> None:
    gaussian = Gaussian(8, Model(bottleneck="kl", latent_channels=4))
    features = torch.randn(3, 8, 2, 2)
    mean = gaussian(features, None)
    assert torch.equal(mean.z, mean.mu)
    sampled = gaussian(features, Noise(5, 7))
    normal = Noise(5, 7).normal(mean.mu, "kl")
    torch.testing.assert_close(sampled.z, mean.mu + torch.exp(mean.logvar / 2) * normal)
    assert torch.equal(gaussian(features, Noise(5, 7)).z, sampled.z)
    assert not torch.equal(gaussian(features, Noise(5, 8)).z, sampled.z)


def test_kl_noise_of_a_part_is_its_slice_of_the_whole() -> None:
    gaussian = Gaussian(8, Model(bottleneck="kl", latent_channels=4))
    features = torch.randn(4, 8, 2, 2)
    whole = gaussian(features, Noise(0, 1)).z
    parts = [gaussian(features[2 * k : 2 * k + 2], Noise(0, 1, part=k, parts=2)).z for k in (0, 1)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_logvar_is_clamped() -> None:
    gaussian = Gaussian(1, Model(bottleneck="kl", latent_channels=1))
    with torch.no_grad():
        gaussian.to_logvar.weight.fill_(1.0)
        gaussian.to_logvar.bias.zero_()
    latent = gaussian(torch.tensor([-1e4, 1e4]).view(1, 1, 1, 2), Noise(0, 0))
    assert (latent.logvar.min().item(), latent.logvar.max().item()) == LOGVAR_RANGE
    assert latent.z.isfinite().all()


# Vector-quantised


def test_each_vector_becomes_its_nearest_code() -> None:
    quantizer = identity_quantizer([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    latent = quantizer(as_image([[0.4, 0.1], [0.6, -0.2], [0.1, 3.0], [9.0, 9.0]]), None)
    assert latent.indices.tolist() == [[[0, 1, 2, 2]]]
    assert torch.equal(latent.z, as_image([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0], [0.0, 5.0]]))


def test_nearest_agrees_with_all_distances_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgtool.nn.codebook.DISTANCES_AT_ONCE", 7 * 64)
    quantizer = VectorQuantizer(4, Model(bottleneck="vq", latent_channels=4, codebook_size=64))
    quantizer.codebook.normal_()
    vectors = torch.randn(500, 4)
    distances = torch.cdist(vectors.double(), quantizer.codebook.double())
    assert torch.equal(quantizer.nearest(vectors), distances.argmin(1))


def test_distances_are_float32_under_autocast() -> None:
    # in bfloat16 these codes are one and the same
    quantizer = identity_quantizer([[1.0, 0.0], [1.001, 0.0]])
    vectors = torch.tensor([[1.0, 0.0], [1.001, 0.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert quantizer.nearest(vectors).tolist() == [0, 1]


def test_the_gradient_goes_straight_through() -> None:
    quantizer = identity_quantizer([[0.0, 0.0], [1.0, 1.0]])
    features = as_image([[0.2, 0.3], [0.7, 0.9]]).requires_grad_()
    latent = quantizer(features, None)
    factors = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    (gradient,) = torch.autograd.grad((latent.z * factors).sum(), features)
    assert torch.equal(gradient, factors)


def test_averages_follow_appendix_a1() -> None:
    decay = 0.75
    quantizer = identity_quantizer([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]], codebook_decay=decay)
    quantizer(as_image([[0.1, 0.3], [0.3, -0.1], [1.5, 0.9], [0.2, 0.1]]), Noise(0, 0))
    quantizer.after_step(result())
    # N = decay N + (1 - decay) n; m = decay m + (1 - decay) sum; e = m / N   (N was 4, m was 4 e)
    counts = [0.75 * 4 + 0.25 * 3, 0.75 * 4 + 0.25 * 1, 0.75 * 4]
    sums = [[0.25 * 0.6, 0.25 * 0.3], [3 + 0.25 * 1.5, 3 + 0.25 * 0.9], [27.0, 27.0]]
    torch.testing.assert_close(quantizer.ema_count, torch.tensor(counts)[:, None])
    torch.testing.assert_close(quantizer.ema_sum, torch.tensor(sums))
    codes = [[s / n for s in row] for row, n in zip(sums, counts, strict=True)]
    torch.testing.assert_close(quantizer.codebook, torch.tensor(codes))


def test_a_masked_step_changes_nothing() -> None:
    quantizer = identity_quantizer([[0.0, 0.0], [1.0, 1.0]])
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(as_image([[float("nan"), 0.0], [1.5, 0.9]]), Noise(0, 0))
    quantizer.after_step(result(applied=False))
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name
    quantizer(as_image([[0.1, 0.3], [1.5, 0.9]]), Noise(0, 1))  # and nothing lingers
    quantizer.after_step(result())
    assert quantizer.codebook.isfinite().all()


def test_evaluation_teaches_nothing() -> None:
    quantizer = identity_quantizer([[0.0, 0.0], [1.0, 1.0]])
    before = quantizer.codebook.clone()
    quantizer(as_image([[0.1, 0.3], [1.5, 0.9]]), None)
    quantizer.after_step(result())
    assert torch.equal(quantizer.codebook, before)


def test_dead_codes_start_again_at_vectors_of_the_batch() -> None:
    quantizer = identity_quantizer([[0.0, 0.0], [50.0, 50.0], [-50.0, 50.0]])
    quantizer.ema_count[1:] = 0.01
    vectors = [[0.1 * k, -0.1 * k] for k in range(8)]
    quantizer(as_image(vectors), Noise(3, 4))
    quantizer.after_step(result())
    revived = quantizer.codebook[1:].tolist()
    known = torch.tensor(vectors)
    for code in revived:
        assert torch.isclose(known, torch.tensor(code)).all(1).any()
    assert revived[0] != revived[1]
    torch.testing.assert_close(quantizer.ema_count[1:], torch.full((2, 1), 8 / 3))


def test_a_code_in_average_use_is_not_revived() -> None:
    assert REVIVE_BELOW < 1
    quantizer = identity_quantizer([[0.0, 0.0], [1.0, 1.0]])
    for iteration in range(20):
        quantizer(as_image([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), Noise(0, iteration))
        quantizer.after_step(result())
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))


def test_the_first_batch_passes_through_and_becomes_the_codebook() -> None:
    quantizer = identity_quantizer(None, codebook_size=16)
    features = torch.randn(2, 2, 4, 4)
    first = quantizer(features, Noise(0, 0))
    assert torch.equal(first.z, features)
    assert not quantizer.initialised
    quantizer.after_step(result())
    assert quantizer.initialised
    vectors = features.permute(0, 2, 3, 1).reshape(-1, 2)
    codes = quantizer.codebook
    taken = torch.cdist(codes, vectors).argmin(1)
    torch.testing.assert_close(codes, vectors[taken])
    assert len(set(taken.tolist())) == 16  # no vector twice while there are enough


def test_a_bad_first_step_leaves_the_codebook_to_the_next() -> None:
    quantizer = identity_quantizer(None, codebook_size=4)
    quantizer(torch.full((1, 2, 4, 4), float("nan")), Noise(0, 0))
    quantizer.after_step(result(applied=False))
    assert not quantizer.initialised
    quantizer(torch.randn(1, 2, 4, 4), Noise(0, 1))
    quantizer.after_step(result())
    assert quantizer.initialised
    assert quantizer.codebook.isfinite().all()


def test_fewer_vectors_than_codes() -> None:
    quantizer = identity_quantizer(None, codebook_size=64)
    for iteration in range(5):
        quantizer(torch.randn(1, 2, 2, 2), Noise(0, iteration))
        quantizer.after_step(result())
        assert quantizer.codebook.isfinite().all()


@pytest.mark.parametrize("accumulated", [False, True])
def test_parts_of_a_batch_equal_the_whole(accumulated: bool) -> None:
    """Two ranks, or two accumulated batches, against one process with the double batch."""
    whole = identity_quantizer(None, codebook_size=12, codebook_decay=0.5)
    parts = [identity_quantizer(None, codebook_size=12, codebook_decay=0.5) for _ in range(2)]
    for iteration in range(6):
        # most codes die: later batches lie elsewhere
        features = torch.randn(4, 2, 3, 3) * 0.1 + 3 * iteration
        whole(features, Noise(1, iteration))
        whole.after_step(result())
        if accumulated:
            for k in range(2):
                noise = Noise(1, iteration, part=k, parts=2)
                parts[0](features[2 * k : 2 * k + 2], noise)
            parts[0].after_step(result())
        else:
            for k in range(2):
                noise = Noise(1, iteration, part=k, parts=2)
                parts[k](features[2 * k : 2 * k + 2], noise)
            total = sum(p._collected for p in parts)
            for p in parts:
                p.after_step(result(all_reduce=lambda _, total=total: total.clone()))
            assert torch.equal(parts[0].codebook, parts[1].codebook)
        torch.testing.assert_close(parts[0].codebook, whole.codebook, rtol=1e-5, atol=1e-5)
    assert whole.codebook.max() > 10  # the codes have followed by revival


def test_resuming_from_the_buffers_is_exact() -> None:
    def train(quantizer: VectorQuantizer, start: int, end: int) -> None:
        for iteration in range(start, end):
            features = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(iteration))
            quantizer(features + iteration, Noise(1, iteration))
            quantizer.after_step(result())

    straight = identity_quantizer(None, codebook_size=8, codebook_decay=0.5)
    train(straight, 0, 6)
    for cut in (0, 1, 3):
        first = identity_quantizer(None, codebook_size=8, codebook_decay=0.5)
        train(first, 0, cut)
        second = identity_quantizer(None, codebook_size=8, codebook_decay=0.5)
        second.load_state_dict(first.state_dict())
        train(second, cut, 6)
        for name, value in straight.state_dict().items():
            assert torch.equal(second.state_dict()[name], value), (cut, name)


def test_collected_sums_are_no_buffers() -> None:
    # DDP would overwrite a buffer with the first process's before every forward
    quantizer = identity_quantizer([[0.0, 0.0], [1.0, 1.0]])
    quantizer(as_image([[0.1, 0.3]]), Noise(0, 0))
    names = {name for name, _ in quantizer.named_buffers()}
    assert names == {"codebook", "ema_count", "ema_sum", "initialised"}
    assert set(quantizer.state_dict()) == names | {"to_latent.weight", "to_latent.bias"}
