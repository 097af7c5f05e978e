"""What a training saves and resumes: a list of parts, each of which knows its own.

A part's name is the first word of its tensors' names in a checkpoint, and the key of its facts in
the header. A new thing to save is a class and a line in `parts_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imgtool.errors import CheckpointError
from imgtool.experiment.checkpoint_file import Checkpoint
from imgtool.nn.kernels import choices_of
from imgtool.training.environment import processor
from imgtool.training.limits import BestValue
from imgtool.training.meters import Meter
from imgtool.training.optimizer_state import load_optimizer, optimizer_tensors
from imgtool.training.weights import Misfit, fit_module

if TYPE_CHECKING:
    from imgtool.training.averages import Averages
    from imgtool.training.step import Stepper


class Saved(Protocol):
    """Something that a checkpoint keeps."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Its tensors by name, not copied. Every rank asks for them; they may be added up."""
        return {}

    def facts(self) -> Any:
        """What else must be remembered: a JSON value; None is not written."""
        return None


class Part(Saved, Protocol):
    """Something that a resumed training must find as it was."""

    def restore(self, facts: Any, tensors: Mapping[str, Tensor]) -> None:
        """Be again as a checkpoint says; `facts` are None and `tensors` empty where it has none.

        Raises:
            Misfit: the tensors are those of something else.
            KeyError, TypeError, ValueError: the facts are not what `facts()` once gave.
        """


@dataclass
class Position:
    """How far training has come.

    Attributes:
        iteration: complete iterations.
        update: updates done of the next one (a stop is honoured between updates).
        logged, validated, sampled, saved: the last iteration for which each was done.
    """

    iteration: int = 0
    update: int = 0
    logged: int = 0
    validated: int = 0
    sampled: int = 0
    saved: int = -1


def parts_of(
    stepper: Stepper, closed: Meter, position: Position, best: BestValue
) -> dict[str, Part]:
    """The parts of a training by name, in the order in which they are restored."""
    modules = stepper.task.modules
    names = {
        update.name: {id(parameter): name for name, parameter in update.named_parameters()}
        for update in stepper.task.all_updates()
    }
    meters = {"log": stepper.meter, "closed": closed}
    return {
        "model": Model(modules),
        "optimizer": Optimizers(stepper.optimizers, names),
        "ema": Ema(modules, stepper.averages),
        "rng": Rng(stepper.device),
        "meter": Meters(meters, stepper.ranks.sum, share=stepper.ranks.is_first),
        "scaler": Scaler(stepper.scaler),
        "position": Reached(position, stepper),
        "best": Best(best),
        "bad_total": BadTotal(stepper),
        "kernels": ChosenKernels(modules, stepper.device),
    }


def collect(parts: Mapping[str, Saved]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors by full name, facts by part) for a checkpoint; every rank must call this."""
    tensors = {
        f"{name}.{key}": tensor
        for name, part in parts.items()
        for key, tensor in part.tensors().items()
    }
    facts = {name: part.facts() for name, part in parts.items()}
    return tensors, {name: value for name, value in facts.items() if value is not None}


def restore(parts: Mapping[str, Part], loaded: Checkpoint) -> None:
    """Put every part back to where a checkpoint, read whole, has it.

    Raises:
        CheckpointError: it does not fit this training.
    """
    header = loaded.header
    for name, part in parts.items():
        try:
            part.restore(header.parts.get(name), loaded.part(name))
        except Misfit as error:
            raise CheckpointError(f"{header.path} {error}", hint=error.hint) from error
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = f"its {name} cannot be used ({error})"
            raise CheckpointError(f"{header.path} is damaged: {reason}") from error


@dataclass(frozen=True)
class Given(Saved):
    """What is known already: another system's tensors, or where its training had come to."""

    given_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    given_facts: Any = None

    def tensors(self) -> Mapping[str, Tensor]:
        return self.given_tensors

    def facts(self) -> Any:
        return self.given_facts


@dataclass(frozen=True)
class Model(Part):
    """Parameters and buffers."""

    modules: nn.Module

    def tensors(self) -> Mapping[str, Tensor]:
        return self.modules.state_dict()

    def restore(self, facts: Any, tensors: Mapping[str, Tensor]) -> None:
        fit_module(self.modules, tensors)


@dataclass(frozen=True)
class Optimizers(Part):
    """Their state, as `update.set.parameter.key`.

    Attributes:
        optimizers: by update and parameter set.
        names: for each update id(parameter) -> its name there.
    """

    optimizers: Mapping[str, Mapping[str, Optimizer]]
    names: Mapping[str, Mapping[int, str]]

    def _each(self) -> Iterator[tuple[str, Optimizer, Mapping[int, str]]]:
        for update, sets in self.optimizers.items():
            for set_name, optimizer in sets.items():
                yield f"{update}.{set_name}.", optimizer, self.names[update]

    def tensors(self) -> Mapping[str, Tensor]:
        return {
            start + key: value
            for start, optimizer, names in self._each()
            for key, value in optimizer_tensors(optimizer, names).items()
        }

    def restore(self, facts: Any, tensors: Mapping[str, Tensor]) -> None:
        left = dict(tensors)
        for start, optimizer, names in self._each():
            own = {name.removeprefix(start): name for name in left if name.startswith(start)}
            load_optimizer(optimizer, names, {k: left.pop(name) for k, name in own.items()})
        if left:
            raise Misfit(f"has optimizer state that nothing here has: {min(left)}")


