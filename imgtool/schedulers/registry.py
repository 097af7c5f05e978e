"""Every scheduler by name. A new one is a file of this package and a line here."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from imgtool.schedulers.base import Scheduler

SCHEDULERS = {
    "lsf": "imgtool.schedulers.lsf:Lsf",
}
AUTO = "auto"
QUICK_SEC = 5.0  # what somebody who only looks waits for an answer


def names() -> list[str]:
    """The names, in the order in which they are looked for."""
    return list(SCHEDULERS)


def get(name: str, *, timeout_sec: float = 60.0) -> Scheduler:
    """The scheduler of this name.

    Args:
        name: as `names` has it.
        timeout_sec: after which a call of one of its programs is given up.

    Raises:
        SchedulerError: there is none.
    """
    if name not in SCHEDULERS:
        from imgtool.errors import did_you_mean
        from imgtool.schedulers.base import SchedulerError

        raise SchedulerError(f"no scheduler {name!r}", hint=did_you_mean(name, names()))
    module, _, attribute = SCHEDULERS[name].partition(":")
    return cast("Scheduler", getattr(import_module(module), attribute)(timeout_sec=timeout_sec))


def find(word: str = AUTO) -> Scheduler:
    """The scheduler of this name, or with `auto` the one whose submission program is on PATH.

    Raises:
        SchedulerError: no such scheduler; with `auto` none, or several.
    """
    if word != AUTO:
        return get(word)
    known = [get(name) for name in names()]
    here = [one for one in known if shutil.which(one.submit_program)]
    if len(here) == 1:
        return here[0]
    from imgtool.schedulers.base import SchedulerError

    programs = " and ".join(one.submit_program for one in here or known)
    if here:
        raise SchedulerError(
            f"{programs} are both here",
            hint=f"write `scheduler: {here[0].name}` into ~/.config/imgtool/cluster.yaml",
        )
    raise SchedulerError(
        f"there is no cluster here: {programs} is not on PATH",
        hint=f"name one, such as --executor {known[0].name}, or use --executor local",
    )


def of_job(environ: Mapping[str, str]) -> Scheduler | None:
    """The scheduler of the job with these variables; None outside a job."""
    return next((one for one in map(get, SCHEDULERS) if environ.get(one.id_variable)), None)


def own_job(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """`executor`, `job_id` and `index` (0 outside an array), as job.json has them, of the job
    with these variables; None outside a job."""
    scheduler = of_job(environ)
    key = scheduler.own_key(environ) if scheduler else None
    if scheduler is None or key is None:
        return None
    return {"executor": scheduler.name, "job_id": key[0], "index": key[1]}
