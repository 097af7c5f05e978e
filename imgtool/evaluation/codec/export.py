"""Models that are done: the codec's weights and its integer probability tables in one file.

An export is a safetensors file with the tensors `codec.*` and `tables.*`, and in its metadata
one JSON value with what builds the network, lambda, and the hash of all that decoding depends on.
A portable one has `integer.*` as well, with which the entropy path computes in integers, and says
which images they were calibrated with. Nothing of training or of its regularisers is in it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imgtool import __version__
from imgtool.errors import CheckpointError, UsageError
from imgtool.evaluation.codec import METADATA_KEY as METADATA_KEY
from imgtool.evaluation.codec.codec import Codec, Facts
from imgtool.evaluation.codec.container import HASH_BYTES
from imgtool.evaluation.codec.exact import allow_deterministic_cublas
from imgtool.evaluation.codec.integer.calibration import calibrate
from imgtool.evaluation.codec.integer.path import IntegerPath, Numbers, sizes
from imgtool.experiment.whole import Structure, read_structure
from imgtool.files import replacing_through_folder
from imgtool.models.hpcm.network import HPCM
from imgtool.models.hpcm.tables import Tables
from imgtool.models.hpcm.variants import VARIANTS
from imgtool.training.device import resolve_device
from imgtool.training.opening import best_of, read_trained
from imgtool.training.weights import load_module

FORMAT = 1
MAX_TABLE_BYTES = 16_000_000


@dataclass(frozen=True)
class Build:
    """What a network is built of.

    Attributes:
        model_name: a name in VARIANTS.
        legacy_s2_hyper: as `model.legacy_s2_hyper`.
    """

    model_name: str
    legacy_s2_hyper: bool


@dataclass(frozen=True)
class Export:
    """A codec that is ready to be written or used.

    Attributes:
        source: the file that it was read from.
        tensors: weights (`codec.*`, float32), tables (`tables.*`, int32), and where it is portable
            what makes integers of the weights (`integer.*`, int32), on the CPU.
        is_export: whether `source` is an export; else its tables have just been made.
        calibration: of a portable one, what it was calibrated with and what became of it.
    """

    source: Path
    build: Build
    lmbda: float
    distortion: str
    iteration: int
    tensors: Mapping[str, Tensor]
    model_hash: str
    is_export: bool
    calibration: Mapping[str, Any] | None = None

    @property
    def is_portable(self) -> bool:
        """Whether the entropy path computes in integers."""
        return any(name.startswith("integer.") for name in self.tensors)

    @property
    def num_parameters(self) -> int:
        """Weights of the network."""
        return sum(t.numel() for name, t in self.tensors.items() if name.startswith("codec."))

    def facts(self) -> Facts:
        """The same for people."""
        return Facts(
            path=self.source,
            model_name=self.build.model_name,
            lmbda=self.lmbda,
            distortion=self.distortion,
            iteration=self.iteration,
            model_hash=self.model_hash,
            is_export=self.is_export,
            plain_hash=_plain_hash(self.build, self.tensors) if self.is_portable else None,
        )

    def integers(self, model: HPCM) -> IntegerPath | None:
        """The entropy path in integers on the CPU; None where it is not portable.

        Args:
            model: `network`.

        Raises:
            CheckpointError: it makes no sense, or its sums need not be exact.
        """
        if not self.is_portable:
            return None
        numbers = Numbers.from_tensors(_part(self.tensors, "integer"), model)
        return IntegerPath(model, numbers)

    def portable(self, images: Iterable[Tensor], named: Mapping[str, Any]) -> Export:
        """The same with an entropy path in integers.

        Args:
            images: to calibrate with, uint8 (3, H, W).
            named: what they are, for the file.

        Raises:
            DataError: there are none, or they cannot be used.
            CheckpointError: sums of this model need not be exact.
        """
        model = self.network()
        numbers = Numbers.of(calibrate(model, images))
        path = IntegerPath(model, numbers)
        own = {f"integer.{name}": value for name, value in numbers.tensors().items()}
        tensors = {**self.tensors, **{k: v.contiguous() for k, v in own.items()}}
        calibration = {**named, "largest_sum_bits": round(path.bound.bits, 2)}
        return replace(
            self,
            tensors=tensors,
            model_hash=_hash(self.build, tensors),
            calibration=calibration,
        )

    def network(self) -> HPCM:
        """The network with its weights, in eval mode on the CPU.

        Raises:
            CheckpointError: the weights are another network's.
        """
        model = _network(self.build)
        load_module(model, _part(self.tensors, "codec"), self.source)
        return model.eval()

    def refuse_overwriting(self, out: Path) -> None:
        """Make sure that writing to `out` costs nothing: it is new, or this model's export.

        Raises:
            UsageError: it would cost something.
        """
        if not os.path.lexists(out):
            return
        there = _claimed_hash(out)
        if there is None:
            raise UsageError(f"{out} exists already, and is no export", hint="--force overwrites")
        if there != self.model_hash:
            raise UsageError(
                f"{out} is the export of another model ({there}, this one is {self.model_hash})",
                hint="give another name, or --force: .hpcm files of the old one still need it",
            )

    def write(self, out: Path) -> None:
        """Write the file, atomically.

        Raises:
            CheckpointError: the disk refuses.
        """
        facts = {
            "format": FORMAT,
            "imgtool": __version__,
            "model": asdict(self.build),
            "lmbda": self.lmbda,
            "distortion": self.distortion,
            "iteration": self.iteration,
            "model_hash": self.model_hash,
        }
        if self.calibration is not None:
            facts["calibration"] = dict(self.calibration)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with replacing_through_folder(out) as temporary:
                save_file(dict(self.tensors), temporary, metadata={METADATA_KEY: json.dumps(facts)})
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise CheckpointError(
                f"cannot write {out}: {reason}", hint="check the disk and permissions"
            ) from error


def open_codec(source: str, *, device: str = "auto", threads: int | None = None) -> Codec:
    """Open an export; or a checkpoint of `imgtool train hpcm`, whose tables are made on the spot.

    Args:
        source: a file, or an exp_dir: its best checkpoint.
        device: as `train.device`.
        threads: as in `Codec`.

    Raises:
        CheckpointError: there is none, or it is damaged.
        UsageError: it is of another family.
    """
    on = resolve_device(device)
    if on.type == "cuda":
        allow_deterministic_cublas()
    export = read(source)
    model, stored = export.network(), _part(export.tensors, "tables")
    tables = Tables.from_tensors(stored, num_channels=model.variant.N)
    integers = export.integers(model)
    return Codec(
        model.to(on),
        tables,
        export.facts(),
        on,
        integers=None if integers is None else integers.to(on),
        threads=threads,
    )


def read(source: str) -> Export:
    """What `open_codec` opens, read whole.

    Raises:
        CheckpointError: there is none, or it is damaged.
        UsageError: it is of another family.
    """
    path = best_of(source)
    return _read_export(path) or _of_checkpoint(path)


def _claimed_hash(path: Path) -> str | None:
    """The model hash that an export names, even one whose tensors are damaged; else None."""
    try:
        metadata: Any = read_structure(path).metadata
        return str(json.loads(metadata[METADATA_KEY])["model_hash"])
    except (OSError, CheckpointError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _read_export(path: Path) -> Export | None:
    """None where the file is something else."""
    try:
        structure = read_structure(path)
    except (OSError, CheckpointError):
        return None  # the reader of checkpoints says what is wrong
    metadata = structure.metadata
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if text is None:
        return None
    try:
        facts = json.loads(text)
        if facts["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has export format {facts['format']}; this imgtool reads {FORMAT}",
                hint="export it again with this imgtool",
            )
        build = _build(path, facts["model"])
        _see_it_fits(path, build, structure)
        with safe_open(path, framework="pt", device="cpu") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        export = Export(
            source=path,
            build=build,
            lmbda=_positive(facts["lmbda"]),
            distortion=str(facts["distortion"]),
            iteration=int(facts["iteration"]),
            tensors=tensors,
            model_hash=str(facts["model_hash"]),
            is_export=True,
            calibration=facts.get("calibration"),
        )
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"cannot read {path}: {reason}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, f"its metadata lacks or spoils a value ({error})") from error
    if _hash(export.build, tensors) != export.model_hash:
        raise _damaged(path, "its tensors are not those that it was written with")
    return export


def _see_it_fits(path: Path, build: Build, structure: Structure) -> None:
    """Judge an export's tensors from its header, before any is read.

    Raises:
        CheckpointError: they are not its network's.
    """
    with torch.device("meta"):
        network = _network(build)
    own = network.state_dict()
    wanted = {f"codec.{name}": ("F32", tuple(tensor.shape)) for name, tensor in own.items()}
    if any(name.startswith("integer.") for name in structure.kinds):
        wanted |= {f"integer.{name}": ("I32", size) for name, size in sizes(network).items()}
    num_bytes = 0
    for name in structure.kinds.keys() | wanted.keys():
        kind, (begin, end) = structure.kinds.get(name), structure.spans.get(name, (0, 0))
        is_table = name.startswith("tables.") and kind is not None and kind[0] == "I32"
        num_bytes += end - begin if is_table else 0
        if kind != wanted.get(name) and not is_table or num_bytes > MAX_TABLE_BYTES:
            raise _damaged(path, f"its tensors are not those of {build.model_name} ({name})")


def _of_checkpoint(path: Path) -> Export:
    hint = "codecs are trained by `imgtool train hpcm`"
    trained = read_trained(path, family="hpcm", hint=hint)
    config, loaded = trained.config, trained.loaded
    try:
        build, lmbda = _build(path, config["model"]), _positive(config["loss"]["lmbda"])
        distortion = str(config["loss"]["distortion"])
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, f"its header lacks or spoils a value ({error})") from error
    weights = {**loaded.part("model.codec"), **loaded.part("ema.codec")}
    model = _network(build)
    load_module(model, weights, path)
    own = {f"codec.{name}": value for name, value in model.state_dict().items()}
    own |= {f"tables.{name}": value for name, value in Tables.of(model).tensors().items()}
    tensors = {name: value.detach().contiguous() for name, value in own.items()}
    return Export(
        path,
        build,
        lmbda,
        distortion,
        trained.iteration,
        tensors,
        _hash(build, tensors),
        is_export=False,
    )


def _build(path: Path, model: Any) -> Build:
    name, legacy = model["model_name"], model["legacy_s2_hyper"]
    if name not in VARIANTS or not isinstance(legacy, bool):
        raise CheckpointError(
            f"{path}: there is no network {name!r}", hint="known: " + ", ".join(VARIANTS)
        )
    return Build(name, legacy)


def _network(build: Build) -> HPCM:
    return HPCM(VARIANTS[build.model_name], legacy_s2_hyper=build.legacy_s2_hyper)


def _positive(value: object) -> float:
    if not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"lambda is {value!r}")
    return float(value)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = prefix + "."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _plain_hash(build: Build, tensors: Mapping[str, Tensor]) -> str:
    """Of the model without integers."""
    plain = {name: value for name, value in tensors.items() if not name.startswith("integer.")}
    return _hash(build, plain)


def _hash(build: Build, tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits."""
    digest = hashlib.blake2b(json.dumps(asdict(build)).encode(), digest_size=HASH_BYTES)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a usable codec: {why}",
        hint="make it anew: imgtool export CKPT OUT.safetensors",
    )
