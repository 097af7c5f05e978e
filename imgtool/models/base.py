"""The seam between the engine and a family.

A family hands the engine a Task: its modules and, for an iteration, the list of its Updates.
The engine does everything else, once for every family: batches, devices, autocast, backward,
accumulation, clipping, finite checks, optimizer steps, EMA, logging, validation, samples,
checkpoints, stopping and resuming. A family touches no optimizer, no device and no file.

A batch is a dict on the engine's device:
    image   (B, 3, H, W) uint8, channels_last strides; unless the data are latents
    latent, logvar  (B, C, h, w) float32 of a posterior; where the data are latents
    mask    (B, H, W) uint8 class numbers, 255 ignored; where the data set has them (of latents h, w)
    label   (B,) int64; where the data set has them; of several (B, A), 1 or 0 for each
    index   (B,) int64, position in the data set
    valid   (B,) bool, False for images that only fill a batch up (evaluation)
    noise   a Noise (training only)
    epoch   passes over the data before this iteration, a float (training only)

Where the data are faces with and without an attribute (`imgtool.config.faces`), `image` holds
pyramids (`imgtool.data.pyramid.unpack` gives each size), and rows take turns: 0, 2, 4 ... have
the attribute, 1, 3, 5 ... do not; the two halves are as long as each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from imgtool.config.schema import Experiment
from imgtool.data.base import DataInfo
from imgtool.errors import CheckpointError
from imgtool.models.foreign import Diffusers, Foreign, Graph
from imgtool.nn.noise import Noise

__all__ = [
    "Batch",
    "DataInfo",
    "Diffusers",
    "Encoded",
    "Evaluator",
    "Fake",
    "Family",
    "Foreign",
    "Graph",
    "Noise",
    "Reader",
    "StepResult",
    "Study",
    "Task",
    "Update",
]

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class StepResult:
    """What a family may know of the optimizer step that has just been taken.

    Attributes:
        applied: 0-d bool tensor on the device; False when the step was bad and masked.
        noise: the step's noise.
        all_reduce: sums a tensor over all processes and returns it.
    """

    applied: Tensor
    noise: Noise
    all_reduce: Callable[[Tensor], Tensor]


class Update(nn.Module):
    """One forward and backward, by pieces or at once, and one step of every parameter set.

    Submodules are exactly what this update trains; modules that it only reads are held in a
    plain list or behind a function, so that DDP does not wait for their gradients.

    Attributes:
        name: unique within the task; prefixes the optimizer's state in a checkpoint.
        fresh_batch: whether it wants a batch of its own (always true of the first).
        lr: its own learning rate at its highest; None is `train.lr`.
    """

    name: str = "net"
    fresh_batch: bool = True
    lr: float | None = None

    def parameter_sets(self) -> dict[str, list[nn.Parameter]]:
        """Disjoint sets, one optimizer each; together all that this update trains."""
        return {"main": [p for p in self.parameters() if p.requires_grad]}

    def pieces(self, batch: Batch) -> Sequence[Batch]:
        """A batch in pieces that add up, to hold the features of one at a time; one by default.

        Each goes forward and backward by itself, and losses and gradients are their sums. Where
        one leaves parameters without a gradient, `FamilySchema.takes_turns` says so.
        """
        return [batch]

    @abstractmethod
    def forward(self, batch: Batch) -> Mapping[str, Tensor | str]:
        """Losses by name, each a 0-d tensor; `loss` is the one that is minimised.

        A word among them, such as the name of a phase, is logged as the last one said.

        Args:
            batch: or a piece of it, with its noise.
        """

    def after_step(self, result: StepResult) -> None:
        """What follows the optimizer step: weight clipping, codebook averages."""


class Evaluator(ABC):
    """Sums over a validation set. The engine adds `totals` up over processes.

    Attributes:
        totals: name -> float64 tensor of sums, on the device.
    """

    totals: dict[str, Tensor]

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Add one batch to the totals. Rows with `valid` False do not count."""

    def add(self, of_images: Mapping[str, Tensor], batch: Batch) -> None:
        """Add values of the batch's images, (B,) each, to the totals of their names."""
        valid = batch.get("valid")
        for name, values in of_images.items():
            counts = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
            total = self.totals[name]
            total += torch.where(counts, values.to(total.dtype), 0).sum()

    @abstractmethod
    def compute(self) -> dict[str, float | None]:
        """Metrics by name, without the `val_` prefix; None where one has no value."""


@dataclass(frozen=True)
class Fake:
    """Images that a model makes, and what they are meant to look like.

    Attributes:
        images: uint8 (B, 3, S, S), or of the images' own size.
        against: the real images that they are compared with: those `with` the attribute, those
            `without` it, or `all`.
    """

    images: Tensor
    against: Literal["with", "without", "all"]


@dataclass(frozen=True)
class Encoded:
    """Images as latents, float32 (B, C, h, w).

    Attributes:
        mean: of the posterior, or the latent itself where there is none.
        logvar: of the posterior, in nats; None where the encoder gives one latent an image.
    """

    mean: Tensor
    logvar: Tensor | None = None


@dataclass(frozen=True)
class Study:
    """What a family has to say of a trained model besides its metrics.

    Attributes:
        documents: name -> values for NAME.json.
        pictures: name -> uint8 (3, H, W).
    """

    documents: Mapping[str, Mapping[str, Any]]
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


class Reader(Protocol):
    """What the engine reads for a family. Both raise UserError naming the file."""

    def tensors(self, path: str) -> Mapping[str, Tensor]:
        """A checkpoint's weights by name, on the CPU; one of imgtool or a foreign `.pt`."""

    def document(self, path: str) -> Any:
        """What a JSON file says."""


