"""Penalties on the gradients of a critic, by which it stays smooth.

gp      weight * mean (|grad D(z)| - 1)^2, z anywhere between a real and a made face (WGAN-GP,
        Gulrajani et al. 2017, equation 3)
r1      weight / 2 * mean |grad D(real)|^2 (Mescheder et al. 2018, equation 9)
r1r2    that, and the same of made faces (equation 10)

A gradient's norm is over all of a face's values and on -1..1, as in these papers; faces are on
0..255 here. Means are over faces, each of which must be judged by itself. In float32 whatever the
run's precision.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from imgtool.nn.blocks import without_autocast
from imgtool.nn.convolution import WEIGHT_GRADIENT

HALF_RANGE = 127.5
TINY = 1e-12  # under the root, whose slope at 0 has no bound

Judge = Callable[[Tensor], Tensor]


def penalty(
    kind: str, judge: Judge, real: Tensor, made: Tensor, share: Tensor, weight: float
) -> Tensor:
    """The penalty of one critic, 0-d; its gradients go into the critic alone.

    Args:
        kind: gp, r1 or r1r2.
        judge: faces (B, 3, S, S) -> judgements (B,), each of its face alone.
        real, made: faces on 0..255.
        share: of the real face in what lies between, 0..1, (B, 1, 1, 1).
    """
    if kind == "gp":
        between = share * real + (1 - share) * made
        norms = (squared_slopes(judge, between) + TINY).sqrt()
        return weight * (norms - 1).square().mean()
    total = squared_slopes(judge, real).mean()
    if kind == "r1r2":
        total = total + squared_slopes(judge, made).mean()
    return weight / 2 * total


def squared_slopes(judge: Judge, faces: Tensor) -> Tensor:
    """Squared norm of the judgement's gradient in each face on -1..1, (B,); differentiable."""
    faces = faces.detach().requires_grad_()
    # torch's own convolutions alone have a second derivative that leaves out what nobody asks for.
    kernels = WEIGHT_GRADIENT.using("convolution", faces.device)
    with torch.enable_grad(), without_autocast(faces), kernels:
        (slopes,) = torch.autograd.grad(judge(faces).sum(), faces, create_graph=True)
    return (HALF_RANGE * slopes).flatten(1).square().sum(dim=1)
