"""Which faces are judged: those that neither the editor nor the judge was trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from imgtool.data.celeba import CelebA
from imgtool.data.celeba_tables import LANDMARK_STEMS, attributes_of, find_table, read_table
from imgtool.data.datasets import open_datasets
from imgtool.data.landmarks import Points, read_landmarks
from imgtool.data.pairs import FacePart, paired
from imgtool.data.split import shared
from imgtool.data.views import View
from imgtool.errors import DataError, UserError
from imgtool.evaluation.edits.judge import Judge
from imgtool.evaluation.restore import Restored


@dataclass(frozen=True)
class Judged:
    """Faces to judge edits of, in pairs: one with the attribute, one without.

    Attributes:
        part: the pairs; 0, 2, 4 ... have the attribute.
        source: the data set that they are of.
        held_out: faces that the editor's training did not see.
        seen_by_name: of these, whose name is among those that the judge was trained on.
        seen_by_content: further ones whose file the judge's or the editor's training has.
        contents_compared: whether files were compared as well; not where the judge's are gone.
        labels: (num_faces, A) int64 of the judge's attributes; None where the table lacks one.
        points: (num_faces, 5) landmarks on a square of side 1; None where there are none that fit.
    """

    part: FacePart
    source: CelebA
    held_out: int
    seen_by_name: int
    seen_by_content: int
    contents_compared: bool
    labels: Tensor | None
    points: Points | None

    @property
    def num_pairs(self) -> int:
        return len(self.part) // 2


def to_judge(editor: Restored, judge: Judge, n: int | None) -> Judged:
    """The faces of an editor's validation and test part that the judge has not seen either.

    Args:
        n: pairs at most; the first, which is as good as drawn: data are in no order.

    Raises:
        DataError: there are none.
    """
    datasets = editor.datasets
    source = datasets.train.source
    assert isinstance(source, CelebA)
    if judge.split is None:
        raise DataError(
            f"{judge.path}: no split.json beside it says which faces it was trained on",
            hint="give its exp_dir as training left it",
        )
    known = set(judge.split.train)
    trained_on = set(datasets.split.train)
    # Not those parts as they are: pairing has left faces out.
    number_of = {source.name(i): i for i in range(len(source))}
    names = [*datasets.split.val, *datasets.split.test]
    held_out = sorted({number_of[name] for name in names if name not in trained_on})
    unknown = [i for i in held_out if source.name(i) not in known]
    same = shared(source, unknown, source, datasets.train.indices.tolist())
    others = _training_images(judge)
    if others is not None:
        same |= shared(source, unknown, others, range(len(others)))
    left = [i for i in unknown if i not in same]
    part = paired(source, left)
    if not len(part):
        raise DataError(
            f"no pair of faces is left to judge: {len(held_out)} were held out of {editor.path}, "
            f"and {len(held_out) - len(left)} of them were seen in training by it or by the judge",
            hint="train both with --official-split, or the judge on other faces",
        )
    if n is not None and 2 * n < len(part):
        part = part.of(part.indices[: 2 * n].tolist())
    return Judged(
        part=part,
        source=source,
        held_out=len(held_out),
        seen_by_name=len(held_out) - len(unknown),
        seen_by_content=len(same),
        contents_compared=others is not None,
        labels=_labels(source, part, judge),
        points=_points(source, part),
    )


def _training_images(judge: Judge) -> View | None:
    """The judge's own training images; None where they are gone."""
    try:
        data = replace(judge.trained.experiment.data, cache="none", skip_bad=False)
        return open_datasets(data, split=judge.split, training=False).train
    except UserError:
        return None


def _labels(source: CelebA, part: FacePart, judge: Judge) -> Tensor | None:
    table = read_table(source.attribute_file)
    if not set(judge.names) <= set(table.columns):
        return None
    row_of = {name: row for row, name in enumerate(table.names)}
    rows = [row_of[part.name(i)] for i in range(len(part))]
    return torch.from_numpy(attributes_of(table, judge.names)[rows])


def _points(source: CelebA, part: FacePart) -> Points | None:
    """Landmarks, where the table is of these images and not of others from which they were cut."""
    from imgtool.data.images import probe

    if source.folder.name == "align_5p" or find_table(source.root, LANDMARK_STEMS) is None:
        return None
    try:
        table, points = read_landmarks(source.root)
    except DataError:
        return None
    row_of = {name: row for row, name in enumerate(table.names)}
    numbers = part.indices.tolist()
    if any(source.name(i) not in row_of for i in numbers):
        return None
    found = points[[row_of[source.name(i)] for i in numbers]]
    sizes = np.array([probe(source.path(i)).size for i in numbers], float)  # heights, widths
    on_square = found.real / sizes[:, 1:] + 1j * found.imag / sizes[:, :1]
    inside = (np.abs(on_square.real - 0.5) <= 0.75) & (np.abs(on_square.imag - 0.5) <= 0.75)
    return on_square if inside.all() else None
