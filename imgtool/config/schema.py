"""The Experiment: one YAML file, less the parts that belong to its family.

Standard dataclasses with documented fields; pydantic validates them, but only when a config
is loaded (`imgtool.config.load`), so that importing this module costs nothing.

A field is *identity* by default: it is part of the hash that names a trial and guards its
directory. Fields marked `run=True` (where, how long, how often it is logged) are not.
A field that is added, or becomes a run field, changes no experiment of before: it says which
value programs behaved like `before` there was the choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from imgtool.config.bounds import Ge, Le
from imgtool.config.cluster import Cluster as Cluster
from imgtool.config.option import STRICT as STRICT
from imgtool.config.option import Fraction as Fraction
from imgtool.config.option import NonNegativeFloat as NonNegativeFloat
from imgtool.config.option import NonNegativeInt as NonNegativeInt
from imgtool.config.option import PositiveFloat as PositiveFloat
from imgtool.config.option import PositiveInt as PositiveInt
from imgtool.config.option import data_path as data_path
from imgtool.config.option import option as option
from imgtool.errors import UsageError
from imgtool.units import parse_duration

if TYPE_CHECKING:
    from imgtool.published import Published

# A count of iterations (1000), or of epochs (5ep).
Interval = PositiveInt | Annotated[str, "interval"]
# A number in a metric's own unit (1e-4), or a part of the best value (1%).
Gain = NonNegativeFloat | Annotated[str, "percent"]

# Where runs of `--tiny` lie, within the folders of the others.
TINY_FOLDER = "tiny"

_PERCENT = re.compile(r"\d{1,2}(\.\d+)?%", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where images come from and what is done to them before they reach a model."""

    __pydantic_config__ = STRICT

    dataset: Literal["photos", "layouts"] = option("photos", "Kind of data set.")
    root: str | None = data_path(
        "Folder of photos, or a packed .safetensors file.", flag="data-root"
    )
    val_root: str | None = data_path(
        "Photos to validate on; without it a part of root is held out."
    )
    manifest: str | None = data_path(
        "CSV of layouts, or a packed .safetensors file.", flag="manifest"
    )
    image_size: PositiveInt | None = option(
        None, "Resize first: pixels of the shorter side; the native size when unset."
    )
    crop: PositiveInt | None = option(
        None, "Random square crop: pixels of its side; the whole image when unset."
    )
    flip: Literal["auto", "none", "horizontal", "both", "dihedral"] = option(
        "auto", "Random flips, horizontal for photos; both are horizontal and vertical."
    )
    max_images: PositiveInt | None = option(
        None, "Use at most this many images, drawn by the seed of the split."
    )
    val_fraction: Fraction = option(0.1, "Part of the data held out for validation, by scene.")
    test_fraction: Fraction = option(0.1, "Part of the data held out for the final test, by scene.")
    split_seed: NonNegativeInt = option(42, "Seed of the split.")
    max_unmatched: Annotated[float, Ge(0), Le(1)] = option(
        0.05, "Largest part of a layout's pixels without a palette colour; more is an error."
    )
    skip_bad: bool = option(False, "Leave unreadable images out instead of stopping.", run=True)
    num_workers: NonNegativeInt | None = option(
        None, "Loader processes; chosen by device and cache when unset.", run=True
    )
    cache: Literal["auto", "ram", "none"] = option(
        "auto", "Keep decoded images in memory; auto does so up to 1 GB.", run=True
    )
    cache_dir: str = option(
        "outputs/_mask_cache",
        "Folder for the segmentation targets, which are computed once.",
        run=True,
    )

    def __post_init__(self) -> None:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction leave nothing to train on")
        if self.image_size and self.crop and self.crop > self.image_size:
            raise ValueError(f"crop {self.crop} is larger than image_size {self.image_size}")

    @property
    def source_key(self) -> Literal["root", "manifest"]:
        """The key that names what is trained on."""
        return "manifest" if self.dataset == "layouts" else "root"


