"""Claims, raced for by real processes."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from imgtool.errors import ExperimentError
from imgtool.experiment.alive import start_ticks
from imgtool.experiment.layout import ExperimentDir
from imgtool.sweep import claim

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.fixture
def directory(tmp_path):
    return ExperimentDir(tmp_path / "a")


def litter(directory):
    return sorted(path.name for path in directory.path.iterdir())


def put_claim(directory, **fields):
    directory.path.mkdir(exist_ok=True)
    owner = {
        "token": "old",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start_ticks": start_ticks(os.getpid()),
        "since": "2026-01-01T00:00:00Z",
        "child_pid": None,
        "child_ticks": None,
    }
    path = directory.path / "claim"
    path.write_text(json.dumps({**owner, **fields}))
    return path


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_one_at_a_time(directory, link_kind):
    held = claim.take(directory)
    assert held is not None
    assert claim.take(directory) is None
    assert claim.holder(directory).pid == os.getpid()
    held.release()
    assert claim.holder(directory) is None
    assert litter(directory) == []
    again = claim.take(directory)
    held.release()  # the old one gives nothing of the new one back
    assert claim.holder(directory) is not None
    again.release()


def test_a_dead_holder_is_succeeded(directory, link_kind):
    put_claim(directory, pid=2**22 - 3)
    assert claim.holder(directory) is None
    held = claim.take(directory)
    assert held is not None
    assert litter(directory) == ["claim"]
    held.release()
    assert litter(directory) == []


def test_another_process_with_the_number_of_the_holder_is_not_the_holder(directory):
    put_claim(directory, start_ticks=1)
    assert claim.take(directory) is not None


def test_its_child_holds_the_claim_of_a_dead_sweep(directory):
    put_claim(directory, pid=2**22 - 3, child_pid=os.getpid(), child_ticks=start_ticks(os.getpid()))
    assert claim.take(directory) is None


def test_a_claim_outlives_its_taker_in_the_child(directory):
    child = subprocess.Popen(["sleep", "60"])
    try:
        held = claim.take(directory)
        held.add_child(child.pid)
        owner = claim.holder(directory)
        assert (owner.child_pid, owner.child_ticks) == (child.pid, start_ticks(child.pid))
        assert litter(directory) == ["claim"]
        held.release()
        assert litter(directory) == []
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    ("seconds", "is_free"), [(0, False), (250, False), (400, True), (-90, False)]
)
def test_of_another_host_only_the_age_is_known(directory, seconds, is_free):
    age(put_claim(directory, host="elsewhere", pid=1), seconds)
    assert (claim.holder(directory) is None) == is_free
    assert (claim.take(directory) is not None) == is_free


def test_a_holder_keeps_its_claim_fresh(directory, monkeypatch):
    held = claim.take(directory)
    age(directory.path / "claim", 1000)
    held.refresh()
    assert claim.holder(directory).age_sec > 900  # not every time
    monkeypatch.setattr(claim, "REFRESH_SEC", 0.0)
    held.refresh()
    assert claim.holder(directory).age_sec < 100


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"token": 1}'])
def test_a_spoilt_claim_counts_by_its_age(directory, content):
    path = put_claim(directory)
    path.write_text(content)
    assert claim.take(directory) is None
    age(path, 400)
    assert claim.take(directory) is not None


def test_who_died_while_succeeding_is_succeeded(directory):
    put_claim(directory, pid=2**22 - 3)
    successor = directory.path / ".claim-after-old"
    text = (directory.path / "claim").read_text()
    successor.write_text(text.replace('"old"', '"middle"'))
    held = claim.take(directory)
    assert held is not None
    assert litter(directory) == ["claim"]
    assert claim.take(directory) is None


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match="cannot claim"):
        claim.take(ExperimentDir(tmp_path / "file" / "a"))


RACER = """
    import os, sys, time
    from pathlib import Path
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.sweep import claim
    root = Path(sys.argv[1])
    (root / f"ready-{os.getpid()}").touch()
    while not (root / "go").exists():
        pass
    for n in range(int(sys.argv[2])):
        held = claim.take(ExperimentDir(root / f"t{n}"))
        if held is not None:
            with open(root / f"won-{n}", "a") as file:
                file.write(f"{os.getpid()}\\n")
    (root / f"done-{os.getpid()}").touch()
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["free", "stale"])
def test_of_many_racers_exactly_one_wins(tmp_path, kind):
    num_racers, num_claims = 8, 40
    for n in range(num_claims):
        if kind == "stale":
            put_claim(ExperimentDir(tmp_path / f"t{n}"), pid=2**22 - 3, token=f"old{n}")
    words = [sys.executable, "-c", textwrap.dedent(RACER), str(tmp_path), str(num_claims)]
    racers = [subprocess.Popen(words, stdin=subprocess.PIPE) for _ in range(num_racers)]
    try:
        for name in ("ready", "done"):
            while len(list(tmp_path.glob(f"{name}-*"))) < num_racers:
                assert all(racer.poll() is None for racer in racers)
                time.sleep(0.01)
            (tmp_path / "go").touch()
        winners = [(tmp_path / f"won-{n}").read_text().split() for n in range(num_claims)]
        assert [len(won) for won in winners] == [1] * num_claims
        for n in range(num_claims):
            directory = ExperimentDir(tmp_path / f"t{n}")
            assert claim.holder(directory).pid == int(winners[n][0])
            assert litter(directory) == ["claim"]
    finally:
        for racer in racers:
            racer.communicate()
