"""Other people's files, read for a family that begins with them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgtool.errors import CheckpointError, ConfigError
from imgtool.experiment import checkpoint_file
from imgtool.experiment.layout import find_checkpoint
from imgtool.experiment.whole import see_zip_is_intact
from imgtool.training.weights import see_finite

MAX_DOCUMENT_BYTES = 16_000_000


class FileReader:
    """A `Reader` of files: checkpoints of imgtool, foreign `.pt` files, JSON."""

    def tensors(self, path: str) -> Mapping[str, Tensor]:
        """Weights by name: of our checkpoint (or exp_dir) the model's, averaged ones preferred;
        of a `.pt` every tensor, with the keys on the way to it joined by dots.

        Raises:
            CheckpointError: not there, not readable without pickled code, or ours and not finite.
        """
        if Path(path).suffix.lower() in (".pt", ".pth", ".ckpt", ".bin") and Path(path).is_file():
            return dict(_tensors(read_foreign(Path(path))))
        loaded = checkpoint_file.read(find_checkpoint(path), ("model", "ema"))
        found = {**loaded.part("model"), **loaded.part("ema")}
        see_finite(found, loaded.header.path)
        return found

    def document(self, path: str) -> Any:
        """What a JSON file says.

        Raises:
            ConfigError: not there, or no JSON.
        """
        try:
            with open(path, encoding="utf-8") as stream:
                text = stream.read(MAX_DOCUMENT_BYTES + 1)
            if len(text) > MAX_DOCUMENT_BYTES:
                raise ValueError("too long")
            return json.loads(text)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"{path}: {reason}", hint="name a JSON file") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is no JSON: {error}", hint="name a JSON file") from error


def read_foreign(path: Path) -> Any:
    """What a `.pt` file holds, on the CPU; only tensors and plain values are let in.

    Raises:
        CheckpointError: not there, damaged, or it wants to run code.
    """
    try:
        if zipfile.is_zipfile(path):  # torch.load holds nothing against the archive's checksums
            see_zip_is_intact(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except CheckpointError:
        raise
    except Exception as error:  # torch raises nearly anything on a damaged file
        reason = " ".join(str(error).split())
        if "weights_only" in reason or "Unsupported" in reason:
            raise CheckpointError(
                f"{path} holds more than tensors and plain values, and is not opened",
                hint="save its state dicts alone: torch.save({'model': model.state_dict()}, ...)",
            ) from error
        raise CheckpointError(f"{path} is damaged: {reason[:200]}") from error


def _tensors(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{prefix}.{key}" if prefix else str(key))
