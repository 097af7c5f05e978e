"""The attributes family's part of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from imgtool.config.faces import LabelledFacesData
from imgtool.config.schema import (
    STRICT,
    Experiment,
    FamilySchema,
    Fraction,
    NonNegativeFloat,
    Output,
    PositiveFloat,
    PositiveInt,
    Train,
    option,
)
from imgtool.errors import ConfigError

if TYPE_CHECKING:
    from imgtool.data.base import DataInfo

GROUPS = 8  # of every group norm of the small network


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network; there is one output an attribute."""

    __pydantic_config__ = STRICT

    network: Literal["resnet18", "small"] = option(
        "resnet18", "torchvision's ResNet-18 with group norm, or a few convolutions."
    )
    width: PositiveInt = option(16, "Channels of the first stage, doubled at each (small).")
    stages: PositiveInt = option(4, "Stages, each of which halves the sides (small).")

    def __post_init__(self) -> None:
        if self.width % GROUPS:
            raise ValueError(f"width {self.width} is no multiple of {GROUPS}, the groups of a norm")
        if self.stages > 7:
            raise ValueError(f"stages {self.stages} leave nothing of a face: at most 7")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """How rare attributes count, and what is done to faces before they are judged in training."""

    __pydantic_config__ = STRICT

    balance: Literal["prior", "none"] = option(
        "prior",
        "Decide as if each attribute held of half of the faces (prior), or as they come (none).",
    )
    blur: Fraction = option(0.5, "Part of the training faces that are blurred, more or less.")
    noise: Fraction = option(0.5, "Part of the training faces that are given noise.")


@dataclass(frozen=True, kw_only=True)
class AttributesTrain(Train):
    """Those of a classifier from scratch."""

    __pydantic_config__ = STRICT

    batch_size: PositiveInt = option(128, "Images a batch, in each process.")
    lr: PositiveFloat = option(1e-3, "Learning rate at its highest.", aliases=("learning-rate",))
    weight_decay: NonNegativeFloat = option(0.05, "Weight decay.")


@dataclass(frozen=True, kw_only=True)
class AttributesOutput(Output):
    """Faces above what is known of them and what is judged."""

    __pydantic_config__ = STRICT

    num_samples: PositiveInt = option(16, "Images in a sample grid.", run=True)


def check_data(experiment: Experiment, data: DataInfo) -> None:
    """Refuse data that say no attributes."""
    if "labels" not in data.targets or not data.label_names:
        raise ConfigError(
            "the data have no attributes to learn", hint="--data-root names a folder of CelebA"
        )


def channels_last(experiment: Experiment, device_type: str) -> bool:
    """Not on a CPU, where group norm is slow in NHWC (see genegan's schema)."""
    return device_type != "cpu"


SCHEMA = FamilySchema(
    name="attributes",
    example="--data-root img_align_celeba",
    sections={
        "model": Model,
        "data": LabelledFacesData,
        "train": AttributesTrain,
        "loss": Loss,
        "output": AttributesOutput,
    },
    monitor="val_loss",
    tiny={
        "data.image_size": 64,
        "data.max_images": 64,
        "model.network": "small",
        "model.width": 8,
        "train.batch_size": 8,
        "train.max_iter": 20,
        "train.val_every": 20,
        "train.save_every": 10,
        "train.sample_every": 20,
        "train.log_every": 5,
        "output.num_samples": 4,
    },
    check_data=check_data,
    channels_last=channels_last,
    needs={"model.width": ("model.network", "small"), "model.stages": ("model.network", "small")},
)
