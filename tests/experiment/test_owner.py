"""Who owns a directory; raced for by real processes."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta

import pytest

from imgtool import files
from imgtool.errors import ExperimentError
from imgtool.experiment import owner
from imgtool.experiment.alive import start_ticks, word_of
from imgtool.experiment.job import write_job
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.owner import InUse, holder, take

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
DEAD = 2**22 - 3


@pytest.fixture
def directory(tmp_path):
    return ExperimentDir(tmp_path / "exp")


@pytest.fixture(params=["hard links", "none"])
def links(request, monkeypatch):
    """File systems that have hard links, and that have none."""

    def refuse(*paths, **options):
        raise OSError(errno.EPERM, "no hard links here")

    if request.param == "none":
        monkeypatch.setattr("os.link", refuse)


def litter(directory):
    return sorted(path.name for path in directory.path.iterdir())


def words(directory):
    return json.loads((directory.path / "owner").read_text())


def put(directory, *, child=None, age_sec=0.0, **process):
    """An owner as another process would have left it."""
    directory.path.mkdir(exist_ok=True)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}
    me |= {"start": "2026-01-01T00:00:00Z", **process}
    path = directory.path / "owner"
    path.write_text(json.dumps({"token": "old", "process": me, "child": child, "attempt": 1}))
    age(path, age_sec)
    return path


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


PROGRAM = """
import os, sys, time
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.owner import InUse, take
directory = ExperimentDir(sys.argv[1])
"""
HOLDER = """
hold = take(directory, trains="trains" in sys.argv)
if "fork" in sys.argv:
    child = os.fork()
    if child == 0:
        time.sleep(60)
    print(child)
