"""Which trials of a sweep share an array, and which of them a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from imgtool.config.schema import Cluster
from imgtool.schedulers.base import SchedulerError
from imgtool.schedulers.profile import Profile
from imgtool.schedulers.words import array_spec
from imgtool.sweep.trial import Plan, Trial
from imgtool.units import count


def groups(
    plan: Plan, profile: Profile, wanted: Mapping[str, Trial], per_job: int | None, most: int
) -> Iterator[tuple[Cluster, dict[int, tuple[Trial, ...]]]]:
    """Resources with the wanted trials that ask for them, by index.

    Trials that stand on different steps of a ladder share nothing, the highest come first.

    Args:
        per_job: trials that share a job; as the resources say when None.
        most: elements of an array.

    Raises:
        SchedulerError: resources that trials cannot share.
    """
    alike: dict[tuple[int, Cluster], list[Trial]] = {}
    for trial in sorted(plan.trials, key=lambda one: one.step):
        alike.setdefault((trial.step, resources_of(trial, profile, per_job)), []).append(trial)
    for (_, resources), members in alike.items():
        jobs_of: list[tuple[Trial, ...]] = [(trial,) for trial in members]
        if resources.trials_per_job > 1:
            left = [trial for trial in members if trial.name in wanted]
            jobs_of = _packed(left, resources.trials_per_job)
        for start in range(0, len(jobs_of), most):
            indexed = {
                index: tuple(wanted[trial.name] for trial in together)
                for index, together in enumerate(jobs_of[start : start + most], 1)
                if together[0].name in wanted
            }
            if indexed:
                _check(resources)
                yield resources, indexed


def resources_of(trial: Trial, profile: Profile, per_job: int | None) -> Cluster:
    """What a trial's job asks for, and how many trials share it."""
    resources = profile.resources(trial.loaded)
    return resources if per_job is None else replace(resources, trials_per_job=per_job)


def _check(resources: Cluster) -> None:
    """See that trials can share a job of these resources.

    Raises:
        SchedulerError: they cannot.
    """
    per_job, num_gpus = resources.trials_per_job, resources.num_gpus
    if per_job == 1:
        return
    if resources.num_nodes > 1:
        raise SchedulerError(
            f"{per_job} trials cannot share a job of {resources.num_nodes} nodes",
            hint="--trials-per-job 1, or cluster.num_nodes=1",
        )
    if resources.gpu_mode == "exclusive_process" and 0 < num_gpus < per_job:
        raise SchedulerError(
            f"a GPU in the mode exclusive_process takes one trial, and {per_job} are to share "
            f"{count(num_gpus, 'GPU')} (cluster.trials_per_job, num_gpus)",
            hint=f"cluster.gpu_mode=shared, cluster.num_gpus={per_job}, or --trials-per-job 1",
        )
    if num_gpus > per_job and num_gpus % per_job:
        raise SchedulerError(
            f"{num_gpus} GPUs cannot be divided among {per_job} trials (cluster.trials_per_job)",
            hint=f"cluster.num_gpus={num_gpus // per_job * per_job}",
        )


def _packed(trials: Sequence[Trial], per_job: int) -> list[tuple[Trial, ...]]:
    """The trials of each job, so many together."""
    return [tuple(trials[at : at + per_job]) for at in range(0, len(trials), per_job)]


def chunks(
    indexed: Mapping[int, tuple[Trial, ...]], room: int
) -> Iterator[dict[int, tuple[Trial, ...]]]:
    """Parts whose array specification has at most so many characters."""
    chunk: list[int] = []
    for index in sorted(indexed):
        if chunk and len(array_spec([*chunk, index])) > room:
            yield {one: indexed[one] for one in chunk}
            chunk = []
        chunk.append(index)
    yield {one: indexed[one] for one in chunk}
