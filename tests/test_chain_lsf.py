"""The study on a cluster where everything that can go wrong does: nothing is lost."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fake_lsf.cluster import Cluster
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc"),
]
PROGRAM = [sys.executable, "-m", "imgtool"]
SPEC = """
sweep: hard_times
experiments: [phase1_1/S7, phase1_1/S8, phase1_1/S10, elsewhere.yaml, wild.yaml]
root: experiments/hard
shared_dir: outputs/hard
decides: [model.latent_channels, model.downsampling_steps]
resources: {gpuv100: {max_running: 2}}
"""
ELSEWHERE = "base: phase1_1/S3\nname: elsewhere\nlsf: {queue: gpul40s}\n"
# --tiny sets the learning rate; a decay of 1e30 drives the weights apart all the same.
WILD = "base: phase1_1/S7\nname: wild\ntrain: {optimizer: sgd, weight_decay: 1.0e+30}\n"
ITERATIONS = 480


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("LSB_JOBID", "LSB_JOBINDEX", "IMGTOOL_RUN_LIMIT_SEC"):
        monkeypatch.delenv(name, raising=False)
    found = Cluster(tmp_path / "lsf", monkeypatch, minute_sec=30)
    yield found
    found.close()


def imgtool(*words, **options):
    return subprocess.run(
        [*PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=600, **options
    )


def start_up_sec():
    """How long a training takes here to begin and to save, with the machine as it is."""
    begin = time.monotonic()
    words = ("--config", "phase1_1/S7", "--tiny", "--manifest", "l/layouts.csv")
    limits = ("--max-iter", 1, "--exp-dir", "first")
    assert imgtool("train", "autoencoder", *words, *limits).returncode == 0
    return time.monotonic() - begin


def sweep(duration_sec, *words):
    return [
        *(*PROGRAM, "sweep", "hard.yaml", "--tiny", "--executor", "lsf", "--wait", "--poll", "1s"),
        *("--set", "data.manifest=l/layouts.csv", "--set", f"train.max_iter={ITERATIONS}"),
        *("--set", "train.val_every=60", "--set", "train.save_every=20", "--requeue"),
        *("--set", "train.epochs=1000", "--set", "train.patience=null"),
        *("--duration", f"{duration_sec}s", *words),
    ]


def status(name):
    paths = list(Path("experiments").glob(f"hard/tiny/*{name}*/status.json"))
    return json.loads(paths[0].read_text()) if paths else {}


def kill_while_it_trains(cluster):
    """S8, once it has a checkpoint to go on from."""
    saved = list(Path("experiments").glob("hard/tiny/*S8*/checkpoints/iter_*.safetensors"))
    if not saved or status("S8").get("state") != "running":
        return False
    os.kill(status("S8")["pid"], signal.SIGKILL)
    return True


def forget_while_it_runs(cluster):
    """The job of the other queue."""
    if status("elsewhere").get("state") != "running":
        return False
    lone = [int(number) for number, job in cluster.jobs.items() if "gpul40s" in json.dumps(job)]
    cluster.change(forgotten=lone, erased=lone)
    return True


def records(text, kind):
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [row for row in rows if row["kind"] == kind]


def test_a_kill_a_limit_a_divergence_and_a_forgotten_job(cluster):
    assert (
        imgtool("data", "make", "layouts", "l", "--n", 60, "--size", 64, "--quiet").returncode == 0
    )
    Path("hard.yaml").write_text(SPEC)
    Path("elsewhere.yaml").write_text(ELSEWHERE)
    Path("wild.yaml").write_text(WILD)

    duration = max(14, round(3 * start_up_sec()))  # three start at once, on as few as two cores

    first = subprocess.Popen(
        sweep(duration), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    todo = {"kill": kill_while_it_trains, "forget": forget_while_it_runs}

    def all_done():
        for name in [*todo]:
            if todo[name](cluster):
                del todo[name]
        return not todo

    wait_until(all_done)
    out, err = first.communicate(timeout=600)
    assert first.returncode == 1, err
    states = {
        row["name"].split("_AE_")[-1].split("_")[0]: row for row in records(out, "experiment")
    }
    assert states["wild"]["state"] == "diverged", err
    assert states["S8"]["state"] in ("failed", "stale"), err
    assert states["S7"]["state"] == states["S10"]["state"] == "completed", err
    assert states["S7"]["job"]["index"] == 1

    again = subprocess.run(
        sweep(duration, "--retry", "failed,stale"), capture_output=True, text=True, timeout=600
    )
    states = {row["name"]: row for row in records(again.stdout, "experiment")}
    assert sorted(row["state"] for row in states.values()) == ["completed"] * 4 + ["diverged"]
    for row in states.values():
        if row["state"] == "completed":
            lines = Path(row["path"], "metrics.jsonl").read_text().splitlines()
            logged = [json.loads(line) for line in lines]
            iterations = [r["iteration"] for r in logged if r.get("kind") != "evaluation"]
            assert iterations == list(range(10, ITERATIONS + 1, 10)), row["name"]
    for name in ("S7", "S8", "S10"):  # ran out of time, and were started again
        starts = json.loads(Path(status_dir(name), "provenance.json").read_text())["starts"]
        assert len(starts) >= 2, name

    chosen = imgtool("select-winner", "-", input=again.stdout)
    assert chosen.returncode == 0, chosen.stderr
    (winner,) = records(chosen.stdout, "winner")
    assert winner["name"] == smallest_good_enough(states)
    (wild_one,) = [r for r in records(chosen.stdout, "ranking") if r["name"] == "wild"]
    assert not wild_one["is_eligible"]


def status_dir(name):
    return next(Path("experiments").glob(f"hard/tiny/*{name}*"))


def smallest_good_enough(states):
    """By hand: of the frontier within 1.5 times the best error, the fewest latent dims."""
    found = []
    for name, row in states.items():
        if row["state"] == "completed":
            (table,) = Path(row["path"]).glob("*_metrics.csv")
            with open(table, newline="") as file:
                mse = min(float(line["val_mse"]) for line in csv.DictReader(file))
            dims = json.loads(Path(row["path"], "status.json").read_text())["facts"]["latent_dims"]
            found.append((dims, mse, name))
    best = min(mse for _, mse, _ in found)
    good = [one for one in found if one[1] <= 1.5 * best]
    frontier = [a for a in good if not any(b[0] <= a[0] and b[1] < a[1] for b in good)]
    return min(frontier)[2]
