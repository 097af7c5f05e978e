"""The losses of the GeneGAN (arXiv 1705.04932, section 3; weights as in its code).

Images are float32 on 0..255. Each loss is a mean over the batch and all elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtool.models.genegan.schema import Loss


@dataclass(frozen=True)
class Faces:
    """One batch at one size, (B, 3, S, S) each.

    Attributes:
        Au, B0: real, with and without the attribute, unpaired.
        Bu, A0: with the object exchanged.
        Au_hat, B0_hat: reconstructions; None where a critic does not need them.
    """

    Au: Tensor
    B0: Tensor
    Bu: Tensor
    A0: Tensor
    Au_hat: Tensor | None = None
    B0_hat: Tensor | None = None


def reconstruction_losses(faces: Faces, loss: Loss) -> dict[str, Tensor]:
    """cycle_Ax, cycle_Be (on 0..1), and the parallelogram (on 0..255) with its weight.

    The weight is in it as in the logs of the earlier system.
    """
    assert faces.Au_hat is not None
    assert faces.B0_hat is not None
    return {
        "cycle_Ax": (faces.Au - faces.Au_hat).abs().mean() / 255,
        "cycle_Be": (faces.B0 - faces.B0_hat).abs().mean() / 255,
        "parallelogram": loss.parallelogram
        * (faces.Au + faces.B0 - faces.Bu - faces.A0).abs().mean(),
    }


def critic_loss(kind: str, of_made: Tensor, of_real: Tensor) -> Tensor:
    """What a critic minimises, from judgements (B,): how much more real made faces look to it.

    wasserstein   mean D(made) - D(real)
    logistic      mean softplus(D(made)) + softplus(-D(real)) (Goodfellow et al. 2014, equation 1)
    """
    if kind == "wasserstein":
        return (of_made - of_real).mean()
    return F.softplus(of_made).mean() + F.softplus(-of_real).mean()


def judged_real(kind: str, of_made: Tensor) -> Tensor:
    """What the generator minimises, from judgements (B,) of faces that it made.

    wasserstein   mean -D(made)
    logistic      mean softplus(-D(made)), which does not fade where the critic is sure
    """
    return -of_made.mean() if kind == "wasserstein" else F.softplus(-of_made).mean()


def weight_decay(weights: Iterable[Tensor]) -> Tensor:
    """Sum over the weights, a convolution's each, of half their mean square."""
    terms = [weight.square().mean() for weight in weights]
    return 0.5 * torch.stack(terms).sum()


def scale_weights(kind: str, sizes: Iterable[int]) -> dict[int, float]:
    """Weight of each size; they add up to 1. `s2` is by pixels, `inv_s2` by their inverse."""
    power = {"equal": 0, "s2": 2, "inv_s2": -2}[kind]
    raw = {size: float(size) ** power for size in sizes}
    total = sum(raw.values())
    return {size: weight / total for size, weight in raw.items()}


def weighted_mean(
    terms: Mapping[int, Mapping[str, Tensor]], weights: Mapping[int, float]
) -> dict[str, Tensor]:
    """Each loss over the sizes, from size -> name -> loss."""
    names = next(iter(terms.values()))
    return {
        name: torch.stack([weights[size] * terms[size][name] for size in terms]).sum()
        for name in names
    }


def generator_total(losses: Mapping[str, Tensor], loss: Loss) -> Tensor:
    """loss_G_nodecay from its terms over the sizes."""
    return (
        loss.object_l1 * losses["e"]
        + loss.cycle * (losses["cycle_Ax"] + losses["cycle_Be"])
        + loss.adversarial * (losses["Bx"] + losses["Ae"])
        + losses["parallelogram"]
    )
