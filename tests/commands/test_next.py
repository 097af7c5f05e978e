"""The command that likely comes next: told to a person at a terminal, and it works as told."""

import os
import pty
import shlex
import subprocess
import sys

import pytest

from imgtool.experiment.layout import ExperimentDir
from tests.commands.test_main import PROGRAM


def at_a_terminal(folder, *words):
    """What a person sees."""
    leader, follower = pty.openpty()
    command = [*PROGRAM, *map(str, words)]
    process = subprocess.Popen(
        command, cwd=folder, stdin=follower, stdout=follower, stderr=follower, env=environment()
    )
    os.close(follower)
    seen = b""
    try:
        while piece := os.read(leader, 65536):
            seen += piece
    except OSError:  # Linux says so when the last writer has gone
        pass
    os.close(leader)
    assert process.wait() == 0, seen
    return seen.decode()


def environment():
    given = {k: v for k, v in os.environ.items() if not k.startswith("IMGTOOL_FORMAT")}
    return {**given, "COLUMNS": "100", "PYTHONPATH": os.pathsep.join(sys.path)}


def next_of(text):
    (line,) = [line for line in text.splitlines() if line.startswith("next: imgtool ")]
    return shlex.split(line.removeprefix("next: imgtool "))


def test_a_copied_preset_leads_to_what_it_says(tmp_path):
    copied = at_a_terminal(tmp_path, "presets", "copy", "photos/quick", "a b.yaml")
    assert next_of(copied) == ["config", "show", "a b.yaml"]
    assert "name: photos_AE_ch4_ds2" in at_a_terminal(tmp_path, *next_of(copied))


@pytest.mark.slow
def test_data_lead_to_a_training_and_that_to_its_metrics(tmp_path):
    made = at_a_terminal(tmp_path, "data", "make", "photos", "p", "--n", 12, "--size", 64)
    limits = ("--tiny", "--max-iter", 2, "--exp-dir", "out/a", "--device", "cpu")
    trained = at_a_terminal(tmp_path, *next_of(made), *limits)
    assert next_of(trained) == ["eval", "metrics", "out/a"]
    assert ExperimentDir(tmp_path / "out/a").best_path.exists()


def test_a_pipe_is_told_nothing(tmp_path):
    words = [*PROGRAM, "presets", "copy", "photos/quick", "a.yaml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert done.returncode == 0
    assert "next:" not in done.stdout + done.stderr
