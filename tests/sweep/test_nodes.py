"""One training on two nodes of the fake LSF, which are one machine: blaunch and two agents."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_lsf.cluster import Cluster
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc"),
]
PROGRAM = [sys.executable, "-m", "imgtool"]
CONFIG = """
family: autoencoder
model: {heads: [rgb], latent_channels: 4, downsampling_steps: 2, base_channels: 16}
data: {root: photos, crop: 32, num_workers: 0}
train: {batch_size: 2, device: cpu, threads: 1, max_iter: 600, log_every: 1, schedule: cosine}
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    rng = np.random.default_rng(0)
    Path("photos").mkdir()
    for number in range(8):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{number}.png")
    Path("a.yaml").write_text(CONFIG)
    found = Cluster(tmp_path / "lsf", monkeypatch, minute_sec=60)
    yield found
    found.close()


def imgtool(*words):
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def rows(folder):
    path = folder / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        {k: v for k, v in row.items() if k in ("iteration", "loss", "val_mse")} for row in found
    ]


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoints/iter_*.safetensors"))


def test_two_nodes_stop_on_the_warning_save_once_resume_and_are_as_one_node(tmp_path, cluster):
    sweep = ["sweep", "a.yaml", "--set", "cluster.num_gpus=0", "--executor", "lsf", "--json"]
    sweep += ["--set", "cluster.num_nodes=2", "--set", "cluster.num_cores=1"]
    shown = imgtool(*sweep, "--dry-run").stderr
    words = ("blaunch", 'torchrun --rdzv-endpoint "$meeting" --nnodes 2', "--free-endpoint")
    assert [word for word in words if word in shown] == [*words]
    record = json.loads(imgtool(*sweep).stdout)
    two = Path(record["path"])
    wait_until(lambda: len(rows(two)) > 20)
    subprocess.run(["bkill", "-s", "INT", "101[1]"], check=True)
    cluster.wait(lambda: cluster.stats(101) == {1: "DONE"}, seconds=60)
    status = json.loads((two / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "SIGINT")
    assert 20 < status["iteration"] < 600
    assert len(checkpoints(two)) == 1
    imgtool(*sweep, "--wait", "--poll", "1s")
    assert "blaunch" in "".join(path.read_text() for path in tmp_path.rglob("jobs/*.sh"))
    ranks = ["torchrun", "--nproc-per-node", "2", "train", "autoencoder", "--config", "a.yaml"]
    imgtool(*ranks, "--exp-dir", "one", "--quiet")
    assert rows(two) == rows(Path("one"))
    assert json.loads((two / "status.json").read_text())["state"] == "completed"