@dataclass(frozen=True, kw_only=True)
class Train:
    """Optimisation, limits, intervals and the machine."""

    __pydantic_config__ = STRICT

    batch_size: PositiveInt = option(16, "Images a batch, in each process.")
    accumulate: PositiveInt = option(1, "Batches that make one update.")
    lr: PositiveFloat = option(1e-4, "Learning rate at its highest.", aliases=("learning-rate",))
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop"] = option("adamw", "Optimizer.")
    weight_decay: NonNegativeFloat = option(0.01, "Weight decay.")
    betas: tuple[Fraction, Fraction] = option(
        (0.9, 0.999), "Averaging constants of adam and adamw."
    )
    momentum: Fraction = option(0.0, "Momentum of sgd and rmsprop.")
    rmsprop_alpha: Fraction = option(0.99, "Averaging constant of rmsprop.")
    schedule: Literal["constant", "cosine", "step"] = option("constant", "Learning-rate schedule.")
    warmup_iterations: NonNegativeInt = option(0, "Iterations of linear warm-up.")
    decay_iterations: PositiveInt | None = option(
        None,
        "Iteration at which the schedule ends; the run's limit when unset.",
        run=True,
        before=None,
    )
    min_lr_ratio: Annotated[float, Ge(0), Le(1)] = option(
        0.0, "Lowest learning rate of the cosine, as a part of lr."
    )
    step_iterations: PositiveInt = option(
        10_000, "Iterations between the steps of the step schedule."
    )
    step_gamma: PositiveFloat = option(0.1, "Factor at each step of the step schedule.")
    clip_norm: NonNegativeFloat = option(0.0, "Largest gradient norm; 0 is off.")
    ema_decay: Fraction = option(
        0.0, "Decay of the averaged weights that validation uses; 0 is off."
    )
    seed: NonNegativeInt = option(42, "Seed of weights, data order, augmentation and noise.")

    epochs: PositiveInt | None = option(None, "Stop after this many epochs.", run=True)
    max_iter: PositiveInt | None = option(
        None, "Stop after this many iterations.", run=True, aliases=("max-iterations",)
    )
    max_time: str | None = option(None, "Stop after this time, such as 3h or 90m.", run=True)
    patience: PositiveInt | None = option(
        None, "Stop after this many validations without a gain; off when unset.", run=True
    )
    min_delta: Gain = option(
        "1%",
        "Smallest gain that patience counts as one: a part of the best, or a number such as 1e-4.",
        run=True,
    )
    monitor: str | None = option(
        None,
        "Metric that decides what is best, such as val_mse; the family's own when unset.",
        run=True,
    )
    restore_best: bool = option(True, "End early stopping with the best weights.", run=True)
    max_bad_steps: PositiveInt = option(
        5, "Steps in a row with non-finite values after which the run ends as diverged.", run=True
    )
    save_every: Interval = option(1000, "Iterations between checkpoints, or epochs: 5ep.", run=True)
    sample_every: Interval = option(
        1000, "Iterations between sample images, or epochs: 5ep.", run=True
    )
    val_every: Interval = option(1000, "Iterations between validations, or epochs: 1ep.", run=True)
    final_validation: bool = option(
        True, "Validate a stopped run once more, within 20 s, if none was made lately.", run=True
    )
    log_every: PositiveInt = option(50, "Iterations between logged values.", run=True)
    keep: NonNegativeInt = option(3, "Newest checkpoints to keep; 0 keeps all.", run=True)
    device: str = option("auto", "Device: auto, cpu, cuda, cuda:1 or mps.", run=True)
    precision: Literal["32", "bf16-mixed", "16-mixed"] = option(
        "32", "Arithmetic: float32, or mixed with bfloat16 or float16.", run=True
    )
    matmul_precision: Literal["highest", "high"] = option(
        "highest",
        "Products and convolutions of float32 on a GPU: float32, or the faster TF32 (high).",
        run=True,
    )
    channels_last: bool | None = option(
        None,
        "Keep tensors in NHWC order; what is faster for the family on the device when unset.",
        run=True,
    )
    compile: bool = option(
        False,
        "Compile the networks with torch.compile: for GPUs; on a CPU it gains little.",
        run=True,
    )
    deterministic: bool = option(False, "Refuse algorithms that are not repeatable.", run=True)
    threads: PositiveInt | None = option(
        None, "CPU threads; OMP_NUM_THREADS, else cores / slots - workers, when unset.", run=True
    )

    def __post_init__(self) -> None:
        for key in ("save_every", "sample_every", "val_every"):
            value = getattr(self, key)
            if isinstance(value, str) and not re.fullmatch(r"0*[1-9]\d*ep", value, re.ASCII):
                raise ValueError(
                    f"{key} {value!r} is neither iterations, such as 1000, nor epochs, such as 5ep"
                )
        if isinstance(self.min_delta, str) and not _PERCENT.fullmatch(self.min_delta):
            raise ValueError(
                f"min_delta {self.min_delta!r} is neither a number, such as 1e-4, nor a part of the "
                "best value, such as 1%"
            )
        if not re.fullmatch(r"auto|cpu|cuda|cuda:\d+|mps", self.device, re.ASCII):
            raise ValueError(f"device {self.device!r} is not auto, cpu, cuda, cuda:1 or mps")
        if self.max_time is not None:
            try:
                parse_duration(self.max_time)
            except UsageError as error:
                raise ValueError(f"max_time: {error} ({error.hint})") from error

    @property
    def least_gain(self) -> tuple[float, float]:
        """What `min_delta` means: a gain in the metric's unit, and one as a part of the best."""
        if isinstance(self.min_delta, str):
            return 0.0, float(self.min_delta.removesuffix("%")) / 100
        return self.min_delta, 0.0

    @property
    def ends_with_the_run(self) -> bool:
        """Whether the learning rate depends on when the run ends."""
        return self.schedule == "cosine"

    def step_factor(self, iteration: float, horizon: int | None) -> float:
        """Learning rate of the step schedule at `iteration` (1 is the first), as a part of lr."""
        return float(self.step_gamma ** ((iteration - 1) // self.step_iterations))


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is written where."""

    __pydantic_config__ = STRICT

    exp_dir: str | None = option(
        None, "The experiment's directory; experiments/PHASE/NAME when unset.", run=True
    )
    shared_dir: str | None = option(
        None, "The phase's folder for copies of metrics and samples.", run=True
    )
    num_samples: PositiveInt = option(8, "Images in a sample grid.", run=True)
    tensorboard: bool = option(False, "Write TensorBoard events.", run=True)
    wandb: Literal["off", "online", "offline"] = option(
        "off", "Write to Weights & Biases.", run=True
    )
    wandb_project: str = option("imgtool", "Project of Weights & Biases.", run=True)
    log_dir: str | None = option(
        None, "Folder of the loggers; the experiment's directory when unset.", run=True
    )

    def __post_init__(self) -> None:
        for key in ("exp_dir", "shared_dir", "log_dir"):
            value = getattr(self, key)
            if value is not None and not value.strip():  # a shell variable that is not set
                raise ValueError(f"{key} is empty")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment, complete. `model` and `loss` are the family's own dataclasses.

    A family may also put its own subclasses in place of Data and Train.
    """

    name: str
    phase: str | None
    family: str
    model: Any
    data: Data
    train: Train
    loss: Any
    output: Output
    cluster: Cluster


def _accept(experiment: Experiment) -> None:
    return None


def _accept_data(experiment: Experiment, data: Any) -> None:
    return None


def _never(experiment: Experiment) -> bool:
    return False


def _no_weights(experiment: Experiment) -> Sequence[Published]:
    return ()


def _always(experiment: Experiment, device_type: str) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class LadderKeys:
    """In what a family's trainings at several rates differ (`imgtool sweep --ladder`).

    Attributes:
        rate: the key that sets the rate, which rises with it.
        begins_with: the key of the checkpoint that a training begins with.
    """

    rate: str
    begins_with: str


@dataclass(frozen=True, kw_only=True)
class FamilySchema:
    """The torch-free half of a family: `imgtool/models/FAMILY/schema.py` exposes one as SCHEMA.

    Attributes:
        name: the family's name on the command line.
        sections: the dataclass of each section that the family owns or changes
            (`model` and `loss` always).
        tiny: dotted keys and values that `--tiny` sets.
        check: raises ValueError where sections contradict each other.
        check_data: raises ConfigError where the data (an imgtool.data.base.DataInfo) lack what
            the config asks for. Called before torch is imported.
        needs: key -> (another key, the value that this must have for the first to matter), such
            as `loss.kld`, which means nothing without a variational bottleneck.
        rivals: key -> the keys that it excludes, with the value by which each is not there. A key
            that is given clears them where they were given earlier (a preset, then an option).
        example: what the first example of `imgtool train NAME --help` gives to it.
        monitor: the metric that its tasks call best, as far as the name alone tells.
        has_best: whether it really tells better weights from worse ones.
        takes_turns: whether a backward pass may leave parameters out that others train.
        channels_last: whether NHWC is the faster order on a device (cpu, cuda, mps), as measured:
            what an unset `train.channels_last` means. It depends on the two arguments alone, so
            that a resumed run has the same.
        weights: published files that a training reads, which are there before it begins.
        ladder: the keys of a rate ladder, where the family can be trained on one.
        exports: formats of `imgtool export` that its checkpoints can be written in
            (`imgtool.evaluation.export.formats`); where there is one, `--to` need not name it.
        encodes: whether its task makes latents that `imgtool encode` can write down.
        sections may define `rewrite(raw: dict) -> dict`, a static method that turns an older
            spelling in a file into today's (`variational: true` into `bottleneck: kl`).
    """

    name: str
    sections: Mapping[str, type]
    tiny: Mapping[str, Any]
    example: str = "--data-root photos"
    monitor: str = "val_loss"
    has_best: bool = True
    check: Callable[[Experiment], None] = _accept
    check_data: Callable[[Experiment, Any], None] = _accept_data
    needs: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    rivals: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    takes_turns: Callable[[Experiment], bool] = _never
    channels_last: Callable[[Experiment, str], bool] = _always
    weights: Callable[[Experiment], Sequence[Published]] = _no_weights
    ladder: LadderKeys | None = None
    exports: tuple[str, ...] = ()
    encodes: bool = False

    def section_types(self) -> dict[str, type]:
        """Every section of the file, in the order in which it is written."""
        shared: dict[str, type] = {"model": object, "data": Data, "train": Train, "loss": object}
        return {**shared, "output": Output, "cluster": Cluster, **self.sections}

    def is_given(self, key: str, value: Any) -> bool:
        """Whether a key of this value is there, by what its rivals would clear it to."""
        nones = [cleared[key] for cleared in self.rivals.values() if key in cleared]
        return (tuple(value) if isinstance(value, list) else value) not in nones
