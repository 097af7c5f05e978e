"""The autoencoder as a task: one network, and a discriminator where `loss.gan` has one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from imgtool.config.schema import Experiment
from imgtool.data.sampler import batches_per_epoch
from imgtool.models.autoencoder import diffusers, graphs, latents
from imgtool.models.autoencoder.discriminator import Discriminator
from imgtool.models.autoencoder.equivariance import Transform, draw_transform, scales
from imgtool.models.autoencoder.evaluator import AutoencoderEvaluator
from imgtool.models.autoencoder.losses import Criterion
from imgtool.models.autoencoder.network import Autoencoder
from imgtool.models.autoencoder.schema import SCHEMA, smallest_picture
from imgtool.models.autoencoder.updates import (
    AutoencoderUpdate,
    DiscriminatorUpdate,
    Seen,
    transformed,
)
from imgtool.models.base import (
    Batch,
    DataInfo,
    Diffusers,
    Encoded,
    Family,
    Foreign,
    Graph,
    Noise,
    Study,
    Task,
    Update,
)
from imgtool.nn.cost import count_macs, count_parameters
from imgtool.nn.global_batch import num_ranks
from imgtool.nn.images import colour_map, grid, to_pm1, to_uint8


class AutoencoderTask(Task):
    """Modules: `network`, and `discriminator` with `loss.gan`.

    Best is the lowest `val_mse`, or `val_loss` where no image is decoded.

    Attributes:
        iteration: the one that is being trained, as `updates` was last asked; None before.
    """

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
        self.update = AutoencoderUpdate(self)
        self.discriminator: Discriminator | None = None
        self.judge: DiscriminatorUpdate | None = None
        if experiment.loss.gan:
            self.discriminator = Discriminator(experiment.loss)
            self.modules["discriminator"] = self.discriminator
            self.judge = DiscriminatorUpdate(self)
            self.judge.lr = experiment.loss.gan_lr
        self.iteration: int | None = None
        self.monitor = "val_mse" if "rgb" in self.criterion.heads else "val_loss"
        self.monitor_mode = "min"

    def _make_network(self) -> Autoencoder:
        data = self.data
        return Autoencoder(self.experiment.model, len(data.mask_names), len(data.label_names))

    # What an iteration consists of

    def all_updates(self) -> Sequence[Update]:
        """The network's is the last: its loss is the iteration's."""
        return (self.update,) if self.judge is None else (self.judge, self.update)

    def updates(self, iteration: int) -> Sequence[Update]:
        """The network's, then the discriminator's once that trains."""
        self.iteration = iteration
        if self.judge is None or iteration < self.gan_start - self.experiment.loss.gan_warmup:
            return (self.update,)
        return (self.update, self.judge)

    @property
    def gan_start(self) -> int:
        """The first iteration in which the discriminator's judgement counts; 1 is the first."""
        start, train = self.experiment.loss.gan_start, self.experiment.train
        if isinstance(start, int):
            return start
        batch_size = train.batch_size * num_ranks()
        per_epoch = batches_per_epoch(max(1, self.data.num_train_images), batch_size)
        return 1 + ceil(int(start.removesuffix("ep")) * per_epoch / train.accumulate)

    @property
    def judgement_counts(self) -> bool:
        """Whether this iteration's network is trained by the discriminator too."""
        if self.discriminator is None:
            return False
        return self.iteration is None or self.iteration >= self.gan_start

    def transform(self, x: Tensor) -> Transform | None:
        """What this iteration does to latents and pictures, for both updates and every part of
        the batch the same; None where it does nothing.
        """
        loss = self.experiment.loss
        if not loss.eq or self.iteration is None:
            return None
        unit = self.network.unit
        size = [-(-side // unit) for side in x.shape[-2:]]
        noise = Noise(self.experiment.train.seed, step=self.iteration)
        return draw_transform(loss.eq, size, self._smallest_latent(), noise.generator("eq"))

    def _smallest_latent(self) -> int:
        """Sides of a latent whose picture LPIPS and the discriminator can still look at."""
        return -(-smallest_picture(self.experiment.loss) // self.network.unit)

    def compared(
        self,
        x: Tensor,
        z: Tensor,
        batch: Batch,
        tau: Transform | None,
        heads: Collection[str] | None = None,
    ) -> Seen:
        """Originals x and what is decoded of their latents z, both after `tau`."""
        heads = self.criterion.heads if heads is None else heads
        if tau is None:
            return Seen(x, self.network.decode(z, heads, x.shape[-2:]), batch)
        moved, targets = transformed(x, batch, tau, self.network.unit)
        return Seen(moved, self.network.decode(tau(z), heads), targets)

    def from_foreign(self, foreign: Any) -> Foreign:
        """The network of a folder of diffusers' AutoencoderKL; other heads begin as they are."""
        model = self.experiment.model
        own = self.modules.state_dict()
        taken = diffusers.from_diffusers(model, foreign["tensors"])
        found = {f"network.{name}": tensor for name, tensor in taken.items()}
        notes = diffusers.notes_of(foreign["config"])
        fresh = sorted(
            {name.split(".")[3] for name in own.keys() - found.keys() if "heads" in name}
        )
        if fresh:
            notes.append(f"not in the file, and untrained: {', '.join(fresh)}")
        return Foreign({**own, **found}, {}, iteration=0, notes=tuple(notes))

    def compile_targets(self) -> Sequence[nn.Module]:
        return (self.network.encoder, self.network.decoder)

    def num_graphs(self) -> int:
        """Each once with and, for the discriminator, once without gradients; the decoder at every
        size that `loss.eq` makes of a latent.
        """
        return (1 + self.num_latent_sizes()) * (1 if self.discriminator is None else 2)

    def num_latent_sizes(self) -> int:
        """Sizes of latents that the decoder meets in training."""
        if not self.experiment.loss.eq or self.data.image_size is None:
            return 1
        size = [-(-side // self.network.unit) for side in self.data.image_size]
        number = 1 + len(scales(size, self._smallest_latent()))
        return number if size[0] == size[1] else 2 * number

    def doubts(self, last_iteration: int | None, iterations_per_epoch: float) -> Sequence[str]:
        """A judgement that never counts, and a compiler that is called for every size."""
        loss, found = self.experiment.loss, []
        if loss.gan and last_iteration is not None and last_iteration < self.gan_start:
            found.append(
                f"loss.gan counts from iteration {self.gan_start} on (loss.gan_start), and the run "
                f"ends at {last_iteration}: it changes nothing"
            )
        if loss.eq and self.experiment.train.compile:
            found.append(
                f"loss.eq decodes latents of {self.num_latent_sizes()} sizes, each of which is "
                "compiled by itself"
            )
        return found

    # Looking at it

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
        """Parameters (in all and by part, frozen ones too; of the discriminator apart), and at the
        size of a training image the latent's shape (C, h, w), its elements, and the
        multiply-accumulates of one image.

        The size's facts are None where images keep their own sizes.
        """
        network, size = self.network, self.data.image_size
        parts: dict[str, nn.Module] = {
            "encoder": network.encoder,
            "bottleneck": network.bottleneck,
            "decoder": network.decoder.trunk,
        }
        # What is frozen is a part of the model, a head without a loss is none.
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        counts |= {name: count_parameters(head) for name, head in network.decoder.heads.items()}
        facts: dict[str, Any] = {
            "latent_shape": None,
            "latent_dims": None,
            "macs_per_image": None,
            "num_parameters": sum(counts.values()),
        }
        for name, count in counts.items():
            facts[f"num_parameters_{name}"] = count
        if self.discriminator is not None:
            facts["num_parameters_discriminator"] = count_parameters(self.discriminator)
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

    def knows(self, foreign: Any) -> bool:
        """A folder as the hub has them: a config, and tensors."""
        return isinstance(foreign, dict) and foreign.keys() == {"config", "tensors"}

    def settings(self, foreign: Any) -> dict[str, Any]:
        """The `model` section of a folder of diffusers' AutoencoderKL.

        Raises:
            CheckpointError: it is of something else, or config and weights are two models'.
        """
        diffusers.see_it_fits(foreign["config"], foreign["tensors"])
        found = diffusers.model_of(foreign["config"])
        return {f"model.{key}": value for key, value in found.items()}

    def build(self, experiment: Experiment, data: DataInfo) -> AutoencoderTask:
        """The task with fresh weights.

        Raises:
            ConfigError: a head needs a target that the data does not have.
        """
        SCHEMA.check_data(experiment, data)
        return AutoencoderTask(experiment, data)
