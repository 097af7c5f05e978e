"""Validation of a GeneGAN: how well it reconstructs, and how empty the empty object is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imgtool.data.pyramid import unpack
from imgtool.models.base import Batch, Evaluator
from imgtool.nn.quality import mse, psnr, sums_dtype

if TYPE_CHECKING:
    from imgtool.models.genegan.task import GeneganTask

NAMES = ("e", "cycle_Ax", "cycle_Be", "parallelogram", "mse", "psnr")


class GeneganEvaluator(Evaluator):
    """Means over the validation pairs at the shown size, with the running statistics.

    e, cycle_Ax, cycle_Be    the losses, unweighted, without the critics
    parallelogram            with its weight, as in training
    cycle                    mean of the two cycles
    loss                     their weighted sum
    mse, psnr                of both reconstructions, on [0, 1]; psnr in dB

    What the exchanged faces are worth is for `imgtool eval-fid` to say.
    """

    def __init__(self, task: GeneganTask) -> None:
        self.task = task
        device = next(task.modules.parameters()).device
        zero = torch.zeros((), dtype=sums_dtype(device), device=device)
        self.totals = {name: zero.clone() for name in ("pairs", *NAMES)}

    def update(self, batch: Batch) -> None:
        task = self.task
        found = unpack(batch["image"], task.data_sizes)
        real = {s: (image[0::2].float(), image[1::2].float()) for s, image in found.items()}
        e, made = task.networks.all_four(real, task.shown_size, track=False)
        faces = made[task.shown_size]
        assert faces.Au_hat is not None
        assert faces.B0_hat is not None
        errors = torch.stack(
            [mse(faces.Au_hat / 255, faces.Au / 255), mse(faces.B0_hat / 255, faces.B0 / 255)]
        )
        of_pairs = {
            "e": _mean(e.abs()),
            "cycle_Ax": _mean((faces.Au - faces.Au_hat).abs()) / 255,
            "cycle_Be": _mean((faces.B0 - faces.B0_hat).abs()) / 255,
            "parallelogram": task.loss.parallelogram
            * _mean((faces.Au + faces.B0 - faces.Bu - faces.A0).abs()),
            "mse": errors.mean(0),
            "psnr": psnr(errors).mean(0),
        }
        valid = batch.get("valid")
        pairs = torch.ones_like(of_pairs["e"]) if valid is None else valid[0::2]
        self.totals["pairs"] += pairs.sum()
        for name, values in of_pairs.items():
            total = self.totals[name]
            total += torch.where(pairs.bool(), values.to(total.dtype), 0).sum()

    def compute(self) -> dict[str, float | None]:
        sums = {name: total.item() for name, total in self.totals.items()}
        count = sums.pop("pairs")
        if not count:
            return {}
        found: dict[str, float | None] = {name: total / count for name, total in sums.items()}
        cycles = sums["cycle_Ax"] / count + sums["cycle_Be"] / count
        loss = self.task.loss
        found["cycle"] = cycles / 2
        found["loss"] = (
            loss.object_l1 * sums["e"] / count + loss.cycle * cycles + sums["parallelogram"] / count
        )
        return found


def _mean(values: Tensor) -> Tensor:
    return values.float().mean(dim=(1, 2, 3))
