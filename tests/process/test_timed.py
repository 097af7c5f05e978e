import json
import os
import signal
import sys

import pytest

from imgtool.errors import ExperimentError
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.owner import InUse, take
from imgtool.process import timed
from imgtool.process.budget import Budget
from imgtool.process.child import NotFound

LOOP = "while :; do sleep 0.02; done"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("python train.py --exp-dir a/b --lr 1", "a/b"),
        ("python train.py --exp_dir=a/b", "a/b"),
        ("imgtool train x --exp-dir a --exp_dir b", "b"),
        ("python train.py --exp-dirs a", None),
        ("python train.py --exp-dir", None),
        ("python train.py --exp-dir=", None),
        ("python", None),
    ],
)
def test_the_directory_is_read_from_the_commands_own_words(command, found):
    assert timed.exp_dir_of(command.split()) == found


def header(iteration):
    record = {"format": 1, "iteration": iteration, "epoch": 0, "identity": "x"}
    record |= {"metrics": {"loss": 1.0}, "finite": True}
    text = json.dumps({"__metadata__": {"imgtool": json.dumps(record)}}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.fixture
def experiment(tmp_path):
    """An experiment with checkpoints 100 and 200, and 300 and 400 ready to be moved there."""
    made = ExperimentDir(tmp_path / "exp")
    made.create()
    for iteration in (100, 200):
        made.checkpoint_path(iteration).write_bytes(header(iteration))
    for iteration in (300, 400):
        (tmp_path / str(iteration)).write_bytes(header(iteration))
    return made


@pytest.fixture
def run(experiment, tmp_path):
    """run('sh text') -> (record, code). In the text, {300} and {400} save these checkpoints."""

    def go(text, *, seconds=30.0, grace=30.0, kill_after=30.0, keep=None, strict=False, **status):
        for iteration in (300, 400):
            target = experiment.checkpoint_path(iteration)
            text = text.replace(f"{{{iteration}}}", f"mv {tmp_path}/{iteration} {target}")
        text = text.replace("{status}", f"cp {tmp_path}/status.json {experiment.status_path}")
        (tmp_path / "status.json").write_text(json.dumps(status))
        job = timed.Job(
            command=["sh", "-c", text],
            experiment=experiment,
            budget=Budget(seconds, "duration"),
            grace_sec=grace,
            kill_after_sec=kill_after,
            keep=keep,
            strict=strict,
        )
        return timed.run(job, say=lambda line: None)

    return go


def test_record_of_a_run_that_ends_by_itself(run, experiment):
    record, code = run("echo hello; {300}; exit 3", keep=2)
    assert code == record["exit_code"] == record["child_code"] == 3
    assert record["reason"] == "finished"
    assert record["checkpoint_before"]["iteration"] == 200
    assert record["checkpoint_after"]["iteration"] == 300
    assert record["pruned"]["removed"] == [experiment.checkpoint_path(100)]
    assert record["pruned"]["freed_bytes"] > 0
    assert record["path"] == experiment.path
    assert (record["budget_sec"], record["budget_source"]) == (30.0, "duration")
    assert experiment.child_log_path.read_text() == "hello\n"
    lines = experiment.watch_log_path.read_text().splitlines()
    assert "running for 30s: sh -c" in lines[0]
    assert lines[0].startswith("20")
    assert "code 3 (finished)" in lines[1]
    assert "pruned 1 checkpoints" in lines[2]


def test_saved_after_the_stop_is_success_whatever_the_code(run):
    # As torchrun: it ends with 1 after SIGINT even when every rank has saved.
    record, code = run(f"trap '{{300}}; exit 1' INT; {LOOP}", seconds=0.5)
    assert (code, record["child_code"], record["reason"], record["saved"]) == (0, 1, "budget", True)


def test_saved_before_the_stop_only_is_no_success(run):
    record, code = run(f"{{300}}; trap 'exit 1' INT; {LOOP}", seconds=0.8)
    assert (code, record["saved"]) == (1, False)


def test_status_says_stopped(run):
    text = f"trap '{{status}}; exit 1' INT; {LOOP}"
    assert run(text, seconds=0.5, state="stopped")[1] == 0
    assert run(text, seconds=0.5, state="stopped")[1] == 1  # it said so before


@pytest.mark.parametrize("state", ["failed", "diverged"])
def test_status_says_failed(run, state):
    record, code = run(f"trap '{{300}}; {{status}}; exit 3' INT; {LOOP}", seconds=0.5, state=state)
    assert (code, record["saved"]) == (3, False)


def test_a_program_without_a_handler(run):
    dies = "exec python3 -S -c 'import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)"
    record, code = run(f"{dies}; signal.pause()'", seconds=0.8)
    assert (code, record["child_code"], record["saved"]) == (130, 130, False)
    record, code = run(f"{{300}}; {dies}; signal.pause()'", seconds=0.8)
    assert (code, record["child_code"], record["saved"]) == (0, 130, True)


def test_killed(run, experiment):
    record, code = run(f"trap '' INT TERM; {LOOP}", seconds=0.3, grace=0.2, kill_after=0.2, keep=1)
    assert (code, record["child_code"], record["reason"]) == (124, 137, "killed")
    assert [sent["signal"] for sent in record["signals"]] == ["INT", "TERM", "KILL"]
    assert record["pruned"]["removed"] == [experiment.checkpoint_path(100)]
    _, code = run(f"trap '' INT TERM; {LOOP}", seconds=0.3, grace=0.2, kill_after=0.2, strict=True)
    assert code == 137


def test_saved_and_then_ended_by_term_is_success(run):
    record, code = run(f"trap '{{300}}' INT; {LOOP}", seconds=0.5, grace=0.3)
    assert (code, record["child_code"], record["reason"]) == (0, 143, "budget")


def test_pruning_comes_after_the_end_and_its_trouble_changes_no_code(run, experiment, monkeypatch):
    def broken(*words, **choices):
        raise ExperimentError("the disk is gone")

    monkeypatch.setattr("imgtool.experiment.retention.prune", broken)
    record, code = run("exit 0", keep=1)
    assert (code, record["pruned"]) == (0, None)
    assert "warning: nothing was pruned: the disk is gone" in experiment.watch_log_path.read_text()


def test_a_late_signal_does_not_cut_pruning_short(run, monkeypatch):
    from imgtool.experiment import retention

    def slow(*words, **choices):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        return retention.Result()

    monkeypatch.setattr("imgtool.experiment.retention.prune", slow)
    record, code = run("exit 0", keep=1)
    assert (code, record["pruned"]) == (0, {"removed": [], "freed_bytes": 0})


def test_without_a_directory(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    job = timed.Job(
        command=["sh", "-c", "echo hi"],
        experiment=None,
        budget=Budget(30.0, "duration"),
        grace_sec=1.0,
        kill_after_sec=1.0,
        keep=2,
    )
    record, code = timed.run(job, say=lambda line: None)
    assert (code, record["saved"], record["pruned"], record["path"]) == (0, None, None, None)
    assert capfd.readouterr().err == "hi\n"
    assert os.listdir(tmp_path) == []


def test_in_a_directory_in_use_nothing_is_written(run, experiment):
    with take(experiment):
        before = sorted(os.listdir(experiment.path))
        with pytest.raises(InUse, match=f"in use by process {os.getpid()} "):
            run("echo hello")
        assert sorted(os.listdir(experiment.path)) == before


def test_what_it_runs_may_train_there(run, experiment):
    """By the ticket in its environment; and nobody else may, until the pruning is over."""
    program = "from imgtool.experiment import owner, layout; import sys; \\\n"
    program += "hold = owner.take(layout.ExperimentDir(sys.argv[1]), trains=True); print(hold.role)"
    text = f"{sys.executable} -c '{program}' {experiment.path}; cat {experiment.path}/owner"
    assert run(text)[1] == 0
    role, _, words = experiment.child_log_path.read_text().partition("\n")
    assert role == "trainer"
    assert json.loads(words)["process"]["pid"] == os.getpid()
    assert not experiment.owner_path.exists()


def test_a_wrong_command_leaves_no_directory_behind(tmp_path):
    job = timed.Job(
        command=["no-such-program"],
        experiment=ExperimentDir(tmp_path / "exp"),
        budget=Budget(30.0, "duration"),
        grace_sec=1.0,
        kill_after_sec=1.0,
        keep=None,
    )
    with pytest.raises(NotFound):
        timed.run(job, say=lambda line: None)
    assert os.listdir(tmp_path) == []
