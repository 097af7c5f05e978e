"""The autoencoder family's part of an experiment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from imgtool.config.bounds import Ge, Gt, Le, Lt
from imgtool.config.schema import (
    STRICT,
    Experiment,
    FamilySchema,
    Interval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Train,
    option,
)
from imgtool.errors import ConfigError
from imgtool.nn.lpips_weights import SMALLEST, VGG16

if TYPE_CHECKING:
    from imgtool.data.base import DataInfo
    from imgtool.published import Published

TARGET_OF_HEAD = {"segmentation": "mask", "classification": "label"}


@dataclass(frozen=True, kw_only=True)
class Model:
    """Encoder, bottleneck, decoder and heads. The decoder follows the encoder."""

    __pydantic_config__ = STRICT

    architecture: Literal["plain", "kl"] = option(
        "plain", "Convolutions (plain), or the blocks of diffusers' AutoencoderKL.", before="plain"
    )
    latent_channels: PositiveInt = option(16, "Channels of the latent.")
    downsampling_steps: Annotated[int, Ge(2), Le(6)] = option(
        4, "Halvings of the resolution, 2 to 6."
    )
    base_channels: PositiveInt = option(
        32, "Channels of the first step; they double at every step."
    )
    max_channels: PositiveInt | None = option(
        None, "Upper limit of the width in channels; off when unset."
    )
    block_out_channels: tuple[PositiveInt, ...] | None = option(
        None,
        "Channels of each level, downsampling_steps + 1 of them, instead of base_channels (kl).",
        before=None,
    )
    layers_per_block: Annotated[int, Ge(1), Le(16)] = option(
        1, "Residual blocks a level; the decoder has one more (kl).", before=1
    )
    mid_block_attention: bool = option(
        True, "Attention at the coarsest resolution, between two residual blocks (kl).", before=True
    )
    coarsest_attention: bool = option(
        False, "Attention after each residual block of the coarsest level (kl).", before=False
    )
    quant_convs: bool = option(
        True, "A 1x1 convolution on either side of the latent (kl).", before=True
    )
    norm: Literal["group", "none"] = option(
        "group",
        "After each convolution: GroupNorm, or none, which learns colour and brightness sooner.",
        before="group",
    )
    norm_groups: PositiveInt = option(8, "Groups of every GroupNorm.")
    activation: Literal["silu", "relu", "gelu", "leaky_relu"] = option("silu", "Activation.")
    upsampling: Literal["transposed", "nearest"] = option(
        "transposed",
        "Decoder: transposed convolutions, or nearest neighbours and a convolution.",
        before="transposed",
    )
    bottleneck: Literal["none", "kl", "vq"] = option(
        "none", "Bottleneck: plain (none), variational (kl) or vector-quantised (vq)."
    )
    codebook_size: Annotated[int, Ge(2), Le(65536)] = option(512, "Vectors in the codebook (vq).")
    codebook_decay: Annotated[float, Gt(0), Lt(1)] = option(
        0.99, "Decay of the averaged codebook (vq)."
    )
    heads: tuple[Literal["rgb", "segmentation", "classification"], ...] = option(
        ("rgb", "segmentation", "classification"), "What is decoded from the latent."
    )

    def __post_init__(self) -> None:
        if not self.heads:
            raise ValueError(
                "heads is empty: name at least one of rgb, segmentation, classification"
            )
        if len(set(self.heads)) != len(self.heads):
            raise ValueError("heads names one head twice")
        if self.max_channels is not None and self.max_channels < self.base_channels:
            raise ValueError(f"max_channels is below base_channels {self.base_channels}")
        if self.architecture == "kl":
            self._see_levels()
        else:
            self._see_steps()

    def _see_levels(self) -> None:
        if self.norm != "group":
            raise ValueError("norm is group with architecture kl, which is made of GroupNorms")
        count = self.downsampling_steps + 1
        if self.block_out_channels is not None and len(self.block_out_channels) != count:
            raise ValueError(
                f"block_out_channels has {len(self.block_out_channels)} widths, and "
                f"downsampling_steps {self.downsampling_steps} makes {count} levels"
            )
        key = "base_channels" if self.block_out_channels is None else "block_out_channels"
        for width in self.levels:
            if width % self.norm_groups:
                raise ValueError(f"{key}: {width} is no multiple of norm_groups {self.norm_groups}")

    def _see_steps(self) -> None:
        if self.block_out_channels is not None:
            raise ValueError("block_out_channels is for architecture kl")
        groups = self.groups or 1
        if self.base_channels % (2 * groups):
            multiple = "2" if self.groups is None else f"2 * norm_groups = {2 * groups}"
            raise ValueError(
                f"base_channels {self.base_channels} is no multiple of {multiple} "
                "(the decoder ends at base_channels / 2)"
            )
        if self.max_channels is not None and self.max_channels % groups:
            raise ValueError(f"max_channels is no multiple of norm_groups {groups}")

    @property
    def levels(self) -> tuple[int, ...]:
        """Channels of each level of architecture kl, the finest first."""
        if self.block_out_channels is not None:
            return self.block_out_channels
        doubling = [self.base_channels * 2**level for level in range(self.downsampling_steps + 1)]
        return tuple(min(width, self.max_channels or width) for width in doubling)

    @property
    def groups(self) -> int | None:
        """Groups of the norm after each convolution; None where there is none."""
        return self.norm_groups if self.norm == "group" else None

    @staticmethod
    def rewrite(raw: dict[str, Any]) -> dict[str, Any]:
        """Read `variational: true|false` as `bottleneck: kl|none`."""
        if "variational" not in raw:
            return raw
        rest = {key: value for key, value in raw.items() if key != "variational"}
        if not isinstance(raw["variational"], bool):
            raise ValueError("variational is true or false")
        meant = "kl" if raw["variational"] else "none"
        if rest.setdefault("bottleneck", meant) != meant:
            raise ValueError(
                f"variational and bottleneck: {rest['bottleneck']} contradict each other"
            )
        return rest


@dataclass(frozen=True, kw_only=True)
class AutoencoderTrain(Train):
    """Optimisation, and what of the network is left as it is."""

    freeze: Literal["encoder"] | None = option(
        None,
        "Leave encoder, bottleneck and the convolutions around the latent as they are: the decoder "
        "alone is trained.",
        before=None,
    )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Weights of the losses. A weight of 0 costs nothing; a loss without its head is left out."""

    __pydantic_config__ = STRICT

    mse: NonNegativeFloat = option(
        1.0, "Weight of the mean squared error, on [-1,1].", flag="loss-mse"
    )
    l1: NonNegativeFloat = option(
        0.0, "Weight of the mean absolute error, on [-1,1].", flag="loss-l1"
    )
    kld: NonNegativeFloat = option(
        1e-4, "Weight of the KL divergence, a mean over the latent (kl).", flag="loss-kld"
    )
    seg: NonNegativeFloat = option(
        0.05, "Weight of the segmentation's cross-entropy.", flag="loss-seg"
    )
    cls: NonNegativeFloat = option(0.01, "Weight of the class's cross-entropy.", flag="loss-cls")
    commitment: NonNegativeFloat = option(
        0.25, "Weight of the encoder's pull towards its code vectors (vq).", flag="loss-commitment"
    )
    gradient: NonNegativeFloat = option(
        0.0,
        "Weight of the mean squared error of gradients (neighbours' differences), on [-1,1].",
        flag="loss-gradient",
        before=0.0,
    )
    lpips: NonNegativeFloat = option(
        0.0,
        "Weight of LPIPS (VGG16), whose weights are downloaded once, 528 MB.",
        flag="loss-lpips",
        before=0.0,
    )
    eq: NonNegativeFloat = option(
        0.0,
        "Weight of decoding scaled and turned latents (EQ-VAE); of eq + 1 steps eq have them.",
        flag="loss-eq",
        before=0.0,
    )
    gan: NonNegativeFloat = option(
        0.0, "Weight of a discriminator's judgement of patches.", flag="loss-gan", before=0.0
    )
    gan_start: Interval = option(
        1000, "Iteration from which the discriminator counts, or epochs: 5ep.", before=1000
    )
    gan_warmup: NonNegativeInt = option(
        500, "Iterations for which the discriminator trains before it counts.", before=500
    )
    gan_weighing: Literal["adaptive", "constant"] = option(
        "adaptive",
        "The weight gan as it is, or times the ratio of the pictures' gradients (adaptive).",
        before="adaptive",
    )
    gan_lr: PositiveFloat | None = option(
        None, "Learning rate of the discriminator; train.lr when unset.", before=None
    )
    gan_layers: Annotated[int, Ge(1), Le(6)] = option(
        3, "Halvings of the discriminator, 1 to 6.", before=3
    )
    gan_width: PositiveInt = option(
        64, "Channels of the discriminator's first layer, a multiple of 4.", before=64
    )
    measure_lpips: bool = option(
        False, "Measure LPIPS in validation, also where it is no loss.", run=True
    )

    def __post_init__(self) -> None:
        start = self.gan_start
        if isinstance(start, str) and not re.fullmatch(r"0*[1-9]\d*ep", start, re.ASCII):
            raise ValueError(
                f"gan_start {start!r} is neither iterations, such as 1000, nor epochs, such as 5ep"
            )
        if self.gan_width % 4:
            raise ValueError(f"gan_width {self.gan_width} is no multiple of 4")

    @property
    def of_rgb(self) -> dict[str, float]:
        """Weights of what compares pictures, by the names of the losses."""
        weights = {"mse_pm1": self.mse, "l1_pm1": self.l1, "gradient": self.gradient}
        return {**weights, "lpips": self.lpips}


