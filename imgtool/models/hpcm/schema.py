"""The HPCM family's part of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from imgtool.config.bounds import Ge, Gt, Le
from imgtool.config.schema import (
    STRICT,
    Data,
    Experiment,
    FamilySchema,
    Fraction,
    LadderKeys,
    NonNegativeFloat,
    NonNegativeInt,
    Output,
    PositiveFloat,
    PositiveInt,
    Train,
    data_path,
    option,
)
from imgtool.errors import ConfigError

if TYPE_CHECKING:
    from imgtool.data.base import DataInfo

MS_SSIM_MIN_SIDE = 11  # pixels of its window
PAPERS_LAMBDAS = {"mse": (0.0018, 0.0483), "ms-ssim": (2.4, 60.5)}  # the lowest, the highest


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which of the published networks, or of our smaller ones."""

    __pydantic_config__ = STRICT

    model_name: Literal["HPCM_Base", "HPCM_Large", "HPCM_PhiContext", "HPCM_Small", "HPCM_Tiny"] = (
        option("HPCM_Base", "Network: the published three, or smaller ones for CPUs.")
    )
    legacy_s2_hyper: bool = option(
        False, "Reproduce the published code's misplaced hyperprior at the second scale."
    )
    init_ckpt: str | None = option(
        None,
        "Checkpoint of the same network, of another lambda perhaps, whose weights the codec begins "
        "with.",
        before=None,
        reads="checkpoint",
    )


