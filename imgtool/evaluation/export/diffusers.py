"""The format `diffusers`: a folder that `from_pretrained` of the package diffusers loads.

The folder is read again before it gets its name: its tensors are the checkpoint's, byte for byte.
Where diffusers is installed, it loads the folder as users will, and what it encodes and decodes is
compared; `from_pretrained` itself only warns of tensors that it lacks, and draws them at random.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from imgtool.errors import CheckpointError, ConfigError, UsageError
from imgtool.evaluation.export import card
from imgtool.evaluation.export.folder import Opened, agree, open_model, optional, silent, writing
from imgtool.evaluation.export.formats import Request
from imgtool.evaluation.export.normalisation import Normalisation, of_latents, of_training_images
from imgtool.models.base import Diffusers

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
TOLERANCE = 1e-5  # of the largest value, where it is above 1
FILES = [CONFIG_NAME, WEIGHTS_NAME, card.NAME]
CHECKED = (2, 3)  # sides of the latent that is compared


def write(request: Request) -> dict[str, Any]:
    """Write config.json, diffusion_pytorch_model.safetensors and README.md.

    Raises:
        CheckpointError: the checkpoint cannot be used, the disk refuses, or what was written does
            not do what the checkpoint does.
        ConfigError: diffusers has no such model.
        DataError: latents or training images cannot be read.
    """
    opened = open_model(request.source)
    form = _form(opened)
    if request.latents is None:
        found = of_training_images(request)
    else:
        found = of_latents(request.latents, opened)
    form = replace(form, config={**form.config, **found.keys(per_channel=request.per_channel)})
    keys = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    facts: dict[str, Any] = {
        **opened.facts(),
        "files": FILES,
        **{key: form.config.get(key) for key in keys},
        "statistics_of": found.source,
        "dropped": list(form.dropped),
    }
    if request.dry_run:
        return facts
    with writing(request.out) as folder:
        tensors = {name: value.contiguous() for name, value in form.tensors.items()}
        save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        text = json.dumps(form.config, indent=2, allow_nan=False)
        (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
        _read_again(folder, form)
        facts |= _compare(folder, opened)
        words = _words(form, found, facts)
        card_text = card.write(opened, "diffusers", _using(form.config), words)
        (folder / card.NAME).write_text(card_text, encoding="utf-8")
    return facts


def _form(opened: Opened) -> Diffusers:
    hint = "--to onnx takes any model of the family" if opened.task.graphs() else None
    try:
        form = opened.task.diffusers()
    except ConfigError as error:
        raise UsageError(f"{opened.trained.path}: {error}", hint=hint) from error
    if form is None:
        raise UsageError(f"{opened.trained.path}: diffusers has no such model", hint=hint)
    return form


# --- checking -------------------------------------------------------------------------------


def _read_again(folder: Path, form: Diffusers) -> None:
    """Hold the files against what they were written of."""
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    tensors = load_file(folder / WEIGHTS_NAME)
    if config != json.loads(json.dumps(form.config)) or tensors.keys() != form.tensors.keys():
        raise _differs(folder.name, "its config or names are others")
    for name, tensor in form.tensors.items():
        if not _bytes(tensor).equal(_bytes(tensors[name])):
            raise _differs(folder.name, f"{name} is another")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _compare(folder: Path, opened: Opened) -> dict[str, Any]:
    """Have diffusers load the folder, and hold its results against ours.

    Raises:
        CheckpointError: they differ by more than rounding.
    """
    facts: dict[str, Any] = {"checked_with": None, "max_difference": None}
    with silent():
        package = optional("diffusers")
        kind = None if package is None else _class_of(package, folder)
        if package is None or kind is None:
            return facts
        theirs, said = kind.from_pretrained(
            folder, output_loading_info=True, low_cpu_mem_usage=False, local_files_only=True
        )
    for key, names in said.items():
        if names:
            raise _differs("diffusers", f"{key} {sorted(map(str, names))[:3]}")
    graphs = opened.task.graphs()
    encoder, decoder = graphs["encoder"], graphs["decoder"]
    unit = int(str(encoder.shape[-1]).partition("*")[0])
    source = torch.Generator().manual_seed(2)
    x = torch.rand(1, 3, *(unit * side for side in CHECKED), generator=source) * 2 - 1
    with torch.no_grad():
        mean = encoder.module(x)[0]
        image = decoder.module(mean)[list(decoder.outputs).index("image")]
        pairs = {
            "mean": (mean, theirs.encode(x).latent_dist.mean),
            "image": (image, theirs.decode(mean).sample),
        }
    largest = 0.0
    for name, (own, other) in pairs.items():
        good, difference = agree(own, other, TOLERANCE)
        if not good:
            raise _differs("diffusers", f"its {name} is {difference:.1e} from the checkpoint's")
        largest = max(largest, difference)
    return {"checked_with": f"diffusers {package.__version__}", "max_difference": largest}


def _class_of(package: Any, folder: Path) -> Any:
    """The class that the config names; None where this installation cannot give it."""
    name = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["_class_name"]
    try:
        return getattr(package, name)
    except Exception:  # it imports what it needs when it is first asked
        return None


def _differs(who: str, how: str) -> CheckpointError:
    return CheckpointError(
        f"what was written is not what the checkpoint holds: {who}: {how}",
        hint="nothing was kept; this is a fault of imgtool or of the installed diffusers",
    )


# --- words ----------------------------------------------------------------------------------


def _using(config: Mapping[str, Any]) -> str:
    if config.get("latents_mean") is None:
        forth = "(latent - vae.config.shift_factor) * vae.config.scaling_factor"
        back = "z / vae.config.scaling_factor + vae.config.shift_factor"
        lists = []
    else:
        forth, back = "(latent - mean) / std", "z * std + mean"
        lists = [
            "import torch",
            "mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1)",
            "std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1)",
        ]
    return "\n".join(
        [
            f"from diffusers import {config['_class_name']}",
            f'vae = {config["_class_name"]}.from_pretrained("FOLDER")',
            *lists,
            "latent = vae.encode(image).latent_dist.sample()  # image (B, 3, H, W) on [-1, 1]",
            f"z = {forth}  # mean 0, deviation 1",
            f"image = vae.decode({back}).sample.clamp(-1, 1)",
        ]
    )


def _words(form: Diffusers, found: Normalisation, facts: Mapping[str, Any]) -> str:
    numbers = (
        f"scaling_factor {found.scale:.6g} and shift_factor {found.shift:.6g}"
        if form.config.get("latents_mean") is None
        else "latents_mean and latents_std (with scaling_factor 1)"
    )
    lines = [
        "Sides of images are multiples of the downsampling factor.",
        f"{numbers} are statistics of {found.source}.",
    ]
    if facts["checked_with"]:
        lines.append(
            f"{facts['checked_with']} loaded this folder: the mean and the decoded image of a "
            f"random input are at most {facts['max_difference']:.1e} from the checkpoint's."
        )
    else:
        lines.append(
            "The files were read again and hold the checkpoint's tensors; diffusers itself was "
            "not installed to load them."
        )
    if form.dropped:
        lines.append(f"Not here, because diffusers has no place for it: {', '.join(form.dropped)}.")
    return "\n".join(lines)
