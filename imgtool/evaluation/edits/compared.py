"""Edits to compare editors by: of the first pairs that are judged.

Editors that were trained on the same parts have the same pairs (`faces.to_judge`), so that these
are the same faces in all of them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imgtool.evaluation.edits.made import Made
from imgtool.experiment.layout import ExperimentDir
from imgtool.files import write_bytes

NUM_COMPARED = 12  # pairs
FACES = ("Au", "B0", "A0", "Bu", "Au_hat", "B0_hat")


@dataclass
class Compared:
    """The first pairs, gathered batch by batch.

    Attributes:
        names: of the files of Au and B0.
        strips: uint8 (S, 6 S, 3) each, in the order of FACES.
    """

    names: list[tuple[str, str]] = field(default_factory=list)
    strips: list[np.ndarray] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether there are enough."""
        return len(self.strips) >= NUM_COMPARED

    def add(self, made: Made, names: list[tuple[str, str]]) -> None:
        """Keep what is still wanted of a batch of pairs."""
        for place, both in enumerate(names[: NUM_COMPARED - len(self.strips)]):
            tiles = [made.faces[name][place].permute(1, 2, 0).cpu().numpy() for name in FACES]
            self.strips.append(np.concatenate(tiles, axis=1))
            self.names.append(both)

    def write(self, exp_dir: Path) -> list[dict[str, Any]]:
        """Write a picture a pair into an experiment's samples.

        Returns:
            of each pair Au and B0, names of files, and `file`, from the experiment's directory.

        Raises:
            OSError: the disk refuses.
        """
        folder = ExperimentDir(exp_dir).samples_dir
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for place, ((Au, B0), strip) in enumerate(zip(self.names, self.strips, strict=True)):
            buffer, path = io.BytesIO(), folder / f"edit_{place:02d}.png"
            Image.fromarray(strip).save(buffer, format="PNG")
            write_bytes(path, buffer.getvalue())
            rows.append({"Au": Au, "B0": B0, "file": str(path.relative_to(exp_dir))})
        return rows
