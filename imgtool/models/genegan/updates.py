"""What a GeneGAN's iteration is made of: a step of the critics, and one of the generator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imgtool.models.base import Batch, StepResult, Update
from imgtool.models.genegan import losses as formulas
from imgtool.models.genegan.layers import At
from imgtool.models.genegan.losses import Faces
from imgtool.models.genegan.penalties import penalty
from imgtool.models.genegan.schema import GRADIENT_PENALTIES
from imgtool.nn.blocks import frozen

if TYPE_CHECKING:
    from imgtool.models.genegan.task import GeneganTask


class _Part(Update):
    """What both updates share: the real images by size, and this iteration's sizes."""

    def __init__(self, task: GeneganTask) -> None:
        super().__init__()
        self._outside = [task]  # no submodule: this update does not train all of it

    def pieces(self, batch: Batch) -> Sequence[Batch]:
        """One size after another, the largest first: its memory serves the others."""
        sizes = sorted(self.task.sizes_now, reverse=True)
        return [{**batch, "sizes": (size,)} for size in sizes]

    @property
    def task(self) -> GeneganTask:
        return self._outside[0]


class CriticUpdate(_Part):
    """One step of both critics, and whatever bounds them (`loss.critic_penalty`)."""

    name = "critic"

    def __init__(self, task: GeneganTask) -> None:
        super().__init__(task)
        self.critic_Ax, self.critic_Be = task.networks.critic_Ax, task.networks.critic_Be

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Ax_Bx, Be_Ae, the penalties where there are some, and the sum loss_D of all, weighted
        over the sizes.
        """
        networks, task = self.task.networks, self.task
        sizes = batch.get("sizes", task.sizes_now)
        real = task.real(batch, sizes)
        terms: dict[int, dict[str, Tensor]] = {}
        for size in sizes:
            with torch.no_grad():
                made = networks.exchange(real, size)
            for scale, faces in made.items():
                at, kind = At(scale, groups=2), task.loss.critic_loss
                of_Bu, of_Au = self.critic_Ax(torch.cat([faces.Bu, faces.Au]), at).chunk(2)
                of_A0, of_B0 = self.critic_Be(torch.cat([faces.A0, faces.B0]), at).chunk(2)
                terms[scale] = {
                    "Ax_Bx": formulas.critic_loss(kind, of_Bu, of_Au),
                    "Be_Ae": formulas.critic_loss(kind, of_A0, of_B0),
                    **self._penalties(faces, scale, batch),
                }
        losses = formulas.weighted_mean(terms, task.weights(terms, networks.judged))
        loss = losses["Ax_Bx"] + losses["Be_Ae"]
        if "penalty_Ax" in losses:
            loss = loss + losses["penalty_Ax"] + losses["penalty_Be"]
        return {**losses, "loss_D": loss, "loss": loss}

    def _penalties(self, faces: Faces, scale: int, batch: Batch) -> dict[str, Tensor]:
        """penalty_Ax and penalty_Be; none where nothing is penalised, and zeros in updates that
        are passed over.
        """
        loss = self.task.loss
        if loss.critic_penalty not in GRADIENT_PENALTIES:
            return {}
        noise, found = batch["noise"], {}
        is_due = self.task.is_penalised(noise)
        for name, real, made in (("Ax", faces.Au, faces.Bu), ("Be", faces.B0, faces.A0)):
            found[f"penalty_{name}"] = real.new_zeros(())
            if is_due:
                critic, at = getattr(self, f"critic_{name}"), At(scale)
                share = noise.uniform(real[:, :1, :1, :1], f"penalty/{name}/{scale}") + 0.5
                weight = loss.critic_penalty_weight * loss.critic_penalty_every
                found[f"penalty_{name}"] = penalty(
                    loss.critic_penalty, partial(critic, at=at), real, made, share, weight
                )
        return found

    @torch.no_grad()
    def after_step(self, result: StepResult) -> None:
        """Clips the critics; with no limit where the step was bad and has changed nothing."""
        if self.task.loss.critic_penalty != "clip":
            return
        limit = torch.where(result.applied, self.task.loss.critic_clip, torch.inf)
        for parameter in self.parameters():
            if parameter.requires_grad:  # twice as quick as clamp_ with tensors
                torch.maximum(parameter, -limit, out=parameter)
                torch.minimum(parameter, limit, out=parameter)


class GeneratorUpdate(_Part):
    """One step of splitter and joiner."""

    name = "generator"

    def __init__(self, task: GeneganTask) -> None:
        super().__init__(task)
        self.splitter, self.joiner = task.networks.splitter, task.networks.joiner

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss, weighted over the sizes, and their sums."""
        task, networks = self.task, self.task.networks
        sizes = batch.get("sizes", task.sizes_now)
        real = task.real(batch, sizes)
        cycles: dict[int, dict[str, Tensor]] = {}
        judged: dict[int, dict[str, Tensor]] = {}
        objects: dict[int, dict[str, Tensor]] = {}
        with frozen(networks.critic_Ax, networks.critic_Be):
            for size in sizes:
                e, made = networks.all_four(real, size)
                objects[size] = {"e": e.abs().mean()}
                for scale, faces in made.items():
                    cycles[scale] = formulas.reconstruction_losses(faces, task.loss)
                    if scale in networks.judged:
                        at, kind = At(scale), task.loss.critic_loss
                        judged[scale] = {
                            "Bx": formulas.judged_real(kind, networks.critic_Ax(faces.Bu, at)),
                            "Ae": formulas.judged_real(kind, networks.critic_Be(faces.A0, at)),
                        }
        losses: dict[str, Tensor] = {}
        for terms, among in (
            (objects, networks.sizes),
            (cycles, networks.scales),
            (judged, networks.judged),
        ):
            losses |= formulas.weighted_mean(terms, task.weights(terms, among))
        total = formulas.generator_total(losses, task.loss)
        decay = torch.zeros_like(total)
        if task.sizes_now[0] in sizes:  # it belongs to one piece of the batch
            decay = task.loss.generator_decay * formulas.weight_decay(networks.convolutions())
        loss = total + decay
        return {
            **losses,
            "loss_G_nodecay": total,
            "loss_G_decay": decay,
            "loss_G": loss,
            "loss": loss,
        }
