"""What an editor makes of pairs of faces, each part of a face computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imgtool.data.pyramid import unpack
from imgtool.errors import UsageError
from imgtool.evaluation.restore import Restored
from imgtool.models.base import Batch
from imgtool.models.genegan.layers import At
from imgtool.models.genegan.task import GeneganTask, pair, to_uint8

# Edits by name: what goes in, and what the reconstruction of that is called.
EDITS = {"Bu": ("B0", "B0_hat"), "A0": ("Au", "Au_hat")}


@dataclass(frozen=True)
class Made:
    """Faces of B pairs, uint8 (B, 3, S, S) each, on the device that made them.

    Attributes:
        faces: Au, B0 (real), Bu (B0 with Au's object), A0 (Au with none), Au_hat, B0_hat.
        steps: (B, K, 3, S, S), B0 with objects from its own to Au's in equal steps, as
            `edit interpolate` makes them; the last is Bu.
    """

    faces: dict[str, Tensor]
    steps: Tensor


def task_of(editor: Restored) -> GeneganTask:
    """The task. Raises UsageError where the checkpoint edits nothing."""
    if not isinstance(editor.task, GeneganTask):
        raise UsageError(
            f"{editor.path} edits no faces (family {editor.experiment.family})",
            hint="give a checkpoint of `imgtool train genegan`",
        )
    return editor.task


@torch.no_grad()
def make(task: GeneganTask, batch: Batch, num_steps: int) -> Made:
    """Edit a batch of pairs at the size that the experiment shows."""
    size = task.shown_size
    Au, B0 = pair(unpack(batch["image"], task.data_sizes)[size])
    at, networks = At(size), task.networks
    (A, x), (B, own) = networks.splitter(Au, at), networks.splitter(B0, at)
    shares = [step / (num_steps - 1) for step in range(num_steps - 1)]
    objects = [x, *(own + share * (x - own) for share in shares)]
    pairs: list[tuple[int, int | None]] = [(1, 0), (0, None), (0, 0), (1, None)]
    pairs += [(1, 1 + step) for step in range(len(shares))]
    joined = to_uint8(networks.joiner([A, B], objects, pairs, at)[size])
    Bu, A0, Au_hat, B0_hat, *steps = joined.chunk(len(pairs))
    faces = {"Au": to_uint8(Au), "B0": to_uint8(B0)}
    faces |= {"Bu": Bu, "A0": A0, "Au_hat": Au_hat, "B0_hat": B0_hat}
    return Made(faces, torch.stack([*steps, Bu], dim=1))
