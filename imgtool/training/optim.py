"""Optimizers, and a step that a non-finite gradient cannot spoil."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    """Take a step and undo it where `bad` is True: a zeroed gradient would decay and average."""
    tensors = _tensors(optimizer)
    before = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    optimizer.step()
    for key, tensor in _tensors(optimizer).items():
        if tensor.device != bad.device:  # RMSprop's count of steps, which nothing reads; on the
            continue  # host, where `bad` could only be had by waiting for the device
        # State that this step created was zero before it.
        old = before.get(key, torch.zeros_like(tensor))
        tensor.detach().copy_(torch.where(bad, old, tensor.detach()))


def _tensors(optimizer: Optimizer) -> dict[tuple[int, str], Tensor]:
    found: dict[tuple[int, str], Tensor] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            found[id(parameter), ""] = parameter
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    found[id(parameter), key] = value
    return found
