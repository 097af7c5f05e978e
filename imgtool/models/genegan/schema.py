"""The GeneGAN family's part of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from imgtool.config.bounds import Ge, Gt, Le, Lt
from imgtool.config.faces import FacesData
from imgtool.config.schema import (
    STRICT,
    Experiment,
    FamilySchema,
    Fraction,
    Interval,
    NonNegativeFloat,
    Output,
    PositiveFloat,
    PositiveInt,
    Train,
    option,
)

SHALLOW = 64  # up to this size a face is halved twice, beyond it three times


def bottleneck_side(size: int) -> int:
    """Side of the features that a face of `size` pixels is split into: 64 -> 16, 128 -> 16."""
    return size // 4 if size <= SHALLOW else size // 8


@dataclass(frozen=True, kw_only=True)
class Model:
    """Splitter, joiner and critics, shared by all sizes."""

    __pydantic_config__ = STRICT

    base_channels: PositiveInt = option(128, "Channels of the first layer of splitter and critics.")
    second_ratio: Annotated[float, Gt(0), Lt(1)] = option(
        0.25, "Part of the bottleneck's channels that is the object."
    )
    norm: Literal["switchable_bn", "group_norm"] = option(
        "switchable_bn", "A batch norm for each size, or group norm."
    )
    norm_groups: PositiveInt = option(32, "Groups of every GroupNorm (group_norm).")
    upsampling: Literal["transposed", "resize"] = option(
        "transposed",
        "How the joiner enlarges: transposed convolutions, or repetition and a convolution "
        "(resize), which leaves no chequers.",
        before="transposed",
    )
    critic_norm: Literal["same", "group_norm", "none"] = option(
        "same", "Norm of the critics: that of norm, or one that mixes no faces.", before="same"
    )
    critic_spectral_norm: bool = option(
        False,
        "Weights of the critics are divided by their largest singular value.",
        before=False,
    )
    obj_blockconv: bool = option(False, "Residual block-wise convolution on the object.")
    obj_block_size: PositiveInt = option(
        4, "Side of a block on the bottleneck, in features (obj_blockconv)."
    )
    bg_blockconv: bool = option(False, "Residual block-wise convolution on the background.")
    bg_block_size: PositiveInt = option(
        4, "Side of a block on the bottleneck, in features (bg_blockconv)."
    )
    multiscale_loss: bool = option(
        False, "Only the largest size goes in; the others come out of it by heads of 1x1."
    )
    multiscale_critics: bool = option(
        False, "Critics judge every size, not the largest alone (multiscale_loss)."
    )
    vqvae: bool = option(
        False,
        "Train splitter and joiner as a VQ-VAE instead, for init_vqvae_ckpt: no critics, nothing "
        "is exchanged.",
        before=False,
    )
    codebook_size: Annotated[int, Ge(2), Le(65536)] = option(
        512, "Vectors in the codebook (vqvae).", before=512
    )
    codebook_decay: Annotated[float, Gt(0), Lt(1)] = option(
        0.99, "Decay of the averaged codebook (vqvae).", before=0.99
    )
    init_vqvae_ckpt: str | None = option(
        None,
        "Checkpoint of a VQ-VAE whose weights splitter and joiner begin with.",
        reads="checkpoint",
    )
    init_vqvae_map: str | None = option(
        None,
        "JSON: our tensor -> the VQ-VAE's; by unambiguous shape when unset.",
        reads="file",
    )

    def __post_init__(self) -> None:
        bottleneck = 4 * self.base_channels
        if not 1 <= round(bottleneck * self.second_ratio) < bottleneck:
            raise ValueError(f"second_ratio {self.second_ratio} leaves an empty part")
        grouped = "group_norm" in (self.norm, self.critic_norm)
        if grouped and (2 * self.base_channels) % self.norm_groups:
            raise ValueError(
                f"norm_groups {self.norm_groups} does not divide the layers' "
                f"{2 * self.base_channels} channels"
            )
        if self.critic_spectral_norm and self.norm_of_critics != "none":
            raise ValueError(
                "critic_spectral_norm bounds nothing that a norm scales again: critic_norm must be "
                "none"
            )
        if self.multiscale_critics and not self.multiscale_loss:
            raise ValueError("multiscale_critics is for multiscale_loss")
        if self.vqvae and self.multiscale_loss:
            raise ValueError("vqvae takes every size in and out: multiscale_loss must be off")
        if self.vqvae and self.init_vqvae_ckpt:
            raise ValueError("vqvae trains what init_vqvae_ckpt names: leave one of them out")
        if self.init_vqvae_map and not self.init_vqvae_ckpt:
            raise ValueError("init_vqvae_map without init_vqvae_ckpt")

    @property
    def norm_of_critics(self) -> Literal["switchable_bn", "group_norm", "none"]:
        """What the critics have."""
        return self.norm if self.critic_norm == "same" else self.critic_norm


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Weights of the generator's losses, and how the critics are trained."""

    __pydantic_config__ = STRICT

    object_l1: NonNegativeFloat = option(1.0, "Weight of mean|e|: no object where none is.")
    cycle: NonNegativeFloat = option(1.0, "Weight of the two reconstructions.")
    adversarial: NonNegativeFloat = option(1.0, "Weight of the critics' judgement.")
    parallelogram: NonNegativeFloat = option(0.01, "Weight of mean|Au + B0 - Bu - A0|.")
    commitment: NonNegativeFloat = option(
        0.25,
        "Weight of the features' pull towards their codes (vqvae).",
        flag="loss-commitment",
        before=0.25,
    )
    generator_decay: NonNegativeFloat = option(
        5e-5, "Weight decay of the generator's convolutions, as a term of the loss."
    )
    multi_res_mode: Literal["all", "random"] = option(
        "all", "Train every size in every iteration (all), or one drawn size (random)."
    )
    scale_weights: Literal["equal", "s2", "inv_s2"] = option(
        "equal", "Weights of the sizes: equal, by pixels, or by their inverse."
    )
    critic_loss: Literal["wasserstein", "logistic"] = option(
        "wasserstein",
        "What critics judge by: the difference of their means, or softplus of each (logistic).",
        before="wasserstein",
    )
    critic_penalty: Literal["none", "clip", "gp", "r1", "r1r2"] = option(
        "clip",
        "What bounds the critics: parameters within critic_clip, a gradient of norm 1 between real "
        "and made faces (gp), or small ones at real (r1), at real and at made faces (r1r2).",
        before="clip",
    )
    critic_clip: PositiveFloat = option(
        0.01, "Critics' parameters stay within +- this (critic_penalty clip)."
    )
    critic_penalty_weight: PositiveFloat = option(
        10.0,
        "Weight of gp, or of half of r1 and r1r2, with faces on -1..1.",
        before=10.0,
    )
    critic_penalty_every: PositiveInt = option(
        1,
        "Critic updates from one gp, r1 or r1r2 to the next, whose weight is as many times as "
        "large.",
        before=1,
    )
    critic_steps: PositiveInt = option(1, "Critic updates an iteration.")
    critic_burst: PositiveInt = option(100, "Critic updates in an iteration with a burst.")
    critic_burst_every: PositiveInt = option(500, "Iterations between bursts; the first has one.")


