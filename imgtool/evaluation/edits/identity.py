"""Whose face it is: cosines of a network's embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtool.errors import DataError, UsageError
from imgtool.evaluation.edits.judge import Judge, fitted, open_judge
from imgtool.published import sha256_of

# What a published network wants, by its SHA-256: SFace (OpenCV zoo) takes BGR on 0..255.
_SFACE = "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79"
KNOWN = {_SFACE: "SFace (OpenCV zoo, Apache-2.0)"}


@dataclass(frozen=True)
class Identity:
    """A network that tells faces apart.

    Attributes:
        facts: what it is, for the record.
        embed: faces, uint8 (B, 3, S, S), to unit vectors (B, D) on the CPU.
    """

    facts: dict[str, Any]
    embed: Callable[[Tensor], Tensor]


def open_identity(source: str, judge: Judge, *, sha256: str | None, device: str) -> Identity:
    """Open an ONNX file, or a checkpoint of another classifier of attributes.

    An ONNX file has one input, float32 (N, 3, S, S), and one output, (N, D). It is given RGB on
    [-1, 1], as most are trained; a file of `KNOWN` what it was trained with.

    Args:
        sha256: what the file's hash must be; of an ONNX file.

    Raises:
        UsageError: a package is missing, or the network has another shape.
        DataError: the file cannot be read, or has another hash.
    """
    if Path(source).suffix == ".onnx":
        return _of_onnx(Path(source), sha256)
    if sha256 is not None:
        raise UsageError("--identity-sha256 is of an ONNX file", hint="leave it out")
    other = open_judge(source, device=device)
    if other.hash == judge.hash:
        raise UsageError(
            f"{source} is the judge itself, whose features say what a face shows, not whose it is",
            hint="give an ONNX file of a face recognition network",
        )
    facts = {"path": other.path, "hash": other.hash, "of": "features of a classifier of attributes"}
    return Identity(facts, lambda images: F.normalize(other.features(images)))


def _of_onnx(path: Path, sha256: str | None) -> Identity:
    if not path.is_file():
        raise DataError(f"{path}: no such file", hint="--identity names an ONNX file")
    found = sha256_of(path)
    if sha256 is not None and found != sha256.lower():
        raise DataError(
            f"{path} has the SHA-256 {found}, not {sha256}",
            hint="fetch it again, or give its own hash",
        )
    session = _session(path)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    is_one = len(inputs) == len(outputs) == 1
    if not is_one or not _fits(inputs[0].shape, outputs[0].shape, inputs[0].type):
        told = "; ".join(f"{one.name} {one.type} {one.shape}" for one in (*inputs, *outputs))
        raise UsageError(
            f"{path} is no network of one face to one vector: it has {told}",
            hint="one input, float32 (N, 3, S, S), and one output, (N, D)",
        )
    (batch, _, size, _), name = inputs[0].shape, inputs[0].name

    def embed(images: Tensor) -> Tensor:
        faces = fitted(images, size).float().cpu()
        faces = faces.flip(1) if found == _SFACE else faces / 127.5 - 1
        parts = faces.split(batch if isinstance(batch, int) else len(faces))
        made = [session.run(None, {name: part.numpy()})[0] for part in parts]
        vectors = torch.cat([torch.from_numpy(one).float() for one in made])
        if not vectors.isfinite().all():
            raise DataError(
                f"{path} gives no finite vector for a face", hint="is it whole, and of faces?"
            )
        return F.normalize(vectors)

    facts = {
        "path": path.absolute(),
        "sha256": found,
        "verified": found in KNOWN or sha256 is not None,
        "of": KNOWN.get(found, "an ONNX file"),
        "input_size": size,
    }
    return Identity(facts, embed)


def _fits(taken: list[Any], given: list[Any], kind: str) -> bool:
    is_square = len(taken) == 4 and taken[1] == 3 and isinstance(taken[2], int)
    one_by_one = len(given) == 2 and isinstance(given[1], int) and given[1] > 1
    # A fixed batch other than 1 would need faces that nobody has.
    any_batch = bool(taken) and (not isinstance(taken[0], int) or taken[0] == 1)
    return is_square and taken[2] == taken[3] and one_by_one and any_batch and "float)" in kind


def _session(path: Path) -> Any:
    runtime: Any
    try:
        import onnxruntime as runtime
    except ImportError as error:
        raise UsageError(
            "an ONNX file needs the package onnxruntime, which cannot be imported",
            hint="pip install 'imgtool[onnx]'",
        ) from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own kinds, none of which it exports
        raise DataError(
            f"{path}: onnxruntime cannot read it: {str(error).splitlines()[0]}",
            hint="--identity names an ONNX file",
        ) from error
