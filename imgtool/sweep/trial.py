"""What a sweep consists of: its trials, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgtool.config.load import Loaded
from imgtool.experiment.layout import MANIFEST_NAME, TRIAL_CONFIG, ExperimentDir

if TYPE_CHECKING:
    from imgtool.sweep.halving import Halving
    from imgtool.sweep.ladder import Ladder
    from imgtool.sweep.over import Candidate, Preparation


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One experiment of a sweep.

    Attributes:
        name: unique within the sweep; also the name of its folder and of its metrics table.
        identity: hash of its resolved config (`imgtool.config.identity`, without the data's
            fingerprint; of one that is made for a candidate with the candidate's), 16 hex digits; names the trial whatever its row in the file.
        family: of models.
        directory: its exp_dir.
        overrides: what sets it apart from its config file, by dotted key: grid values, seed, --set.
        loaded: its config; `output.exp_dir` and `output.shared_dir` are filled in.
        source: the config or preset that it was made from, for people.
        num_ranks: processes that it trains on, one a GPU; whoever runs it says how many.
        also: further names of the same training, by configs of the sweep that differ in no value.
        strict_code: whether it refuses to train by other code than it was submitted with.
        pause_at: the rung (iterations, or epochs such as 3ep) at which its next start pauses.
        candidate: whom it is made for, in a sweep over candidates.
        preparation: what it reads that is made before it trains, and how.
        step: how many trials of a ladder stand above it.
        full_iterations: its limit, had it not a part of it to train on a ladder; None without one.
        is_first: it is trained for others to read, and is no candidate of a selection.
    """

    name: str
    identity: str
    family: str
    directory: ExperimentDir
    overrides: Mapping[str, Any]
    loaded: Loaded
    source: str
    num_ranks: int = 1
    also: tuple[str, ...] = ()
    strict_code: bool = False
    pause_at: str | None = None
    candidate: Candidate | None = None
    preparation: Preparation | None = None
    is_first: bool = False
    step: int = 0
    full_iterations: int | None = None

    @property
    def above(self) -> ExperimentDir | None:
        """The directory of the trial whose weights it begins with."""
        by = None if self.preparation is None else self.preparation.by
        return None if by is None else ExperimentDir(by)

    @property
    def names(self) -> tuple[str, ...]:
        """All of its names, its directory's first."""
        return (self.name, *self.also)

    @property
    def config_path(self) -> Path:
        """Where the resolved config is written before the trial starts."""
        return self.directory.path / TRIAL_CONFIG


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep, worked out.

    Attributes:
        name: of the sweep.
        phase: of its experiments; None when they have none or several.
        source: the spec, for people.
        root: folder of the exp_dirs, absolute; sweep.json and jobs/ lie here too.
        shared_dir: folder of the phase's copies, absolute; None without one.
        decides: config keys that the winner of this phase decides.
        trials: in the order of the spec, without repeats.
        max_running: queue -> most trials of it that run at once; other queues have no limit.
        duration_sec: time limit of a trial; None without one.
        then: shell commands for when every trial has ended, one after the other.
        then_resources: keys of `cluster` for the job that runs it; the site's few for others.
        halving: rungs at which the best part of the trials goes on; None where all do.
        ladder: how trials that begin with one another's weights are trained; None where none does.
    """

    name: str
    phase: str | None
    source: str
    root: Path
    shared_dir: Path | None
    decides: tuple[str, ...]
    trials: tuple[Trial, ...]
    max_running: Mapping[str, int] = field(default_factory=dict)
    duration_sec: float | None = None
    then: tuple[str, ...] = ()
    then_resources: Mapping[str, Any] = field(default_factory=dict)
    halving: Halving | None = None
    ladder: Ladder | None = None

    @property
    def manifest_path(self) -> Path:
        """What was planned here, for status, cancel and select-winner."""
        return self.root / MANIFEST_NAME

    @property
    def jobs_dir(self) -> Path:
        """Scripts, manifests and logs of cluster jobs."""
        return self.root / "jobs"
