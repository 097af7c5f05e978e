"""A VQ-VAE with the GeneGAN's own trunk, whose weights splitter and joiner can begin with.

face -> splitter -> background and object, joined -> codebook -> apart again -> joiner -> face
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imgtool.config.schema import Experiment
from imgtool.data.pyramid import unpack
from imgtool.models.base import Batch, DataInfo, Evaluator, Fake, Noise, StepResult, Task, Update
from imgtool.models.genegan.layers import At
from imgtool.models.genegan.losses import scale_weights
from imgtool.models.genegan.network import Joiner, Splitter
from imgtool.models.genegan.schema import faces_data
from imgtool.nn.codebook import Codebook
from imgtool.nn.cost import count_parameters
from imgtool.nn.images import grid
from imgtool.nn.quality import mse, psnr, sums_dtype

AROUND = [(0, 0)]  # the joiner's one pair: a face's own background and object


class VqvaeUpdate(Update):
    """One step of splitter and joiner on what comes back through the codebook.

    Losses, over the sizes by their weights:

    l1            mean|x - x_hat| on 0..1
    commitment    mean squared distance of features and their codes
    loss          loss.cycle of the first and loss.commitment of the second
    """

    def __init__(self, task: VqvaeTask) -> None:
        super().__init__()
        self.splitter, self.codebook, self.joiner = task.splitter, task.codebook, task.joiner
        self.loss, self.sizes = task.loss, task.sizes
        self.weights = scale_weights(task.loss.scale_weights, task.sizes)

    def forward(self, batch: Batch) -> Mapping[str, Tensor | str]:
        images = unpack(batch["image"], self.sizes)
        made, distances = self.through(images, batch.get("noise"))
        weighted = self.weights.items()
        l1 = sum(w * (made[size] - images[size].float()).abs().mean() / 255 for size, w in weighted)
        commitment = sum(w * distances[size].mean() for size, w in weighted)
        assert isinstance(l1, Tensor)
        assert isinstance(commitment, Tensor)
        total = self.loss.cycle * l1 + self.loss.commitment * commitment
        return {"l1": l1, "commitment": commitment, "loss": total}

    def through(
        self, images: Mapping[int, Tensor], noise: Noise | None
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Faces on 0..255 (B, 3, S, S) by size as they come back, and the squared distances of
        their features to the codes.
        """
        parts = {size: self.splitter(image.float(), At(size)) for size, image in images.items()}
        features = [torch.cat(part, dim=1).float() for part in parts.values()]
        coded, _ = self.codebook.quantise(features, noise)
        made, distances = {}, {}
        for size, own, codes in zip(parts, features, coded, strict=True):
            ground, thing = codes.split([part.shape[1] for part in parts[size]], dim=1)
            made[size] = self.joiner([ground], [thing], AROUND, At(size))[size]
            distances[size] = (own - codes.detach()).square()
        return made, distances

    def after_step(self, result: StepResult) -> None:
        self.codebook.learn(result.applied, result.all_reduce)


class VqvaeEvaluator(Evaluator):
    """Means over the faces of both sets at the shown size: mse, psnr (dB) and l1, on [0, 1]."""

    def __init__(self, task: VqvaeTask) -> None:
        self.task = task
        device = next(task.modules.parameters()).device
        zero = torch.zeros((), dtype=sums_dtype(device), device=device)
        self.totals = {name: zero.clone() for name in ("images", "mse", "psnr", "l1")}

    def update(self, batch: Batch) -> None:
        x, x_hat = self.task.around(batch)
        errors = mse(x_hat / 255, x / 255)
        of_images = {
            "images": torch.ones_like(errors),
            "mse": errors,
            "psnr": psnr(errors),
            "l1": (x_hat - x).abs().mean((1, 2, 3)) / 255,
        }
        self.add(of_images, batch)

    def compute(self) -> dict[str, float | None]:
        sums = {name: total.item() for name, total in self.totals.items()}
        count = sums.pop("images")
        return {name: total / count for name, total in sums.items()} if count else {}


class VqvaeTask(Task):
    """Modules: `splitter`, `codebook`, `joiner`. Best is the lowest `val_mse`."""

    monitor = "val_mse"

    def __init__(self, experiment: Experiment, data: DataInfo) -> None:
        model = experiment.model
        self.experiment, self.data, self.loss = experiment, data, experiment.loss
        self.sizes: tuple[int, ...] = tuple(faces_data(experiment).image_sizes)
        self.shown_size: int = faces_data(experiment).shown_size
        self.splitter, self.joiner = Splitter(model, self.sizes), Joiner(model, self.sizes)
        channels = self.splitter.num_background + self.splitter.num_object
        self.codebook = Codebook(model.codebook_size, channels, model.codebook_decay)
        self.modules = nn.ModuleDict(
            {"splitter": self.splitter, "codebook": self.codebook, "joiner": self.joiner}
        )
        self.update = VqvaeUpdate(self)

    def all_updates(self) -> Sequence[Update]:
        return (self.update,)

    def compile_targets(self) -> Sequence[nn.Module]:
        return (self.splitter, self.joiner)

    def num_graphs(self) -> int:
        """Each size of each network."""
        return len(self.sizes) * len(self.compile_targets())

    def evaluator(self) -> VqvaeEvaluator:
        return VqvaeEvaluator(self)

    @torch.no_grad()
    def around(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Faces of both sets at the shown size, and as they come back, float32 on 0..255."""
        size = self.shown_size
        x = unpack(batch["image"], self.sizes)[size].float()
        made, _ = self.update.through({size: x}, None)
        return x, made[size]

    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """`reconstruction`: the originals, and below each what comes back."""
        rows: Iterable[Tensor] = (_to_uint8(faces).cpu() for faces in self.around(batch))
        return {"reconstruction": grid([list(row) for row in rows])}

    def fakes(self, batch: Batch) -> Mapping[str, Fake]:
        """What comes back of each set, against that set."""
        made = _to_uint8(self.around(batch)[1])
        return {"Au_hat": Fake(made[0::2], "with"), "B0_hat": Fake(made[1::2], "without")}

    def facts(self) -> dict[str, Any]:
        """Trainable parameters, in all and by network, and codes."""
        parts = {"splitter": self.splitter, "joiner": self.joiner}
        return {
            "num_parameters": count_parameters(self.modules),
            **{f"num_parameters_{name}": count_parameters(part) for name, part in parts.items()},
            "num_codes": self.codebook.codebook_size,
        }


def _to_uint8(face: Tensor) -> Tensor:
    return face.round().clamp(0, 255).to(torch.uint8)
