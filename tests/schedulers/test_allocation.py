"""Cores that were given: affinity, control groups, the job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imgtool.schedulers import allocation
from imgtool.schedulers.allocation import cores

V2 = "30 23 0:26 {within} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 31 0:30 {within} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
OTHER = "35 31 0:32 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"


@pytest.fixture(autouse=True)
def _a_machine_of_64_cores(monkeypatch) -> None:
    monkeypatch.setattr(allocation, "_usable", lambda: 64)


def tree(root: Path, own: str, mounts: list[str], files: dict[str, str]) -> Path:
    """A file system with these cgroups in it."""
    contents = {
        "proc/self/cgroup": own + "\n",
        "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda rw\n" + "\n".join(mounts) + "\n",
        **{f"sys/fs/cgroup/{name}": text + "\n" for name, text in files.items()},
    }
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(root: Path, own: str, within: str = "/", **limits: str) -> int:
    files = {f"{group.replace('__', '/')}/cpu.max": text for group, text in limits.items()}
    return cores({}, root=tree(root, f"0::{own}", [V2.format(within=within)], files))


def test_nobody_sets_a_limit(tmp_path):
    assert cores({}, root=tmp_path) == 64
    assert v2(tmp_path, "/a/b", a="max 100000", a__b="max 100000") == 64


def test_the_affinity_mask_counts(tmp_path, monkeypatch):
    monkeypatch.undo()
    assert cores({}, root=tmp_path) == len(os.sched_getaffinity(0))
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from imgtool.schedulers.allocation import cores; print(cores({}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_this_machine_is_read_without_an_error():
    assert 1 <= cores() <= 64


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"a__b": "800000 100000"}, 8),
        ({"a__b": "350000 100000"}, 3),  # rounded down
        ({"a__b": "20000 100000"}, 1),  # and yet one
        ({"a__b": "max 100000", "a": "400000 100000"}, 4),  # of a group above
        ({"a__b": "200000 100000", "a": "400000 100000"}, 2),
        ({"a__b": "600000 100000", "a": "400000 100000"}, 4),
        ({"a__b": "200000 50000"}, 4),
        ({"a__b__c": "100000 100000"}, 64),  # of a group below
        ({"a__b": "many"}, 64),
        ({"a__b": "0 0"}, 64),
    ],
)
def test_the_second_version_s_quota(tmp_path, limits, expected):
    assert v2(tmp_path, "/a/b", **limits) == expected


def test_a_container_sees_its_own_group_as_the_mount(tmp_path):
    # In the host's namespace the path is the whole one, and the mount shows a part of the tree.
    assert v2(tmp_path / "1", "/docker/x/job", "/docker/x", job="300000 100000") == 3
    # In a namespace of its own the path is the root, or lies outside.
    for number, own in enumerate(("/", "/../other", "/elsewhere")):
        root = tree(
            tmp_path / f"{number}n",
            f"0::{own}",
            [V2.format(within="/docker/x" if own == "/elsewhere" else "/")],
            {"cpu.max": "500000 100000"},
        )
        assert cores({}, root=root) == 5


@pytest.mark.parametrize(("quota", "expected"), [("250000", 2), ("-1", 7), ("1", 1)])
def test_the_first_version_s_quota(tmp_path, quota, expected):
    files = {
        "cpu,cpuacct/lsf/job/cpu.cfs_quota_us": quota,
        "cpu,cpuacct/lsf/job/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/lsf/cpu.cfs_quota_us": "700000",
        "cpu,cpuacct/lsf/cpu.cfs_period_us": "100000",
        "cpuset/wrong/cpu.cfs_quota_us": "100000",
        "cpuset/wrong/cpu.cfs_period_us": "100000",
    }
    own = "5:cpuset:/wrong\n4:cpu,cpuacct:/lsf/job\n0::/"
    root = tree(tmp_path, own, [OTHER, V1.format(within="/")], files)
    assert cores({}, root=root) == expected


def test_both_versions_side_by_side(tmp_path):
    files = {
        "cpu,cpuacct/job/cpu.cfs_quota_us": "900000",
        "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
        "user/cpu.max": "600000 100000",
    }
    mounts = [V1.format(within="/"), V2.format(within="/")]
    root = tree(tmp_path, "4:cpu,cpuacct:/job\n0::/user", mounts, files)
    assert cores({}, root=root) == 6


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("hostA 4", 4),
        ("hostB 4", 4),  # one host only: it is this one, under whatever name
        ("hostA 4 hostB 16", 4),
        ("hostB 16 hostA.cluster.example 6", 6),
        ("HOSTA 4 hostB 16", 4),
        ("hostA 4 hostB 16 hostA 2", 6),
        ("hostB 16 hostC 2", 64),  # not ours
        ("hostA", 64),
        ("hostA four", 64),
        ("", 64),
    ],
)
def test_lsf_gives_this_host_s_share(tmp_path, hosts, expected):
    environ = {"LSB_JOBID": "1", "LSB_MCPU_HOSTS": hosts, "LSB_DJOB_NUMPROC": "2"}
    assert cores(environ, root=tmp_path, host="hosta.example.com") == expected


def test_the_smallest_wins(tmp_path):
    root = tree(tmp_path, "0::/a", [V2.format(within="/")], {"a/cpu.max": "700000 100000"})
    for hosts, least in (("a 5", 5), ("a 90", 7)):
        assert cores({"LSB_JOBID": "1", "LSB_MCPU_HOSTS": hosts}, root=root) == least
    assert cores({"LSB_MCPU_HOSTS": "a 5"}, root=root) == 7  # no job: left over