def smallest_judged(gan_layers: int) -> int:
    """Pixels a side of which a discriminator makes one logit: 24 of three layers."""
    return 3 * (1 << gan_layers)


def smallest_picture(loss: Loss) -> int:
    """Pixels a side that every loss can look at."""
    judged = smallest_judged(loss.gan_layers) if loss.gan else 1
    return max(judged, SMALLEST if loss.lpips else 1)


def check(experiment: Experiment) -> None:
    """Refuse combinations that no single section can see."""
    model, loss = experiment.model, experiment.loss
    unit = 2**model.downsampling_steps
    for key in ("crop", "image_size"):
        size = getattr(experiment.data, key)
        if size is not None and size % unit:
            raise ValueError(f"data.{key} {size} is no multiple of {unit} (2^downsampling_steps)")
    weight_of = {"segmentation": loss.seg, "classification": loss.cls}
    weight_of["rgb"] = sum(loss.of_rgb.values())
    if not any(weight_of[head] > 0 for head in model.heads):
        raise ValueError("every head has loss weight 0: there is nothing to train")
    if "rgb" not in model.heads:
        for key in ("gradient", "lpips", "gan", "measure_lpips"):
            if getattr(loss, key):
                raise ValueError(f"loss.{key} looks at pictures: model.heads must have rgb")
    if loss.gan and not weight_of["rgb"]:
        raise ValueError("loss.gan alone knows no original: give loss.mse, loss.l1 or loss.lpips")
    for key, asked, least in (
        ("LPIPS", loss.lpips or loss.measure_lpips, SMALLEST),
        (
            f"a discriminator of {loss.gan_layers} layers",
            loss.gan,
            smallest_judged(loss.gan_layers),
        ),
    ):
        side = experiment.data.crop or experiment.data.image_size
        if asked and side is not None and side < least:
            raise ValueError(f"{key} needs {least} pixels a side or more: {side} is too small")


