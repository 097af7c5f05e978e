"""schedulers/slurm.py against a real Slurm: what it asks for, and what the answers mean."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imgtool.config.schema import Cluster
from imgtool.schedulers.base import ENDED, Request, SchedulerError, Unavailable
from imgtool.schedulers.slurm import Slurm
from tests.waiting import wait_until

# Says which signals it gets, on top of what it does.
LISTEN = """
trap 'echo INT >> {log}; exit 3' INT
echo started >> {log}
while :; do sleep 0.1; done
"""


def states(slurm, job_id, name="job"):
    return {key[1]: seen.state for key, seen in slurm.poll({job_id: name}).items()}


def until(slurm, job_id, expected, name="job", seconds=60):
    wait_until(lambda: states(slurm, job_id, name) == expected, seconds)


def test_an_array_runs_with_its_limit_its_cores_and_its_own_gpus(job, slurm, tmp_path):
    line = 'echo "$SLURM_CPUS_PER_TASK $CUDA_VISIBLE_DEVICES" > seen.$SLURM_ARRAY_TASK_ID; sleep 2'
    job_id = job(
        f"cd {tmp_path}; {line}", indices=(1, 2, 4), max_running=2, num_cores=2, num_gpus=1
    )
    assert set(states(slurm, job_id)) == {1, 2, 4}  # waiting ones are seen one by one
    most = 0
    while not set((now := states(slurm, job_id)).values()) <= ENDED:
        most = max(most, list(now.values()).count("running"))
        time.sleep(0.1)
    assert most == 2
    assert now == {1: "done", 2: "done", 4: "done"}
    seen = [(tmp_path / f"seen.{index}").read_text().split() for index in (1, 2, 4)]
    assert [words[0] for words in seen] == ["2", "2", "2"]
    assert {words[1] for words in seen[:2]} == {"0", "1"}
    assert slurm.find("job") == job_id


def test_the_reasons_of_waiting_jobs_are_told_apart(job, slurm):
    never = job("true", name="never", queue="gpul40s", walltime_sec=5 * 3600)
    many = job("true", name="many", num_cores=99)
    held = job("true", name="held", extra=("--hold",))
    after = job("true", name="after", after=(str(held),))
    names = {never: "never", many: "many", held: "held", after: "after"}

    def found():
        return {names[key[0]]: seen for key, seen in slurm.poll(names).items()}

    expected = {"never": "never", "many": "never", "held": "held", "after": "waiting"}
    wait_until(lambda: {name: one.state for name, one in found().items()} == expected, 60)
    wait_until(lambda: found()["never"].reason == "PartitionTimeLimit", 60)
    subprocess.run(["scontrol", "release", str(held)], check=True)
    until(slurm, after, {0: "done"}, "after")  # ended well or not, others go on


def test_how_jobs_end(job, slurm):
    fails = job("exit 3", name="fails")
    killed = job("kill -KILL $$", name="killed")
    unlogged = job("true", name="unlogged", log_prefix="/proc/nowhere/log")
    cancelled = job("sleep 300", name="cancelled")
    names = {fails: "fails", killed: "killed", unlogged: "unlogged", cancelled: "cancelled"}
    until(slurm, cancelled, {0: "running"}, "cancelled")
    assert slurm.remove([(cancelled, 0)]) == []
    wait_until(lambda: all(one.state in ENDED for one in slurm.poll(names).values()), 60)
    found = {names[key[0]]: seen for key, seen in slurm.poll(names).items()}
    assert (found["fails"].state, found["fails"].exit_code) == ("failed", 3)
    assert (found["killed"].state, found["killed"].exit_code) == ("failed", 137)
    assert found["unlogged"].state == "failed"
    assert "could not be set up" in found["unlogged"].reason
    assert found["cancelled"].state == "cancelled"


def test_int_reaches_the_job_alone_and_one_that_waits_is_let_be(job, slurm, tmp_path):
    log = tmp_path / "heard"
    job_id = job(LISTEN.format(log=log), indices=(1,))
    held = job("true", name="held", extra=("--hold",))
    wait_until(lambda: log.exists() and states(slurm, job_id) == {1: "running"}, 60)
    begin = time.monotonic()
    assert slurm.signal([(job_id, 1), (held, 0), (999, 0)], "INT") == []
    assert time.monotonic() - begin < 20  # scancel alone tries for minutes to signal `held`
    until(slurm, job_id, {1: "failed"})
    assert log.read_text() == "started\nINT\n"
    assert slurm.signal([(job_id, 1)], "INT") == []  # it has ended: no error
    assert states(slurm, held, "held") == {0: "held"}


def test_the_warning_and_the_limit(job, slurm, tmp_path):
    log = tmp_path / "heard"
    warned = job(LISTEN.format(log=log), name="warned", walltime_sec=120, warn_sec=90)
    late = job("sleep 300", name="late", walltime_sec=60)
    until(slurm, warned, {0: "failed"}, "warned", 150)
    assert log.read_text() == "started\nINT\n"
    until(slurm, late, {0: "timed_out"}, "late", 150)


def test_another_turn_is_asked_for_from_inside(job, slurm, tmp_path):
    body = f"""
