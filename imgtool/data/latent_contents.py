"""What a latents file says but for the numbers, as it is written and as it is read.

The format is described in `imgtool.data.latents`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from imgtool.data.tensors import Entries, names_and_groups, palette_of, strings, tensor_entries

FORMAT = 1
META_KEY = "imgtool-latents"
PARTS = ("train", "val", "test")  # by the number in `part`
DTYPES = {"float16": "F16", "float32": "F32"}
CHUNK_BYTES = 2**24  # of latents that are looked at together

F = TypeVar("F")


@dataclass(frozen=True, kw_only=True)
class AutoencoderFacts:
    """What the latents were made with.

    Attributes:
        path: of the checkpoint, absolute.
        hash: of the weights used, as `imgtool.training.weights.weights_hash` gives it.
        name: of its experiment.
        family: its family.
        downsampling: pixels of the image a pixel of the latent, in each direction.
        bottleneck: its kind, as the config says; None where the family has none.
    """

    path: str
    hash: str
    name: str
    family: str
    downsampling: int
    bottleneck: str | None


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the latents are of.

    Attributes:
        dataset: `photos` or `layouts`.
        root, manifest: where the images lie, absolute; one of them. Names are relative to the
            root, or to the manifest's folder, or absolute.
        image_size: pixels that the shorter side was resized to; None where it was not.
        crop: side of the square that was cut from the middle, in pixels; None for whole images.
        fingerprint: of the data.
    """

    dataset: str
    root: str | None
    manifest: str | None
    image_size: int | None
    crop: int | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """All that a latents file says but for the numbers.

    Attributes:
        names, groups: of each image.
        parts: of each image, a position in PARTS.
        shape: (C, h, w) of a latent.
        dtype: `float16` or `float32`.
        with_logvar, with_flipped: whether log variances and latents of mirrored images are there.
        label_names, mask_names, palette: as in ImageDataset; labels and masks are there where
            they have names.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    parts: NDArray[np.uint8]
    shape: tuple[int, int, int]
    dtype: Literal["float16", "float32"]
    autoencoder: AutoencoderFacts
    data: DataFacts
    with_logvar: bool = False
    with_flipped: bool = False
    label_names: tuple[str, ...] = ()
    mask_names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()

    @property
    def latents(self) -> tuple[str, ...]:
        """The names of the tensors that hold latents, a row an image."""
        kinds = ("mean", "logvar") if self.with_logvar else ("mean",)
        ends = ("", "_flipped") if self.with_flipped else ("",)
        return tuple(kind + end for end in ends for kind in kinds)

    def entries(self) -> tuple[Entries, int]:
        """The header's entry of each tensor in the order in which they are written, wide types
        first so that all are aligned, and how long all of them are.
        """
        count, (channels, height, width) = len(self.names), self.shape
        latent = [count, channels, height, width]
        layout: list[tuple[str, str, list[int]]] = []
        if self.label_names:
            layout.append(("label", "I64", [count]))
        layout += [("channel_mean", "F32", [channels]), ("channel_std", "F32", [channels])]
        layout += [(name, DTYPES[self.dtype], latent) for name in self.latents]
        layout.append(("part", "U8", [count]))
        if self.mask_names:
            layout.append(("mask", "U8", [count, height, width]))
        return tensor_entries(layout)

    def meta(self, *, shift: float, scale: float, fingerprint: str) -> dict[str, Any]:
        """The JSON value of the header."""
        return {
            "format": FORMAT,
            "names": self.names,
            "groups": self.groups,
            "autoencoder": asdict(self.autoencoder),
            "data": asdict(self.data),
            "label_names": self.label_names,
            "mask_names": self.mask_names,
            "palette": self.palette,
            "shift": shift,
            "scale": scale,
            "fingerprint": fingerprint,
        }

    @property
    def identity(self) -> str:
        """Hash of what decides the numbers: not of where the checkpoint and the images lie."""
        meta = self.meta(shift=0, scale=0, fingerprint="")
        for fact, keys in (("autoencoder", ("path", "name")), ("data", ("root", "manifest"))):
            for key in keys:
                del meta[fact][key]
        text = json.dumps([meta, self.entries()[0]]).encode()
        return hashlib.blake2b(text + self.parts.tobytes(), digest_size=16).hexdigest()

    def differences(self, other: Contents) -> list[str]:
        """In words, what of two identities is not the same."""
        pairs: list[tuple[str, Any, Any]] = [
            ("the autoencoder", self.autoencoder.hash, other.autoencoder.hash),
            ("the images", self.data.fingerprint, other.data.fingerprint),
            ("size", self.data.image_size, other.data.image_size),
            ("crop", self.data.crop, other.data.crop),
            ("the latent's shape", self.shape, other.shape),
            ("dtype", self.dtype, other.dtype),
            ("logvar", self.with_logvar, other.with_logvar),
            ("flips", self.with_flipped, other.with_flipped),
            ("the split", self.parts.tolist(), other.parts.tolist()),
            ("names", self.names, other.names),
        ]
        differ = [what for what, mine, theirs in pairs if mine != theirs]
        return differ if differ or self.identity == other.identity else ["what is said of it"]


def content_fingerprint(contents: Contents, arrays: Mapping[str, np.ndarray]) -> str:
    """Hash of a file's tensors, in the order of their names, and of what they are."""
    digest = hashlib.blake2b(contents.identity.encode(), digest_size=16)
    for name in sorted(arrays):
        flat = arrays[name].reshape(-1).view(np.uint8)
        for begin in range(0, len(flat), CHUNK_BYTES):
            digest.update(np.ascontiguousarray(flat[begin : begin + CHUNK_BYTES]).data)
    return digest.hexdigest()


