"""What a run leaves behind at its end for those who choose among several.

samples/val_000012.png    a validation image: original left, what the best weights make of it right;
                          the number is the image's in the data set, the same in every experiment
samples/NAME.png          pictures of the family's own study
NAME.json                 what that study found, such as latents.json
"""

from __future__ import annotations

import json

import torch

from imgtool.errors import UserError
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoints import pointed
from imgtool.experiment.metrics import plain
from imgtool.files import write_text
from imgtool.training.context import Run
from imgtool.training.validation import Validator, save_picture
from imgtool.training.weights import load_weights

# A second or two on a GPU, less than a minute of a large model on a CPU.
NUM_IMAGES = 64
NUM_PAIRS = 64


def leave_keepsakes(run: Run) -> None:
    """Draw and study the best weights. What cannot be written is a warning and no failure.

    The run is over and saved: its weights may be replaced.
    """
    if not run.ranks.is_first or run.validator is None:
        return
    try:
        _load_best(run)
        with run.validator.looking(averaged=False):
            _pairs(run, run.validator)
            _study(run, run.validator)
    except (OSError, UserError) as error:
        run.reporter.message(f"warning: not all samples were written: {error}")


def _load_best(run: Run) -> None:
    path = pointed(run.directory.best_path) or pointed(run.directory.latest_path)
    if path is not None:
        loaded = checkpoint_file.read(path, ("model", "ema"))
        load_weights(run.stepper.task.modules, loaded)


def _pairs(run: Run, validator: Validator) -> None:
    for batch in validator.first(run.experiment.output.num_samples):
        made = run.stepper.task.reconstruct(batch)
        if made is None:
            return
        for row, image in enumerate(batch["image"]):
            picture = torch.cat([image, made[row]], dim=2).cpu()
            name = f"val_{int(batch['index'][row]):06d}.png"
            save_picture(picture, run.directory.samples_dir / name)


def _study(run: Run, validator: Validator) -> None:
    pairs = validator.pairs(NUM_PAIRS, run.experiment.data.split_seed)
    found = run.stepper.task.study(validator.first(NUM_IMAGES), pairs, num_images=NUM_IMAGES)
    if found is None:
        return
    for name, picture in found.pictures.items():
        save_picture(picture, run.directory.samples_dir / f"{name}.png")
    for name, document in found.documents.items():
        content = json.dumps(plain(document), indent=1, allow_nan=False) + "\n"
        write_text(run.directory.path / f"{name}.json", content)
