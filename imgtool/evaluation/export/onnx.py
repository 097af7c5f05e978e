"""The format `onnx`: each part of a model as a graph for ONNX runtimes, of any batch and size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from imgtool import __version__
from imgtool.errors import CheckpointError, UsageError
from imgtool.evaluation.export import card
from imgtool.evaluation.export.folder import (
    Opened,
    agree,
    needed,
    open_model,
    optional,
    silent,
    writing,
)
from imgtool.evaluation.export.formats import Request
from imgtool.models.base import Graph

TOLERANCE = 1e-4  # of the largest value, where it is above 1: float32, in other orders of sums
OTHER_CODES = 1e-3  # share of values that rounding may choose otherwise, where they are chosen
EXAMPLE = {"batch": 2, "h": 3, "w": 4}  # no two alike, none 1: a graph may take such for the same
USED = {"batch": 1, "h": 8, "w": 8}  # in the card's example
CHECKED = ({"batch": 1, "h": 2, "w": 5}, {"batch": 3, "h": 4, "w": 2}, {"batch": 1, "h": 1, "w": 1})


def write(request: Request) -> dict[str, Any]:
    """Write NAME.onnx for each part, and README.md.

    Raises:
        UsageError: the family has no parts for other runtimes, or a package is missing.
        CheckpointError: the checkpoint cannot be used, the disk refuses, or onnxruntime says
            something else than torch.
    """
    needed("onnx", "onnx")
    needed("onnxscript", "onnx")
    opened = open_model(request.source)
    graphs = opened.task.graphs()
    if not graphs:
        raise UsageError(
            f"{request.source} has no parts that make sense elsewhere", hint="it has no heads"
        )
    files = [*(f"{name}.onnx" for name in graphs), card.NAME]
    facts: dict[str, Any] = {**opened.facts(), "files": files}
    if request.dry_run:
        return facts
    runtime = optional("onnxruntime")
    with writing(request.out) as folder:
        largest: dict[str, float] = {}
        for name, graph in graphs.items():
            facts["opset"] = _write_graph(graph, folder / f"{name}.onnx", opened)
            if runtime is not None:
                found = _compare(runtime, graph, folder / f"{name}.onnx", request.source)
                largest |= {f"{name}.{output}": value for output, value in found.items()}
        facts["checked_with"] = f"onnxruntime {runtime.__version__}" if runtime else None
        facts["differences"] = largest
        facts["max_difference"] = max(largest.values(), default=None)
        text = card.write(opened, "onnx", _using(graphs), _words(graphs, facts))
        (folder / card.NAME).write_text(text, encoding="utf-8")
    return facts


# --- writing --------------------------------------------------------------------------------


def _write_graph(graph: Graph, path: Path, opened: Opened) -> int:
    """Write a graph; returns its opset."""
    import onnx_ir

    example = _input(graph, EXAMPLE, torch.Generator().manual_seed(0))
    with silent(), torch.no_grad():
        # Captured here: torch.onnx would make a size that it cannot leave free a fixed one.
        program = torch.export.export(
            graph.module, (example,), dynamic_shapes=(_free(graph.shape),)
        )
        made = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[graph.input],
            output_names=list(graph.outputs),
        )
    if made is None:
        raise AssertionError("torch.onnx.export gives a program with dynamo")
    model = made.model
    for value, shape in zip(
        (*model.graph.inputs, *model.graph.outputs),
        (graph.shape, *graph.outputs.values()),
        strict=True,
    ):
        value.shape = onnx_ir.Shape(shape)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # lines of source files, with the paths of this machine
    model.metadata_props.update({"imgtool": __version__, "hash": opened.hash})
    made.save(path, external_data=False)
    return int(model.opset_imports[""])


def _free(shape: tuple[int | str, ...]) -> dict[int, Any]:
    """The sizes of a shape that are free, as torch.export has them."""
    named = {name: Dim(name, min=1) for name in EXAMPLE}
    dims = {}
    for axis, size in enumerate(shape):
        if isinstance(size, str):
            factor, name = _parts(size)
            dims[axis] = named[name] if factor == 1 else factor * named[name]
    return dims


def _parts(size: str) -> tuple[int, str]:
    """`8*h` is (8, "h"), and `h` is (1, "h")."""
    found = re.fullmatch(r"(?:(\d+)\*)?(\w+)", size)
    if found is None:
        raise AssertionError(f"a size is a name or a multiple of one, not {size!r}")
    return int(found[1] or 1), found[2]


def _input(graph: Graph, sizes: Mapping[str, int], source: torch.Generator) -> Tensor:
    """Random values on [-1, 1]."""
    shape = []
    for size in graph.shape:
        factor, name = (size, None) if isinstance(size, int) else _parts(size)
        shape.append(factor * (1 if name is None else sizes[name]))
    return torch.rand(shape, generator=source) * 2 - 1


# --- checking -------------------------------------------------------------------------------


def _compare(runtime: Any, graph: Graph, path: Path, source: Path) -> dict[str, float]:
    """The largest difference of each output, at several sizes.

    Raises:
        CheckpointError: one is no rounding.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    largest = dict.fromkeys(graph.outputs, 0.0)
    generator = torch.Generator().manual_seed(1)
    for sizes in CHECKED:
        x = _input(graph, sizes, generator)
        with torch.no_grad():
            ours = graph.module(x)
        theirs = session.run(list(graph.outputs), {graph.input: x.numpy()})
        for name, own, other in zip(graph.outputs, ours, theirs, strict=True):
            found = torch.from_numpy(other)
            good, difference = agree(own, found, TOLERANCE)
            if graph.discrete and own.shape == found.shape:
                others = (own - found).abs() > TOLERANCE
                good = float(others.float().mean()) <= OTHER_CODES
            if not good:
                raise CheckpointError(
                    f"onnxruntime does not get what torch gets of {source}: {path.name}, {name}, "
                    f"{difference:.1e} apart",
                    hint="nothing was written; update onnxruntime, onnxscript and torch",
                )
            largest[name] = max(largest[name], difference)
    return largest