@dataclass(frozen=True, kw_only=True)
class GeneganTrain(Train):
    """The reference's optimiser and limits."""

    __pydantic_config__ = STRICT

    batch_size: PositiveInt = option(64, "Images of each set a batch, in each process.")
    lr: PositiveFloat = option(5e-5, "Learning rate at its highest.", aliases=("learning-rate",))
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop"] = option("rmsprop", "Optimizer.")
    rmsprop_alpha: Fraction = option(0.8, "Averaging constant of rmsprop.")
    weight_decay: NonNegativeFloat = option(
        0.0, "Weight decay of the optimizer; see also generator_decay."
    )
    max_iter: PositiveInt | None = option(
        300_000, "Stop after this many iterations.", run=True, aliases=("max-iterations",)
    )
    save_every: Interval = option(
        20_000, "Iterations between checkpoints, or epochs: 5ep.", run=True
    )
    sample_every: Interval = option(
        20_000, "Iterations between sample images, or epochs: 5ep.", run=True
    )
    val_every: Interval = option(
        20_000, "Iterations between validations, or epochs: 1ep.", run=True
    )


@dataclass(frozen=True, kw_only=True)
class GeneganOutput(Output):
    """Five rows of samples."""

    __pydantic_config__ = STRICT

    num_samples: PositiveInt = option(
        10, "Images in a sample grid; two, one of each set, make a row.", run=True
    )


