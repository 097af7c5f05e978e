"""A cluster job, or an array of them, as text that can be handed to the scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from imgtool.schedulers.base import Request, Scheduler
from imgtool.schedulers.script import job_text
from imgtool.sweep.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Script:
    """One job, or one array of jobs, as it is handed to the scheduler.

    Attributes:
        request: what is asked for; its name is unique, and the scheduler can look for it.
        path, text: of the job file.
        manifest_path, manifest_text: index, exp_dir, family and pause, a line each; None for a
            follow-up.
        trials: index -> the trials of that job; empty for a follow-up.
        log_pattern: with the scheduler's patterns for the job's id and index.
        memory: what is reserved, in words, such as `4GB x 8 cores = 32GB`.
        body: of the text, what stands below the head.
        parents: of those that it starts after, the jobs of the trials whose weights its own begin
            with; ids, or names in double quotes.
    """

    request: Request
    path: Path
    text: str
    manifest_path: Path | None = None
    manifest_text: str | None = None
    trials: Mapping[int, tuple[Trial, ...]] = field(default_factory=dict)
    log_pattern: str
    memory: str
    body: str
    parents: tuple[str, ...] = ()

    def after(self, ids: Mapping[str, int], scheduler: Scheduler) -> Script:
        """The same with the ids of jobs of the same sweep, which have been submitted by now.

        Args:
            ids: of the jobs, by name.
        """
        known = {f'"{name}"': str(job_id) for name, job_id in ids.items()}
        if not known.keys() & {*self.request.after}:
            return self
        parents = tuple(known.get(one, one) for one in self.parents)
        given = tuple(dict.fromkeys(known.get(one, one) for one in self.request.after))
        request = replace(self.request, after=given)
        text = job_text(scheduler, request, self.body, folder=Path.cwd())
        return replace(self, request=request, text=text, parents=parents)

    @property
    def name(self) -> str:
        """Of the job."""
        return self.request.name

    @property
    def num_trials(self) -> int:
        """In all of its jobs."""
        return sum(map(len, self.trials.values()))

    @property
    def queue(self) -> str | None:
        """None is the site's default."""
        return self.request.resources.queue

    @property
    def gpu_hours(self) -> float:
        """Upper bound of what its trials cost in one turn each."""
        num_gpus = self.request.resources.num_gpus * self.request.resources.num_nodes
        return len(self.trials) * num_gpus * self.request.walltime_sec / 3600
