"""What the tests against a real Slurm share. They run within with-slurm, beside nobody else."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool.config.schema import Cluster
from imgtool.schedulers.base import Request
from imgtool.schedulers.slurm import Slurm

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    outside = pytest.mark.skip(reason="run by `make test-slurm`")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if "SLURM_RIG" not in os.environ:
                item.add_marker(outside)


@pytest.fixture
def rig() -> Callable[..., str]:
    """rig('kill-controller') and the like; what it prints."""

    def call(*words: str) -> str:
        done = subprocess.run(
            [str(HERE / "slurm-rig"), *words], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture(autouse=True)
def nothing_left():
    """Each test finds the nodes empty, and a controller that answers."""
    yield
    if "SLURM_RIG" in os.environ:
        subprocess.run(["scancel", "--me"], timeout=60)


@pytest.fixture
def slurm() -> Slurm:
    return Slurm(backoff_sec=0.2, settle_sec=3, timeout_sec=30)


@pytest.fixture
def job(tmp_path: Path, slurm: Slurm) -> Callable[..., int]:
    """job('sleep 9', name='a', indices=(1, 2), num_gpus=1): submits a small job; its id."""

    def submit(body: str, *, name: str = "job", **given) -> int:
        known = set(Cluster.__dataclass_fields__) - set(Request.__dataclass_fields__)
        keys = {key: given.pop(key) for key in known & set(given)}
        resources = Cluster(**{"num_cores": 1, "num_gpus": 0, "memory": "100MB", **keys})
        request = Request(
            name=name,
            resources=resources,
            **{"walltime_sec": 600, "log_prefix": str(tmp_path / name), **given},
        )
        text = "\n".join(["#!/bin/bash", *slurm.directives(request), "", body, ""])
        path = tmp_path / f"{name}.sh"
        path.write_text(text)
        return slurm.submit(text, path, name=name)

    return submit
