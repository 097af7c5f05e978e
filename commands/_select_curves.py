"""The curves that `select-winner --rule bd-rate` compares, measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from imgtool.selection.curves import Compared
    from imgtool.selection.records import Evidence
    from imgtool.selection.rule_file import Rule


def compare_curves(
    evidence: Sequence[Evidence], rule: Rule, part: Literal["val", "test"]
) -> dict[str, Compared]:
    """Every experiment's curve against the best one's, on the images of a split.

    Raises:
        UserError: as `curves`, `curves_of` and `rank` do.
    """
    from commands._counting import counting
    from imgtool.config.load import read_resolved
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.models.registry import schema
    from imgtool.selection.curves import Compared, curves
    from imgtool.training.environment import prepare

    wanted = curves(evidence, rule)
    prepare(deterministic=False)
    from imgtool.evaluation.rate_distortion.compare import rank
    from imgtool.evaluation.rate_distortion.experiments import Study, curves_of

    studies = []
    for name, seeds in wanted.items():
        path = next(iter(next(iter(seeds.values())).values()))
        first = read_resolved(ExperimentDir(path).config_path, schema).experiment
        studies.append(Study(name, seeds, first))
    with counting("coding") as tell:
        measured = curves_of(studies, part=part, tell=tell)
    found = {}
    for one in rank(measured):
        low, high = one.low_percent, one.high_percent
        found[one.name] = Compared(
            percent=one.percent,
            interval=None if low is None or high is None else (low, high),
            differs=one.differs,
            notes=tuple(f"{one.name} against {one.anchor}: {note}" for note in one.notes),
        )
    return found
