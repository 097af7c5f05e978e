"""What this process was given of its machine. Torch-free."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from imgtool.schedulers import registry
from imgtool.schedulers.words import whole_number


def cores(
    environ: Mapping[str, str] | None = None,
    *,
    root: str | Path = "/",
    host: str | None = None,
) -> int:
    """Cores that this process may use: the least that anybody grants, at least one.

    Asked are the affinity mask, the CPU quota of the cgroups around the process (rounded down)
    and the scheduler of the job.

    Args:
        environ: variables of the job; this process's when None.
        root: of the file system that holds proc and the cgroups.
        host: name of this machine; asked for when None.
    """
    environ = os.environ if environ is None else environ
    granted = [_usable(), *_quotas(Path(root))]
    scheduler = registry.of_job(environ)
    given = scheduler.cores(environ, host or os.uname().nodename) if scheduler else None
    if given is not None:
        granted.append(given)
    return max(1, min(granted))


def _usable() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- control groups -------------------------------------------------------------------------


def _quotas(root: Path) -> Iterator[int]:
    """Whole cores that each limited group around this process may use."""
    paths = _group_paths(root)
    for kind, within, mount in _group_mounts(root):
        folder = mount
        path = paths.get(kind)
        if path is not None and path.is_relative_to(within) and ".." not in path.parts:
            folder = mount / path.relative_to(within)
        for group in (folder, *folder.parents):
            if not group.is_relative_to(mount):
                break
            quota = _quota_v2(group) if kind == "cgroup2" else _quota_v1(group)
            if quota is not None:
                yield quota


def _group_paths(root: Path) -> dict[str, Path]:
    """The process's own group in the second version's tree and in the first's for `cpu`."""
    paths: dict[str, Path] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths["cgroup2"] = Path(path)
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = Path(path)
    return paths


def _group_mounts(root: Path) -> Iterator[tuple[str, Path, Path]]:
    """Version, group and folder of each mounted tree that can limit the CPU."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        mount, kind = before.split(), after.split()
        if len(mount) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" or (kind[0] == "cgroup" and "cpu" in kind[2].split(",")):
            within, folder = (_unescaped(word) for word in mount[3:5])
            yield kind[0], Path(within), root / folder.lstrip("/")


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)


def _quota_v2(group: Path) -> int | None:
    words = _read(group / "cpu.max").split()
    return _whole_cores(*words) if len(words) == 2 else None


def _quota_v1(group: Path) -> int | None:
    return _whole_cores(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _whole_cores(quota: str, period: str) -> int | None:
    """None without a limit, which is `max` in one version and -1 in the other."""
    limit, each = whole_number(quota), whole_number(period)
    return None if limit is None or each is None else max(1, limit // each)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
