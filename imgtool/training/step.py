"""One optimizer step of one Update: batches, backward, finite check, masked step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from imgtool.config.schema import Train
from imgtool.models.base import Noise, StepResult, Task, Update
from imgtool.training.device import grad_scaler
from imgtool.training.environment import Launch
from imgtool.training.meters import Meter
from imgtool.training.optim import (
    AveragedWeights,
    build_optimizer,
    clip_gradients,
    gradient_norm,
    mark_found_inf,
    masked_step,
    set_lr,
)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch's tensors on the device; pinned ones without waiting."""
    if device.type == "cpu":
        return batch
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


class Stepper:
    """Holds the optimizers and takes steps.

    Attributes:
        batches: global batches drawn since the start of training, resumed ones included.
        steps: optimizer steps since the start of training.
        wait_sec, images: waiting for data and images drawn since `start_window`.
        span_sec: training time since then, pauses left out.
    """

    def __init__(
        self,
        fabric: Fabric,
        task: Task,
        train: Train,
        launch: Launch,
        open_loader: Callable[[int], Iterator[dict[str, Any]]],
        *,
        batches_per_epoch: int = 1,
    ) -> None:
        self.batches_per_epoch = batches_per_epoch
        self.fabric, self.task, self.train, self.launch = fabric, task, train, launch
        self.device = fabric.device
        self.scaler = grad_scaler(fabric)
        self._open_loader = open_loader
        self._loader: Iterator[dict[str, Any]] | None = None
        self._held: list[dict[str, Any]] = []  # batches for updates that draw none
        self._holds = any(not update.fresh_batch for update in task.all_updates())
        self._wrapped: dict[str, Any] = {}
        self.optimizers: dict[str, dict[str, Optimizer]] = {}
        self._sets: dict[str, list[list[nn.Parameter]]] = {}
        for update in task.all_updates():
            self._wrapped[update.name] = fabric.setup_module(update)
            sets = update.parameter_sets()
            check_disjoint(update, sets)
            self._sets[update.name] = list(sets.values())
            self.optimizers[update.name] = {
                name: build_optimizer(train, parameters) for name, parameters in sets.items()
            }
        decay = train.ema_decay
        self.ema = AveragedWeights(task.modules, decay) if decay else None
        self.batches = 0
        self.steps = 0
        self.log_meter, self.row_meter = Meter(self.device), Meter(self.device)
        self._bad_run = torch.zeros((), dtype=torch.int64, device=self.device)
        self._bad_peak = torch.zeros_like(self._bad_run)
        self._bad_total = torch.zeros_like(self._bad_run)
        self.start_window()

    def start_window(self) -> None:
        """Start measuring throughput anew."""
        self.wait_sec, self.images = 0.0, 0
        self._window_start = time.monotonic()
        self._pause_start: float | None = None

    @property
    def span_sec(self) -> float:
        now = time.monotonic() if self._pause_start is None else self._pause_start
        return max(1e-9, now - self._window_start)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Leave what happens meanwhile out of the throughput."""
        self._pause_start = begin = time.monotonic()
        try:
            yield
        finally:
            self._pause_start = None
            self._window_start += time.monotonic() - begin

    def _next_batch(self) -> dict[str, Any]:
        begin = time.monotonic()
        if self._loader is None:
            self._loader = self._open_loader(self.batches)
        batch = next(self._loader)
        self.wait_sec += time.monotonic() - begin
        self.batches += 1
        self.images += len(batch["image"]) * self.launch.world_size
        batch = to_device(batch, self.device)
        if not self.train.channels_last:  # batches arrive in NHWC, and convolutions follow them
            batch["image"] = batch["image"].contiguous()
        return batch

    def _batch(self, micro: int, *, fresh: bool) -> dict[str, Any]:
        if fresh:
            if micro == 0:
                self._held.clear()
            batch = self._next_batch()
            if self._holds:
                self._held.append(batch)
            return batch
        if not self._held:  # resumed between two updates: draw again what the first one had
            self.batches -= self.train.accumulate
            self._held = [self._next_batch() for _ in range(self.train.accumulate)]
        return self._held[micro]

    def step(self, update: Update, lr_factor: float, *, fresh: bool = True) -> None:
        """Take one step of `update`; nothing is read back to the host.

        Args:
            fresh: draw new batches; else those of the iteration's last update that drew some.
        """
        optimizers = self.optimizers[update.name].values()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            set_lr(optimizer, self.train.lr * lr_factor)
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        before = self.batches - (0 if fresh else self.train.accumulate)
        place = {"epoch": before / self.batches_per_epoch}
        for micro in range(self.train.accumulate):
            batch = self._batch(micro, fresh=fresh) | place
            finite &= self._backward(update, batch, micro)
        bad, norm = self._judge(update, optimizers, finite)
        for optimizer in optimizers:
            self._apply(optimizer, bad)
        if self.scaler is not None:
            self.scaler.update()
        with torch.no_grad():
            update.after_step(StepResult(~bad, self._noise(0), self.fabric_sum))
        self.steps += 1
        self.log_meter.add(("grad_norm",), norm.reshape(1))

    def end_iteration(self) -> None:
        """What follows the last update of an iteration."""
        if self.ema is not None:
            self.ema.update()

    def _noise(self, micro: int) -> Noise:
        world = self.launch.world_size
        part = micro * world + self.launch.rank
        return Noise(self.train.seed, self.steps, part=part, parts=world * self.train.accumulate)

    def _backward(self, update: Update, batch: dict[str, Any], micro: int) -> Tensor:
        wrapped = self._wrapped[update.name]
        last = micro == self.train.accumulate - 1
        with self.fabric.no_backward_sync(wrapped, enabled=not last):
            losses = wrapped({**batch, "noise": self._noise(micro)})
            self.fabric.backward(losses["loss"] / self.train.accumulate)
        # Of several updates the last one's loss is the iteration's.
        last_update = update is self.task.all_updates()[-1]
        names = tuple(sorted(name for name in losses if last_update or name != "loss"))
        if names:
            values = torch.stack([losses[name].detach().to(torch.float32) for name in names])
            self.log_meter.add(names, values)
            self.row_meter.add(names, values)
        return torch.isfinite(losses["loss"].detach())

    def _judge(
        self, update: Update, optimizers: Iterable[Optimizer], finite: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Whether this step is bad, on the device, and the gradient norm before clipping."""
        if self.scaler is not None:
            for optimizer in optimizers:
                self.scaler.unscale_(optimizer)
        norms = []  # each set is clipped by itself, so that none can slow another down
        for parameters in self._sets[update.name]:
            norms.append(gradient_norm(parameters))
            if self.train.clip_norm:
                clip_gradients(parameters, norms[-1], self.train.clip_norm)
        norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        # Every rank masks and counts, or none.
        lost, overflow = self._any_rank(torch.stack([~finite, ~torch.isfinite(norm)]))
        bad = counted = lost | overflow
        if self.scaler is not None:
            for optimizer in optimizers:
                mark_found_inf(self.scaler, optimizer, bad)
            # While the scale comes down, overflow is the scaler's daily work.
            scale = self.scaler._get_scale_async()
            counted = lost if scale is None else lost | (overflow & (scale <= 1))
        self._bad_run = (self._bad_run + 1) * counted
        self._bad_peak = torch.maximum(self._bad_peak, self._bad_run)
        self._bad_total = self._bad_total + counted
        return bad, norm

    def _any_rank(self, flags: Tensor) -> Tensor:
        if not self.launch.distributed:
            return flags
        return self.fabric_sum(flags.to(torch.float32)) > 0

    def _apply(self, optimizer: Optimizer, bad: Tensor) -> None:
        if self.scaler is not None:
            self.scaler.step(optimizer)
        else:
            masked_step(optimizer, bad)

    def fabric_sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.launch.distributed:
            # Fabric.all_reduce puts a barrier before it, for which the host waits.
            torch.distributed.all_reduce(tensor)
        return tensor

    def bad_steps(self) -> tuple[int, int, int]:
        """(bad steps in a row now, longest such run since the last call, all); synchronises."""
        run, peak, total = torch.stack([self._bad_run, self._bad_peak, self._bad_total]).tolist()
        self._bad_peak = self._bad_run
        return int(run), int(peak), int(total)

    def restore_bad_total(self, total: int) -> None:
        """Go on counting from a checkpoint's number."""
        self._bad_total.fill_(total)

    def close(self) -> None:
        """End the loader's workers."""
        loader, self._loader = self._loader, None
        shutdown = getattr(loader, "close", None)
        if shutdown is not None:
            shutdown()


def check_disjoint(update: Update, sets: dict[str, list[nn.Parameter]]) -> None:
    """Make sure that an update's sets share no parameter, and leave none out."""
    together = [parameter for parameters in sets.values() for parameter in parameters]
    if len({id(parameter) for parameter in together}) != len(together):
        raise AssertionError(f"update {update.name}: parameter sets overlap")
    trained = {id(p) for p in update.parameters() if p.requires_grad}
    if trained != {id(parameter) for parameter in together}:
        raise AssertionError(f"update {update.name}: parameter sets do not cover what it trains")
