"""The model card: README.md with a YAML front, as the Hugging Face hub has it.

What it says is known of the checkpoint: nothing of what the model is good for, and no license,
which are the author's to say. Paths of this machine are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from imgtool import __version__
from imgtool.config.identity import identity_values
from imgtool.config.schema import Experiment
from imgtool.config.yaml_io import format_value
from imgtool.evaluation.export.folder import Opened
from imgtool.experiment.layout import ExperimentDir

NAME = "README.md"


def write(opened: Opened, library: str, using: str, format_words: str) -> str:
    """The card's text.

    Args:
        library: that loads the files, as the hub names it.
        using: Python that loads them.
        format_words: what is to be said of this format.
    """
    header = opened.trained.loaded.header
    metrics = {k: v for k, v in header.metrics.items() if k.startswith("val_") and v is not None}
    name = opened.experiment.name
    weights = "averaged over training (EMA)" if opened.is_averaged else "as trained"
    parts = [
        _front(library, opened.experiment.family, [key.removeprefix("val_") for key in metrics]),
        f"# {name}",
        f"A model of the family {opened.experiment.family}, trained with imgtool and exported for "
        f"{library} by version {__version__}. The weights are those of iteration "
        f"{header.iteration}, {weights}.",
        "## Load it",
        f"```python\n{using}\n```",
        format_words,
        "## Metrics",
        _measured(metrics, opened),
        "## Data",
        _data(opened),
        "## Config",
        f"What decided the training; run settings and paths are left out.\n\n"
        f"```yaml\n{_config(opened.experiment)}```",
        "## Hashes",
        f"- weights in this folder: `{opened.hash}`\n"
        f"- config and data of the training: `{header.identity or 'unknown'}`\n"
        f"- data: `{header.data_fingerprint or 'unknown'}`",
    ]
    return "\n\n".join(parts) + "\n"


def _front(library: str, family: str, metrics: Sequence[str]) -> str:
    lines = ["---", f"library_name: {library}", "tags:", "- imgtool", f"- {family}"]
    if metrics:
        lines += ["metrics:", *(f"- {name}" for name in metrics)]
    return "\n".join([*lines, "# license: yours to choose, such as apache-2.0", "---"])


def _measured(metrics: Mapping[str, float], opened: Opened) -> str:
    if not metrics:
        return "The checkpoint has none: it was written before the first validation."
    count = _num_held_out(opened.trained.path)
    known = "validation images" if count is None else f"validation images ({count})"
    rows = [f"| {name.removeprefix('val_')} | {value:.6g} |" for name, value in metrics.items()]
    return "\n".join(
        [
            f"By the last validation up to this checkpoint, on the {known}, which were held out from "
            "training but may have chosen this checkpoint. `mse` and `psnr` are on [0, 1], "
            "`mse_pm1` is on [-1, 1]; losses are the training's own.",
            "",
            "| metric | value |",
            "| --- | --- |",
            *rows,
        ]
    )


def _num_held_out(checkpoint: Path) -> int | None:
    from imgtool.data.split import Split

    kept = ExperimentDir(checkpoint.parent.parent).split_path
    return len(Split.read(kept).val) if kept.exists() else None


def _data(opened: Opened) -> str:
    data = opened.experiment.data
    source = getattr(data, data.source_key)
    lines = [f"- kind: {data.dataset}"]
    if source is not None:
        lines.append(f"- name: `{Path(source).name}`")
    if data.image_size is not None:
        lines.append(f"- shorter side resized to {data.image_size} pixels")
    if data.crop is not None:
        lines.append(f"- trained on crops of {data.crop} x {data.crop} pixels")
    return "\n".join(lines)


def _config(experiment: Experiment) -> str:
    lines = [f"family: {experiment.family}"]
    last = None
    for key, value in identity_values(experiment).items():
        section, _, name = key.partition(".")
        if not name or value is None:
            continue
        if section != last:
            lines.append(f"{section}:")
            last = section
        lines.append(f"  {name}: {format_value(value)}")
    return "\n".join(lines) + "\n"