echo "turn ${{SLURM_RESTART_COUNT:-0}}" >> {tmp_path}/turns.$SLURM_ARRAY_TASK_ID
[ -z "${{SLURM_RESTART_COUNT-}}" ] || exit 0
exec {sys.executable} -c '
import os, sys
from imgtool.schedulers.slurm import Slurm
print("why not:", Slurm().again(os.environ), flush=True)
sys.exit(99)'
"""
    job_id = job(body, indices=(1, 2), requeue=True)
    until(slurm, job_id, {1: "done", 2: "done"})
    for index in (1, 2):
        assert (tmp_path / f"turns.{index}").read_text() == "turn 0\nturn 1\n"
    refused = job(body, name="refused", indices=(1,), requeue=False)
    until(slurm, refused, {1: "failed"}, "refused")
    assert slurm.poll({refused: "refused"})[refused, 1].exit_code == 99
    assert (
        "why not: Slurm does not requeue job" in (tmp_path / f"refused.{refused}_1.out").read_text()
    )


@pytest.mark.parametrize("folder", ["a b", "%J 100%", "it's", 'q"q', "a#b", "ü$x`"])
def test_logs_of_awkward_folders(job, slurm, tmp_path, folder):
    (tmp_path / folder).mkdir()
    prefix = str(tmp_path / folder / "log")
    job_id = job("echo hello", indices=(3,), log_prefix=prefix)
    until(slurm, job_id, {3: "done"})
    request = Request(
        name="job", resources=Cluster(), walltime_sec=60, log_prefix=prefix, indices=(3,)
    )
    path = slurm.log_path(slurm.log_pattern(request), (job_id, 3))
    assert Path(path).read_text() == "hello\n"


def test_what_sbatch_refuses_is_refused_at_once(job):
    for given, told in (
        ({"queue": "nosuch"}, "Invalid partition"),
        ({"num_gpus": 9}, "node configuration"),
        ({"gpu_type": "a100", "num_gpus": 1}, "node configuration"),
        ({"select": "gpu32gb"}, "Invalid feature"),
        ({"extra": ("--bogus",)}, "bogus"),
    ):
        with pytest.raises(SchedulerError, match=told) as caught:
            job("true", **given)
        assert not isinstance(caught.value, Unavailable)


def test_variables_of_a_job_and_of_sbatch_change_nothing(job, slurm, tmp_path, monkeypatch):
    for name, value in {
        "SBATCH_PARTITION": "gpul40s",
        "SBATCH_NO_REQUEUE": "1",
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_MEM_PER_NODE": "50",
        "CUDA_VISIBLE_DEVICES": "5",
        "SQUEUE_PARTITION": "gpul40s",
        "SQUEUE_STATES": "RUNNING",
    }.items():
        monkeypatch.setenv(name, value)
    job_id = job(f"env > {tmp_path}/seen", queue="gpuv100", requeue=True)
    until(slurm, job_id, {0: "done"})
    shown = subprocess.run(
        ["scontrol", "-o", "show", "job", str(job_id)], capture_output=True, text=True
    ).stdout
    assert " Requeue=1 " in shown
    assert " Partition=gpuv100 " in shown
    seen = (tmp_path / "seen").read_text()
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_MEM_PER_NODE", "CUDA_VISIBLE_DEVICES", "SBATCH_"):
        assert f"\n{name}" not in seen
    monkeypatch.setenv("SBATCH_PARTITION", "gpul40s")  # and where the file leaves it open, it is
    free = job(f"echo $SLURM_JOB_PARTITION > {tmp_path}/free", name="free")
    until(slurm, free, {0: "done"}, "free")
    assert (tmp_path / "free").read_text() == "gpul40s\n"


def test_time_left_cores_and_limits_as_a_job_has_them(job, slurm, tmp_path):
    body = f"""
