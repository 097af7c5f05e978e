"""Edits of a GeneGAN, judged on faces that neither it nor the judge was trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imgtool.data.loader import default_workers
from imgtool.data.pairs import FacePart
from imgtool.evaluation.edits.compared import Compared
from imgtool.evaluation.edits.faces import Judged, to_judge
from imgtool.evaluation.edits.identity import Identity, open_identity
from imgtool.evaluation.edits.judge import Judge, alike, open_judge
from imgtool.evaluation.edits.made import EDITS, make, task_of
from imgtool.evaluation.edits.record import judge_on, others_of, summary
from imgtool.evaluation.edits.scores import Scores
from imgtool.evaluation.metrics import LEVEL, NUM_RESAMPLES
from imgtool.evaluation.restore import Restored, restore
from imgtool.models.genegan.task import GeneganTask
from imgtool.nn.lpips import find_lpips
from imgtool.nn.lpips_weights import SMALLEST
from imgtool.training.environment import shared_cores

NUM_STEPS = 5  # as `edit interpolate`
NUM_SHOWN = 4  # pairs of the best, of the middle, of the worst
PLACES = ("best", "median", "worst")


@dataclass(frozen=True)
class Options:
    """What is measured, and with what.

    Attributes:
        n: pairs at most.
        num_steps: from a face's own object to the donor's.
        identity, identity_sha256: a network that tells faces apart, and its hash.
        data_root: where the editor's faces lie now.
        shown: whether edits are wanted for a page.
    """

    n: int | None = None
    num_steps: int = NUM_STEPS
    num_resamples: int = NUM_RESAMPLES
    identity: str | None = None
    identity_sha256: str | None = None
    device: str = "auto"
    data_root: str | None = None
    shown: bool = False


@dataclass(frozen=True)
class Row:
    """One edit for people to look at: uint8 (3, S, S) each.

    Attributes:
        edit: `Bu` or `A0`.
        place: best, median or worst.
        score: of the edit (`Scores.of_edit`).
        name: of the input's file.
        faces: title -> picture.
    """

    edit: str
    place: str
    score: float
    name: str
    faces: dict[str, np.ndarray]


@dataclass(frozen=True)
class Found:
    """What is known of an editor.

    Attributes:
        record: numbers by name, and what they are of.
        rows: its best, median and worst edits; none where they are not to be shown.
        compared: its edits of faces that other editors have too.
    """

    record: dict[str, Any]
    rows: list[Row]
    compared: Compared


class Panel:
    """A judge, and what else looks at edits: opened once for all editors.

    Raises:
        CheckpointError, DataError, UsageError: as `open_judge` and `open_identity`.
    """

    def __init__(self, judge: str, options: Options) -> None:
        self.options = options
        self.judge: Judge = open_judge(judge, device=options.device)
        self.identity: Identity | None = None
        if options.identity is not None:
            self.identity = open_identity(
                options.identity,
                self.judge,
                sha256=options.identity_sha256,
                device=options.device,
            )

    def measure(
        self, source: str, *, tell: Callable[[int, int], None] = lambda done, total: None
    ) -> Found:
        """Judge an editor.

        Raises:
            CheckpointError, DataError, ConfigError: as `restore` and `to_judge`.
            UsageError: it is no GeneGAN, or the judge does not know its attribute.
        """
        options, judge = self.options, self.judge
        editor = restore(source, device=options.device, root=options.data_root)
        task = task_of(editor)
        attribute = editor.experiment.data.attribute  # type: ignore[attr-defined]
        column = judge.number_of(attribute)
        judged = to_judge(editor, judge, options.n)
        lpips = find_lpips(editor.device) if task.shown_size >= SMALLEST else None
        scores = Scores(judge, column, judged.points, lpips, self.identity)
        compared = Compared()
        begin, joining = time.monotonic(), 0.0
        done = 0
        with torch.no_grad():
            workers = default_workers(judged.part, editor.device.type, shared_cores(1))
            for batch in editor.batches(judged.part, num_workers=workers):
                at = time.monotonic()
                made = make(task, batch, options.num_steps)
                if editor.device.type == "cuda":  # what is measured is over
                    torch.cuda.synchronize(editor.device)
                joining += time.monotonic() - at
                rows = torch.arange(done, done + len(batch["index"]))
                scores.add(made, rows)
                if not compared.is_full:
                    names = [judged.part.name(int(row)) for row in rows]
                    compared.add(made, [*zip(names[::2], names[1::2], strict=True)])
                done += len(rows)
                tell(done, len(judged.part))
        elapsed = time.monotonic() - begin
        same = alike(judged.labels, judge.names)
        others = others_of(scores, attribute, same)
        record = {
            **self._facts(editor, task, attribute, judged),
            **summary(scores, attribute, others, same, options.num_resamples),
            "judge": {
                "path": judge.path,
                "iteration": judge.iteration,
                "hash": judge.hash,
                "image_size": judge.size,
                "attributes": judge_on(scores, judged.labels, options.num_resamples),
            },
            "has_lpips": lpips is not None,
            "elapsed_sec": elapsed,
            "joiner_share": joining / elapsed if elapsed else None,
        }
        for name in ("background_lpips", "identity"):
            record.setdefault(name, None)
        shown = self._rows(editor, task, judged, scores, others) if options.shown else []
        return Found(record, shown, compared)

    def _facts(
        self, editor: Restored, task: GeneganTask, attribute: str, judged: Judged
    ) -> dict[str, Any]:
        return {
            "path": editor.path,
            "name": editor.experiment.name,
            "iteration": editor.iteration,
            "attribute": attribute,
            "image_size": task.shown_size,
            "split_is_stored": editor.split_is_stored,
            "num_held_out": judged.held_out,
            "num_seen_by_name": judged.seen_by_name,
            "num_seen_by_content": judged.seen_by_content,
            "contents_compared": judged.contents_compared,
            "num_pairs": judged.num_pairs,
            "level": LEVEL,
            "num_resamples": self.options.num_resamples,
            "background_region": "change" if judged.points is None else "landmarks",
            "identity_network": None if self.identity is None else self.identity.facts,
        }

    def _rows(
        self,
        editor: Restored,
        task: GeneganTask,
        judged: Judged,
        scores: Scores,
        others: list[int],
    ) -> list[Row]:
        chosen = [
            (edit, place, pair, values[pair])
            for edit in EDITS
            for values in [scores.of_edit(edit, others)]
            for place, pairs in _placed(values).items()
            for pair in pairs
        ]
        shown = sorted({pair for _, _, pair, _ in chosen})
        indices = judged.part.indices
        part = FacePart(
            judged.source, [int(indices[2 * pair + side]) for pair in shown for side in (0, 1)]
        )
        faces: dict[str, list[np.ndarray]] = {}
        for batch in editor.batches(part):
            for name, made in make(task, batch, 2).faces.items():
                faces.setdefault(name, []).extend(made.permute(0, 2, 3, 1).cpu().numpy())
        rows = []
        for edit, place, pair, score in chosen:
            at, (source, back) = shown.index(pair), EDITS[edit]
            titles = {"input": source, "edit": edit, "reconstruction": back}
            if edit == "Bu":
                titles["taken from"] = "Au"
            rows.append(
                Row(
                    edit=edit,
                    place=place,
                    score=float(score),
                    name=judged.part.name(2 * pair + (edit == "Bu")),
                    faces={title: faces[name][at] for title, name in titles.items()},
                )
            )
        return rows


def _placed(values: np.ndarray) -> dict[str, list[int]]:
    """Pairs of the highest, the middle and the lowest values; none twice."""
    order = np.argsort(-values, kind="stable").tolist()
    count = min(NUM_SHOWN, max(1, len(order) // 3))
    middle = (len(order) - count) // 2
    parts = order[:count], order[middle : middle + count], order[::-1][:count]
    return dict(zip(PLACES, parts, strict=True))


def exp_dir_of(path: Path) -> Path | None:
    """The experiment whose checkpoint it is; None where it lies in none."""
    from imgtool.experiment.layout import ExperimentDir

    directory = ExperimentDir(path.parent.parent)
    return directory.path if directory.config_path.is_file() else None
