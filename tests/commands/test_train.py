"""imgtool train through real processes: signals, kills, owners, ranks, exit codes."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from commands.main import main
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoint_file import CheckpointHeader
from imgtool.process.stopping import SIGNALS
from tests.waiting import wait_until

PROGRAM = [sys.executable, "-m", "imgtool"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(12):
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC).save(
            folder / f"{number}.png"
        )
    return folder


def words(photos, exp_dir, *more):
    return [
        *("train", "autoencoder", "--data-root", photos, "--heads", "rgb", "--crop", 32),
        *("--latent-channels", 4, "--downsampling-steps", 2, "--base-channels", 16),
        *("--batch-size", 4, "--lr", 1e-3, "--device", "cpu", "--threads", 1),
        *("--log-every", 5, "--exp-dir", exp_dir, *more),
    ]


def start(*args, **options):
    return subprocess.Popen(
        [*PROGRAM, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


@pytest.fixture
def call(capsys):
    """call(*words): the program in this process, where the process is not the point."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def call(*args):
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in args])
        out, err = capsys.readouterr()
        return left.value.code, out, err

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def newest(exp_dir):
    folder = Path(exp_dir) / "checkpoints"
    found = sorted(folder.glob("iter_*.safetensors")) if folder.is_dir() else []
    return int(found[-1].stem[5:]) if found else -1


def test_sigint_saves_once_and_the_same_command_goes_on(photos, tmp_path, call):
    command = words(photos, tmp_path / "a", "--save-every", 1000, "--val-every", 1000)
    training = start(*command)
    wait_until(lambda: '"iteration": 10' in _text(tmp_path / "a/metrics.jsonl"))
    training.send_signal(signal.SIGINT)
    training.send_signal(signal.SIGINT)  # LSF and timeout deliver twice
    code, out, err = finish(training)
    assert code == 0, err
    record = json.loads(out)
    assert (record["state"], record["reason"]) == ("stopped", "SIGINT")
    assert record["schema"] == "imgtool/1"
    assert newest(tmp_path / "a") == record["iteration"] >= 10
    assert len(list((tmp_path / "a/checkpoints").glob("iter_*"))) == 1
    assert not (tmp_path / "a/owner").exists()
    again = call(*command, "--max-iter", record["iteration"] + 3, "--quiet")
    assert again[0] == 0
    assert again[1].strip() == str(tmp_path / "a")
    assert f"resuming at iteration {record['iteration']}" in again[2]


def _text(path):
    return path.read_text() if path.exists() else ""


def starts(exp_dir):
    log = _text(exp_dir / "train.log")
    return log.count("resuming at") + log.count("starting:")


def wait_until_started(training, exp_dir, before):
    wait_until(lambda: training.poll() is not None or starts(exp_dir) > before)


def kill_at_random_moments(photos, exp_dir, kills, seed, meanwhile=lambda training: None):
    """SIGKILL a training again and again; each start must go on from a valid checkpoint."""
    rng = random.Random(seed)
    save_every, reached, seen = 3, -1, []
    for _ in range(kills):
        before = starts(exp_dir)
        training = start(
            *words(photos, exp_dir, "--save-every", save_every, "--val-every", 7, "--log-every", 1)
        )
        wait_until_started(training, exp_dir, before)
        meanwhile(training)
        time.sleep(rng.uniform(0.0, 1.0))
        last_logged = _last_iteration(exp_dir)
        training.send_signal(signal.SIGKILL)
        _, err = training.communicate()
        assert training.returncode == -signal.SIGKILL, err
        reached = max(reached, last_logged)
        usable = checkpoint_iteration(exp_dir)
        assert usable >= last_logged - save_every
        seen.append(usable)
    return seen


def _last_iteration(exp_dir):
    rows = [line for line in _text(exp_dir / "metrics.jsonl").splitlines() if line.endswith("}")]
    return max((json.loads(line)["iteration"] for line in rows), default=0)


def checkpoint_iteration(exp_dir):
    """The newest checkpoint, read whole; 0 before the first."""
    from imgtool.experiment.checkpoints import newest_valid

    found = newest_valid(exp_dir / "checkpoints")
    if found is None:
        return 0
    tensors = checkpoint_file.read(found.path).tensors
    assert checkpoint_file.all_finite(tensors)
    return found.iteration


def test_two_kills_and_a_second_train_in_the_directory_in_use(photos, tmp_path, call):
    def train_there_too(training):
        code, out, err = call(*words(photos, tmp_path / "a"))
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert str(training.pid) in err
        assert err.count("\n") == 2

    seen = kill_at_random_moments(photos, tmp_path / "a", 2, seed=1, meanwhile=train_there_too)
    assert seen == sorted(seen)
    assert seen[-1] > 0


@pytest.mark.slow
def test_thirty_kills(photos, tmp_path):
    seen = kill_at_random_moments(photos, tmp_path / "a", 30, seed=2)
    assert seen == sorted(seen)
    assert seen[-1] > 30
    end = finish(start(*words(photos, tmp_path / "a", "--max-iter", seen[-1] + 5)))
    assert end[0] == 0
    assert not list((tmp_path / "a/checkpoints").glob(".*"))


