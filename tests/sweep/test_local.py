"""Pools of real processes; children say when they are ready, so a busy machine only waits."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from imgtool.errors import UsageError
from imgtool.experiment import owner
from imgtool.sweep import local
from imgtool.sweep.slots import Slot, find_slots
from imgtool.sweep.state import read_job, read_state
from tests.waiting import is_alive, wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


class Recorder:
    """Keeps what a pool tells."""

    def __init__(self, on_start=None):
        self.events = []
        self.states = {}
        self.notes = []
        self.reasons = {}
        self.pids = {}
        self.on_start = on_start

    def started(self, trial, slot, pid):
        self.events.append(("started", trial.name, slot.label))
        self.pids[trial.name] = pid
        if self.on_start:
            self.on_start(trial)

    def ended(self, trial, state):
        self.events.append(("ended", trial.name))
        self.states[trial.name] = state

    def left(self, trial, reason):
        self.reasons[trial.name] = reason

    def tick(self, running):
        pass

    def note(self, text):
        self.notes.append(text)


def pool(plan, command, listener=None, *, num_slots=2, **choices):
    listener = listener or Recorder()
    options = local.Options(
        slots=tuple(Slot(f"cpu {n}", {"IMGTOOL_SLOTS": str(num_slots)}) for n in range(num_slots)),
        command_of=command,
        **{"grace_sec": 30.0, "kill_after_sec": 5.0, **choices},
    )
    listener.received = local.run(plan, plan.trials, options, listener)
    return listener


def at_work(trial):
    log = trial.directory.child_log_path
    return log.exists() and "at work" in log.read_text()


def signal_when(trials, *numbers):
    """Signal this process once all of `trials` work."""

    def body():
        wait_until(lambda: all(at_work(trial) for trial in trials))
        for number in numbers:
            os.kill(os.getpid(), number)

    threading.Thread(target=body, daemon=True).start()


def test_all_run_no_more_at_once_than_slots(make_plan, trainer):
    plan = make_plan("a", "b", "c", "d")
    told = pool(plan, trainer())
    assert {name: state.state for name, state in told.states.items()} == dict.fromkeys(
        "abcd", "completed"
    )
    at_once = most = 0
    for event in told.events:
        at_once += 1 if event[0] == "started" else -1
        most = max(most, at_once)
    assert most == 2
    assert told.received is None
    for trial in plan.trials:
        job = read_job(trial.directory)
        assert (job["stat"], job["exit_code"], job["attempt"]) == ("done", 0, 1)
        assert trial.config_path.exists()
        assert trial.directory.child_log_path.read_text() == "at work\n"
        assert sorted(p.name for p in trial.directory.path.glob("*owner*")) == []


@pytest.mark.parametrize("ahead", [-120, 120])
def test_trials_whose_clock_is_another(make_plan, trainer, monkeypatch, ahead):
    """As on a host whose clock is so many seconds before ours; twice, the second after the first."""
    monkeypatch.setenv("TRAINER_AHEAD_SEC", str(ahead))
    plan = make_plan("a", "b", "c")
    pool(plan, trainer({"a": "fail", "b": "kill", "c": "refuse"}))
    told = pool(plan, trainer({"b": "kill", "c": "refuse"}))
    found = {name: (state.state, state.exit_code) for name, state in told.states.items()}
    assert found == {"a": ("completed", 0), "b": ("failed", 137), "c": ("failed", 2)}
    assert [read_job(trial.directory)["attempt"] for trial in plan.trials] == [2, 2, 2]


def test_what_died_without_a_word_has_failed_and_keeps_its_last_line(make_plan, trainer):
    endings = {"a": "refuse", "b": "kill", "c": "fail", "d": "memory"}
    told = pool(make_plan(*"abcde"), trainer(endings))
    found = {name: (state.state, state.exit_code) for name, state in told.states.items()}
    assert found == {
        "a": ("failed", 2),
        "b": ("failed", 137),
        "c": ("failed", 1),
        "d": ("out_of_memory", 1),
        "e": ("completed", 0),
    }
    assert told.states["a"].reason.endswith("error: no such data")
    assert told.states["b"].reason == "killed (perhaps out of memory)"
    assert told.states["c"].reason == "ValueError: broken"


def test_a_refusal_after_an_earlier_run_is_a_failure(make_plan, trainer):
    plan = make_plan("a")
    pool(plan, trainer({"a": "fail"}))
    told = pool(plan, trainer({"a": "refuse"}))
    assert told.states["a"].reason.endswith("error: no such data")
    assert read_job(plan.trials[0].directory)["attempt"] == 2
    assert pool(plan, trainer()).states["a"].state == "completed"
    assert pool(plan, trainer()).reasons == {"a": "completed"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_saves_every_trial_and_starts_no_other(make_plan, trainer, number):
    plan = make_plan("a", "b", "c")
    signal_when(plan.trials[:2], number, number)
    told = pool(plan, trainer(default="wait"))
    assert told.received == number
    assert {n: s.state for n, s in told.states.items()} == {"a": "stopped", "b": "stopped"}
    assert all(state.reason == "SIGINT" for state in told.states.values())
    assert read_state(plan.trials[2].directory).state == "pending"


def test_fail_fast_saves_the_others(make_plan, trainer, tmp_path):
    plan = make_plan("a", "b", "c")
    ready = plan.trials[1].directory.child_log_path
    endings = {"b": "wait", "c": "wait"}
    of = trainer(endings)

    def command(plan, trial):
        if trial.name != "a":
            return of(plan, trial)
        return ["sh", "-c", f"until grep -q work {ready}; do sleep 0.02; done; echo broken; exit 1"]

    told = pool(plan, command, fail_fast=True)
    assert {n: s.state for n, s in told.states.items()} == {"a": "failed", "b": "stopped"}
    assert told.received is None
    assert any("asked to save" in note for note in told.notes)


def test_who_ignores_the_request_is_killed(make_plan, trainer):
    plan = make_plan("a")
    signal_when(plan.trials, signal.SIGINT)
    told = pool(plan, trainer(default="deaf"), grace_sec=0.2, kill_after_sec=0.2)
    assert told.states["a"].state == "stopped"
    assert "killed" in told.states["a"].reason
    assert not is_alive(told.pids["a"])


def test_nothing_is_left_behind(make_plan, tmp_path):
    plan = make_plan("a", "b")
    pids = tmp_path / "pids"
    # One that ignores TERM in a session of its own, one in the trial's own group.
    text = (
        f"setsid sh -c 'trap \"\" TERM; echo $$ >> {pids}; while :; do sleep 0.05; done' & "
        f"sh -c 'echo $$ >> {pids}; sleep 60' & "
        f"while [ $(wc -l < {pids}) -lt 2 ]; do sleep 0.02; done"
    )

    def command(plan, trial):
        quick = f"until [ -e {pids} ]; do sleep 0.02; done; sleep 1"
        return ["sh", "-c", text if trial.name == "a" else quick]

    pids.touch()
    told = pool(plan, command, kill_after_sec=0.2)
    left = pids.read_text().split()
    assert len(left) == 2
    assert not [pid for pid in left if is_alive(pid)]
    assert any("left" in note and "behind" in note for note in told.notes)


def test_leftovers_of_one_trial_cost_another_nothing(make_plan, tmp_path):
    plan = make_plan("a", "b")
    done = tmp_path / "done"

    def command(plan, trial):
        if trial.name == "a":
            return ["sh", "-c", "setsid sleep 60 & sleep 0.1"]
        # b's own daemon must outlive the end of a
        wait = f"until [ -e {done} ]; do sleep 0.02; done"
        return [
            "sh",
            "-c",
            f"(setsid sh -c '{wait}; echo alive > {tmp_path}/b' &) ; {wait}; sleep 0.5",
        ]

    class Finisher(Recorder):
        def ended(self, trial, state):
            super().ended(trial, state)
            done.touch()

    pool(plan, command, Finisher(), kill_after_sec=1.0)
    assert (tmp_path / "b").read_text() == "alive\n"


def test_slots_reach_the_environment(make_plan):
    plan = make_plan("a")
    script = "echo $CUDA_VISIBLE_DEVICES $IMGTOOL_SLOTS $PYTHONUNBUFFERED"
    options = local.Options(
        slots=(Slot("gpu 3", {"CUDA_VISIBLE_DEVICES": "GPU-abc", "IMGTOOL_SLOTS": "4"}),),
        command_of=lambda plan, trial: ["sh", "-c", script],
    )
    local.run(plan, plan.trials, options, Recorder())
    assert plan.trials[0].directory.child_log_path.read_text() == "GPU-abc 4 1\n"


def test_a_trial_that_cannot_be_started_fails_and_the_rest_go_on(make_plan, trainer):
    plan = make_plan("a", "b", "c")
    of = trainer()

    def command(plan, trial):
        return ["/no/such/program"] if trial.name == "a" else of(plan, trial)

    plan.root.mkdir()
    plan.trials[1].directory.path.write_text("a file is in the way")
    told = pool(plan, command, num_slots=1)
    assert {n: s.state for n, s in told.states.items()} == {
        "a": "failed",
        "b": "failed",
        "c": "completed",
    }
    assert "/no/such/program" in told.states["a"].reason
    assert read_state(plan.trials[0].directory).state == "failed"


def test_a_claimed_trial_and_one_that_was_just_run_are_left_alone(make_plan, trainer):
    plan = make_plan("a", "b", "c")
    held = owner.take(plan.trials[1].directory)

    def others_run_c(trial):
        plan.trials[2].directory.path.mkdir(exist_ok=True)
        plan.trials[2].directory.status_path.write_text('{"state": "completed"}')

    told = pool(plan, trainer(), Recorder(others_run_c), num_slots=1)
    assert set(told.states) == {"a"}
    assert told.reasons["b"].startswith(f"in use by process {os.getpid()} ")
    assert told.reasons["c"] == "another sweep has just run it: completed"
    held.release()


def test_a_fault_of_ours_lets_the_trials_save(make_plan, trainer):
    plan = make_plan("a")

    class Broken(Recorder):
        def tick(self, running):
            if at_work(plan.trials[0]):
                raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        pool(plan, trainer(default="wait"), Broken())
    assert read_state(plan.trials[0].directory).state == "stopped"


SWEEP = """
    import sys
    from pathlib import Path
    from dataclasses import replace
    from imgtool.sweep import local
    from imgtool.sweep.slots import Slot
    from imgtool.sweep.trial import Plan, Trial
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.config.load import load
    from imgtool.models.registry import schema
    sys.path.insert(0, {tests!r})
    from test_local import Recorder
    root, script = Path({root!r}), {script!r}
    loaded = load("phase1_1/S5", family=None, schema_of=schema)
    trials = tuple(
        Trial(name=n, identity=n, family="autoencoder", directory=ExperimentDir(root / n),
              overrides={{}}, loaded=loaded, source="test") for n in {names!r})
    plan = Plan(name="t", phase=None, source="t", root=root, shared_dir=None, decides=(), trials=trials)
    def command(plan, trial):
        return [sys.executable, "-S", script, str(trial.directory.path), {ending!r}]
    local.run(plan, trials, local.Options(slots=(Slot("cpu 0"),), command_of=command), Recorder())
