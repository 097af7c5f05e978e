"""Loader workers that die, and room for their batches: real processes, signals and file systems."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from imgtool.config.schema import Data
from imgtool.data import room
from imgtool.data.datasets import open_datasets
from imgtool.data.loader import eval_loader, train_loader
from imgtool.errors import ExitCode, LoaderError

OPTIONS: dict[str, Any] = {"rank": 0, "world_size": 1, "num_workers": 2, "pin_memory": False}


@pytest.fixture
def data(make_photos: Callable) -> Data:
    return Data(root=str(make_photos(8)), val_fraction=0.0, test_fraction=0.0, cache="none")


def load(data: Data, heard: list[str], **more: Any) -> Iterator[dict[str, Any]]:
    options = {**OPTIONS, "seed": 3, "batch_size": 2, "start_batch": 0, **more}
    return train_loader(open_datasets(data).train, data, say=heard.append, **options)


def workers() -> list[Any]:
    return sorted(multiprocessing.active_children(), key=lambda each: each.pid)


def kill(worker: Any, number: int = signal.SIGKILL) -> None:
    """By another process, as the kernel would: torch takes some signals for its own farewell."""
    subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
    deadline = time.monotonic() + 10
    while worker.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)  # where torch's handler would raise
    assert not worker.is_alive()


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[key], b[key])
        for a, b in zip(one, other, strict=True)
        for key in a
        if key != "scene"  # of the first images alone
    )


def test_a_killed_worker_is_named_and_started_again_once(data: Data) -> None:
    heard: list[str] = []
    expected = list(islice(load(data, [], num_workers=0), 12))
    batches = load(data, heard)
    found = list(islice(batches, 3))
    killed = workers()[1]
    kill(killed)
    assert heard == []
    found += islice(batches, 9)
    assert same(found, expected)
    assert len(workers()) == 2
    assert heard == [
        f"warning: loader worker 2 of 2 (pid {killed.pid}) was killed by SIGKILL: the machine may "
        "be out of memory; workers are started again, once"
    ]
    kill(workers()[0])
    with pytest.raises(LoaderError, match=r"worker 1 of 2 \(pid \d+\) was killed.*second") as error:
        next(batches)
    assert error.value.exit_code == ExitCode.UNREADABLE
    assert "--num-workers 0" in (error.value.hint or "")
    assert len(heard) == 1
    assert workers() == []


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGHUP, "was killed by SIGHUP; "), (37, "by signal 37; ")]
)
def test_other_ends_are_named_too(data: Data, number: int, words: str) -> None:
    heard: list[str] = []
    batches = load(data, heard)
    next(batches)
    kill(workers()[0], number)
    next(batches)
    assert len(heard) == 1
    assert words in heard[0]
    batches.close()  # type: ignore[attr-defined]


class Deadly:
    """Rows of a part whose reading kills the process, the first time in all."""

    def __init__(self, part: Any, once: Path) -> None:
        self.part, self.once = part, once

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)

    def __len__(self) -> int:
        return len(self.part)

    def read(self, index: int) -> Any:
        if index == 3 and not self.once.exists():
            self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.part.read(index)


def test_a_worker_that_dies_while_its_batch_is_waited_for(data: Data, tmp_path: Path) -> None:
    heard: list[str] = []
    part = open_datasets(data).train
    options = {**OPTIONS, "batch_size": 2, "say": heard.append}
    loader = eval_loader(Deadly(part, tmp_path / "once"), **options)  # type: ignore[arg-type]
    expected = list(eval_loader(part, **{**options, "num_workers": 0}))
    assert same(list(loader), expected)
    assert len(heard) == 1
    assert "of 2" in heard[0]
    assert same(list(loader), expected)


def test_a_worker_that_is_killed_at_any_moment(data: Data) -> None:
    expected = list(islice(load(data, [], num_workers=0), 24))
    for taken in range(1, 4):  # amid work, sending, waiting: nobody looks where
        heard: list[str] = []
        batches = load(data, heard)
        found = list(islice(batches, taken))
        os.kill(workers()[taken % 2].pid, signal.SIGKILL)
        found += islice(batches, 24 - taken)
        assert same(found, expected)
        assert len(heard) == 1
        batches.close()  # type: ignore[attr-defined]


def test_workers_that_last_evaluate_again(data: Data) -> None:
    heard: list[str] = []
    part = open_datasets(data).train
    loader = eval_loader(part, **OPTIONS, batch_size=2, lasting=True, say=heard.append)
    expected = list(eval_loader(part, **{**OPTIONS, "num_workers": 0}, batch_size=2))
    assert same(list(loader), expected)
    started = [worker.pid for worker in workers()]
    assert len(started) == 2
    broken_off = iter(loader)
    assert same([next(broken_off)], expected[:1])
    broken_off.close()  # type: ignore[attr-defined]
    assert same(list(loader), expected)
    assert [worker.pid for worker in workers()] == started
    kill(workers()[0])
    assert same(list(loader), expected)  # one has ended meanwhile
    assert len(heard) == 1
    assert same(list(loader), expected)
    kill(workers()[1])
    with pytest.raises(LoaderError, match="second time"):
        list(loader)
    assert workers() == []


def test_the_first_images_take_no_workers(data: Data) -> None:
    part = open_datasets(data).train
    every = list(eval_loader(part, **{**OPTIONS, "num_workers": 0}, batch_size=2))
    for rank in range(2):  # the same on each
        options = {**OPTIONS, "rank": rank, "world_size": 2, "batch_size": 2, "lasting": True}
        loader = eval_loader(part, **options)
        few = loader.first(3)
        assert same([next(few)], every[:1])
        assert workers() == []
        assert [batch["index"].tolist() for batch in few] == [[2]]
        assert list(loader.first(0)) == []


def test_deaths_are_counted_over_all_evaluations(data: Data) -> None:
    heard: list[str] = []
    part = open_datasets(data).train
    loader = eval_loader(part, **OPTIONS, batch_size=2, say=heard.append)
    batches = iter(loader)
    next(batches)
    kill(workers()[0])
    assert len(list(batches)) == 3
    again = iter(loader)
    next(again)
    kill(workers()[0])
    with pytest.raises(LoaderError, match="second time"):
        next(again)


def test_workers_that_were_told_to_end_are_no_fault(data: Data) -> None:
    heard: list[str] = []
    expected = list(islice(load(data, [], num_workers=0), 24))
    batches = load(data, heard)
    found = [next(batches)]
    for worker in workers():
        kill(worker, signal.SIGTERM)
    found += islice(batches, 16)
    assert heard == []  # a stop may be on its way
    found += islice(batches, 7)
    assert heard == ["warning: loader workers were told to end: the main process loads alone"]
    assert same(found, expected)
    assert workers() == []


# --- room -----------------------------------------------------------------------------------

LOADS = """
import json, multiprocessing, os, resource, subprocess, sys
from itertools import islice
from imgtool.config.schema import Data
from imgtool.data.datasets import open_datasets
from imgtool.data.loader import train_loader
from imgtool.errors import UserError