def test_a_full_disk_during_a_save_keeps_the_previous_checkpoint(photos, tmp_path, call):
    command = words(photos, tmp_path / "a", "--save-every", 5)
    assert call(*command, "--max-iter", 5)[0] == 0
    kept = tmp_path / "a/checkpoints/iter_000005.safetensors"
    before = kept.read_bytes()
    assert len(before) > 400_000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300 << 10, limits[1]))
    try:
        code, _, err = call(*command, "--max-iter", 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 4
    errors = [text for text in err.splitlines() if text.startswith(("error:", "hint:"))]
    assert len(errors) == 2
    assert "iter_000010.safetensors" in errors[0]
    assert "Traceback" not in err
    assert kept.read_bytes() == before
    assert os.listdir(kept.parent).count("iter_000010.safetensors") == 0
    assert not list(kept.parent.glob(".*"))


def torchrun(ranks, *args):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return subprocess.Popen(
        [
            *launcher,
            "--master-port",
            str(random.randint(20000, 60000)),
            "-m",
            "imgtool",
            *map(str, args),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_ranks_are_one_process_with_the_double_batch(photos, tmp_path, call):
    # Adam turns gradients that are zero up to rounding into whole steps; SGD does not.
    common = ("--max-iter", 6, "--val-every", 3, "--bottleneck", "kl", "--num-workers", 0)
    common += ("--optimizer", "sgd", "--lr", 0.5)
    two = torchrun(2, *words(photos, tmp_path / "two", *common, "--batch-size", 2))
    code, _, err = finish(two, 240)
    assert code == 0, err[-2000:]
    assert call(*words(photos, tmp_path / "one", *common, "--batch-size", 4))[0] == 0
    a = checkpoint_file.read(tmp_path / "two/checkpoints/iter_000006.safetensors").part("model")
    b = checkpoint_file.read(tmp_path / "one/checkpoints/iter_000006.safetensors").part("model")
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-5, atol=1e-5)
    rows = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("two", "one")
    ]
    assert rows[0]["val_mse"] == pytest.approx(rows[1]["val_mse"], rel=1e-4)


RANKS = """
import os, sys, torch
from commands.main import main
from imgtool.training import loop
plain = loop.Loop._finish
def finish(self, *args):
    torch.save(self.run.stepper.task.modules.state_dict(), os.environ["WHERE"] + os.environ["RANK"])
    return plain(self, *args)
loop.Loop._finish = finish
main(sys.argv[1:])
"""


@pytest.mark.slow  # three starts; under our launcher tests/process/test_torchrun.py shows it
def test_ranks_of_torchs_launcher_are_equal_and_save_once_without_orphans(photos, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = words(
        photos, tmp_path / "a", "--save-every", 10_000, "--bottleneck", "vq", "--num-workers", 1
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    port = str(random.randint(20000, 60000))
    training = subprocess.Popen(
        [*launcher, "--master-port", port, str(script), *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WHERE": str(tmp_path / "rank"), "PYTHONPATH": os.getcwd()},
    )
    wait_until(lambda: '"iteration": 10' in _text(tmp_path / "a/metrics.jsonl"), 180)
    ranks = _descendants(training.pid)
    assert len(ranks) >= 2
    training.send_signal(signal.SIGINT)
    finish(training, 120)
    status = json.loads((tmp_path / "a/status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "SIGINT")
    saved = list((tmp_path / "a/checkpoints").glob("iter_*"))
    assert len(saved) == 1
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), 30)
    first, second = (torch.load(tmp_path / f"rank{i}", weights_only=True) for i in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _descendants(pid):
    children = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def test_divergence_ends_with_3_and_says_so(photos, tmp_path, call):
    bad = words(photos, tmp_path / "b", "--save-every", 2, "--log-every", 5, "--max-iter", 60)
    code, out, err = call(*bad, "--lr", "1e30")
    assert (code, out) == (3, "")
    assert "error: diverged" in err
    assert "hint: " in err
    assert json.loads((tmp_path / "b/status.json").read_text())["state"] == "diverged"


@pytest.fixture
def refused(photos, tmp_path, call):
    """refused(*words): exit code and error line of a train that must not start."""

    def refused(*more, exp_dir="x", root=photos):
        code, out, err = call(*words(root, tmp_path / exp_dir, "--max-iter", 1, *more))
        assert out == ""
        lines = err.splitlines()
        assert len(lines) == 2, err
        assert lines[0].startswith("error: "), err
        assert lines[1].startswith("hint: "), err
        return code, lines[0]

    return refused


def test_cuda_without_cuda(refused):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    code, line = refused("--device", "cuda")
    assert code == 2
    assert "CUDA" in line


def test_a_head_without_its_target(refused):
    code, line = refused("--heads", "rgb", "segmentation")
    assert code == 2
    assert "segmentation" in line


def test_a_pickle_named_safetensors_and_a_truncated_checkpoint(tmp_path, refused):
    import pickle  # noqa: TID251

    fake = tmp_path / "fake.safetensors"
    fake.write_bytes(pickle.dumps({"a": 1}))
    code, line = refused("--resume", fake)
    assert code == 4
    assert str(fake) in line
    whole = tmp_path / "iter_000001.safetensors"
    header = CheckpointHeader(iteration=1, epoch=0.0, metrics={"loss": 1.0}, identity="x")
    checkpoint_file.write(whole, {"model.a": torch.zeros(100)}, header)
    whole.write_bytes(whole.read_bytes()[:-7])
    code, line = refused("--resume", whole)
    assert code == 4
    assert "truncated" in line


def test_an_exp_dir_that_cannot_be_made(tmp_path, refused):
    (tmp_path / "file").write_text("")
    code, line = refused(exp_dir="file")
    assert code == 2
    assert "file" in line


def test_a_zero_byte_image_is_named_and_can_be_skipped(photos, tmp_path, refused, call):
    folder = tmp_path / "bad"
    shutil.copytree(photos, folder)
    (folder / "empty.png").write_bytes(b"")
    code, line = refused(root=folder)
    assert code == 4
    assert "empty.png" in line
    assert call(*words(folder, tmp_path / "y", "--max-iter", 1, "--skip-bad"))[0] == 0


def test_usage_errors_name_the_option_or_the_line(tmp_path, refused):
    code, line = refused("--learning-rte", 1)
    assert code == 2
    assert "--learning-rte" in line
    config = tmp_path / "e.yaml"
    config.write_text("family: autoencoder\ntrain:\n  learning_rte: 1\n")
    code, line = refused("--config", config)
    assert code == 2
    assert f"{config}:3" in line


def test_a_usage_error_answers_before_torch_is_imported(tmp_path):
    program = (
        "import sys\nfrom commands.main import main\n"
        "try:\n    main(['train', 'autoencoder', '--lr', 'fast'])\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (2, "False\n")


def test_a_manifest_with_a_missing_file(tmp_path, call):
    manifest = tmp_path / "layouts.csv"
    manifest.write_text("scene_id,type,room_id,layout_path,is_empty\ns1,room,1,nowhere.png,false\n")
    code, out, err = call(
        *("train", "autoencoder", "--dataset", "layouts", "--manifest", manifest),
        *("--exp-dir", tmp_path / "x", "--device", "cpu"),
    )
    assert (code, out) == (4, "")
    assert "nowhere.png" in err
    assert "layouts.csv line 2" in err


def test_a_preset_can_be_looked_at_before_there_is_data(tmp_path, call):
    code, out, _ = call("train", "autoencoder", "--config", "phase1_1/S1", "--dry-run")
    assert code == 0
    assert "# num_parameters: 3119455" in out
    assert "# latent_dims: 16384" in out
    assert "# data: not named yet" in out


def test_a_refused_start_leaves_the_last_word_of_the_experiment(photos, tmp_path, call, refused):
    assert call(*words(photos, tmp_path / "x", "--max-iter", 2))[0] == 0
    before = json.loads((tmp_path / "x/status.json").read_text())
    assert before["state"] == "completed"
    assert before["facts"]["num_parameters"] > 0
    assert refused("--resume", "nowhere")[0] == 4
    assert refused("--lr", 0.5)[0] == 2
    assert json.loads((tmp_path / "x/status.json").read_text()) == before


def test_data_lie_where_the_resolved_config_says_from_any_folder(
    photos, tmp_path, call, monkeypatch
):
    monkeypatch.chdir(photos.parent)
    code, out, _ = call(*words(photos.name, tmp_path / "x", "--dry-run"))
    assert code == 0
    assert f"root: {photos}" in out


def test_dry_run_writes_nothing(photos, tmp_path, call):
    code, out, _ = call(*words(photos, tmp_path / "x", "--dry-run"))
    assert code == 0
    assert "latent_channels: 4" in out
    assert "--latent-channels" in out
    assert "num_parameters" in out
    assert "memory_bytes" in out
    assert not (tmp_path / "x").exists()


def test_without_its_weights_lpips_is_refused_before_anything_is_written(
    photos, tmp_path, call, monkeypatch
):
    import urllib.error
    import urllib.request

    def offline(*args, **more):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("TORCH_HOME", "IMGTOOL_LPIPS_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    line = words(photos, tmp_path / "x", "--loss-lpips", "1")
    code, _, err = call(*line)
    assert code == 4
    assert "cannot download the weights of LPIPS (VGG16): Name or service not known" in err
    assert "IMGTOOL_LPIPS_WEIGHTS=FILE" in err
    assert not (tmp_path / "x").exists()
    other = tmp_path / "vgg16-397923af.pth"
    other.write_bytes(b"not it")
    monkeypatch.setenv("IMGTOOL_LPIPS_WEIGHTS", str(other))
    code, _, err = call(*line)
    assert code == 4
    assert "is not the published vgg16-397923af.pth" in err
    assert not (tmp_path / "x").exists()
    code, out, _ = call(*line, "--loss-gan", "0.1", "--dry-run")  # it needs none
    assert code == 0
    assert "num_parameters_discriminator: 2765633" in out
