import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from commands.main import main

IMGTOOL = [sys.executable, "-m", "imgtool", "prune"]


@pytest.fixture(autouse=True)
def default_format(monkeypatch):
    monkeypatch.delenv("IMGTOOL_FORMAT", raising=False)


def header(iteration, loss):
    record = {"format": 1, "iteration": iteration, "epoch": 0, "identity": "x"}
    record |= {"metrics": {"loss": loss}, "finite": True}
    text = json.dumps({"__metadata__": {"imgtool": json.dumps(record)}}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.fixture
def make(tmp_path):
    """make('S1', {100: 0.5}) -> an exp_dir with these checkpoints and losses."""

    def build(name, losses):
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        for iteration, loss in losses.items():
            (folder / f"iter_{iteration:06d}.safetensors").write_bytes(header(iteration, loss))
        return tmp_path / name

    return build


@dataclass
class Answer:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def prune(capsys, monkeypatch):
    """prune('DIR', '--keep', 2) runs the whole program in this process."""

    def run(*words, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as caught:
            main(["prune", *map(str, words)])
        out, err = capsys.readouterr()
        return Answer(int(caught.value.code), out, err)

    return run


def left(experiment):
    return sorted(path.name[5:11] for path in (experiment / "checkpoints").glob("iter_*"))


LOSSES = {100: 1.0, 200: 0.9, 300: 0.8, 400: 0.7}


def test_record(make, prune):
    experiment = make("S1", LOSSES)
    answer = prune(experiment, "--keep", 2)
    assert answer.returncode == 0
    record = json.loads(answer.stdout)
    folder = experiment / "checkpoints"
    assert record == {
        "schema": "imgtool/1",
        "kind": "prune",
        "path": str(folder),
        "removed": [str(folder / f"iter_000{i}.safetensors") for i in (100, 200)],
        "num_removed": 2,
        "freed_bytes": len(header(100, 1.0)) + len(header(200, 0.9)),
        "kept": [
            {
                "path": str(folder / f"iter_000{i}.safetensors"),
                "iteration": i,
                "reason": "among the newest 2",
            }
            for i in (300, 400)
        ],
        "num_kept": 2,
        "dry_run": False,
    }
    assert left(experiment) == ["000300", "000400"]
    again = json.loads(prune(experiment).stdout)
    assert (again["num_removed"], again["freed_bytes"]) == (0, 0)


def test_dry_run_removes_nothing_and_says_the_same(make, prune):
    experiment = make("S1", LOSSES)
    dry = json.loads(prune(experiment, "--keep", 1, "--dry-run").stdout)
    assert left(experiment) == ["000100", "000200", "000300", "000400"]
    wet = json.loads(prune(experiment, "--keep", 1).stdout)
    assert dry.pop("dry_run")
    assert not wet.pop("dry_run")
    assert dry == wet


def test_the_older_spelling(make, prune):
    experiment = make("EXP00", LOSSES)
    answer = prune("--ckpt_dir", experiment / "checkpoints", "--keep", 2)
    assert answer.returncode == 0
    assert left(experiment) == ["000300", "000400"]


def test_several_and_a_pipe(make, prune):
    first, second = make("S1", LOSSES), make("S2", LOSSES)
    record = json.dumps({"kind": "experiment", "path": str(second)})
    answer = prune("-", first, "--keep", 1, "--quiet", stdin=f"{first}\n{record}\n")
    assert answer.stdout.split() == [f"{first}/checkpoints", f"{second}/checkpoints"]
    assert left(first) == left(second) == ["000400"]


def test_a_folder_of_checkpoints_counts_as_an_experiment(make, prune):
    experiment = make("S1", LOSSES)
    prune(experiment / "checkpoints", "--keep", 3)
    assert len(left(experiment)) == 3


def test_an_exploded_loss_is_told(make, prune):
    experiment = make("S1", {**LOSSES, 500: 70.0})
    answer = prune(experiment, "--keep", 1)
    assert left(experiment) == ["000400", "000500"]
    assert "has exploded (limit 8.5)" in answer.stderr
    prune(experiment, "--keep", 1, "--max-loss", 100)
    assert left(experiment) == ["000500"]


def test_keep_best_and_every(make, prune):
    experiment = make("S1", {100: 0.1, 150: 0.5, 200: 0.5, 250: 0.5})
    prune(experiment, "--keep", 1, "--keep-best", "--keep-every", 200)
    assert left(experiment) == ["000100", "000200", "000250"]


def test_nothing_to_do(make, prune):
    empty = make("S1", {})
    answer = prune(empty)
    assert (answer.returncode, json.loads(answer.stdout)["num_removed"]) == (0, 0)
    answer = prune("-", stdin="")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{tmp}/missing"], "does not exist"),
        (["--ckpt-dir", "{tmp}/missing"], "does not exist"),
        (["{tmp}/S1/notes"], "is not a folder"),
        (["{tmp}"], "has no checkpoints"),
        ([], "no experiment was named"),
        (["{tmp}/S1", "--keep", "0"], "keep is 0"),
        (["{tmp}/S1", "--keep-every", "0"], "keep-every is 0"),
        (["{tmp}/S1", "--max-loss", "nan"], "max-loss is nan"),
        (["{tmp}/S1", "--kepe", "1"], "no such option: --kepe"),
        (["{tmp}/S1", "{tmp}/missing"], "does not exist"),
    ],
)
def test_mistakes_remove_nothing(make, prune, tmp_path, words, message):
    experiment = make("S1", LOSSES)
    (experiment / "notes").write_text("x")
    answer = prune(*[word.replace("{tmp}", str(tmp_path)) for word in words])
    assert answer.returncode == 2
    assert answer.stdout == ""
    error, hint = answer.stderr.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("hint: ")
    assert len(left(experiment)) == 4


def test_on_a_terminal_each_file_is_told(make):
    experiment = make("S1", LOSSES)
    environment = {**os.environ, "IMGTOOL_FORMAT": "table", "COLUMNS": "200"}
    answer = subprocess.run(
        [*IMGTOOL, str(experiment), "--dry-run"], capture_output=True, text=True, env=environment
    )
    assert "freed_bytes" in answer.stdout
    lines = answer.stderr.splitlines()
    assert lines[0] == f"would remove {experiment}/checkpoints/iter_000100.safetensors"
    assert lines[-1].endswith("iter_000400.safetensors: among the newest 2")


def test_as_a_process(make):
    experiment = make("S1", LOSSES)
    words = [*IMGTOOL, str(experiment), "--ckpt_dir", str(experiment / "missing")]
    answer = subprocess.run(words, capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.splitlines()[0].endswith("missing does not exist")
    answer = subprocess.run([*words[:-2], "--json"], capture_output=True, text=True)
    assert answer.returncode == 0
    assert json.loads(answer.stdout)["num_removed"] == 2


def test_a_link_out_of_the_experiment_is_not_followed(make, prune, tmp_path):
    exp = make("S1", {100: 0.5, 200: 0.4, 300: 0.3})
    inside = exp / "checkpoints"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/checkpoints").symlink_to(inside)
    refused = prune(tmp_path / "other", "--keep", 1)
    assert refused.returncode == 2
    assert f"--ckpt-dir {inside}" in refused.stderr
    assert len(os.listdir(inside)) == 3
    inside.rename(exp / "moved")  # within the experiment
    inside.symlink_to("moved")
    assert prune(exp, "--keep", 1).returncode == 0
    assert os.listdir(inside) == ["iter_000300.safetensors"]
