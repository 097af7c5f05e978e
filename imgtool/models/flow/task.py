"""Flow matching on latents as a task: one network, one update.

A latent z, normalised to mean 0 and deviation 1 of each channel, and noise e make
x_t = t z + (1 - t) e; the network learns z - e (rectified flow: Liu et al. 2023, equation 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imgtool.config.schema import Experiment
from imgtool.data.base import LatentInfo
from imgtool.models.base import Batch, DataInfo, Fake, Family, Task, Update
from imgtool.models.flow.evaluator import FlowEvaluator
from imgtool.models.flow.network import FlowTransformer
from imgtool.models.flow.sampling import fixed_normal, integrate
from imgtool.models.flow.schema import FlowOutput, check_data
from imgtool.nn.cost import count_macs, count_parameters
from imgtool.nn.images import colour_map, grid

IGNORED = 255  # class number of a mask that says nothing
ASSUMED_CHANNELS = 4  # while no data is named: as Stable Diffusion has them


class Flow(nn.Module):
    """The transformer with what a latent is like: normalised in, normalised out."""

    mean: Tensor
    std: Tensor

    def __init__(self, experiment: Experiment, data: DataInfo) -> None:
        super().__init__()
        model, latents = experiment.model, data.latents or unknown(experiment)
        self.shape = latents.shape
        self.patch: int = model.patch_of(*self.shape[1:])
        self.condition: str = model.condition
        self.transformer = FlowTransformer(
            model,
            self.shape,
            self.patch,
            num_labels=len(data.label_names) if self.condition == "label" else 0,
            num_mask_classes=len(data.mask_names) if self.condition == "mask" else 0,
        )
        # With the weights: what was trained is of no use with another file's statistics.
        self.register_buffer("mean", torch.tensor(latents.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(latents.std).view(-1, 1, 1))

    @property
    def num_tokens(self) -> int:
        """Patches of a latent."""
        _, height, width = self.shape
        return height * width // self.patch**2

    def normalised(self, batch: Batch, noise: Tensor | None = None) -> Tensor:
        """z (B, C, h, w): a sample of the posterior where there are `noise` and a logvar."""
        z: Tensor = batch["latent"]
        if noise is not None and "logvar" in batch:
            z = z + (0.5 * batch["logvar"]).exp() * noise
        return (z - self.mean) / self.std

    def stored(self, z: Tensor) -> Tensor:
        """The inverse: as the autoencoder knows latents."""
        return z * self.std + self.mean

    def known(self, batch: Batch, left_out: Tensor | None = None) -> dict[str, Tensor]:
        """What the transformer is told of a batch, by argument.

        Args:
            left_out: (B,) bool, of whom nothing is told.
        """
        if self.condition == "none":
            return {}
        told: Tensor = batch[self.condition]
        if left_out is not None:
            nothing = self.transformer.num_labels if self.condition == "label" else IGNORED
            told = torch.where(left_out.view(-1, *[1] * (told.ndim - 1)), nothing, told)
        return {self.condition: told}


class FlowUpdate(Update):
    """One step on the error of the velocity."""

    def __init__(self, flow: Flow, experiment: Experiment) -> None:
        super().__init__()
        self.flow, self.loss = flow, experiment.loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        noise, latent, index = batch["noise"], batch["latent"], batch["index"]
        of_posterior = noise.normal(latent, "posterior") if "logvar" in batch else None
        z = self.flow.normalised(batch, of_posterior)
        e = noise.normal(z, "noise")
        t = self._times(batch)
        known = self.flow.known(batch)
        if known and self.loss.condition_dropout > 0:
            left_out = noise.uniform(index, "condition") + 0.5 < self.loss.condition_dropout
            known = self.flow.known(batch, left_out)
        at = t.view(-1, 1, 1, 1)
        velocity = self.flow.transformer(at * z + (1 - at) * e, t, **known)
        return {"loss": (velocity.float() - (z - e)).square().mean()}

    def _times(self, batch: Batch) -> Tensor:
        """(B,) from 0 to 1."""
        noise, index = batch["noise"], batch["index"]
        if self.loss.times == "uniform":
            drawn: Tensor = noise.uniform(index, "time") + 0.5
            return drawn
        logit = self.loss.time_mean + self.loss.time_std * noise.normal(index, "time")
        return torch.sigmoid(logit)


class FlowTask(Task):
    """Modules: `flow`. Best is the lowest `val_loss`, which is of uniform times."""

    def __init__(self, experiment: Experiment, data: DataInfo) -> None:
        self.experiment, self.data = experiment, data
        self.flow = Flow(experiment, data)
        self.modules = nn.ModuleDict({"flow": self.flow})
        self.update = FlowUpdate(self.flow, experiment)

    def all_updates(self) -> Sequence[Update]:
        return (self.update,)

    def compile_targets(self) -> Sequence[nn.Module]:
        return (self.flow.transformer,)

    def doubts(self, last_iteration: int | None, iterations_per_epoch: float) -> Sequence[str]:
        wanted, found = self.experiment.model.tokens, self.flow.num_tokens
        if wanted in (None, found):
            return ()
        shape = " x ".join(map(str, self.flow.shape))
        return (
            f"latents of {shape} become {found} tokens, not {wanted} (model.tokens): it costs less "
            "than of latents that become more",
        )

    def evaluator(self) -> FlowEvaluator:
        return FlowEvaluator(self.flow)

    @torch.no_grad()
    def generate(self, batch: Batch) -> Tensor:
        """Latents (B, C, h, w) as the autoencoder knows them, for what is known of a batch.

        The noise follows from `output.sample_seed` and a row's `index` alone.
        """
        output, index = self.experiment.output, batch["index"]
        assert isinstance(output, FlowOutput)
        device = self.flow.mean.device
        noise = fixed_normal(output.sample_seed, "sample", index.tolist(), self.flow.shape, device)
        told = self.flow.known(batch)
        blank = self.flow.known(batch, torch.ones_like(index, dtype=torch.bool))

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            if output.guidance == 1:
                return self._velocity(x, t, told)
            both = {name: torch.cat([value, blank[name]]) for name, value in told.items()}
            v = self._velocity(x.repeat(2, 1, 1, 1), t.repeat(2), both)
            with_it, without = v.chunk(2)
            return without + output.guidance * (with_it - without)

        return self.flow.stored(integrate(velocity, noise, output.num_steps, output.solver))

    def _velocity(self, x: Tensor, t: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        found: Tensor = self.flow.transformer(x, t, **told)
        return found.float()

    @torch.no_grad()
    def fakes(self, batch: Batch) -> Mapping[str, Fake]:
        """A decoded sample for each row; its index is all that an unconditional one needs."""
        if self.decoder is None:
            return {}
        return {"sample": Fake(self.decoder(self.generate(batch)), "all")}

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """`samples`: decoded samples; where a mask is known a row has the decoded latent of the
        validation image, its mask, and the sample for it. Nothing without the autoencoder.
        """
        if self.decoder is None:
            return {}
        made = self.decoder(self.generate(batch)).cpu()
        if self.flow.condition != "mask":
            return {"samples": grid(_in_rows(list(made)))}
        real = self.decoder(batch["latent"]).cpu()
        maps = colour_map(batch["mask"].cpu(), self.data.palette)
        scale = made.shape[-1] // maps.shape[-1]
        maps = maps.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
        return {"samples": grid(list(zip(real, maps, made, strict=True)))}

    def facts(self) -> dict[str, Any]:
        """Parameters, and of a latent of the data's shape its tokens and the multiply-accumulates
        of one look at it; the latter are None while no data is named.
        """
        facts: dict[str, Any] = {
            "num_parameters": count_parameters(self.flow),
            "latent_shape": None,
            "latent_dims": None,
            "patch_size": None,
            "num_tokens": None,
            "macs_per_image": None,
        }
        if self.data.latents is not None:
            shape = self.flow.shape
            facts["latent_shape"], facts["latent_dims"] = list(shape), math.prod(shape)
            facts["patch_size"], facts["num_tokens"] = self.flow.patch, self.flow.num_tokens
            facts["macs_per_image"] = self._macs()
        return facts

    def _macs(self) -> int:
        with torch.device("meta"):
            twin = Flow(self.experiment, self.data)
            known = {
                "label": torch.zeros(1, dtype=torch.int64),
                "mask": torch.zeros(1, *twin.shape[1:], dtype=torch.uint8),
            }
            told, t = twin.known(known), torch.zeros(1)
        channels, *size = twin.shape
        return count_macs(
            lambda x: twin.transformer(x, t, **told), (size[0], size[1]), channels=channels
        )


def _in_rows(pictures: list[Tensor]) -> list[list[Tensor]]:
    """Pictures in rows of equal length, as square as can be; missing ones are grey."""
    across = math.ceil(math.sqrt(len(pictures)))
    blank = torch.full_like(pictures[0], 128)
    filled = pictures + [blank] * (-len(pictures) % across)
    return [filled[i : i + across] for i in range(0, len(filled), across)]


def unknown(experiment: Experiment) -> LatentInfo:
    """What latents are taken to be like while no data is named: parameters hardly depend on it."""
    channels = ASSUMED_CHANNELS
    model = experiment.model
    if model.tokens is not None:
        side = math.isqrt(model.tokens)
        height, width = (side, side) if side * side == model.tokens else (1, model.tokens)
    else:
        height = width = 8 * model.patch_size
    return LatentInfo(
        shape=(channels, height, width),
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        has_logvar=False,
        downsampling=8,
        autoencoder={},
    )


class FlowFamily(Family):
    """Flow-matching transformers on latents."""

    def build(self, experiment: Experiment, data: DataInfo) -> FlowTask:
        """The task with fresh weights.

        Raises:
            ConfigError: the data lack the condition, or patches do not cover a latent.
        """
        check_data(experiment, data)
        return FlowTask(experiment, data)
