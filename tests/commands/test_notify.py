"""`--notify`, and code that has changed since a trial was submitted: told, and never in the way."""

import json
import signal
import subprocess
import sys

import psutil
import pytest

from commands.main import main
from imgtool.experiment import provenance
from imgtool.experiment.layout import ExperimentDir
from imgtool.process import shell
from imgtool.process.stopping import SIGNALS
from tests.waiting import wait_until

TELL = 'cat > told.json; echo "$IMGTOOL_STATE $IMGTOOL_NAME" > told.txt'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMGTOOL_FORMAT", raising=False)
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number}.png")
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run(*args):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in args])
    return left.value.code


def train(*more):
    return run(
        *("train", "autoencoder", "--data-root", "photos", "--heads", "rgb", "--crop", 32),
        *("--latent-channels", 4, "--downsampling-steps", 2, "--base-channels", 16),
        *("--batch-size", 4, "--device", "cpu", "--threads", 1, "--num-workers", 0),
        *("--max-iter", 2, "--exp-dir", "x", *more),
    )


def told(folder):
    record = json.loads((folder / "told.json").read_text())
    state, name = (folder / "told.txt").read_text().split()
    (folder / "told.json").unlink()
    assert (record["schema"], record["state"], record["name"]) == ("imgtool/1", state, name)
    return record


def test_a_training_tells_how_it_ended(folder, capsys):
    assert train("--notify", TELL) == 0
    printed = json.loads(capsys.readouterr().out)
    assert told(folder) == printed
    assert printed["state"] == "completed"
    assert train("--notify", f"{TELL}; exit 3", "--resume", "never") == 2  # it is refused
    record = told(folder)
    assert (record["state"], record["exit_code"]) == ("failed", 2)
    assert "the command of --notify ended with 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "state", "code"),
    [
        (["true"], "completed", 0),
        (["false"], "failed", 1),
        (["bash", "-c", "trap 'exit 0' INT; sleep 60 & wait"], "stopped", 0),
    ],
)
def test_run_timed_tells_how_it_ended(folder, capsys, command, state, code):
    words = ("--exp-dir", "x", "--duration", "0.3s", "--notify", f"{TELL}; echo talk")
    answer = subprocess.run(
        [sys.executable, "-m", "imgtool", "run-timed", *words, "--", *command],
        capture_output=True,
        text=True,
        timeout=120,
    )
    record = told(folder)
    assert (record["state"], record["exit_code"], record["kind"]) == (state, code, "job")
    assert record == json.loads(answer.stdout)
    assert "talk" in answer.stderr


def test_a_command_that_hangs_is_killed_with_what_it_started(folder):
    command = "sleep 60 & echo $! > child; wait"
    said = shell.notify(command, "{}", state="failed", name="x", limit_sec=0.5)
    assert said == "the command of --notify was killed after 0.5 s"
    pid = int((folder / "child").read_text())

    def has_ended():
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_until(has_ended)


def test_one_that_does_not_listen_is_no_fault():
    assert shell.notify("exec < /dev/null; true", "x" * 10**6, state="failed", name="x") is None
    assert "not be started" in shell.notify("true", "{}", state="a\0b", name="x")


def test_other_code_than_that_of_the_submission(folder, monkeypatch, capsys):
    directory = ExperimentDir("x")
    directory.create()
    now = provenance.code()
    for strict, code in ((False, 0), (True, 2)):
        monkeypatch.setattr(provenance, "code", lambda: {**now, "sha256": "0"})
        provenance.note_submission(directory, strict=strict)
        monkeypatch.setattr(provenance, "code", lambda: now)
        assert train("--max-iter", 4 if strict else 2) == code
        words = "the code has changed since the submission"
        assert words in capsys.readouterr().err
        assert words in directory.log_path.read_text()
    assert run("status", "x", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["state"], record["warning"].startswith(words)) == ("completed", True)
