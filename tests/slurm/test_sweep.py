"""Sweeps on a real Slurm: what happens to jobs, trials and the controller, and nothing twice."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.waiting import wait_until

PROGRAM = [sys.executable, "-m", "imgtool"]
SPEC = """
sweep: small
experiments: [phase1_1/S7, phase1_1/S8, phase1_1/S10]
root: experiments
shared_dir: outputs
"""
SMALL = {
    "cluster.num_gpus": "0",
    "cluster.num_cores": "1",
    "cluster.memory": "500MB",
    "data.manifest": "l/layouts.csv",
    "train.epochs": "1000",
    "train.patience": "null",
    "train.save_every": "5",
    "train.val_every": "20",
    "train.log_every": "1",
}
TINY_BATCH = 8  # images, as --tiny has it


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "l"
    words = ("data", "make", "layouts", folder, "--n", 40, "--size", 64, "--quiet")
    subprocess.run([*PROGRAM, *map(str, words)], check=True, env=environment(folder))
    return folder


def environment(home):
    given = {"PYTHONPATH": str(Path(__file__).parents[2]), "XDG_CONFIG_HOME": str(home / "config")}
    return {**os.environ, **given}


@pytest.fixture
def work(tmp_path, monkeypatch, layouts):
    """An empty folder with a sweep's file and its data."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "l").symlink_to(layouts)
    (tmp_path / "small.yaml").write_text(SPEC)
    return tmp_path


def imgtool(*words, **given):
    """A finished command."""
    options = {"capture_output": True, "text": True, "timeout": 300, **given}
    return subprocess.run([*PROGRAM, *map(str, words)], **options)


def sweep(*words, iterations=40, **keys):
    """The words of a sweep on Slurm; `keys` with two underscores for a dot."""
    values = {**SMALL, **{key.replace("__", "."): value for key, value in keys.items()}}
    settings = [f"--set={key}={value}" for key, value in values.items()]
    settings.append(f"--set=train.max_iter={iterations}")
    return ["sweep", "small.yaml", "--tiny", "--executor", "slurm", *settings, *map(str, words)]