print(hold.role, flush=True)
sys.stdin.read()
hold.release()
"""


def start(text, directory, *more, env=None):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + textwrap.dedent(text), str(directory.path), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


def kill(process):
    process.kill()
    process.communicate()


def test_held_and_given_back(directory, links):
    with take(directory, trains=True) as hold:
        assert hold.role == "holder"
        found = words(directory)
        assert found["process"]["pid"] == os.getpid()
        assert found["process"]["host"] == socket.gethostname()
        assert found["process"]["start_ticks"] == start_ticks(os.getpid())
        assert datetime.fromisoformat(found["process"]["start"]) <= datetime.now(UTC)
        assert holder(directory).trains
        with pytest.raises(InUse):  # in the same process too
            take(directory)
        assert litter(directory) == ["owner"]
    assert litter(directory) == []
    assert holder(directory) is None
    again = take(directory)
    hold.release()  # the old one gives nothing of the new one back
    assert holder(directory) is not None
    again.release()
    with pytest.raises(KeyError), take(directory):
        raise KeyError
    assert litter(directory) == []


def test_another_process_is_named_and_a_killed_one_never_blocks(directory, links):
    process = start(HOLDER, directory, "trains")
    try:
        assert process.stdout.readline() == "holder\n"
        with pytest.raises(InUse) as caught:
            take(directory)
        assert f"process {process.pid} on {socket.gethostname()} since 20" in str(caught.value)
        assert f"kill -INT {process.pid}" in caught.value.hint
        assert caught.value.exit_code == 2
    finally:
        kill(process)
    assert litter(directory) == ["owner"]
    with take(directory):
        assert words(directory)["process"]["pid"] == os.getpid()
    assert litter(directory) == []


def test_a_forked_worker_that_outlives_its_killed_parent_does_not_block(directory):
    process = start(HOLDER, directory, "fork")
    worker = int(process.stdout.readline())
    try:
        assert process.stdout.readline() == "holder\n"
        process.kill()
        process.wait()
        os.kill(worker, 0)
        take(directory).release()
    finally:
        os.kill(worker, signal.SIGKILL)
        process.communicate()


def test_a_forked_child_that_leaves_the_block_gives_nothing_back(directory):
    child = -1
    try:
        with take(directory):
            child = os.fork()
            if child == 0:
                raise KeyError  # unwinds through the block in the child
            os.waitpid(child, 0)
            with pytest.raises(InUse):
                take(directory)
    finally:
        if child == 0:
            os._exit(0)


@pytest.mark.parametrize("found", [{"pid": DEAD}, {"start_ticks": 1}])
def test_who_is_dead_or_another_process_with_its_number_is_succeeded(directory, links, found):
    put(directory, **found)
    assert holder(directory) is None
    hold = take(directory)
    assert words(directory)["process"]["pid"] == os.getpid()
    hold.release()
    assert litter(directory) == []


def test_who_died_while_succeeding_is_succeeded(directory):
    path = put(directory, pid=DEAD)
    successor = directory.path / ".owner-after-old-0"
    successor.write_text(path.read_text().replace('"old"', '"middle"'))
    hold = take(directory)
    with pytest.raises(InUse):
        take(directory)
    age(successor, 1000)
    hold.release()
    assert litter(directory) == []


@pytest.mark.parametrize(
    ("seconds", "is_free"), [(0, False), (250, False), (400, True), (-90, False)]
)
@pytest.mark.parametrize("where", [{"host": "elsewhere", "pid": 1}, {"where": "a container"}])
def test_of_one_out_of_sight_only_the_age_is_known(directory, seconds, is_free, where):
    path = put(directory, age_sec=seconds, **where)
    assert (holder(directory) is None) == is_free
    if is_free:
        take(directory).release()
        return
    with pytest.raises(InUse, match="s ago") as caught:
        take(directory)
    assert str(path) in caught.value.hint


def test_a_holder_stays_fresh(directory, monkeypatch):
    monkeypatch.setattr(owner, "REFRESH_SEC", 0.02)
    process = start(
        "import imgtool.experiment.owner as o\no.REFRESH_SEC = 0.02" + HOLDER, directory
    )
    try:
        process.stdout.readline()
        age(directory.path / "owner", 1000)
        while holder(directory).age_sec > 900:
            time.sleep(0.01)
    finally:
        kill(process)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"token": 1}'])
def test_one_that_cannot_be_understood_counts_by_its_age(directory, content, monkeypatch):
    monkeypatch.setattr(owner, "SETTLE_SEC", 0.1)
    path = put(directory)
    path.write_text(content)
    with pytest.raises(InUse, match="in use by another process"):
        take(directory)
    age(path, 400)
    take(directory).release()
    assert litter(directory) == []


@pytest.mark.parametrize("obstacle", ["folder", "file"])
def test_what_cannot_be_written(directory, obstacle):
    if obstacle == "folder":
        (directory.path / "owner").mkdir(parents=True)
    else:
        directory.path.write_text("")
    with pytest.raises(ExperimentError, match="cannot write"):
        take(directory)


# --- a part in what one's starter holds -------------------------------------------------------


def test_who_was_started_trains_by_its_ticket(directory):
    with take(directory) as sweep:
        with pytest.raises(InUse):
            take(directory, trains=True)
        env = sweep.environment()
        trainer = start(HOLDER, directory, "trains", env=env)
        assert trainer.stdout.readline() == "trainer\n"
        assert holder(directory).trainer.pid == trainer.pid
        second = start(HOLDER, directory, "trains", env=env)
        _, complaint = second.communicate()
        assert f"in use by process {trainer.pid}" in complaint
        assert trainer.communicate()[1] == ""
        assert holder(directory).child is None
        third = start(HOLDER, directory, "trains", env=env)  # its starter may start another
        assert third.stdout.readline() == "trainer\n"
        third.communicate()
    assert litter(directory) == []


def test_a_training_outlives_its_starter(directory, monkeypatch):
    child = subprocess.Popen(["sleep", "60"])
    starter = start(
        "hold = take(directory)\nhold.add_child(int(sys.argv[2]))\nimport json; print(json.dumps(hold.environment()))\n"
        "sys.stdout.flush()\nsys.stdin.read()",
        directory,
        str(child.pid),
    )
    for name, value in json.loads(starter.stdout.readline()).items():
        monkeypatch.setenv(name, value)
    kill(starter)
    found = holder(directory)
    assert (found.child.pid, found.child.start_ticks) == (child.pid, start_ticks(child.pid))
    with take(directory) as guest:  # such as run-timed
        assert guest.role == "guest"
    trainer = take(directory, trains=True)
    assert trainer.role == "trainer"
    child.kill()
    child.wait()
    monkeypatch.delenv("IMGTOOL_OWNER")
    with pytest.raises(InUse, match=f"process {os.getpid()} "):
        take(directory)
    trainer.release()
    assert litter(directory) == []


def test_without_its_environment_a_started_process_is_known_as_such(directory):
    with take(directory):
        trainer = start(HOLDER, directory, "trains")
        assert trainer.stdout.readline() == "trainer\n"
        trainer.communicate()


def test_a_ticket_passes_all_on(directory, monkeypatch):
    """As a sweep does that submits: its job may start before it has let go."""
    sweep = take(directory, ticket="submission")
    with pytest.raises(InUse):
        take(directory)
    monkeypatch.setenv("IMGTOOL_OWNER", "submission")
    job = take(directory)
    assert job.role == "holder"
    assert job.environment()["IMGTOOL_OWNER"] != "submission"
    sweep.release()
    with pytest.raises(InUse):  # it is passed on once
        take(directory)
    job.release()
    assert litter(directory) == []
    take(directory).release()  # in its next turn there is nothing to be passed on


def test_without_its_run_timed_it_says_so(directory, monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    for word, is_gone in ((f"{gone.pid}:1", True), (word_of(os.getppid()), False)):
        monkeypatch.setenv("IMGTOOL_SUPERVISOR", word)
        with take(directory, trains=True):
            assert words(directory)["process"]["supervisor"] == word
            with pytest.raises(InUse) as caught:
                take(directory)
        assert ("is gone, and no limit holds" in str(caught.value)) == is_gone


# --- attempts ---------------------------------------------------------------------------------


def say(directory, attempt):
    directory.path.mkdir(exist_ok=True)
    directory.status_path.write_text(json.dumps({"state": "stopped", "attempt": attempt}))


def test_attempts_ascend(directory, monkeypatch):
    job = {"executor": "lsf", "job_id": None, "name": "sweep-1", "index": 2}
    mine = {**job, "job_id": 7}
    assert take(directory).attempt == 1
    (directory.path / "owner").unlink()
    say(directory, 3)
    write_job(directory, **job, attempt=5)
    for given, number in (
        (None, 6),
        (mine, 5),
        ({**mine, "index": 3}, 6),
        ({**mine, "name": "x"}, 6),
    ):
        with take(directory, job=given) as hold:
            assert hold.attempt == number
    say(directory, 5)  # its first turn is over
    with take(directory, job=mine) as hold:
        assert hold.attempt == 6
        assert hold.environment()["IMGTOOL_ATTEMPT"] == "6"
        monkeypatch.setenv("IMGTOOL_OWNER", hold.environment()["IMGTOOL_OWNER"])
        with take(directory, trains=True) as trainer:
            assert trainer.attempt == words(directory)["attempt"] == 6
        say(directory, 6)
        with take(directory, trains=True) as trainer:
            assert trainer.attempt == 7


# --- files of earlier versions ------------------------------------------------------------------


def iso(age_sec):
    return (datetime.now(UTC) - timedelta(seconds=age_sec)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("name", "content", "beat", "is_free"),
    [
        ("lock", {"pid": DEAD}, {}, True),
        ("lock", {}, {}, False),
        ("lock", {"host": "elsewhere"}, {"age": 20}, False),
        ("lock", {"host": "elsewhere"}, {"age": 400}, True),
        ("lock", {"host": "elsewhere"}, {"age": 5, "state": "stopped"}, True),
        ("lock", {"host": "elsewhere"}, {"age": 5, "host": "another"}, True),
        ("lock", "", {}, True),
        ("lock", "{ half", {}, True),
        ("claim", {"pid": DEAD}, {}, True),
        ("claim", {}, {}, False),
        ("claim", {"pid": DEAD, "child_pid": os.getpid(), "child_ticks": None}, {}, False),
        ("claim", {"host": "elsewhere"}, {}, False),
    ],
)
def test_files_of_earlier_versions(directory, name, content, beat, is_free):
    directory.path.mkdir()
    me = {"host": socket.gethostname(), "pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}
    text = content if isinstance(content, str) else json.dumps(me | {"since": "x"} | content)
    (directory.path / name).write_text(text)
    if beat:
        status = {"state": "running", "host": "elsewhere", "heartbeat": iso(beat["age"])}
        beat = {key: value for key, value in beat.items() if key != "age"}
        directory.status_path.write_text(json.dumps(status | beat))
    assert (holder(directory) is None) == is_free
    if is_free:
        take(directory).release()
        assert [one for one in litter(directory) if one != "status.json"] == []
    else:
        with pytest.raises(InUse, match=f"process {content.get('child_pid', os.getpid())} "):
            take(directory)


# --- races --------------------------------------------------------------------------------------

RACER = """
import errno
if sys.argv[3] == "none":
    def refuse(*paths): raise OSError(errno.EPERM, "no hard links here")
    os.link = refuse