def faces_data(experiment: Experiment) -> FacesData:
    """The data section as what it is."""
    assert isinstance(experiment.data, FacesData)
    return experiment.data


GRADIENT_PENALTIES = ("gp", "r1", "r1r2")


def _check_critics(model: Model, loss: Loss) -> None:
    penalty = loss.critic_penalty
    if penalty in GRADIENT_PENALTIES and model.norm_of_critics == "switchable_bn":
        raise ValueError(
            f"loss.critic_penalty {penalty} is of each face by itself, and the critics' batch norm "
            "mixes them: model.critic_norm must be group_norm or none"
        )
    if penalty == "clip" and model.critic_spectral_norm:
        raise ValueError(
            "model.critic_spectral_norm is in place of loss.critic_penalty clip: give none, gp, r1 "
            "or r1r2"
        )
    if loss.critic_loss == "wasserstein":
        if penalty == "r1":
            raise ValueError(
                "loss.critic_penalty r1 does not bound a wasserstein loss at made faces: "
                "loss.critic_loss must be logistic"
            )
        if penalty == "none" and not model.critic_spectral_norm:
            raise ValueError(
                "loss.critic_penalty none leaves a wasserstein loss without a bound: "
                "loss.critic_loss must be logistic, or model.critic_spectral_norm on"
            )


def check(experiment: Experiment) -> None:
    """Refuse combinations that no single section can see."""
    model, data = experiment.model, faces_data(experiment)
    if not model.vqvae:
        _check_critics(model, experiment.loss)
    sizes = data.image_sizes
    for size in sizes:
        if size < 16 or size % 8:
            raise ValueError(f"data.image_sizes: {size} is no multiple of 8 of at least 16")
        side = bottleneck_side(size)
        for part in ("obj", "bg"):
            block = getattr(model, f"{part}_block_size")
            if getattr(model, f"{part}_blockconv") and side % block:
                raise ValueError(
                    f"model.{part}_block_size {block} does not divide the {side}x{side} features "
                    f"of size {size}"
                )
    if model.vqvae and experiment.loss.multi_res_mode == "random":
        raise ValueError("model.vqvae has all sizes: loss.multi_res_mode must be all")
    if model.multiscale_loss:
        if len(sizes) < 2:
            raise ValueError("model.multiscale_loss needs two sizes or more in data.image_sizes")
        if experiment.loss.multi_res_mode == "random":
            raise ValueError("model.multiscale_loss has all sizes: loss.multi_res_mode must be all")
        if data.shown_size != max(sizes):
            raise ValueError("model.multiscale_loss takes in the largest size: data.image_size")


def channels_last(experiment: Experiment, device_type: str) -> bool:
    """Not with GroupNorm on a CPU, which is slow in NHWC.

    Seconds an iteration of genegan/exp04_group_norm (batch 1, fp32, AMD EPYC of Zen 3, AVX2,
    2 threads): 9.3 in NHWC, 7.4 in NCHW. Not measured on a GPU: `benchmarks/gpu.py`, `layout`.
    """
    return device_type != "cpu" or experiment.model.norm != "group_norm"


SCHEMA = FamilySchema(
    name="genegan",
    example="--attribute Smiling --data-root img_align_celeba",
    sections={
        "model": Model,
        "data": FacesData,
        "train": GeneganTrain,
        "loss": Loss,
        "output": GeneganOutput,
    },
    monitor="val_cycle",
    has_best=False,
    tiny={
        "data.image_sizes": [32, 64, 96],
        "data.image_size": 96,
        "data.max_images": 64,
        "data.val_fraction": 0.1,
        "model.base_channels": 16,
        "train.batch_size": 4,
        "train.max_iter": 12,
        "train.val_every": 12,
        "train.save_every": 6,
        "train.sample_every": 12,
        "train.log_every": 2,
        "loss.critic_burst": 4,
    },
    check=check,
    channels_last=channels_last,
    # Each size has norms of its own, and goes forward and backward by itself.
    takes_turns=lambda experiment: (
        not experiment.model.multiscale_loss and not experiment.model.vqvae
    ),
    needs={
        **dict.fromkeys(
            ("model.codebook_size", "model.codebook_decay", "loss.commitment"),
            ("model.vqvae", True),
        ),
        "loss.critic_clip": ("loss.critic_penalty", "clip"),
    },
)