class Task(ABC):
    """A model being trained.

    Attributes:
        modules: every module whose state belongs in a checkpoint, by name.
        monitor: the metric that decides what is best, such as `val_mse`.
        monitor_mode: `min` or `max`.
        has_best: whether `monitor` really tells better weights from worse ones. Where not, there
            is no best checkpoint unless the user names a metric (`train.monitor`).
        compiled: whether `compile` was called.
        decoder: what makes uint8 (B, 3, H, W) of latents that are the data; the engine sets it.
    """

    modules: nn.ModuleDict
    compiled: bool = False
    decoder: Callable[[Tensor], Tensor] | None = None
    monitor: str = "val_loss"
    monitor_mode: str = "min"
    has_best: bool = True

    @abstractmethod
    def all_updates(self) -> Sequence[Update]:
        """Every update that ever occurs, each once."""

    def updates(self, iteration: int) -> Sequence[Update]:
        """The updates of one iteration, in order; all of them by default."""
        return self.all_updates()

    def batches_per_iteration(self) -> Fraction:
        """Fresh batches of one iteration, on average over a run."""
        updates = self.updates(1)
        fresh = sum(1 for i, update in enumerate(updates) if i == 0 or update.fresh_batch)
        return Fraction(fresh)

    def warm_start(self, read: Reader) -> dict[str, Any] | None:
        """Put weights of another model in, where the config asks for it; called once, before the
        first iteration of a new experiment.

        Returns:
            A report of what was loaded, for warm_start.json; None where nothing was asked for.
        """
        return None

    def from_foreign(self, foreign: Any) -> Foreign:
        """Read another system's checkpoint of this model, as `torch.load` gave it.

        Raises:
            CheckpointError: this family knows no other system, or the file does not fit.
        """
        raise CheckpointError(
            "there is no other system whose checkpoints of this family are known",
            hint="`imgtool convert` knows GeneGAN, HPCM and diffusers' AutoencoderKL",
        )

    def compile_targets(self) -> Sequence[nn.Module]:
        """Modules that do the tensor work, entered by `forward`, each a graph without a break."""
        return ()

    def num_graphs(self) -> int:
        """Graphs that all targets together need in training: one a size and way to call it."""
        return len(self.compile_targets())

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Have the targets compiled when they are first called.

        For training alone: whole images of any size would be compiled once more, for minutes.
        """
        config = torch.compiler.config
        # Modules share one cache: they all are the code of nn.Module.__call__.
        config.recompile_limit = max(config.recompile_limit, self.num_graphs())
        for module in self.compile_targets():
            module.compile(backend=backend, dynamic=False)  # training's sizes are few and known
        self.compiled = True

    def doubts(self, last_iteration: int | None, iterations_per_epoch: float) -> Sequence[str]:
        """What in the config will hardly be meant, in a run of this length; one line each."""
        return ()

    @abstractmethod
    def evaluator(self) -> Evaluator:
        """A fresh evaluator. Called with the modules in eval mode, under no_grad."""

    @abstractmethod
    def sample(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures to save, name -> uint8 (3, H, W)."""

    def reconstruct(self, batch: Batch) -> Tensor | None:
        """What the model makes of whole images, uint8 (B, 3, H, W); None where it makes none."""
        return None

    def encode(self, images: Tensor) -> Encoded | None:
        """Images, uint8 (B, 3, H, W), as latents that can be generated; None where there are none.

        In eval mode and under no_grad, like `decode`.
        """
        return None

    def decode(self, latent: Tensor) -> Tensor | None:
        """The images of latents (B, C, h, w), uint8 (B, 3, f h, f w); None where `encode` is."""
        return None

    def graphs(self) -> Mapping[str, Graph]:
        """The parts that make sense in another runtime, by name, in float32; none by default."""
        return {}

    def diffusers(self) -> Diffusers | None:
        """The model as diffusers has it; None where the family has no such form.

        Raises:
            UsageError: this one of the family has none.
        """
        return None

    def fakes(self, batch: Batch) -> Mapping[str, Fake]:
        """What FID judges, by name: by default the reconstructions, if there are any."""
        made = self.reconstruct(batch)
        return {} if made is None else {"reconstruction": Fake(made, "all")}

    def study(
        self, batches: Iterable[Batch], pairs: Iterable[Batch], *, num_images: int
    ) -> Study | None:
        """A closer look at the trained model, in eval mode and under no_grad.

        Args:
            batches: of whole validation images, with `scene` (B,) int64.
            pairs: batches of two validation images of different scenes, of equal size, with
                `scene` (2,) int64; loaded as they are asked for.
            num_images: at most so many of `batches` are looked at.
        """
        return None

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What is known of the model before training: parameters, latent shape, MACs."""


class Family(ABC):
    """What the registry returns."""

    def knows(self, foreign: Any) -> bool:
        """Whether another system's checkpoint is one that `Task.from_foreign` reads, by its keys."""
        return False

    def settings(self, foreign: Any) -> Mapping[str, Any]:
        """Keys of the config that such a checkpoint says itself, such as `model.latent_channels`.

        Raises:
            CheckpointError: it holds a model that this family cannot make.
        """
        return {}

    @abstractmethod
    def build(self, experiment: Experiment, data: DataInfo) -> Task:
        """The task with fresh weights; the engine has seeded torch.

        Raises:
            ConfigError: the data lacks what the experiment's heads need.
        """