root = sys.argv[1]
open(f"{root}/ready-{os.getpid()}", "w").close()
while not os.path.exists(f"{root}/go"):
    pass
for n in range(int(sys.argv[2])):
    try:
        take(ExperimentDir(f"{root}/t{n}"))
    except InUse:
        continue
    with open(f"{root}/won-{n}", "a") as file:
        file.write(f"{os.getpid()}\\n")
open(f"{root}/done-{os.getpid()}", "w").close()
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["free", "stale"])
def test_of_many_racers_exactly_one_wins(tmp_path, kind):
    num_racers, num_rounds = 3, 20
    everywhere = ExperimentDir(tmp_path)
    for n in range(num_rounds):
        if kind == "stale":
            put(ExperimentDir(tmp_path / f"t{n}"), pid=DEAD)
    link = "links" if kind == "stale" else "none"
    racers = [start(RACER, everywhere, str(num_rounds), link) for _ in range(num_racers)]
    try:
        for name in ("ready", "done"):
            while len(list(tmp_path.glob(f"{name}-*"))) < num_racers:
                assert all(racer.poll() is None for racer in racers)
                time.sleep(0.01)
            (tmp_path / "go").touch()
        winners = [(tmp_path / f"won-{n}").read_text().split() for n in range(num_rounds)]
        assert [len(won) for won in winners] == [1] * num_rounds
        for n in range(num_rounds):
            assert holder(ExperimentDir(tmp_path / f"t{n}")).process.pid == int(winners[n][0])
    finally:
        for racer in racers:
            racer.communicate()


