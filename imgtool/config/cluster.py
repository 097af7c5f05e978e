"""The section `cluster:` of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from imgtool.config.option import STRICT, NonNegativeInt, PositiveInt, option


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Resources that a cluster job of this experiment asks for."""

    __pydantic_config__ = STRICT

    queue: str | None = option(
        None, "Queue or partition of the cluster job, such as gpuv100.", run=True
    )
    account: str | None = option(
        None,
        "Account or project that the cluster job is charged to.",
        run=True,
        aliases=("project",),
    )
    qos: str | None = option(None, "Quality of service of the cluster job.", run=True)
    num_nodes: PositiveInt = option(1, "Hosts of the cluster job.", run=True)
    num_cores: PositiveInt = option(8, "Cores of the cluster job, on each host.", run=True)
    num_gpus: NonNegativeInt = option(
        1, "GPUs on each host, one rank each; of the job, where trials share one.", run=True
    )
    gpu_type: str | None = option(None, "Kind of the cluster job's GPUs, such as v100.", run=True)
    gpu_mode: Literal["shared", "exclusive_process"] | None = option(
        None, "Mode of the cluster job's GPUs; the site's own when unset.", run=True
    )
    memory: str = option("4GB", "Memory of the cluster job, with its unit.", run=True)
    memory_per: Literal["core", "job"] = option(
        "core", "Whether the cluster job's memory is for each core or for the whole job.", run=True
    )
    walltime: str = option("6h", "Run limit of the cluster job.", run=True)
    trials_per_job: PositiveInt = option(
        1, "Trials that one cluster job runs at once, on what it is given.", run=True
    )
    select: str | None = option(
        None, "What hosts must have: gpu32gb on LSF, a constraint of Slurm.", run=True
    )
    modules: tuple[str, ...] = option((), "Modules that the cluster job loads.", run=True)
    setup: tuple[str, ...] = option(
        (),
        "Shell lines of the cluster job before imgtool starts, such as source env.sh.",
        run=True,
    )
    extra: tuple[str, ...] = option(
        (), "Further options of the scheduler, such as -B or --exclude=n1.", run=True
    )

    @staticmethod
    def rewrite(raw: dict[str, Any]) -> dict[str, Any]:
        """`project: p1`, as LSF calls it, is the account."""
        if "project" not in raw:
            return raw
        new = {name: value for name, value in raw.items() if name != "project"}
        if raw["project"] is not None and new.get("account") is not None:
            raise ValueError("account and project are one: keep one of them")
        return {**new, "account": raw["project"] or new.get("account")}