def start(*words):
    return subprocess.Popen(
        [*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def folder(name):
    found = list(Path("experiments/tiny").glob(f"*_{name}_*"))
    return found[0] if found else None


def read(name, file):
    try:
        return json.loads((folder(name) / file).read_text())
    except (OSError, TypeError, ValueError):
        return {}


def states(text):
    """Trial -> state, of the records that a command prints."""
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    rows = [row for row in rows if row["kind"] == "experiment"]
    return {row["name"].split("_")[3]: row["state"] for row in rows}


def at_iteration(name, least):
    status = read(name, "status.json")
    return status.get("state") == "running" and (status.get("iteration") or 0) >= least and status


def check_nothing_ran_twice(iterations, starts):
    """Each iteration was logged once, and each trial was started as often as said."""
    for name, expected in starts.items():
        lines = (folder(name) / "metrics.jsonl").read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        found = [row["iteration"] for row in logged if row.get("kind") != "evaluation"]
        assert found == sorted(set(found)), name
        assert found[-1] == iterations, name
        assert len(read(name, "provenance.json")["starts"]) == expected, name


def then_log():
    (log,) = wait_until(lambda: list(Path("experiments/tiny/jobs/logs").glob("*then*.out")))
    return log


def queue(*words):
    command = ["squeue", "-h", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split()


def test_a_kill_a_scancel_and_a_restarted_controller(work, rig):
    """The chain: three trials, then the winner; what was lost is made up by the same command."""
    _, iteration_sec = speed()
    small = {"iterations": round(20 / iteration_sec)}  # S7 trains still when the controller dies
    then = "imgtool status experiments --quiet"
    first = start(*sweep("--wait", "--poll", "1s", "--then", then, **small))
    status = wait_until(lambda: at_iteration("S8", 5))
    os.kill(status["pid"], signal.SIGKILL)
    wait_until(lambda: at_iteration("S10", 5))
    job = read("S10", "job.json")
    subprocess.run(["scancel", f"{job['job_id']}_{job['index']}"], check=True)
    rig("wait-saved")
    rig("kill-controller")
    looked = imgtool("status", "experiments")
    assert looked.returncode == 0
    assert "states of cluster jobs may be old" in looked.stderr
    rig("start-controller")
    out, err = first.communicate(timeout=300)
    assert first.returncode == 1, err
    found = states(out)
    assert found == {"S7": "completed", "S8": "failed", "S10": "stopped"}, err
    assert "S8" in wait_until(then_log().read_text)  # it ran after all of them had ended

    again = imgtool(
        *sweep("--wait", "--poll", "1s", "--retry", "failed", **small),
        *("--then", "imgtool select-winner outputs/tiny --quiet > winner"),
    )
    assert set(states(again.stdout).values()) == {"completed"}, again.stderr
    wait_until(lambda: not queue("--me"))
    chosen = imgtool("select-winner", "outputs/tiny", "--quiet")
    assert chosen.returncode == 0
    assert Path("winner").read_text() == chosen.stdout
    check_nothing_ran_twice(small["iterations"], {"S7": 1, "S8": 2, "S10": 2})
    assert imgtool("logs", folder("S7")).returncode == 0
    third = imgtool(*sweep("--wait", "--poll", "1s", **small))
    assert third.returncode == 0
    check_nothing_ran_twice(small["iterations"], {"S7": 1, "S8": 2, "S10": 2})


def speed():
    """Seconds that a trial takes here to start, and those of its fastest iteration.

    The fastest, as the machine may be busy now and at leisure later: what is measured must not
    be done in less time.
    """
    begin = time.monotonic()
    words = ("train", "autoencoder", "--config", "phase1_1/S7", "--tiny", "--max-iter", 40)
    done = imgtool(*words, "--log-every", 1, "--manifest", "l/layouts.csv", "--exp-dir", "first")
    (record,) = [json.loads(line) for line in done.stdout.splitlines()]
    start_sec = time.monotonic() - begin - record["elapsed_sec"]
    rows = [json.loads(line) for line in Path("first/metrics.jsonl").read_text().splitlines()]
    return start_sec, TINY_BATCH / max(row.get("images_per_sec") or 0 for row in rows)


def test_time_that_runs_out_takes_another_turn(work):
    start_sec, iteration_sec = speed()
    duration = round(10 + 2 * start_sec)
    iterations = round(1.2 * duration / iteration_sec)  # more than one turn can do
    done = imgtool(
        *sweep("--only", "S7", "--wait", "--poll", "1s", "--requeue", iterations=iterations),
        *("--duration", f"{duration}s"),
    )
    assert states(done.stdout) == {"S7": "completed"}, done.stderr
    turns = len(read("S7", "provenance.json")["starts"])
    assert turns >= 2
    check_nothing_ran_twice(iterations, {"S7": turns})
    job = read("S7", "job.json")
    shown = subprocess.run(
        ["scontrol", "-o", "show", "job", str(job["job_id"])], capture_output=True, text=True
    ).stdout
    assert f" Restarts={turns - 1} " in shown


def test_cancel_leaves_what_is_saved_and_removes_what_waits(work):
    submitted = imgtool(*sweep("--max-running", 1, iterations=4000))
    assert submitted.returncode == 0, submitted.stderr
    wait_until(lambda: at_iteration("S7", 5))
    stopped = imgtool("cancel", "small.yaml", "experiments", "--grace", "60s")
    assert stopped.returncode == 0, stopped.stderr
    shown = states(imgtool("status", "experiments").stdout)
    assert shown["S7"] == "stopped"
    assert "running" not in shown.values()
    assert not queue("--me")
    assert read("S7", "status.json")["state"] == "stopped"


def test_two_sweeps_at_once_share_the_trials(work):
    pair = [start(*sweep("--wait", "--poll", "1s", iterations=6)) for _ in range(2)]
    for one in pair:
        out, err = one.communicate(timeout=300)
        assert one.returncode == 0, err
        assert set(states(out).values()) == {"completed"}
    check_nothing_ran_twice(6, {"S7": 1, "S8": 1, "S10": 1})


def test_files_submitted_by_hand_with_a_gpu_each(work):
    keys = {"cluster__num_gpus": 1, "cluster__setup": '["echo gpu=$CUDA_VISIBLE_DEVICES"]'}
    made = imgtool(*sweep("--script-dir", "by hand", "--only", "S7,S8", iterations=4, **keys))
    assert made.returncode == 0, made.stderr
    assert not queue("--me", "-t", "all", "-n", "none")
    (row,) = [json.loads(line) for line in made.stdout.splitlines()]
    subprocess.run(shlex.split(row["submit"]), check=True)
    wait_until(lambda: states(imgtool("status", "experiments").stdout).get("S8") == "completed")
    wait_until(lambda: states(imgtool("status", "experiments").stdout).get("S7") == "completed")
    logs = [path.read_text() for path in sorted(Path("by hand/logs").glob("*.out"))]
    assert sorted(line for text in logs for line in text.splitlines() if "gpu=" in line) in (
        ["gpu=0", "gpu=1"],
        ["gpu=0", "gpu=0"],  # one after the other, or on two nodes
    )
    check_nothing_ran_twice(4, {"S7": 1, "S8": 1})


def test_a_trial_that_no_partition_will_start_says_so(work):
    keys = {"cluster__queue": "gpul40s", "cluster__walltime": "5h"}
    made = imgtool(*sweep("--only", "S7", **keys))
    assert made.returncode == 0, made.stderr
    assert "gpul40s allows 2h" in made.stderr

    def says_so():
        return "PartitionTimeLimit" in imgtool("status", "experiments").stdout

    wait_until(says_so)
    assert imgtool("cancel", "experiments").returncode == 0
    assert not queue("--me")


def test_jobs_over_candidates_share_what_is_made_once_for_each(work):
    trained = imgtool(*sweep("--only", "S7,S10", "--executor", "local", iterations=4))
    assert trained.returncode == 0, trained.stderr
    keys = {name: SMALL[name] for name in SMALL if name.startswith("cluster.")}
    keys |= {"train.max_iter": 4, "train.val_every": 4, "train.sample_every": 4}
    words = ["sweep", "flow_probe", "--over", folder("S7"), folder("S10"), "--tiny", "--executor"]
    probes = imgtool(
        *words, "slurm", "--wait", "--poll", "1s", *(f"--set={k}={v}" for k, v in keys.items())
    )
    assert probes.returncode == 0, probes.stderr
    rows = [json.loads(line) for line in probes.stdout.splitlines()]
    rows = [row for row in rows if row["kind"] == "experiment"]
    assert [row["state"] for row in rows] == ["completed"] * 4
    latents = {row["overrides"]["data.root"] for row in rows}
    assert len(latents) == 2
    assert all(Path(path).is_file() for path in latents)
    logs = [path.read_text() for path in Path("experiments/flow_probe/tiny").rglob("*.out")]
    assert sum(text.count('"kind": "latents"') for text in logs) == 2
    wait_until(lambda: not queue("--me"))
