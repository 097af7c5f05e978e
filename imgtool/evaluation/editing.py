"""Attributes moved from face to face by a trained GeneGAN (arXiv 1705.04932, section 4).

A face is a background and an object, the attribute as it looks on that face. Every edit joins
the background of `input` with an object made of those of the targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imgtool.data.base import DataInfo, Image8
from imgtool.data.images import decode
from imgtool.errors import UsageError
from imgtool.experiment.layout import find_checkpoint
from imgtool.models.genegan.layers import At
from imgtool.models.genegan.task import GeneganTask, to_uint8
from imgtool.nn.images import grid
from imgtool.training.device import resolve_device
from imgtool.training.opening import read_trained


@dataclass(frozen=True)
class Edits:
    """What has been made of faces.

    Attributes:
        picture: all of them beside each other, (3, H, W) uint8.
        made: those that are new, (3, S, S) uint8, in order.
    """

    picture: Tensor
    made: list[Tensor]


@dataclass(frozen=True)
class Editor:
    """A trained GeneGAN, ready to edit faces.

    Attributes:
        path: of the checkpoint.
        iteration: that it was written at.
        size: pixels of the side of the faces it makes.
        data_root: of the faces that it was trained on; None where they were no folder.
    """

    path: Path
    iteration: int
    size: int
    data_root: str | None
    _task: GeneganTask
    _device: torch.device

    def read(self, path: str) -> Tensor:
        """A face (1, 3, S, S), float32 on 0..255, of any image file.

        Raises:
            DataError: it is none.
        """
        return self.face(decode(path)[0])

    def face(self, pixels: Image8) -> Tensor:
        """An aligned face, (H, W, 3) uint8, as the network takes it, as in read()."""
        size = (self.size, self.size)
        small = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
        face = torch.from_numpy(np.array(small)).permute(2, 0, 1).float()
        return face.unsqueeze(0).to(self._device)

    @torch.no_grad()
    def _split(self, face: Tensor) -> tuple[Tensor, Tensor]:
        background, thing = self._task.networks.splitter(face, At(self.size))
        return background, thing

    @torch.no_grad()
    def _join(self, background: Tensor, thing: Tensor) -> Tensor:
        """Faces (B, 3, S, S) uint8, of one background and B objects."""
        many = background.expand(len(thing), -1, -1, -1)
        faces = self._task.networks.joiner([many], [thing], [(0, 0)], At(self.size))
        return to_uint8(faces[self.size]).cpu()

    def swap(self, first: Tensor, second: Tensor) -> Edits:
        """first | second | first with second's object | second with first's."""
        (a, x), (b, y) = self._split(first), self._split(second)
        made = [self._join(a, y)[0], self._join(b, x)[0]]
        return Edits(grid([[_shown(first), _shown(second), *made]]), made)

    def interpolate(self, face: Tensor, target: Tensor, steps: int) -> Edits:
        """face | `steps` faces from its own object to the target's | target."""
        (background, own), (_, wanted) = self._split(face), self._split(target)
        share = torch.linspace(0, 1, steps, device=self._device).view(-1, 1, 1, 1)
        made = list(self._join(background, own + share * (wanted - own)))
        return Edits(grid([[_shown(face), *made, _shown(target)]]), made)

    def matrix(self, face: Tensor, targets: Sequence[Tensor], rows: int, columns: int) -> Edits:
        """The face with objects between those of four targets, one at each corner (top left, top
        right, bottom left, bottom right), line by line.
        """
        background, _ = self._split(face)
        objects = torch.cat([self._split(target)[1] for target in targets])
        down = torch.linspace(0, 1, rows, device=self._device)
        across = torch.linspace(0, 1, columns, device=self._device)
        lines = []
        for y in down:
            shares = torch.stack(
                [(1 - y) * (1 - across), (1 - y) * across, y * (1 - across), y * across], dim=1
            )
            lines.append(
                list(self._join(background, torch.einsum("nk,kchw->nchw", shares, objects)))
            )
        return Edits(grid(lines), [cell for line in lines for cell in line])


def _shown(face: Tensor) -> Tensor:
    return to_uint8(face)[0].cpu()


def open_editor(source: str, *, device: str = "auto", img_size: int | None = None) -> Editor:
    """Open a GeneGAN's checkpoint.

    Args:
        source: a file, or an exp_dir: its latest checkpoint.
        device: as `train.device`.
        img_size: one of the sizes that it was trained with; its shown size when None.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        UsageError: it is of another family, or has no such size.
    """
    path = find_checkpoint(source)
    hint = "faces are edited by a checkpoint of `imgtool train genegan`"
    trained = read_trained(path, family="genegan", hint=hint)
    experiment = trained.experiment
    sizes = experiment.data.image_sizes  # type: ignore[attr-defined]
    if img_size is not None:
        if img_size not in sizes:
            raise UsageError(
                f"{path} was not trained with {img_size} pixels",
                hint="its sizes: " + ", ".join(map(str, sizes)),
            )
        experiment = replace(experiment, data=replace(experiment.data, image_size=img_size))
    info = DataInfo(targets=frozenset({"label"}), image_size=None, num_train_images=0)
    task = trained.build(experiment, info)
    if not isinstance(task, GeneganTask):
        raise UsageError(
            f"{path} is a VQ-VAE, which exchanges nothing",
            hint="give a checkpoint that began with it: --config genegan/exp06b",
        )
    on = resolve_device(device)
    trained.put_into(task, experiment, on)
    root = trained.experiment.data.root
    return Editor(path, trained.iteration, task.shown_size, root, task, on)
