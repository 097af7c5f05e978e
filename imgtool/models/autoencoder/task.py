"""The autoencoder as a task: one network, one update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imgtool.config.schema import Experiment
from imgtool.models.autoencoder import diffusers, graphs, latents
from imgtool.models.autoencoder.bottleneck import VectorQuantizer
from imgtool.models.autoencoder.evaluator import AutoencoderEvaluator
from imgtool.models.autoencoder.losses import Criterion, code_counts, perplexity
from imgtool.models.autoencoder.network import Autoencoder
from imgtool.models.autoencoder.schema import SCHEMA
from imgtool.models.base import (
    Batch,
    DataInfo,
    Diffusers,
    Encoded,
    Family,
    Graph,
    StepResult,
    Study,
    Task,
    Update,
)
from imgtool.nn.cost import count_macs, count_parameters
from imgtool.nn.global_batch import sum_over_ranks
from imgtool.nn.images import colour_map, grid, to_pm1, to_uint8


class AutoencoderUpdate(Update):
    """Reconstruct a batch of crops and take one step on the weighted losses."""

    def __init__(self, network: Autoencoder, criterion: Criterion) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x, latent, outputs = self.network.reconstruct(
            batch["image"], self.criterion.heads, batch["noise"]
        )
        terms = self.criterion.terms(x, latent, outputs, batch)
        losses = {name: of_images.mean() for name, of_images in terms.items()}
        losses["loss"] = self.criterion.total(losses)
        if "kld" in losses:
            losses["kld_weighted"] = self.criterion.weights["kld"] * losses["kld"].detach()
        quantizer = self.network.bottleneck
        if isinstance(quantizer, VectorQuantizer) and latent.indices is not None:
            used = code_counts(latent.indices, quantizer.codebook_size)
            losses["perplexity"] = perplexity(sum_over_ranks(used))
        return losses

    def after_step(self, result: StepResult) -> None:
        self.network.bottleneck.after_step(result)


class AutoencoderTask(Task):
    """Modules: `network`. Best is the lowest `val_mse`, or `val_loss` where no image is decoded."""

    def __init__(self, experiment: Experiment, data: DataInfo) -> None:
        self.experiment, self.data = experiment, data
        self.criterion = Criterion(experiment.model, experiment.loss)
        self.network = self._make_network()
        for name, head in self.network.decoder.heads.items():
            head.requires_grad_(name in self.criterion.heads)
        train: Any = experiment.train
        if train.freeze == "encoder":
            self.network.freeze_encoder()
        self.modules = nn.ModuleDict({"network": self.network})
        self.update = AutoencoderUpdate(self.network, self.criterion)
        self.monitor = "val_mse" if "rgb" in self.criterion.heads else "val_loss"
        self.monitor_mode = "min"

    def _make_network(self) -> Autoencoder:
        data = self.data
        return Autoencoder(self.experiment.model, len(data.mask_names), len(data.label_names))

    def all_updates(self) -> Sequence[Update]:
        return (self.update,)

    def compile_targets(self) -> Sequence[nn.Module]:
        return (self.network.encoder, self.network.decoder)

    def evaluator(self) -> AutoencoderEvaluator:
        return AutoencoderEvaluator(self.network, self.criterion, self.experiment, self.data)

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """`comparison`: a row an image, original left, reconstruction right, and where there are
        mask classes the true and the predicted map in palette colours.
        """
        image = batch["image"]
        _, _, outputs = self.network.reconstruct(image, self.criterion.heads)
        columns = [image]
        if "rgb" in outputs:
            columns.append(to_uint8(outputs["rgb"]))
        if "segmentation" in outputs:
            maps = (batch["mask"], outputs["segmentation"].argmax(1))
            columns += [colour_map(classes, self.data.palette) for classes in maps]
        rows = zip(*(column.cpu() for column in columns), strict=True)
        return {"comparison": grid(list(rows))}

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor | None:
        """What the rgb head makes of the images; None without one."""
        if "rgb" not in self.criterion.heads:
            return None
        _, _, outputs = self.network.reconstruct(batch["image"], ("rgb",))
        return to_uint8(outputs["rgb"])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Encoded | None:
        """Mean and log variance of kl, the code vectors of vq; None without an rgb head."""
        if "rgb" not in self.criterion.heads:
            return None
        latent = self.network.encode(to_pm1(images))
        return Encoded(latent.z, latent.logvar)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor | None:
        """What the rgb head makes of latents; None without one."""
        if "rgb" not in self.criterion.heads:
            return None
        return to_uint8(self.network.decode(latent, ("rgb",))["rgb"])

    def graphs(self) -> Mapping[str, Graph]:
        """The encoder and the decoder, with the heads that were trained."""
        channels = {
            "rgb": 3,
            "segmentation": len(self.data.mask_names),
            "classification": len(self.data.label_names),
        }
        model, trained = self.experiment.model, self.criterion.heads
        classes = {head: channels[head] for head in model.heads if head in trained}
        return graphs.of(self.network, model, classes)

    def diffusers(self) -> Diffusers:
        """An AutoencoderKL: architecture kl, bottleneck kl or none, and the rgb head alone.

        Raises:
            ConfigError: it is another.
        """
        model, size = self.experiment.model, self.data.image_size
        known: dict[str, Any] = {} if size is None else {"sample_size": max(size)}
        return Diffusers(
            config=diffusers.config_of(model, **known),
            tensors=diffusers.to_diffusers(model, self.network.state_dict()),
            dropped=tuple(f"the {head} head" for head in model.heads if head != "rgb"),
        )

    def study(
        self, batches: Iterable[Batch], pairs: Iterable[Batch], *, num_images: int
    ) -> Study | None:
        """Statistics of the latent and interpolations in it; see `latents.study`."""
        return latents.study(self.network, batches, pairs, num_images=num_images)

    def facts(self) -> dict[str, Any]:
        """Parameters (trainable, in all and by part), and at the size of a training image the
        latent's shape (C, h, w), its elements, and the multiply-accumulates of one image.

        The size's facts are None where images keep their own sizes.
        """
        network, size = self.network, self.data.image_size
        parts: dict[str, nn.Module] = {
            "encoder": network.encoder,
            "bottleneck": network.bottleneck,
            "decoder": network.decoder.trunk,
            **network.decoder.heads,
        }
        facts: dict[str, Any] = {
            "latent_shape": None,
            "latent_dims": None,
            "macs_per_image": None,
            "num_parameters": count_parameters(network),
        }
        for name, part in parts.items():
            facts[f"num_parameters_{name}"] = count_parameters(part)
        if size is not None:
            channels, (height, width) = self.experiment.model.latent_channels, size
            shape = (channels, -(-height // network.unit), -(-width // network.unit))
            with torch.device("meta"):
                twin = self._make_network()
            facts["latent_shape"] = list(shape)
            facts["latent_dims"] = shape[0] * shape[1] * shape[2]
            facts["macs_per_image"] = count_macs(lambda x: twin.decode(twin.encode(x).z), size)
        return facts


class AutoencoderFamily(Family):
    """Plain, variational and vector-quantised autoencoders."""

    def build(self, experiment: Experiment, data: DataInfo) -> AutoencoderTask:
        """The task with fresh weights.

        Raises:
            ConfigError: a head needs a target that the data does not have.
        """
        SCHEMA.check_data(experiment, data)
        return AutoencoderTask(experiment, data)
