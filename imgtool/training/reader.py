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
from imgtool.experiment.whole import read_structure, see_zip_is_intact
from imgtool.training.weights import see_finite

MAX_DOCUMENT_BYTES = 16_000_000
CONFIG_NAME = "config.json"  # of a folder as the hub has them, beside its weights


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

    Of a folder with `config.json` and one .safetensors file, or of that file, it is
    {"config": what the first says, "tensors": the tensors of the other by name}.

    Raises:
        CheckpointError: not there, damaged, or it wants to run code.
    """
    if path.is_dir() or path.suffix == ".safetensors":
        weights = _weights_of(path) if path.is_dir() else path
        return {"config": _config_beside(weights), "tensors": _read_safetensors(weights)}
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


def _weights_of(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    inner = next(iter(sorted(folder.glob(f"*/{CONFIG_NAME}"))), None)
    if found:
        hint = f"name one of them, such as {found[0]}"
    elif inner is not None:
        hint = f"name a folder in it, such as {inner.parent}"
    else:
        hint = f"a folder of diffusers has {CONFIG_NAME} and diffusion_pytorch_model.safetensors"
    raise CheckpointError(f"{folder} has {len(found) or 'no'} .safetensors files", hint=hint)


def _config_beside(weights: Path) -> dict[str, Any]:
    path = weights.with_name(CONFIG_NAME)
    try:
        config = FileReader().document(str(path))
    except ConfigError as error:
        raise CheckpointError(
            str(error), hint=f"{CONFIG_NAME} must lie beside {weights.name}"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is no JSON object", hint="give the folder as it was saved")
    return config


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, once the file is seen to be whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        read_structure(path)
        return load_file(path, device="cpu")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def _tensors(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{prefix}.{key}" if prefix else str(key))
