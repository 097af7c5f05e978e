"""What selection passes between its parts: evidence, verdicts, and the selection itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of one run of an experiment.

    Attributes:
        name: as its directory, table or sweep has it.
        group: the experiment's name, unique; what runs that differ in their seed alone share.
        exp_dir: its directory; None for a table that came alone.
        table_path: its metrics CSV; None when it has none.
        state: completed, stopped, failed, diverged, …; `unknown` for a table that came alone.
        epochs, iterations: of every row of the table, in order.
        curves: column -> values in the order of the rows, NaN where a cell is empty.
        metrics: what is compared: val_* at the best row (that of the monitored metric), plus
            latent_dims, num_parameters, macs_per_image, images_per_sec, peak_memory_bytes,
            stability, convergence_epochs and the like, where known; no NaN.
        facts: latent_shape and other things that are not compared.
        checkpoint: the best one; None when unknown.
        seed: of training; None when unknown.
        family: of models; None when unknown.
        monitor: the metric that told the best row; the family's own where a rule names none.
        config: every identity key of its config, and its limits; None without one.
    """

    name: str
    group: str
    exp_dir: Path | None
    table_path: Path | None
    state: str
    epochs: Sequence[float]
    iterations: Sequence[float]
    curves: Mapping[str, Sequence[float]]
    metrics: Mapping[str, float]
    facts: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    seed: int | None = None
    family: str | None = None
    monitor: str | None = None
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A seed that a rule cannot use.

    Attributes:
        kind: in a word or two: diverged, failed, unfinished, …
        reason: in full.
    """

    run: Evidence
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An experiment as a rule sees it: its seeds taken together.

    Attributes:
        name: of the group.
        runs: its usable evidence, one a seed, the first the best of them; all of it where none
            is usable.
        metrics: means over `runs`.
        deviations: sample standard deviations; absent with one run.
        lost: the seeds that the rule cannot use.
        moved: means that a resample puts in the place of what was seen, as noise compares them.
    """

    name: str
    runs: Sequence[Evidence]
    metrics: Mapping[str, float]
    deviations: Mapping[str, float] = field(default_factory=dict)
    lost: Sequence[Lost] = ()
    moved: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_seeds(self) -> int:
        """Different seeds behind the means; a run whose seed is unknown is one of its own."""
        return len({id(run) if run.seed is None else f"seed {run.seed}" for run in self.runs})

    @property
    def also(self) -> list[str]:
        """Further names of its runs, of experiments that are the same."""
        return list(dict.fromkeys(name for run in self.runs for name in run.facts.get("also", ())))

    @property
    def num_lost(self) -> dict[str, int]:
        """Kind -> how many seeds were lost to it, the most frequent first."""
        return dict(Counter(one.kind for one in self.lost).most_common())

    @property
    def loss_told(self) -> str:
        """Such as `2 of 3 diverged`; empty where nothing is lost."""
        num_all = len({id(run) for run in (*self.runs, *(one.run for one in self.lost))})
        return ", ".join(f"{n} of {num_all} {kind}" for kind, n in self.num_lost.items())


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one candidate.

    Attributes:
        rank: 1 is the winner; None for what was not ranked.
        is_eligible: passed the filters of the rule.
        on_frontier: no other eligible candidate is better in both quality and size; None when
            the rule knows no frontier.
        reason: a sentence.
        criteria: success criterion -> met (None when it cannot be told).
        interval: of the mean quality, at 95 %; None where the noise is not known.
        share: of the resamples in which it is chosen; None where there are none.
    """

    candidate: Candidate
    rank: int | None
    is_eligible: bool
    on_frontier: bool | None
    reason: str
    criteria: Mapping[str, bool | None] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """From one candidate of the frontier to the next larger one.

    Attributes:
        smaller, larger: names.
        gain: relative improvement of the quality metric, 0.1 is 10 %.
        growth: how many times the size of the smaller.
        is_worth_it: by the rule's own threshold; None where that says nothing.
    """

    smaller: str
    larger: str
    gain: float
    growth: float
    is_worth_it: bool | None


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """How sure a choice is.

    Attributes:
        source: what the noise is known from: repeats, assumed, measurement (the values' own
            standard errors), curves (BD-rates over images); None where nothing is known of it.
        std: from seed to seed: of the metric's logarithm where `is_log`, else of the metric.
        dof: degrees of freedom behind it, infinite where it is assumed.
        is_equal: whether it is the same in all experiments, as far as a test can tell.
        rivals: names that may be what should have been chosen: within the noise of the winner,
            or chosen in one resample of twenty or more.
        num_resamples: those behind the verdicts' shares.
        more_seeds: of each contender that would decide; None where that cannot be told.
        commands: which run them.
        notes: of the measurement.
    """

    source: str | None
    std: float | None = None
    dof: float | None = None
    is_log: bool = False
    is_equal: bool = True
    rivals: Sequence[str] = ()
    num_resamples: int = 0
    more_seeds: int | None = None
    commands: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The outcome of a rule.

    Attributes:
        rule: its name.
        description: what it does, a sentence.
        quality: metric of the vertical axis, such as val_mse; its direction in `quality_mode`.
        size: metric of the horizontal axis, such as latent_dims; None when there is none.
        threshold: largest (or smallest) quality that passes, in units of `quality`; None.
        verdicts: winner first, then the ranked, then the rejected.
        steps: along the frontier, smallest first.
        winner: None when nothing passed.
        reason: why it won, or what came closest, a sentence.
        ties: names whose difference from the winner is inside the noise.
        phase: of the experiments; None when unknown or several.
        decides: config keys that the phase decides.
        certainty: how sure the choice is; None where nothing was chosen.
    """

    rule: str
    description: str
    quality: str
    quality_mode: str
    size: str | None
    threshold: float | None
    verdicts: Sequence[Verdict]
    steps: Sequence[Step]
    winner: Verdict | None
    reason: str
    ties: Sequence[str] = ()
    phase: str | None = None
    decides: Sequence[str] = ()
    certainty: Certainty | None = None