# --- the header -----------------------------------------------------------------------------


def read_contents(meta: Mapping[str, Any], header: Mapping[str, Any]) -> Contents:
    """What the header says, in so far as it makes sense by itself."""
    names, groups = names_and_groups(meta)
    mask_names = strings(meta["mask_names"], "mask_names")
    shape = header["mean"]["shape"]
    if len(shape) != 4 or any(type(side) is not int or side < 1 for side in shape):
        raise ValueError(f"the tensor mean has the shape {shape}")
    dtypes = {code: name for name, code in DTYPES.items()}
    contents = Contents(
        names=names,
        groups=groups,
        parts=np.zeros(len(names), np.uint8),
        shape=tuple(shape[1:]),
        dtype=dtypes[header["mean"]["dtype"]],  # type: ignore[arg-type]
        autoencoder=_facts(AutoencoderFacts, meta["autoencoder"]),
        data=_facts(DataFacts, meta["data"]),
        with_logvar="logvar" in header,
        with_flipped="mean_flipped" in header,
        label_names=strings(meta["label_names"], "label_names"),
        mask_names=mask_names,
        palette=palette_of(meta["palette"], mask_names),
    )
    if contents.autoencoder.downsampling < 1:
        raise ValueError("downsampling is no number of pixels")
    return contents


def placed(contents: Contents, header: Mapping[str, Any], data_bytes: int) -> Entries:
    """The entries of the header, once they are seen to be those of the contents and to fill the
    data without gaps.
    """
    wanted, length = contents.entries()
    if header.keys() != wanted.keys():
        odd = sorted(header.keys() ^ wanted.keys())
        raise ValueError(f"tensors are missing or not known: {', '.join(odd)}")
    spans = []
    for name, entry in wanted.items():
        found = json_object(header[name], name)
        if found.keys() != entry.keys() or any(found[k] != entry[k] for k in ("dtype", "shape")):
            raise ValueError(f"the tensor {name} does not fit the others")
        begin, end = found["data_offsets"]
        if (
            type(begin) is not int
            or end - begin != entry["data_offsets"][1] - entry["data_offsets"][0]
        ):
            raise ValueError(f"the tensor {name} has another length than its shape")
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise ValueError("its tensors overlap or leave gaps")
        position = end
    if position != length or data_bytes != length:
        raise ValueError(f"{data_bytes} bytes of data instead of {length}: it is truncated")
    return {name: dict(header[name]) for name in wanted}


def _facts(kind: Callable[..., F], values: Any) -> F:
    """A dataclass of strings, whole numbers and None, from JSON."""
    known = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    given = json_object(values, "facts")
    for name, annotation in known.items():
        allowed: tuple[type, ...] = (int,) if "int" in annotation else (str,)
        if "None" in annotation:
            allowed += (type(None),)
        if type(given[name]) not in allowed:
            raise ValueError(f"{name} is {given[name]!r}")
    return kind(**{name: given[name] for name in known})


def json_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no JSON object")
    return value


def number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} is {value!r}")
    return float(value)
