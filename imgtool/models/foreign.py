"""What a task says of its model in the forms of other systems; `imgtool.models.base` has the seam."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Foreign:
    """What a family found in another system's checkpoint.

    Attributes:
        model: every tensor of the task's modules by name, in its shape.
        optimizers: update -> `parameter.key` -> state.
        iteration: where it says so.
        notes: what was not found, for people.
    """

    model: Mapping[str, Tensor]
    optimizers: Mapping[str, Mapping[str, Tensor]]
    iteration: int | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """A part of a model as a function of tensors alone, for other runtimes.

    Attributes:
        module: in eval mode; takes the input, float32, and returns an output or a tuple of them.
        input: its name.
        shape: of the input: sizes, and names of those that are free. A side may be a multiple of
            a name, such as `8*h`.
        outputs: name -> shape, in the same words; `8*h` is of the input's `h`.
        discrete: whether outputs are chosen among a few, so that rounding may choose another.
    """

    module: nn.Module
    input: str
    shape: tuple[int | str, ...]
    outputs: Mapping[str, tuple[int | str, ...]]
    discrete: bool = False


@dataclass(frozen=True)
class Diffusers:
    """A model in the form that the package diffusers has for it.

    Attributes:
        config: what config.json says, `_class_name` among it.
        tensors: weights by diffusers' names.
        dropped: what there is no place for, for people.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    dropped: tuple[str, ...] = ()