def check_data(experiment: Experiment, data: DataInfo) -> None:
    """Refuse heads whose target the data do not have."""
    heads = experiment.model.heads
    missing = [
        head for head in heads if TARGET_OF_HEAD.get(head, "image") not in ("image", *data.targets)
    ]
    if not missing:
        return
    kept = [head for head in heads if head not in missing] or ["rgb"]
    targets = " and ".join(f"{TARGET_OF_HEAD[head]}s" for head in missing)
    raise ConfigError(
        f"the data has no {targets} for the {' and '.join(missing)} head",
        hint=f"leave it out: --heads {','.join(kept)}",
    )


def weights(experiment: Experiment) -> tuple[Published, ...]:
    """Those of LPIPS, where anybody asks for it."""
    loss = experiment.loss
    return (VGG16,) if loss.lpips or loss.measure_lpips else ()


def channels_last(experiment: Experiment, device_type: str) -> bool:
    """Not on a CPU: its GroupNorm is slow in NHWC, and one follows every convolution.

    Seconds an iteration of photos/base (fp32, AMD EPYC of Zen 3, AVX2, 2 threads), NHWC against
    NCHW: batch 16 4.06 and 3.03 (1.34 times), batch 4 0.90 and 0.75 (1.20 times); of phase1_1 at
    512 px, batch 4, on a busy machine: S1 2.9 times, S12 1.2 times. Not measured on a GPU, whose
    convolutions prefer NHWC in half precision and whose GroupNorm computes in NCHW:
    `benchmarks/gpu.py --checks fp32 layout` says.
    """
    return device_type != "cpu"


SCHEMA = FamilySchema(
    name="autoencoder",
    example="--data-root photos --heads rgb --crop 128",
    sections={"model": Model, "train": AutoencoderTrain, "loss": Loss},
    monitor="val_mse",
    tiny={
        "data.image_size": 64,
        "data.crop": 64,
        "data.max_images": 256,
        "model.base_channels": 16,
        "model.max_channels": 64,
        "train.batch_size": 8,
        "train.lr": 1e-3,
        "train.max_iter": 100,
        "train.val_every": 100,
        "train.save_every": 50,
        "train.sample_every": 100,
        "train.log_every": 10,
    },
    exports=("diffusers", "onnx"),
    encodes=True,
    check=check,
    check_data=check_data,
    channels_last=channels_last,
    weights=weights,
    needs={
        "model.norm_groups": ("model.norm", "group"),
        "model.upsampling": ("model.architecture", "plain"),
        "model.block_out_channels": ("model.architecture", "kl"),
        "model.layers_per_block": ("model.architecture", "kl"),
        "model.mid_block_attention": ("model.architecture", "kl"),
        "model.coarsest_attention": ("model.architecture", "kl"),
        "model.quant_convs": ("model.architecture", "kl"),
        "loss.kld": ("model.bottleneck", "kl"),
        "loss.commitment": ("model.bottleneck", "vq"),
    },
    rivals={"model.base_channels": {"model.block_out_channels": None}},
)