def limit(soft, hard):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

def shm(size):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", "/dev/shm"], check=True)

def fill(count):
    to = "of=/dev/shm/other"
    subprocess.run(["dd", "if=/dev/zero", to, "bs=64k", f"count={count}"], stderr=-3)

data = Data(root=sys.argv[1], val_fraction=0.0, test_fraction=0.0, cache="none")
for before, between, after in json.loads(sys.argv[2]):
    answer = {"heard": [], "error": None}
    exec(before)
    found = train_loader(
        open_datasets(data).train, data, seed=1, batch_size=8, start_batch=0, rank=0,
        world_size=1, num_workers=2, pin_memory=False, say=answer["heard"].append)
    try:
        exec(between)
        next(found)
        answer["workers"] = len(multiprocessing.active_children())
        answer["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        exec(after)
        answer["batches"] = 1 + sum(1 for _ in islice(found, 11))
    except UserError as error:
        answer |= {"error": str(error), "hint": error.hint, "code": int(error.exit_code)}
    found.close()
    print(json.dumps(answer))
"""


def loading(root: Path, steps: list[tuple[str, str, str]], *command: str) -> list[dict[str, Any]]:
    """What a process says that loads 12 batches of 600 KB by two workers, several times.

    Args:
        steps: what it does before each loading, before workers start, and once they run.
        command: to start it by.
    """
    done = subprocess.run(
        [*command, sys.executable, "-c", LOADS, str(root), json.dumps(steps)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(steps)
    return answers


@pytest.mark.slow
def test_a_small_dev_shm(make_photos: Callable) -> None:
    try_it = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/dev/shm"]
    if os.geteuid() or subprocess.run(try_it).returncode:
        pytest.skip("may not mount")
    sizes = {"32m": 2, "3m": 1, "2m": 0, "16k": 0}
    steps = [(f"shm({size!r})", "", "") for size in sizes]
    steps += [("shm('8m')", f"fill({count})", "") for count in (124, 999)]
    *answers, batch, queue = loading(make_photos(8, 160, 160), steps, "unshare", "-m")
    for answer, expected in zip(answers, sizes.values(), strict=True):
        assert (answer["error"], answer["workers"], answer["batches"]) == (None, expected, 12)
        lines = answer["heard"]
        if expected == 2:
            assert lines == []
        else:
            instead = "1 worker instead" if expected else "the main process loads images itself"
            assert len(lines) == 1
            assert lines[0].startswith("warning: /dev/shm has ")
            assert instead in lines[0]
            assert "--shm-size" in lines[0]
    for full in (batch, queue):  # no room for a batch, none even for the workers' queues
        assert full["error"].startswith("/dev/shm is full (")
        assert "--shm-size" in full["hint"]
        assert full["code"] == ExitCode.UNREADABLE


@pytest.mark.slow
def test_a_low_limit_of_open_files(make_photos: Callable) -> None:
    raised, lowered, out = loading(
        make_photos(8, 160, 160),
        [
            ("limit(80, 4096)", "", ""),
            ("limit(110, 110)", "", ""),
            ("", "", "n = len(os.listdir('/proc/self/fd')); limit(n, n)"),
        ],
    )
    assert (raised["error"], raised["workers"], raised["batches"]) == (None, 2, 12)
    assert raised["heard"] == []
    assert 80 < raised["files"] < 4096
    assert (lowered["error"], lowered["workers"], lowered["batches"]) == (None, 1, 12)
    (line,) = lowered["heard"]
    assert line.startswith("warning: 110 files may be open ")
    assert "1 worker instead" in line
    assert "ulimit -n" in line
    assert out["error"] == "too many open files to hand over a batch"
    assert "ulimit -n" in out["hint"]
    assert out["code"] == ExitCode.UNREADABLE


def test_a_normal_machine_is_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    assert room.affordable(2, 600_000, 2, 1, heard.append) == 2
    monkeypatch.setattr(room, "SHARED_MEMORY", Path("/no/such/file/system"))
    assert room.affordable(2, 10**15, 2, 1, heard.append) == 2
    assert heard == []


def test_ranks_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(room, "_free_bytes", lambda: 64_000_000)
    assert [room.affordable(8, 2_000_000, 2, n, heard.append) for n in (1, 2, 4, 64)] == [
        8,
        7,
        3,
        0,
    ]
    assert len(heard) == 3
