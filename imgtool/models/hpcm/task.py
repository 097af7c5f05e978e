"""The codec as a task: one update, whose loss may be regularised in two phases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from imgtool.config.schema import Experiment
from imgtool.errors import CheckpointError
from imgtool.models.base import (
    Batch,
    DataInfo,
    Family,
    Foreign,
    Noise,
    Reader,
    Study,
    Task,
    Update,
)
from imgtool.models.hpcm import latents, legacy
from imgtool.models.hpcm.evaluator import HpcmEvaluator
from imgtool.models.hpcm.interscale import InterScale
from imgtool.models.hpcm.losses import bits, distortion, rate_distortion
from imgtool.models.hpcm.network import HPCM, UNIT
from imgtool.models.hpcm.schema import PAPERS_LAMBDAS, SCHEMA, Loss
from imgtool.models.hpcm.spectral import Curriculum, Moment, Truncate, end_of_phase1
from imgtool.models.hpcm.variants import VARIANTS
from imgtool.nn.cost import count_macs, count_parameters
from imgtool.nn.images import grid
from imgtool.nn.quality import mse, psnr

PARTS = ("g_a", "g_s", "h_a", "h_s", "context")
MACS_SIDE = 256  # pixels; where images have no size of their own yet


class HpcmUpdate(Update):
    """One step on rate, distortion and what regularises them.

    Losses:

    rd_loss            rate and distortion, without phase 2; the distortion is against the
                       truncated images in phase 1, if `target` is truncated
    mse, psnr          against the original images, on [0, 1], in every phase
    bpp_loss           bits a pixel with noise for rounding; bpp_y and bpp_z are its parts
    ms_ssim            with that distortion: against what rd_loss is against
    loss               rd_loss and phase 2's term: what the codec minimises

    and with either phase on:

    spectral/tau                 radius of phase 1's cone; 1 when it is over
    spectral/phase               in words: phase1_intra while phase 1 truncates, else baseline
    spectral/inter_scale_reg     phase 2's term; 0 before it starts
    spectral/clipped             share of phase 2's distances at their limit: no effect on those
    spectral/prediction_error    of phase 2's predictors, which minimise it from the beginning

    The predictors are a parameter set of their own: the error's gradient reaches nothing else,
    and is clipped by itself.
    """

    def __init__(self, codec: HPCM, interscale: InterScale | None, loss: Loss) -> None:
        super().__init__()
        self.codec, self.interscale = codec, interscale
        self.loss = loss
        self.curriculum, self.truncate = Curriculum(loss), Truncate()
        self.phase2_start = start_of_phase2(loss)

    def parameter_sets(self) -> dict[str, list[nn.Parameter]]:
        sets = {"main": [p for p in self.codec.parameters() if p.requires_grad]}
        if self.interscale is not None:
            sets["interscale"] = list(self.interscale.parameters())
        return sets

    def forward(self, batch: Batch) -> dict[str, Tensor | str]:
        loss, x = self.loss, batch["image"] / 255
        truncation = self.curriculum.at(batch)
        seen = self.truncate(x, truncation)
        # Drawn once, for both latents; the codec asks for each when it has come that far.
        drawn = self._draw(batch["noise"], x)
        coded = self.codec(seen, lambda like, purpose: drawn[purpose])
        num_pixels = x.shape[2] * x.shape[3]
        bpp_y = bits(coded.likelihood_y).mean() / num_pixels
        bpp_z = bits(coded.likelihood_z).mean() / num_pixels
        target = seen if loss.target == "truncated" else x
        lost = distortion(loss, coded.x_hat, target).mean()
        rd_loss = rate_distortion(loss, lost, bpp_y + bpp_z)
        errors = mse(coded.x_hat.detach().clamp(0, 1), x)
        losses: dict[str, Tensor | str] = {
            "loss": rd_loss,
            "rd_loss": rd_loss,
            "bpp_loss": bpp_y + bpp_z,
            "bpp_y": bpp_y,
            "bpp_z": bpp_z,
            "mse": errors.mean(),
            "psnr": psnr(errors).mean(),
        }
        if loss.distortion == "ms-ssim":
            losses["ms_ssim"] = 1 - lost
        if self.interscale is not None:
            active = self.phase2_start.progress(batch) >= 1
            losses |= self._phase2(self.interscale, coded.latents, rd_loss, active=active)
        if loss.spectral_reg or loss.phase2_reg:
            losses["spectral/tau"] = torch.full_like(rd_loss, truncation.tau)
            losses["spectral/phase"] = "phase1_intra" if truncation.share > 0 else "baseline"
        return losses

    def _draw(self, noise: Noise, x: Tensor) -> dict[str, Tensor]:
        """U(-1/2, 1/2) of the sizes of y and z."""
        h, w = (-(-side // UNIT) for side in x.shape[2:])
        variant = self.codec.variant
        sizes = {"y": (variant.M, 4 * h, 4 * w), "z": (variant.N, h, w)}
        return {
            name: noise.uniform(x.new_empty(len(x), *size), name) for name, size in sizes.items()
        }

    @staticmethod
    def _phase2(
        interscale: InterScale, scales: Sequence[Tensor], rd_loss: Tensor, *, active: bool
    ) -> dict[str, Tensor]:
        regulariser, error, clipped = interscale(scales)
        if not active:
            regulariser = torch.zeros_like(rd_loss)
        return {
            # The error adds its gradient and not its value: the loss is the codec's.
            "loss": rd_loss + regulariser + (error - error.detach()),
            "spectral/inter_scale_reg": regulariser,
            "spectral/clipped": clipped,
            "spectral/prediction_error": error,
        }


def start_of_phase2(loss: Loss) -> Moment:
    """As the config says, else where phase 1 ends or would end."""
    if loss.phase2_start_iteration is not None:
        return Moment(0, loss.phase2_start_iteration)
    if loss.phase2_start_epoch is not None:
        return Moment(loss.phase2_start_epoch)
    return end_of_phase1(loss)


class HpcmTask(Task):
    """Modules: `codec`, and `interscale` with phase 2. Best is the lowest `val_rd_loss`."""

    monitor = "val_rd_loss"

    def __init__(self, experiment: Experiment, data: DataInfo) -> None:
        self.experiment, self.data = experiment, data
        loss: Loss = experiment.loss
        self.variant = VARIANTS[experiment.model.model_name]
        self.codec = self._make_codec()
        # After the codec, whose weights are then those that it has without phase 2.
        self.interscale = InterScale(self.variant.M, loss) if loss.phase2_reg else None
        self.modules = nn.ModuleDict({"codec": self.codec})
        if self.interscale is not None:
            self.modules["interscale"] = self.interscale
        self.update = HpcmUpdate(self.codec, self.interscale, loss)

    def _make_codec(self) -> HPCM:
        return HPCM(self.variant, legacy_s2_hyper=self.experiment.model.legacy_s2_hyper)

    def all_updates(self) -> Sequence[Update]:
        return (self.update,)

    def warm_start(self, read: Reader) -> dict[str, Any] | None:
        """Begin with the codec of another checkpoint; phase 2 begins afresh.

        Raises:
            CheckpointError: it is of another network.
        """
        source = self.experiment.model.init_ckpt
        if source is None:
            return None
        tensors = read.tensors(source)
        own = {f"codec.{name}": tensor for name, tensor in self.codec.state_dict().items()}
        for name, tensor in own.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{source} is no checkpoint of {self.variant.name}: it has no {name} of "
                    f"{tuple(tensor.shape)}",
                    hint="model.init_ckpt names one of the same model.model_name",
                )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        return {"loaded": list(own)}

    def from_foreign(self, foreign: Any) -> Foreign:
        """Checkpoints of the published code; see `legacy.read`. Phase 2 begins afresh.

        The epoch that a file says is kept as the iteration; one that says none is at 0, as
        weights to begin with.
        """
        found = legacy.read(foreign, self.codec)
        fresh = {} if self.interscale is None else self.interscale.state_dict()
        model = {**found.model, **{f"interscale.{name}": value for name, value in fresh.items()}}
        note = f"the file does not say its lambda: taken to be loss.lmbda, {self.experiment.loss.lmbda:g}"
        return replace(
            found, model=model, iteration=found.iteration or 0, notes=(*found.notes, note)
        )

    def compile_targets(self) -> Sequence[nn.Module]:
        """The networks, not the codec whole: its steps would be the same code eleven times over."""
        codec, context = self.codec, self.codec.context
        transforms = (codec.g_a, codec.g_s, codec.h_a, codec.h_s)
        return (*transforms, context.coarse, context.fine, *context.attention)

    def num_graphs(self) -> int:
        return len(self.compile_targets()) + 1  # `coarse` works on two scales

    def doubts(self, last_iteration: int | None, iterations_per_epoch: float) -> Sequence[str]:
        loss, found = self.experiment.loss, []
        ends = end_of_phase1(loss).in_iterations(iterations_per_epoch)
        starts = start_of_phase2(loss).in_iterations(iterations_per_epoch)
        if last_iteration is not None:
            run = f"and the run at {last_iteration}"
            if loss.spectral_reg and ends >= last_iteration:
                found.append(
                    f"phase 1 ends at iteration {ends:g} {run}: no whole image will be trained on"
                )
            if loss.phase2_reg and starts >= last_iteration:
                found.append(f"phase 2 starts at iteration {starts:g} {run} before that")
        for epochs, iterations in (
            ("truncation_epochs", "truncation_iterations"),
            ("phase2_start_epoch", "phase2_start_iteration"),
        ):
            if None not in (getattr(loss, epochs), getattr(loss, iterations)):
                found.append(
                    f"loss.{epochs} {getattr(loss, epochs)} does not count: "
                    f"loss.{iterations} {getattr(loss, iterations)} does, unless set to null"
                )
        low, high = PAPERS_LAMBDAS[loss.distortion]
        if not low / 10 <= loss.lmbda <= high * 10:
            found.append(
                f"lambda {loss.lmbda:g} with {loss.distortion}: the papers' are {low:g} to {high:g}"
            )
        return found

    def evaluator(self) -> HpcmEvaluator:
        return HpcmEvaluator(self.codec, self.experiment.loss)

    @torch.no_grad()
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """`comparison`: the originals, and below each what is decoded."""
        rows = (batch["image"], self.reconstruct(batch))
        return {"comparison": grid([list(row.cpu()) for row in rows])}

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """What a decoder shows, uint8 (B, 3, H, W)."""
        x_hat: Tensor = self.codec(batch["image"] / 255).x_hat
        return (x_hat * 255).round_().clamp_(0, 255).to(torch.uint8)

    def study(
        self, batches: Iterable[Batch], pairs: Iterable[Batch], *, num_images: int
    ) -> Study | None:
        """Spectra and bits of the latents by scale; see `latents.study`."""
        return latents.study(self.codec, batches, num_images=num_images)

    def facts(self) -> dict[str, Any]:
        """Parameters (trained, in all and by part), the shapes (C, h, w) of y and z, and
        multiply-accumulates of coding and decoding one training image; a pixel's in thousands.

        Where images have no size yet, the costs are of 256x256 pixels, and shapes None.
        """
        facts: dict[str, Any] = {"num_parameters": count_parameters(self.modules)}
        for name in PARTS:
            part = getattr(self.codec, name)
            facts[f"num_parameters_{name}"] = count_parameters(part)
        facts["num_parameters_codec"] = count_parameters(self.codec)
        size = self.data.image_size
        facts["latent_shape"] = facts["hyper_latent_shape"] = None
        if size is not None:
            h, w = (-(-side // UNIT) for side in size)
            facts["latent_shape"] = [self.variant.M, 4 * h, 4 * w]
            facts["hyper_latent_shape"] = [self.variant.N, h, w]
        height, width = size or (MACS_SIDE, MACS_SIDE)
        with torch.device("meta"):
            twin = self._make_codec().eval()
        macs = count_macs(twin, (height, width))
        return {
            **facts,
            "macs_per_image": macs,
            "kmacs_per_pixel": round(macs / (height * width * 1000), 3),
        }


class HpcmFamily(Family):
    """Learned image compression (Li et al. 2025, arXiv 2507.19125)."""

    def knows(self, foreign: Any) -> bool:
        """The state dict of the published code."""
        return legacy.knows(foreign)

    def build(self, experiment: Experiment, data: DataInfo) -> HpcmTask:
        """The task with fresh weights.

        Raises:
            ConfigError: training images are too small for MS-SSIM.
        """
        SCHEMA.check_data(experiment, data)
        return HpcmTask(experiment, data)
