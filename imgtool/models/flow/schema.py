"""The flow family's part of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from imgtool.config.latents import LatentsData
from imgtool.config.schema import (
    STRICT,
    Experiment,
    FamilySchema,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Output,
    PositiveFloat,
    PositiveInt,
    Train,
    option,
)
from imgtool.errors import ConfigError

if TYPE_CHECKING:
    from imgtool.data.base import DataInfo

MLP_RATIO = 4


@dataclass(frozen=True, kw_only=True)
class Model:
    """The transformer, and what it is told besides the noisy latent."""

    __pydantic_config__ = STRICT

    patch_size: PositiveInt = option(1, "Side of a patch, which is a token (tokens unset).")
    tokens: PositiveInt | None = option(
        None, "Tokens of a latent, at most: the smallest patch that gives no more."
    )
    width: PositiveInt = option(384, "Numbers of a token.")
    depth: PositiveInt = option(12, "Blocks.")
    heads: PositiveInt = option(6, "Heads of each attention.")
    qk_norm: bool = option(True, "Normalise queries and keys, against values that run away.")
    condition: Literal["none", "label", "mask"] = option(
        "none",
        "What is generated for: nothing, an image's label, or its mask on the latent's grid.",
    )

    def __post_init__(self) -> None:
        if self.width % 4:
            raise ValueError(f"width {self.width} is no multiple of 4 (positions of two axes)")
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} do not divide width {self.width}")

    def patch_of(self, height: int, width: int) -> int:
        """Side of a patch of a latent of height x width.

        Raises:
            ValueError: patches do not cover it, or all give more tokens.
        """
        sides = [p for p in range(1, min(height, width) + 1) if not (height % p or width % p)]
        if self.tokens is None:
            if self.patch_size not in sides:
                raise ValueError(
                    f"model.patch_size {self.patch_size} does not divide latents of "
                    f"{height} x {width}: {', '.join(map(str, sides))} do"
                )
            return self.patch_size
        counts = [height * width // (side * side) for side in sides]
        few = [side for side, count in zip(sides, counts, strict=True) if count <= self.tokens]
        if not few:
            raise ValueError(
                f"model.tokens {self.tokens}: latents of {height} x {width} can be cut into "
                f"{', '.join(map(str, counts))}"
            )
        return few[0]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Which times are trained on, and how often a condition is left out."""

    __pydantic_config__ = STRICT

    times: Literal["logit_normal", "uniform"] = option(
        "logit_normal", "Distribution of the times, 0 noise and 1 data."
    )
    time_mean: float = option(0.0, "Mean of the times' logit (logit_normal).")
    time_std: PositiveFloat = option(1.0, "Deviation of the times' logit (logit_normal).")
    condition_dropout: Fraction = option(
        0.1, "Part of the images whose label or mask is left out, for guidance."
    )


@dataclass(frozen=True, kw_only=True)
class FlowTrain(Train):
    """Those of LightningDiT for a small model; averaged weights are what is looked at."""

    __pydantic_config__ = STRICT

    batch_size: PositiveInt = option(64, "Latents a batch, in each process.")
    lr: PositiveFloat = option(2e-4, "Learning rate at its highest.", aliases=("learning-rate",))
    weight_decay: NonNegativeFloat = option(0.0, "Weight decay.")
    betas: tuple[Fraction, Fraction] = option((0.9, 0.95), "Averaging constants of adam and adamw.")
    clip_norm: NonNegativeFloat = option(1.0, "Largest gradient norm; 0 is off.")
    ema_decay: Fraction = option(
        0.999, "Decay of the averaged weights that validation uses; 0 is off."
    )


@dataclass(frozen=True, kw_only=True)
class FlowOutput(Output):
    """How samples are drawn."""

    __pydantic_config__ = STRICT

    num_samples: PositiveInt = option(16, "Images in a sample grid.", run=True)
    solver: Literal["euler", "heun"] = option(
        "heun", "How samples are integrated; heun asks the network twice a step.", run=True
    )
    num_steps: PositiveInt = option(25, "Steps from noise to data.", run=True)
    guidance: NonNegativeFloat = option(
        1.0, "Weight of the condition in samples; 1 is no guidance.", run=True
    )
    sample_seed: NonNegativeInt = option(
        0, "Seed of the samples' noise, which depends on nothing else.", run=True
    )


def check(experiment: Experiment) -> None:
    """Refuse combinations that no single section can see."""
    output = experiment.output
    assert isinstance(output, FlowOutput)
    if output.guidance != 1 and not guided(experiment):
        raise ValueError(
            "output.guidance needs a model.condition that loss.condition_dropout leaves out at times"
        )


def guided(experiment: Experiment) -> bool:
    """Whether the model learns with and without its condition."""
    return bool(experiment.model.condition != "none" and experiment.loss.condition_dropout > 0)


def check_data(experiment: Experiment, data: DataInfo) -> None:
    """Refuse conditions that the data do not have, and patches that do not cover a latent."""
    condition = experiment.model.condition
    if condition != "none" and condition not in data.targets:
        raise ConfigError(
            f"the latents have no {condition}s for model.condition {condition}",
            hint="--condition none, or encode data that has them",
        )
    if data.latents is not None:
        try:
            experiment.model.patch_of(*data.latents.shape[1:])
        except ValueError as error:
            raise ConfigError(str(error), hint="choose one of these") from error


SCHEMA = FamilySchema(
    name="flow",
    example="--data-root photos.latents.safetensors",
    sections={
        "model": Model,
        "data": LatentsData,
        "train": FlowTrain,
        "loss": Loss,
        "output": FlowOutput,
    },
    monitor="val_loss",
    tiny={
        "data.max_images": 256,
        "model.width": 64,
        "model.depth": 2,
        "model.heads": 2,
        "train.batch_size": 8,
        "train.lr": 1e-3,
        "train.max_iter": 100,
        "train.val_every": 100,
        "train.save_every": 50,
        "train.sample_every": 100,
        "train.log_every": 10,
        "output.num_samples": 4,
        "output.num_steps": 5,
    },
    check=check,
    check_data=check_data,
    needs={
        "model.patch_size": ("model.tokens", None),
        "loss.time_mean": ("loss.times", "logit_normal"),
        "loss.time_std": ("loss.times", "logit_normal"),
    },
)
