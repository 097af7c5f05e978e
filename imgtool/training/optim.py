"""Optimizers, and a step that a non-finite gradient cannot spoil."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from imgtool.config.schema import Train


def build_optimizer(train: Train, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """The optimizer of one parameter set; fused where torch has a fused kernel."""
    fused = bool(parameters) and parameters[0].device.type in ("cuda", "cpu", "mps")
    shared: dict[str, Any] = {"lr": train.lr, "weight_decay": train.weight_decay}
    if train.optimizer == "adamw":
        return AdamW(parameters, betas=train.betas, fused=fused, **shared)
    if train.optimizer == "adam":
        return Adam(parameters, betas=train.betas, fused=fused, **shared)
    if train.optimizer == "sgd":
        sgd = SGD(parameters, momentum=train.momentum, fused=fused, **shared)
        if train.momentum:
            # torch leaves them uninitialised when the first step is masked; from zeros the first
            # good step is the same as without them.
            for parameter in parameters:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return RMSprop(
        parameters, momentum=train.momentum, alpha=train.rmsprop_alpha, foreach=True, **shared
    )


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group of `optimizer` this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, 0-d; not read back to the host."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device if parameters else "cpu")
    if on_host(gradients[0]):  # the same numbers; what foreach sorts and moves costs more there
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        return torch.linalg.vector_norm(torch.stack(norms))
    return torch.nn.utils.get_total_norm(gradients, foreach=True)


def clip_gradients(parameters: Sequence[nn.Parameter], norm: Tensor, max_norm: float) -> None:
    """Scale gradients so that their norm is at most `max_norm`."""
    torch.nn.utils.clip_grads_with_norm_(list(parameters), max_norm, norm, foreach=True)


def masked_step(optimizer: Optimizer, bad: Tensor) -> None:
    """Take a step, or leave parameters and state as they are where `bad` is True.

    On the host it is read first. Elsewhere `bad` stays on the device, and fused optimizers take
    it as their `found_inf`.
    """
    if on_host(bad):
        if not bad:
            optimizer.step()
    elif optimizer.defaults.get("fused"):
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
    else:
        undoable_step(optimizer, bad)


def on_host(flag: Tensor) -> bool:
    """Whether it can be read without waiting for a device."""
    return flag.device.type == "cpu"


def undoable_step(optimizer: Optimizer, bad: Tensor) -> None:
    """Take a step and undo it where `bad` is True: a zeroed gradient would decay and average.

    A few calls, however many parameters: all tensors are copied into one, chosen from, and
    copied back. The two copies live no longer than this call.
    """
    before = _flat_of(optimizer, bad.device)
    if not before.keys:
        return
    old = before.read()
    optimizer.step()
    after = _flat_of(optimizer, bad.device)
    if after is not before:  # state that this step created was zero before it
        known = dict(zip(before.keys, old.split(before.sizes), strict=True))
        zeros = old.new_zeros(max(after.sizes, default=0))
        lasting = zip(after.keys, after.sizes, strict=True)
        old = torch.cat([known.get(key, zeros[:size]) for key, size in lasting])
    new = after.read()
    after.write(torch.where(bad, old, new, out=new))


class Flat:
    """Tensors of one type, as if they were one (N,).

    Args:
        tensors: dense, in whatever order of their elements.

    Attributes:
        sizes: elements of each.
        keys: (address, number of elements) of each.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.sizes = [tensor.numel() for tensor in tensors]
        self.keys = _keys(tensors)
        # The same memory in its own order, whatever the strides.
        self._rows = [tensor.detach().as_strided((tensor.numel(),), (1,)) for tensor in tensors]

    def read(self, out: Tensor | None = None) -> Tensor:
        """A copy of all."""
        return torch.cat(self._rows, out=out)

    def write(self, flat: Tensor) -> None:
        """Put what `read` gave back."""
        torch.split_with_sizes_copy(flat, self.sizes, out=self._rows)


def _keys(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(tensor.data_ptr(), tensor.numel()) for tensor in tensors]


_FLATS: WeakKeyDictionary[Optimizer, Flat] = WeakKeyDictionary()


def _flat_of(optimizer: Optimizer, device: torch.device) -> Flat:
    """The optimizer's tensors of now; made anew when they are others than at the last call."""
    tensors: list[Tensor] = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            # RMSprop's count of steps, which nothing reads, lies on the host, where `bad` could
            # only be had by waiting for the device.
            state = optimizer.state.get(parameter, {}).values()
            here = (t for t in state if isinstance(t, Tensor) and t.device == device)
            tensors += [parameter, *here]
    flat = _FLATS.get(optimizer)
    if flat is None or flat.keys != _keys(tensors):
        flat = _FLATS[optimizer] = Flat(tensors)
    return flat
