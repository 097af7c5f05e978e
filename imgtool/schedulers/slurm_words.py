"""How a job is put to Slurm: the options of its file, its id, what sbatch sees. Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from imgtool.config.schema import Cluster
from imgtool.schedulers.base import Key, Request, SchedulerError
from imgtool.schedulers.words import array_spec, memory_mb, memory_text

MAX_WARN_SEC = 65535
EARLY_SEC = 60  # Slurm looks at the time that rarely
# Variables by which a user may have chosen what a job file leaves open; all others of sbatch's
# own would win over the file's directives.
_CHOICES = {
    "SBATCH_ACCOUNT": "--account",
    "SBATCH_PARTITION": "--partition",
    "SBATCH_QOS": "--qos",
    "SBATCH_CONSTRAINT": "--constraint",
    "SBATCH_RESERVATION": "--reservation",
    "SBATCH_WCKEY": "--wckey",
}
_KEPT = {"SLURM_CONF", "SLURM_CLUSTERS"}
_ARE_OURS = re.compile(r"(?:SLURM|SLURMD|SBATCH|SQUEUE|SACCT|SCANCEL|SCONTROL|SRUN|PMI)_")
_GPUS_HERE = {"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"}


def options(request: Request, log: str) -> list[str]:
    """The options of a job, the most telling first.

    Args:
        request: what is asked for.
        log: pattern of the log's path.

    Raises:
        SchedulerError: something that no directive can hold.
    """
    resources = request.resources
    given = [f"--job-name={request.name}"]
    if request.indices:
        limit = f"%{request.max_running}" if request.max_running else ""
        given.append(f"--array={array_spec(request.indices)}{limit}")
    given += _words("partition", resources.queue, "gpuv100 or gpuv100,gpul40s")
    given += _words("account", resources.account, "an account of `sacctmgr show assoc`")
    given += _words("qos", resources.qos, "one of `sacctmgr show qos`")
    given += [
        f"--nodes={resources.num_nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={resources.num_cores}",
        _memory(resources),
        *_gpus(resources),
    ]
    if resources.select:
        given.append(f"--constraint={_quoted(resources.select.strip(), 'cluster.select')}")
    given.append(f"--time={clock(request.walltime_sec)}")
    if request.warn_sec:
        given.append(f"--signal=B:INT@{_warning(request.warn_sec)}")
    given.append(f"--output={_quoted(log, 'the log')}")
    given.append("--open-mode=append")  # another turn would empty the log
    given.append("--requeue" if request.requeue else "--no-requeue")
    if request.after and not unknown_parents(request):
        given.append(f"--dependency=afterany:{':'.join(request.after)}")
        given.append("--kill-on-invalid-dep=yes")
    return given + [_one_line(option) for option in request.extra]


def unknown_parents(request: Request) -> list[str]:
    """Names of jobs to wait for that have no id yet."""
    return [parent.strip('"') for parent in request.after if not parent.isdecimal()]


def spec(key: Key) -> str:
    """A job as Slurm's commands name it: `123_4`, or `123` without an array."""
    return f"{key[0]}_{key[1]}" if key[1] else str(key[0])


def own_key(environ: Mapping[str, str]) -> Key | None:
    """The job with these variables: an array's id and index, or the job's own id and 0."""
    job, index = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_ARRAY_TASK_ID", "")
    if index.isdecimal():
        job = environ.get("SLURM_ARRAY_JOB_ID", job)
    return (int(job), int(index) if index.isdecimal() else 0) if job.isdecimal() else None


def without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables without those of a job, and without those that change what Slurm's programs
    do, but for where Slurm is."""
    return {
        name: value for name, value in environ.items() if name in _KEPT or not _ARE_OURS.match(name)
    }


def submission_environ(text: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What sbatch is to see, and by its default the job.

    Without the variables of a job that this process may be in (an index, two ways to count
    memory), those that would win over the file's directives, and the GPUs of this machine.
    """
    given = {name for name, option in _CHOICES.items() if f"\n#SBATCH {option}=" not in text}
    chosen = {name: value for name, value in environ.items() if name in given}
    kept = {**without_ours(environ), **chosen}
    return {name: value for name, value in kept.items() if name not in _GPUS_HERE}


def clock(seconds: float) -> str:
    """A run limit as Slurm writes it: `06:00:00`, `1-00:00:00`."""
    minutes, rest = divmod(max(1, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hours:02d}:{minutes:02d}:{rest:02d}"


def _words(option: str, value: str | None, example: str) -> list[str]:
    if value is None:
        return []
    if not re.fullmatch(r"[\w.,+@:-]+", value, re.ASCII):
        key = "queue" if option == "partition" else option
        raise SchedulerError(f"cluster.{key} is {value!r}", hint=f"name {example}")
    return [f"--{option}={value}"]


def _memory(resources: Cluster) -> str:
    amount = memory_text(memory_mb(resources.memory)).removesuffix("B")
    return f"--mem-per-cpu={amount}" if resources.memory_per == "core" else f"--mem={amount}"


def _gpus(resources: Cluster) -> list[str]:
    if not resources.num_gpus:
        return []
    if resources.gpu_mode == "exclusive_process":
        raise SchedulerError(
            "cluster.gpu_mode is exclusive_process, which Slurm has no word for",
            hint="leave it out: a GPU is its job's alone; a site's own option goes to cluster.extra",
        )
    kind = resources.gpu_type
    if kind is not None and not re.fullmatch(r"[\w.-]+", kind, re.ASCII):
        raise SchedulerError(
            f"cluster.gpu_type is {kind!r}", hint="name a type of `sinfo -o %G`, such as v100"
        )
    return [
        f"--gres=gpu:{kind}:{resources.num_gpus}" if kind else f"--gres=gpu:{resources.num_gpus}"
    ]


def _warning(seconds: int) -> int:
    """What to ask for so that a signal that comes up to a minute early is not too early."""
    return min(max(seconds - EARLY_SEC, math.ceil(seconds / 2)), MAX_WARN_SEC)


def _quoted(value: str, label: str) -> str:
    """In double quotes where sbatch needs them. A backslash turns the log's patterns off."""
    if re.search(r"\\|[^\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", value):
        raise SchedulerError(
            f"{label}: {value!r} cannot stand in a directive of Slurm",
            hint="choose one without \\ and control characters",
        )
    if re.fullmatch(r"[\w.+/:,=@%&|*-]+", value):
        return value
    return '"' + value.replace('"', '\\"') + '"'


def _one_line(option: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", option):
        raise SchedulerError(f"cluster.extra has {option!r}", hint="write an option a string")
    return option