exec {sys.executable} -c '
import os
from imgtool.schedulers.slurm import Slurm
slurm = Slurm()
print(slurm.time_left(os.environ), slurm.cores(os.environ, "host"))'
"""
    job_id = job(body, indices=(2, 5), walltime_sec=600, num_cores=3)
    until(slurm, job_id, {2: "done", 5: "done"})
    for index in (2, 5):
        left, cores = (tmp_path / f"job.{job_id}_{index}.out").read_text().split()
        assert 500 < float(left) <= 600
        assert cores == "3"
    request = Request(
        name="n", resources=Cluster(queue="gpul40s"), walltime_sec=3 * 3600, log_prefix="/x"
    )
    (note,) = slurm.limit_notes(request)
    assert "gpul40s allows 2h" in note
    assert (
        slurm.limit_notes(
            Request(name="n", resources=Cluster(), walltime_sec=9**9, log_prefix="/x")
        )
        == []
    )


def test_a_silent_controller_is_no_answer_and_an_accepted_job_is_not_submitted_twice(
    job, slurm, rig, tmp_path
):
    controller = int(Path(os.environ["SLURM_RIG"], "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable):
            Slurm(timeout_sec=2).poll({1: "job"})
        with pytest.raises(Unavailable):
            Slurm(timeout_sec=2).signal([(1, 0)], "INT")
        waker = subprocess.Popen(["bash", "-c", f"sleep 12; kill -CONT {controller}"])
        # sbatch gives up after 10 s; the controller finds the job in its socket afterwards.
        job_id = job(f"echo once >> {tmp_path}/ran", name="unique")
        waker.wait()
    finally:
        os.kill(controller, signal.SIGCONT)
    until(slurm, job_id, {0: "done"}, "unique")
    assert (tmp_path / "ran").read_text() == "once\n"


def test_a_controller_that_dies_takes_no_job_with_it(job, slurm, rig, tmp_path):
    job_id = job(f"sleep 4; echo once >> {tmp_path}/ran.$SLURM_ARRAY_TASK_ID", indices=(1, 2))
    until(slurm, job_id, {1: "running", 2: "running"})
    rig("wait-saved")
    rig("kill-controller")
    try:
        with pytest.raises(Unavailable):
            slurm.poll({job_id: "job"})
    finally:
        rig("start-controller")
    until(slurm, job_id, {1: "done", 2: "done"})
    assert [(tmp_path / f"ran.{index}").read_text() for index in (1, 2)] == ["once\n", "once\n"]


def test_an_id_of_another_name_is_not_ours_and_unknown_ids_are_left_out(job, slurm):
    job_id = job("true", name="theirs")
    assert slurm.poll({job_id: "ours"}) == {}
    assert slurm.poll({999999: "ours"}) == {}
    assert slurm.find("nosuch") is None
    assert slurm.history({(job_id, 0): "ours", (999999, 2): "ours"}) == {}  # no accounting here
    assert set(slurm.poll({job_id: "theirs", 999999: "ours"})) == {(job_id, 0)}


def test_the_nodes_of_a_job_each_start_a_command_once(job, slurm, tmp_path):
    words = slurm.per_node(["bash", "-c", 'echo "$SLURMD_NODENAME $SLURM_CPUS_PER_TASK"'])
    job_id = job(f"exec {shlex.join(words)}", num_nodes=2, num_cores=2)
    until(slurm, job_id, {0: "done"})
    lines = sorted((tmp_path / f"job.{job_id}.out").read_text().splitlines())
    assert lines == ["slurm1 2", "slurm2 2"]