# --- words ----------------------------------------------------------------------------------


def _using(graphs: Mapping[str, Graph]) -> str:
    """Python that runs each part, on what an earlier one gave where it fits."""
    lines = ["import numpy, onnxruntime"]
    lines += [f'{name} = onnxruntime.InferenceSession("{name}.onnx")' for name in graphs]
    given: dict[tuple[int | str, ...], str] = {}
    for name, graph in graphs.items():
        if graph.shape not in given:
            shape = tuple(_input(graph, USED, torch.Generator()).shape)
            lines.append(f"{graph.input} = numpy.zeros({shape}, numpy.float32)  # yours instead")
            given[graph.shape] = graph.input
        outputs = ", ".join(graph.outputs) + ("," if len(graph.outputs) == 1 else "")
        lines.append(f'{outputs} = {name}.run(None, {{"{graph.input}": {given[graph.shape]}}})')
        given |= {shape: key for key, shape in reversed([*graph.outputs.items()])}
    return "\n".join(lines)


def _words(graphs: Mapping[str, Graph], facts: Mapping[str, Any]) -> str:
    rows = ["| file | takes | gives |", "| --- | --- | --- |"]
    for name, graph in graphs.items():
        given = "; ".join(f"`{key}` {_shape(shape)}" for key, shape in graph.outputs.items())
        rows.append(f"| `{name}.onnx` | `{graph.input}` {_shape(graph.shape)} | {given} |")
    checked = facts["checked_with"]
    sizes = "batch and sizes are free"
    if checked:
        said = f"Compared with torch by {checked} at {len(CHECKED)} sizes: at most "
        said += f"{facts['max_difference']:.1e} apart."
    else:
        said = "Not compared with torch: onnxruntime was not installed."
    return "\n".join(
        [
            *rows,
            "",
            f"All are float32; {sizes}. Images are on [-1, 1]: clamp them after decoding. Opset "
            f"{facts['opset']}. {said}",
        ]
    )


def _shape(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
