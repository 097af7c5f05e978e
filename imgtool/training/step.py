"""One optimizer step of one Update: forward, backward, finite check, masked step."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from imgtool.config.schema import Train
from imgtool.models.base import Batch, Noise, StepResult, Task, Update
from imgtool.training import optim
from imgtool.training.averages import Averages
from imgtool.training.batches import Batches
from imgtool.training.device import Precision
from imgtool.training.meters import Meter
from imgtool.training.optim import (
    Flat,
    build_optimizer,
    clip_gradients,
    gradient_norm,
    masked_step,
    set_lr,
)
from imgtool.training.ranks import Ranks


class Stepper:
    """Holds the optimizers and takes steps.

    Args:
        ranks: that train together.
        task: is moved to the device.
        train: the config's section.
        batches: the source.
        precision: of forward passes, and the device.
        takes_turns: as `FamilySchema.takes_turns`.

    Attributes:
        steps: optimizer steps since the start of training.
        meter: means of losses since somebody cleared it.
        words: what updates have said last that is no number.
        bad: what is known of bad steps.
        averages: of the weights, or None.
    """

    def __init__(
        self,
        ranks: Ranks,
        task: Task,
        train: Train,
        batches: Batches,
        precision: Precision,
        *,
        takes_turns: bool = False,
    ) -> None:
        self.ranks, self.task, self.train, self.batches = ranks, task, train, batches
        self.device, self.precision = precision.device, precision
        task.modules.to(self.device)
        self._wrapped: dict[str, nn.Module] = {}
        self.optimizers: dict[str, dict[str, Optimizer]] = {}
        self._sets: dict[str, list[list[nn.Parameter]]] = {}
        updates = task.all_updates()
        for update in updates:
            self._wrapped[update.name] = ranks.wrap(update, takes_turns=takes_turns)
            sets = update.parameter_sets()
            check_disjoint(update, sets)
            self._sets[update.name] = list(sets.values())
            self.optimizers[update.name] = {
                name: build_optimizer(train, parameters) for name, parameters in sets.items()
            }
        # Of several updates the last one's loss is the iteration's.
        self._last_update = updates[-1]
        self._norm_names = {
            update.name: "grad_norm" if len(updates) == 1 else f"grad_norm/{update.name}"
            for update in updates
        }
        decay = train.ema_decay
        self.averages = Averages(task.modules, updates, decay) if decay else None
        self._buffers = Buffers(task.modules)
        self._applied: dict[str, Tensor] = {}  # updates of this iteration with a good step
        self.steps = 0
        self.meter = Meter(self.device)
        self.words: dict[str, str] = {}
        self.bad = BadSteps(self.device)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler of 16-mixed."""
        return self.precision.scaler

    def step(self, update: Update, lr_factor: float, *, fresh: bool = True) -> None:
        """Take one step of `update`; nothing is read back to the host.

        A bad one (non-finite loss or gradients on any rank) changes nothing.

        Args:
            fresh: draw new batches; else those of the iteration's last update that drew some.
        """
        optimizers = self.optimizers[update.name].values()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            set_lr(optimizer, (update.lr or self.train.lr) * lr_factor)
        self._buffers.keep()
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        for micro, batch in enumerate(self.batches.of_update(fresh=fresh)):
            finite &= self._backward(update, batch, micro)
        bad, norm = self._judge(update, optimizers, finite)
        for optimizer in optimizers:
            masked_step(optimizer, bad)
        if self.scaler is not None:
            self.scaler.update()
        with torch.no_grad():
            update.after_step(StepResult(~bad, self._noise(0), self.ranks.sum))
            self._buffers.put_back(bad)
        good = self._applied.get(update.name)
        self._applied[update.name] = ~bad if good is None else good | ~bad
        self.steps += 1
        self.meter.add((self._norm_names[update.name],), [norm])

    def end_iteration(self, iteration: int) -> None:
        """What follows the last update of iteration `iteration` (1 is the first)."""
        if self.averages is not None:
            self.averages.update(iteration, self._applied)
        self._applied.clear()

    def _noise(self, micro: int) -> Noise:
        world = self.ranks.size
        part = micro * world + self.ranks.rank
        return Noise(self.train.seed, self.steps, part=part, parts=world * self.train.accumulate)

    def _backward(self, update: Update, batch: dict[str, Any], micro: int) -> Tensor:
        pieces = update.pieces({**batch, "noise": self._noise(micro)})
        losses: dict[str, Tensor] = {}
        for number, piece in enumerate(pieces, 1):
            waits = micro < self.train.accumulate - 1 or number < len(pieces)
            for name, value in self._backward_of(update, piece, waits=waits).items():
                losses[name] = losses[name] + value if name in losses else value
        last = update is self._last_update
        names = tuple(sorted(name for name in losses if last or name != "loss"))
        if names:
            self.meter.add(names, [losses[name] for name in names])
        return torch.isfinite(losses["loss"])

    def _backward_of(self, update: Update, piece: Batch, *, waits: bool) -> dict[str, Tensor]:
        """Adds the piece's gradients up; with the last one, which does not wait, over the ranks."""
        wrapped = self._wrapped[update.name]
        alone = waits and isinstance(wrapped, DistributedDataParallel)
        with wrapped.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with self.precision.autocast():
                losses = wrapped(piece)
            loss = losses["loss"].float()
            if self.train.accumulate > 1:
                loss = loss / self.train.accumulate
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.words |= {name: value for name, value in losses.items() if isinstance(value, str)}
        return {
            name: value.detach().to(torch.float32)
            for name, value in losses.items()
            if not isinstance(value, str)
        }

    def _judge(
        self, update: Update, optimizers: Iterable[Optimizer], finite: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Whether this step is bad, on the device, and the gradient norm before clipping."""
        sets = self._sets[update.name]
        norms = [gradient_norm(parameters) for parameters in sets]
        # Every rank masks and counts, or none.
        lost, overflow = self._any_rank(~finite, ~torch.isfinite(_together(norms)))
        bad = counted = lost | overflow
        if self.scaler is not None:
            for optimizer in optimizers:
                _spoil(optimizer, bad)  # the scaler looks at gradients alone
                self.scaler.unscale_(optimizer)
            norms = [gradient_norm(parameters) for parameters in sets]
            # While the scale comes down, overflow is the scaler's daily work.
            scale = self.scaler.scale(torch.ones((), device=self.device))
            counted = lost | (overflow & (scale <= 1))
        if self.train.clip_norm:  # each set by itself, so that none can slow another down
            for parameters, norm in zip(sets, norms, strict=True):
                clip_gradients(parameters, norm, self.train.clip_norm)
        self.bad.note(counted)
        return bad, _together(norms)

    def _any_rank(self, lost: Tensor, overflow: Tensor) -> tuple[Tensor, Tensor]:
        if not self.ranks.distributed:
            return lost, overflow
        lost, overflow = self.ranks.sum(torch.stack([lost, overflow]).to(torch.float32)) > 0
        return lost, overflow


class Buffers:
    """The buffers of a task's modules, which a training forward may change."""

    def __init__(self, modules: nn.Module) -> None:
        alike: dict[torch.dtype, list[Tensor]] = {}
        for buffer in modules.buffers():
            alike.setdefault(buffer.dtype, []).append(buffer)
        self._flats = [Flat(tensors) for tensors in alike.values()]
        self._kept = [flat.read() for flat in self._flats]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember them as they are."""
        for flat, kept in zip(self._flats, self._kept, strict=True):
            flat.read(out=kept)

    @torch.no_grad()
    def put_back(self, bad: Tensor) -> None:
        """As they were, where `bad` is True; on a device that is not waited for."""
        on_host = optim.on_host(bad)
        if on_host and not bad:
            return
        for flat, kept in zip(self._flats, self._kept, strict=True):
            flat.write(kept if on_host else torch.where(bad, kept, flat.read()))


class BadSteps:
    """Counts bad steps on the device, and looks at the count without waiting for it.

    Attributes:
        now, total: those in a row up to now, and all of them, as last read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)  # now, longest, all
        self._is_cuda = device.type == "cuda"
        self._seen = torch.zeros(3, dtype=torch.int64, pin_memory=self._is_cuda)
        self._copied: torch.cuda.Event | None = None
        self.now = self.total = 0

    def note(self, counted: Tensor) -> None:
        """A step, bad or not; `counted` is 0-d bool on the device."""
        if optim.on_host(counted):
            counts = self._counts.numpy()
            counts[0] = counts[0] + 1 if counted else 0
            counts[1:] = max(counts[:2]), counts[2] + bool(counted)
            return
        now = (self._counts[0] + 1) * counted
        longest = torch.maximum(self._counts[1], now)
        self._counts = torch.stack([now, longest, self._counts[2] + counted])

    def longest(self) -> int:
        """The longest row of them so far; on a GPU as of an iteration or two ago."""
        if not self._is_cuda:
            return int(self._counts[1])
        if self._copied is None or self._copied.query():
            longest = int(self._seen[1])
            self._seen.copy_(self._counts, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
            return longest
        return 0  # not yet known

    def read(self) -> tuple[int, int]:
        """(in a row now, longest row so far); waits for the device."""
        self.now, longest, self.total = map(int, self._counts.tolist())
        return self.now, longest

    def restore(self, total: int) -> None:
        """Go on counting from a checkpoint's number."""
        self.total = total
        self._counts[2] = total


def _together(norms: list[Tensor]) -> Tensor:
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def _spoil(optimizer: Optimizer, bad: Tensor) -> None:
    """Make one gradient NaN where `bad` is True, so that a scaler skips this optimizer's step."""
    gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    if gradients:
        smallest = min(gradients, key=Tensor.numel)
        smallest.add_(torch.where(bad, torch.nan, 0.0).to(smallest.dtype))


def check_disjoint(update: Update, sets: dict[str, list[nn.Parameter]]) -> None:
    """Make sure that an update's sets share no parameter, and leave none out."""
    together = [parameter for parameters in sets.values() for parameter in parameters]
    if len({id(parameter) for parameter in together}) != len(together):
        raise AssertionError(f"update {update.name}: parameter sets overlap")
    trained = {id(p) for p in update.parameters() if p.requires_grad}
    if trained != {id(parameter) for parameter in together}:
        raise AssertionError(f"update {update.name}: parameter sets do not cover what it trains")