"""


def sweep_process(tmp_path, names, ending):
    text = textwrap.dedent(SWEEP).format(
        tests=str(Path(__file__).parent),
        root=str(tmp_path / "root"),
        script=str(tmp_path / "trainer.py"),
        names=names,
        ending=ending,
    )
    return subprocess.Popen([sys.executable, "-c", text])


def test_a_killed_sweep_leaves_its_trial_training_and_it_is_found_again(
    make_plan, trainer, tmp_path
):
    plan = make_plan("a")
    trial = plan.trials[0]
    of = trainer(default="wait")
    sweep = sweep_process(tmp_path, ["a"], "wait")
    try:
        wait_until(lambda: at_work(trial))
        sweep.kill()
        sweep.wait()
        pid = json.loads(trial.directory.status_path.read_text())["pid"]
        assert is_alive(pid)
        assert read_state(trial.directory).state == "running"
        assert owner.holder(trial.directory).child.pid == pid
        assert pool(plan, of).reasons["a"].startswith(f"in use by process {pid} ")
        os.kill(pid, signal.SIGINT)
        wait_until(lambda: read_state(trial.directory).state == "stopped")
        wait_until(lambda: owner.holder(trial.directory) is None)
        assert pool(plan, trainer()).states["a"].state == "completed"
    finally:
        sweep.kill()


def test_two_sweeps_at_once_never_run_a_trial_twice(make_plan, trainer, tmp_path):
    names = [f"t{n}" for n in range(6)]
    plan = make_plan(*names)
    trainer()
    sweeps = [sweep_process(tmp_path, names, "complete") for _ in range(3)]
    assert [sweep.wait(timeout=60) for sweep in sweeps] == [0, 0, 0]
    for trial in plan.trials:
        assert trial.directory.child_log_path.read_text() == "at work\n"
        assert read_state(trial.directory).state == "completed"


def test_slots_of_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-8f2c1a0b-11,MIG-4be1, 0")
    slots = find_slots(slots_per_gpu=2)
    assert [slot.label for slot in slots][:3] == ["gpu 0 a", "gpu GPU-8f2c1a0b a", "gpu MIG-4be1 a"]
    assert [slot.env["CUDA_VISIBLE_DEVICES"] for slot in slots] == [
        *("0", "GPU-8f2c1a0b-11", "MIG-4be1"),
        *("0", "GPU-8f2c1a0b-11", "MIG-4be1"),
    ]
    assert {slot.env["IMGTOOL_SLOTS"] for slot in slots} == {"6"}
    assert len(find_slots(slots=2)) == 2


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_no_visible_gpu_means_the_cpu(monkeypatch, value):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert [slot.label for slot in find_slots(slots=3)] == ["cpu 0", "cpu 1", "cpu 2"]
    assert len(find_slots()) == 1
    with pytest.raises(UsageError, match="--slots is 0"):
        find_slots(slots=0)


def test_nvidia_smi_is_asked_and_may_be_missing_or_broken(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    tool.write_text("#!/bin/sh\nprintf '0, GPU-a\\n1, GPU-b\\n'\n")
    tool.chmod(0o755)
    assert [slot.env["CUDA_VISIBLE_DEVICES"] for slot in find_slots()] == ["0", "1"]
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert [slot.label for slot in find_slots()] == ["cpu 0"]
    monkeypatch.setattr("imgtool.sweep.slots.NVIDIA_SMI_SEC", 0.2)
    tool.write_text("#!/bin/sh\nexec sleep 5\n")
    assert [slot.label for slot in find_slots()] == ["cpu 0"]


def test_trainings_of_a_sweep_share_the_cores(monkeypatch):
    from imgtool.training import environment

    monkeypatch.setattr(environment, "cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("IMGTOOL_SLOTS", raising=False)
    assert environment.cpu_threads(1, 2) == 14
    monkeypatch.setenv("IMGTOOL_SLOTS", "4")
    assert environment.cpu_threads(1, 2) == 2
    assert environment.cpu_threads(2, 0) == 2
    monkeypatch.setenv("IMGTOOL_SLOTS", "many")
    assert environment.cpu_threads(1, 0) == 16


def test_who_ran_out_of_memory_beside_others_is_tried_once_more_alone(make_plan, trainer):
    """Three on one GPU and one on another: only who shared one is tried again, and only once."""
    plan = make_plan(*"abcd")
    command = trainer({"a": "memory", "c": "memory", "d": "memory"})
    slots = tuple(
        Slot(f"gpu {gpu} {n}", {"CUDA_VISIBLE_DEVICES": gpu})
        for gpu, n in zip("0001", "abca", strict=True)
    )
    told = Recorder()
    options = local.Options(slots=slots, command_of=command)
    assert local.run(plan, plan.trials, options, told) is None
    count = {name: [e[:2] for e in told.events].count(("started", name)) for name in "abcd"}
    assert count == {"a": 2, "b": 1, "c": 2, "d": 1}
    at_work = {}
    for what, name, *label in told.events[4:]:  # once all four have begun
        if what == "started":
            assert label[0][:5] not in at_work.values()
            at_work[name] = label[0][:5]
        at_work.pop(name if what == "ended" else None, None)
    assert told.events[-1][0] == "ended"
    assert {name: state.state for name, state in told.states.items()} == {
        **dict.fromkeys("acd", "out_of_memory"),
        "b": "completed",
    }
    a, _, _, d = plan.trials
    assert read_job(a.directory)["alone"] == {"tried": True, "beside": ["b", "c"]}
    assert read_state(a.directory).reason.endswith("Tried to allocate 2 GiB; alone as well")
    assert "alone" not in read_job(d.directory)
    assert any("a ran out of memory beside b, c: it is tried once more" in n for n in told.notes)
    again = Recorder()
    local.run(plan, [a, *plan.trials[2:3]], options, again)
    assert [event[0] for event in again.events].count("started") == 2  # never a third time