GUARDED = """
import fcntl, random, signal, traceback
import psutil
guard = os.open(sys.argv[1] + "/guard", os.O_RDWR | os.O_CREAT)
def work(hold):
    fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if another is inside
    if random.random() < 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
    fcntl.flock(guard, fcntl.LOCK_UN)  # before the next may be inside
    hold.release()
    os._exit(0)
def go():
    global guard
    random.seed(os.getpid())
    guard = os.open(sys.argv[1] + "/guard", os.O_RDWR)
    try:
        if random.random() < 0.5:
            work(take(directory, trains=True))
        starter = take(directory)
        os.environ.update(starter.environment())
        child = os.fork()
        if child == 0:
            guard = os.open(sys.argv[1] + "/guard", os.O_RDWR)
            work(take(directory, trains=True))
        if random.random() < 0.3:
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        starter.release()
    except InUse:
        os._exit(0)
    os._exit(0)
codes = []
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        try:
            go()
        except BaseException:
            traceback.print_exc()
            os._exit(9)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(sorted(set(codes)))
"""


def test_never_two_train_whoever_dies(directory):
    """Starters, their trainings, and trainings by hand; each may be killed at its work."""
    directory.path.mkdir()
    racers = [start(GUARDED, directory, "10") for _ in range(3)]
    for racer in racers:
        out, complaint = racer.communicate(timeout=120)
        assert (out in ("[-9, 0]\n", "[-9]\n", "[0]\n"), complaint) == (True, "")
    take(directory).release()


def test_where_a_number_means_the_same():
    assert files.here() == files.here() != ""