@dataclass(frozen=True)
class Ema(Part):
    """Averaged weights. Names that a file does not have begin with the model's own values."""

    modules: nn.Module
    averages: Averages | None

    def tensors(self) -> Mapping[str, Tensor]:
        if self.averages is None:
            return {}
        return dict(zip(self.averages.names, self.averages.averages, strict=True))

    def restore(self, facts: Any, tensors: Mapping[str, Tensor]) -> None:
        own = self.tensors()
        if not own:
            return
        state = self.modules.state_dict()
        parameters = {name for name, _ in self.modules.named_parameters()}
        lost = tensors and (own.keys() & parameters) - tensors.keys()
        if lost or tensors.keys() - own.keys():
            name = min(lost or tensors.keys() - own.keys())
            raise Misfit(f"{'lacks' if lost else 'also has'} the average of {name}")
        for name, average in own.items():
            value = tensors.get(name, state[name])
            if value.shape != average.shape:
                raise Misfit(f"has another model's average of {name}: {tuple(value.shape)}")
            with torch.no_grad():
                average.copy_(value)


@dataclass(frozen=True)
class Rng(Part):
    """torch's global generators."""

    device: torch.device

    def tensors(self) -> Mapping[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self, facts: Any, tensors: Mapping[str, Tensor]) -> None:
        if "cpu" in tensors:
            torch.set_rng_state(tensors["cpu"])
        if self.device.type == "cuda" and "cuda" in tensors:
            with suppress(RuntimeError):  # another GPU model: statistically equal is all there is
                torch.cuda.set_rng_state(tensors["cuda"], self.device)


@dataclass(frozen=True)
class Meters(Part):
    """Running means, added up over all ranks.

    Attributes:
        share: whether what is restored counts on this rank; it must on one alone.
    """

    meters: Mapping[str, Meter]
    all_reduce: Callable[[Tensor], Tensor]
    share: bool

    def tensors(self) -> Mapping[str, Tensor]:
        return {
            f"{which}.{key}": totals
            for which, meter in self.meters.items()
            for key, totals in meter.tensors(self.all_reduce).items()
        }

    def restore(self, facts: Any, tensors: Mapping[str, Tensor]) -> None:
        for which, meter in self.meters.items():
            start = which + "."
            own = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            meter.restore(own, share=self.share)
        both = {k.removeprefix("row."): v for k, v in tensors.items() if k.startswith("row.")}
        if both:  # earlier files count the open window in the row as well
            self.meters["closed"].restore(both, share=self.share)
            self.meters["closed"].absorb(self.meters["log"], factor=-1.0)


@dataclass(frozen=True)
class Scaler(Part):
    """The scale of losses, where a precision needs one."""

    scaler: torch.amp.GradScaler | None

    def facts(self) -> Any:
        return None if self.scaler is None else self.scaler.state_dict()

    def restore(self, facts: Any, tensors: Mapping[str, Tensor]) -> None:
        if self.scaler is not None and facts:
            self.scaler.load_state_dict(facts)


@dataclass(frozen=True)
class Reached(Part):
    """Where in the training and in the data."""

    position: Position
    stepper: Stepper

    def facts(self) -> Any:
        stepper = self.stepper
        return reached_facts(
            self.position, stepper.batches.drawn, stepper.steps, stepper.ranks.size
        )

    def restore(self, facts: Any, tensors: Mapping[str, Tensor]) -> None:
        found, stepper = dict(facts), self.stepper
        batches, stepper.steps = int(found.pop("batches")), int(found.pop("steps"))
        # A batch is that of all processes together, so with fewer of them there are more.
        world = stepper.ranks.size
        stepper.batches.drawn = batches * int(found.pop("world_size", world)) // world
        for own in fields(Position):
            setattr(self.position, own.name, int(found[own.name]))


def reached_facts(position: Position, batches: int, steps: int, world_size: int) -> dict[str, int]:
    """The facts of `Reached`: batches drawn by all ranks together, optimizer steps."""
    counts = {"batches": batches, "steps": steps, "world_size": world_size}
    return {**asdict(position), **counts}


@dataclass(frozen=True)
class Best(Part):
    """The best value so far, and patience."""

    best: BestValue

    def facts(self) -> Any:
        return self.best.state()

    def restore(self, facts: Any, tensors: Mapping[str, Tensor]) -> None:
        self.best.restore(dict(facts))


@dataclass(frozen=True)
class BadTotal(Part):
    """How many steps were bad so far."""

    stepper: Stepper

    def facts(self) -> Any:
        return self.stepper.bad.total

    def restore(self, facts: Any, tensors: Mapping[str, Tensor]) -> None:
        self.stepper.bad.restore(int(facts))


@dataclass(frozen=True)
class ChosenKernels(Part):
    """Kernels that were chosen by a timing: the same ones on the same kind of processor."""

    modules: nn.Module
    device: torch.device

    def facts(self) -> dict[str, str] | None:
        chosen: dict[str, str] = {c.name: c.of(self.device) for c in choices_of(self.modules)}
        return {**chosen, "processor": processor()} if chosen else None

    def restore(self, facts: Any, tensors: Mapping[str, Tensor]) -> None:
        for choice in choices_of(self.modules):
            if facts is None:
                choice.use(choice.before, self.device)
            elif facts.get("processor") == processor():  # elsewhere no bit would be kept
                choice.use(facts.get(choice.name, choice.before), self.device)