@dataclass(frozen=True, kw_only=True)
class HpcmData(Data):
    """Photos, cropped; a test set that never selects the model."""

    __pydantic_config__ = STRICT

    root: str | None = data_path(
        "Folder of photos, or a packed .safetensors file.",
        flag="data-root",
        aliases=("train-dataset",),
    )
    test_root: str | None = data_path(
        "Photos for the final test; they never select the model.", flag="test-dataset"
    )
    crop: PositiveInt | None = option(
        256, "Random square crop: pixels of its side.", aliases=("patch-size",)
    )
    flip: Literal["auto", "none", "horizontal", "both", "dihedral"] = option(
        "both",
        "Random flips: horizontal and vertical (both) as in the paper; dihedral turns as well.",
    )
    test_fraction: Fraction = option(
        0.0, "Part of root held out for the final test, where test_root is unset."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_root is not None and self.test_fraction:
            raise ValueError("test_fraction is for a test without test_root: leave one out")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Rate and distortion, and the two spectral regularisers."""

    __pydantic_config__ = STRICT

    lmbda: Annotated[float, Ge(1e-6), Le(1e6)] = option(
        0.013, "Weight of the distortion: lambda * 255^2 * MSE + bpp.", flag="lambda"
    )
    distortion: Literal["mse", "ms-ssim"] = option("mse", "What the codec is trained for.")
    spectral_reg: bool = option(False, "Phase 1: train on images of growing bandwidth.")
    tau_init: Annotated[float, Ge(0), Le(1)] = option(
        0.05, "Part of the DCT's diagonal that is kept at the start (spectral_reg)."
    )
    tau_final: Annotated[float, Ge(0), Le(1)] = option(
        1.0, "Part of the DCT's diagonal that is kept at the end (spectral_reg)."
    )
    truncation_epochs: NonNegativeInt | None = option(
        None, "Length of phase 1, in epochs; 100 when neither this nor iterations are given."
    )
    truncation_iterations: PositiveInt | None = option(
        None, "Length of phase 1, in iterations, instead of epochs."
    )
    target: Literal["truncated", "original"] = option(
        "truncated", "What the distortion of phase 1 is measured against."
    )
    release: Literal["jump", "smooth"] = option(
        "jump", "How phase 1 ends: at once, or fading into whole images over as long again."
    )
    phase2_reg: bool = option(False, "Phase 2: keep the scales' latents apart.")
    delta: NonNegativeFloat = option(0.1, "Weight of phase 2.")
    phase2_mode: Literal["l2", "l1", "cosine", "bounded"] = option(
        "l2", "Distance of phase 2, or a bounded unpredictability."
    )
    phase2_limit: PositiveFloat = option(
        10.0,
        "Distance of l2 and l1 beyond which phase 2 pushes no further; to be raised where "
        "spectral/clipped is near 1.",
    )
    phase2_start_epoch: NonNegativeInt | None = option(
        None, "Epoch from which phase 2 is active; the end of phase 1 when unset."
    )
    phase2_start_iteration: NonNegativeInt | None = option(
        None, "Iteration from which phase 2 is active, instead of an epoch."
    )


@dataclass(frozen=True, kw_only=True)
class HpcmTrain(Train):
    """The seed's optimiser and limits."""

    __pydantic_config__ = STRICT

    batch_size: PositiveInt = option(16, "Images a batch, in each process.")
    lr: PositiveFloat = option(5e-5, "Learning rate at its highest.", aliases=("learning-rate",))
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop"] = option("adam", "Optimizer.")
    weight_decay: NonNegativeFloat = option(0.0, "Weight decay.")
    schedule: Literal["constant", "cosine", "step"] = option("step", "Learning-rate schedule.")
    step_fractions: tuple[Annotated[float, Gt(0), Le(1)], ...] = option(
        (0.91667, 0.95, 0.98333),
        "Parts of the run after which the step schedule steps; by step_iterations when empty.",
    )
    step_factors: tuple[PositiveFloat, ...] = option(
        (0.3, 0.1, 0.01), "Learning rate after each of step_fractions, as a part of lr."
    )
    clip_norm: NonNegativeFloat = option(1.0, "Largest gradient norm; 0 is off.")
    epochs: PositiveInt | None = option(3000, "Stop after this many epochs.", run=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.step_factors) != len(self.step_fractions):
            raise ValueError(
                f"step_factors has {len(self.step_factors)} values for the "
                f"{len(self.step_fractions)} of step_fractions"
            )
        if list(self.step_fractions) != sorted(set(self.step_fractions)):
            raise ValueError("step_fractions must rise")

    @property
    def ends_with_the_run(self) -> bool:
        return super().ends_with_the_run or (self.schedule == "step" and bool(self.step_fractions))

    def step_factor(self, iteration: float, horizon: int | None) -> float:
        if not self.step_fractions or horizon is None:
            return super().step_factor(iteration, horizon)
        passed = sum(iteration > fraction * horizon for fraction in self.step_fractions)
        return self.step_factors[passed - 1] if passed else 1.0


@dataclass(frozen=True, kw_only=True)
class HpcmOutput(Output):
    """The seed's name of the directory."""

    __pydantic_config__ = STRICT

    exp_dir: str | None = option(
        None,
        "The experiment's directory; experiments/PHASE/NAME when unset.",
        run=True,
        aliases=("save-path",),
    )


def check(experiment: Experiment) -> None:
    """Refuse combinations that no single section can see."""
    loss, crop = experiment.loss, experiment.data.crop
    if loss.tau_final < loss.tau_init:
        raise ValueError(f"loss.tau_final {loss.tau_final} is below tau_init {loss.tau_init}")
    if loss.distortion == "ms-ssim" and crop is not None and crop < MS_SSIM_MIN_SIDE:
        raise ValueError(
            f"data.crop {crop} is too small for loss.distortion ms-ssim: "
            f"its window has {MS_SSIM_MIN_SIDE} pixels"
        )


def check_data(experiment: Experiment, data: DataInfo) -> None:
    """Refuse training images that are too small for MS-SSIM."""
    size = data.image_size
    wanted = experiment.loss.distortion == "ms-ssim"
    if wanted and size is not None and min(size) < MS_SSIM_MIN_SIDE:
        raise ConfigError(
            f"training images of {size[1]}x{size[0]} pixels are too small for MS-SSIM, "
            f"whose window has {MS_SSIM_MIN_SIDE}",
            hint="larger images, or --distortion mse",
        )


BY_FRACTIONS = {"train.step_fractions": (), "train.step_factors": ()}

SCHEMA = FamilySchema(
    name="hpcm",
    example="--config hpcm/tiny --train_dataset photos",
    sections={
        "model": Model,
        "data": HpcmData,
        "train": HpcmTrain,
        "loss": Loss,
        "output": HpcmOutput,
    },
    monitor="val_rd_loss",
    tiny={
        "model.model_name": "HPCM_Tiny",
        "data.crop": 64,
        "data.max_images": 64,
        "train.batch_size": 2,
        "train.lr": 1e-3,
        "train.max_iter": 12,
        "train.val_every": 12,
        "train.save_every": 6,
        "train.sample_every": 12,
        "train.log_every": 2,
        "loss.truncation_iterations": 4,
        "loss.phase2_start_epoch": None,
        "loss.phase2_start_iteration": None,
    },
    exports=("codec",),
    ladder=LadderKeys(rate="loss.lmbda", begins_with="model.init_ckpt"),
    check=check,
    check_data=check_data,
    needs={
        **dict.fromkeys(
            ("loss.tau_init", "loss.tau_final", "loss.target", "loss.release"),
            ("loss.spectral_reg", True),
        ),
        **dict.fromkeys(
            ("loss.delta", "loss.phase2_mode", "loss.phase2_limit"), ("loss.phase2_reg", True)
        ),
    },
    rivals={
        "loss.truncation_epochs": {"loss.truncation_iterations": None},
        "loss.truncation_iterations": {"loss.truncation_epochs": None},
        "loss.phase2_start_epoch": {"loss.phase2_start_iteration": None},
        "loss.phase2_start_iteration": {"loss.phase2_start_epoch": None},
        "data.test_root": {"data.test_fraction": 0.0},
        "data.test_fraction": {"data.test_root": None},
        "train.step_iterations": BY_FRACTIONS,
        "train.step_gamma": BY_FRACTIONS,
    },
)
