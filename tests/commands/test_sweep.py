"""imgtool sweep: what it says beforehand, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from commands.main import main

PROGRAM = [sys.executable, "-m", "imgtool"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("IMGTOOL_FORMAT", raising=False)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable) + ":/usr/bin:/bin")
    (tmp_path / "layouts.csv").write_text("layout_path,scene_id,type\nnowhere.png,a,room\n")
    return tmp_path


def run(*args):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, args)])
    return int(caught.value.code or 0)


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_dry_run_tells_all_and_writes_nothing(folder, capsys):
    assert run("sweep", "phase1_1", "--dry-run") == 0
    said = capsys.readouterr()
    rows = records(said.out)
    assert [row["name"].split("_")[3] for row in rows] == [f"S{n}" for n in range(1, 13)]
    assert {row["gpu_hours"] for row in rows} == {6.0}
    assert "12 trials, 12 to run, at most 72 GPU hours" in said.err
    assert said.err.count(" train autoencoder --config ") == 12
    assert "note: data.manifest is not set (12 trials)" in said.err
    assert [path.name for path in folder.iterdir()] == ["layouts.csv"]


def test_a_dry_run_of_a_ladder(folder, capsys):
    (folder / "photos").mkdir()
    words = ("sweep", "hpcm_lambdas", "--ladder", "--set", "data.root=photos", "--dry-run")
    for executor in ((), ("--executor", "lsf"), ("--executor", "slurm")):
        assert run(*words, *executor) == 0
        said = capsys.readouterr()
        rows = records(said.out)
        names = [row["name"] for row in rows]
        assert [row["begins_with"] for row in rows] == [*names[1:], None]
        assert [row["step"] for row in rows] == [5, 4, 3, 2, 1, 0]
        assert [row["overrides"].get("train.epochs") for row in rows] == [600] * 5 + [None]
        assert "trains 1/5 of its iterations" in said.err
        if not executor:
            commands = [line for line in said.err.splitlines() if " train hpcm " in line]
            assert [name in line for name, line in zip(names[::-1], commands, strict=True)] == (
                [True] * 6
            )
            assert sum(" prepare " in line for line in commands) == 5
        else:
            assert said.err.count('prepare "$exp_dir"') == 6
            waits = "ended(" if executor[1] == "lsf" else "# Submit it after these jobs"
            assert said.err.count(waits) == 5
    assert run(*words, "--ladder-part", "1/2", "--format", "table") == 0
    said = capsys.readouterr()
    assert "step" in said.out
    assert sorted(path.name for path in folder.iterdir()) == ["layouts.csv", "photos"]
    for more, problem in (
        (("--ladder-part", "2"), "part is '2'"),
        (("--halving", "rungs=1ep metric=val_psnr"), "exclude each other"),
    ):
        assert run(*words, *more) == 2
        assert problem in capsys.readouterr().err
    assert run("sweep", "hpcm_lambdas", "--ladder-part", "1/2") == 2
    assert "is for --ladder" in capsys.readouterr().err


def test_a_dry_run_tells_what_is_not_there(folder, capsys):
    words = ("--set", "data.manifest=no.csv", "--dry-run")
    assert run("sweep", "phase1_1", *words) == 2
    said = capsys.readouterr()
    assert len(records(said.out)) == 12
    assert said.err.count("no.csv does not exist (12 trials)") == 1
    words = ("--set", "data.root=faces", "--set", "model.init_vqvae_ckpt=vq", "--dry-run")
    assert run("sweep", "genegan", "--only", "EXP06b,EXP01", *words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert lines == [
        f"error: data.root: {folder}/faces does not exist (3 trials)",  # the judge's too
        f"error: model.init_vqvae_ckpt: no checkpoint {folder}/vq (2 trials)",
    ]
    words = ("--executor", "lsf", "--no-check-data", "--dry-run")
    assert run("sweep", "phase1_1", "--set", "data.manifest=no.csv", *words) == 0


def test_grace_is_the_pool_s_and_run_timed_s(folder, capsys):
    from commands._sweep_options import Here
    from commands.sweep import _pool_options

    assert _pool_options(Here(grace="20s")).grace_sec == 20
    words = ("--duration", "1h", "--grace", "1m", "--dry-run")
    assert run("sweep", "phase1_1/S5", *words) == 0
    assert " --duration 3600.000s --grace 60s -- " in capsys.readouterr().err


def test_a_dry_run_counts_what_the_job_files_ask_for(folder, capsys):
    profile = folder / "config/imgtool/cluster.yaml"
    profile.parent.mkdir(parents=True)
    profile.write_text("num_gpus: 2\nmargin: 30m\n")
    (folder / "a.yaml").write_text("family: autoencoder\n")
    words = ("--executor", "lsf", "--dry-run")
    assert run("sweep", "a.yaml", *words) == 0
    said = capsys.readouterr()
    assert records(said.out)[0]["gpu_hours"] == 12
    assert "at most 12 GPU hours" in said.err
    assert "-W 6:00" in said.err
    assert "num=2" in said.err
    assert run("sweep", "a.yaml", *words, "--duration", "3h", "--requeue") == 0
    said = capsys.readouterr()
    assert (records(said.out)[0]["num_gpus"], records(said.out)[0]["gpu_hours"]) == (2, 7)
    assert "at most 7 GPU hours a turn" in said.err
    assert "-W 3:30" in said.err


def test_a_dry_run_s_table_fits_a_terminal(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    (folder / "a/folder/of/mine").mkdir(parents=True)
    (folder / "layouts.csv").rename(folder / "a/folder/of/mine/layouts.csv")
    words = ("--set", "data.manifest=a/folder/of/mine/layouts.csv", "--dry-run")
    assert run("sweep", "phase1_1", "--only", "S7,S8", *words, "--format", "table") == 0
    said = capsys.readouterr()
    assert "every trial: data.manifest=a/folder/of/mine/layouts.csv" in said.err
    head, *rows = said.out.strip().splitlines()
    assert "overrides" not in head
    assert len(rows) == 2
    words += ("--grid", "train.seed=0,1", "--format", "table")
    assert run("sweep", "phase1_1", "--only", "S7", *words) == 0
    said = capsys.readouterr()
    assert "train.seed" in said.out
    assert "layouts.csv" not in said.out


def test_a_dry_run_for_lsf_shows_the_scripts(folder, capsys):
    assert run("sweep", "phase1_1", "--executor", "lsf", "--dry-run") == 0
    said = capsys.readouterr()
    assert len(records(said.out)) == 12
    assert '[1-10]%4"' in said.err
    assert '[1-2]%2"' in said.err
    assert said.err.count("\nexec ") == 2
    assert [path.name for path in folder.iterdir()] == ["layouts.csv"]


def test_scripts_for_people_who_submit_by_hand(folder, capsys):
    words = ("sweep", "phase1_2", "--executor", "lsf", "--script-dir", "jobs")
    assert run(*words) == 2
    assert "data.manifest is not set" in capsys.readouterr().err
    assert run(*words, "--set", "data.manifest=layouts.csv") == 0
    rows = records(capsys.readouterr().out)
    assert sorted(row["queue"] for row in rows) == ["gpul40s", "gpuv100"]
    for row in rows:
        subprocess.run(["bash", "-n", row["path"]], check=True)
        (line,) = Path(row["manifest"]).read_text().splitlines()
        assert Path(line.split("\t")[1], "trial.yaml").is_file()
        assert Path(row["path"]).parent == folder / "jobs"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["phase1_9"], "no config file or preset 'phase1_9'"),
        (["phase1_1", "--only", "S99"], "no trial 'S99'"),
        (["phase1_1", "--only", ""], "--only names no trial"),
        (["phase1_1", "--set", "train.lrr=1"], "unknown key train.lrr"),
        (["phase1_1", "--grid", "loss.kld"], "not KEY=VALUE"),
        (["phase1_1", "--retry", "broken"], "no state 'broken'"),
        (["phase1_1", "--wait"], "--wait is for --executor cluster"),
        (["phase1_1", "--executor", "lsf", "--slots", "2"], "--slots is for --executor local"),
        (["phase1_1", "--duration", "soon"], "soon"),
        (["phase1_1", "--duration", "0"], "time limit is 0"),
        (["phase1_1", "--then", " "], "--then is empty"),
        (["phase1_1", "--set", "output.exp_dir=x"], "output.exp_dir is for one training"),
        (["phase1_1", "--executor", "lsf", "--dry-run", "--then", "ls 'x"], "No closing quotation"),
        (["phase1_1"], "data.manifest is not set (12 trials)"),
        (["phase1_1", "--set", "data.manifest=layouts.csv", "--executor", "lsf"], "no bsub here"),
        (["phase1_1", "--no-check-data"], "--no-check-data is for --executor cluster"),
        (["phase1_1", "--grace", "soon"], "'soon' is not a duration"),
        (["phase1_1", "--notify", "x", "--executor", "lsf"], "the sweep ends before its jobs do"),
        (["phase1_1", "--notify", ""], "--notify is empty"),
        (["phase1_1", "--executor", "lfs"], "no 'lfs'"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_starts(folder, capsys, words, said):
    assert run("sweep", *words) == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("hint: ")
    assert [path.name for path in folder.iterdir()] == ["layouts.csv"]


def test_no_cluster_here(folder, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    assert run("sweep", "phase1_1", "--executor", "cluster") == 2
    assert "error: there is no cluster here" in capsys.readouterr().err


def test_a_trial_that_cannot_start_is_a_failed_one(folder):
    words = ("--only", "S7", "--tiny", "--set", "data.manifest=layouts.csv")
    answer = subprocess.run(
        [*PROGRAM, "sweep", "phase1_1", *words], capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 1
    (row,) = records(answer.stdout)
    assert row["state"] == "failed"
    assert "layouts.csv" in row["reason"]
    again = subprocess.run(
        [
            *(*PROGRAM, "sweep", "phase1_1", *words),
            *("--then", "imgtool --version > after; echo talk"),
            *("--notify", 'cat > told; echo "$IMGTOOL_STATE $IMGTOOL_NAME" >> told'),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.returncode == 1
    assert "imgtool" in Path("after").read_text()
    assert "talk" in again.stderr
    assert "talk" not in again.stdout
    assert "--retry failed runs it again" in again.stderr
    record, words = Path("told").read_text().splitlines()
    assert words == "failed phase1_1"
    record = json.loads(record)
    assert (record["kind"], record["exit_code"], record["states"]) == ("sweep", 1, {"failed": 1})
    assert record["trials"][0]["path"] == row["path"]


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([("stopped", "SIGINT"), ("completed", None), None], 0),
        ([("stopped", "SIGINT"), ("failed", "SIGINT"), None], 130),
        ([("stopped", "SIGINT"), ("failed", None), None], 1),
    ],
)
def test_a_stop_that_saved_everything_is_no_failure(ends, code, monkeypatch, capsys):
    """States, and whether the stop had reached the trial; None for one that had not begun."""

    def pool(plan, trials, options, listener):
        for trial, end in zip(plan.trials, ends, strict=True):
            if end is not None:
                state, asked = end
                trial.directory.create()
                trial.directory.status_path.write_text(json.dumps({"state": state}))
                job = {"executor": "local", "asked": asked}
                (trial.directory.path / "job.json").write_text(json.dumps(job))
        return signal.SIGINT

    monkeypatch.setattr("imgtool.sweep.local.run", pool)
    words = ("--grid", "train.seed=0,1,2", "--slots", "1", "--set", "data.manifest=layouts.csv")
    assert run("sweep", "phase1_1/S5", *words) == code
    said = capsys.readouterr()
    assert [record["state"] for record in records(said.out)] == [
        *(end[0] if end else "pending" for end in ends)
    ]
    assert ("was stopped before it could save" in said.err) == (code == 130)


RUNGS = """\
sweep: rungs
base: base.yaml
matrix: {train.lr: [1e-5, 1e-3, 1e-4]}
root: runs
halving: {rungs: [4, 8], keep: 1/3}
"""
SMALL = """\
name: small
family: autoencoder
model: {latent_channels: 2, downsampling_steps: 2, base_channels: 16, codebook_size: 16, heads: [rgb]}
data: {root: photos, crop: 32, num_workers: 0}
train: {batch_size: 4, max_iter: 12, val_every: 6, schedule: cosine, threads: 1, device: cpu}
"""


@pytest.fixture
def rungs(folder):
    (folder / "base.yaml").write_text(SMALL)
    (folder / "sweep.yaml").write_text(RUNGS)
    return folder


def test_a_dry_run_with_rungs(rungs, capsys):
    (rungs / "photos").mkdir()
    assert run("sweep", "sweep.yaml", "--dry-run") == 0
    said = capsys.readouterr().err
    assert "halving: trials pause at 4, 8; the best 1/3 by val_mse and who is within" in said
    assert said.count(" --pause-at 4\n") == 3
    assert not (rungs / "runs").exists()
    words = ("--halving", "rungs=2ep metric=val_psnr")
    assert run("sweep", "sweep.yaml", "--dry-run", *words) == 0
    assert capsys.readouterr().err.count(" --pause-at 2ep\n") == 3
    for words, problem in (
        ("rungs=12", "halving: small-"),  # the training ends there
        ("rungs=2,1", "halving: rungs does not rise"),
        ("rungs=2 keep=2", "halving: keep is '2', expected a part between 0 and 1"),
    ):
        assert run("sweep", "sweep.yaml", "--halving", words) == 2
        assert problem in capsys.readouterr().err
    assert not (rungs / "runs").exists()


@pytest.mark.slow
def test_the_best_goes_on_and_select_winner_knows_the_others(rungs, capfd):
    """Real trainings: three to the first rung, one to its end, as if it had never paused."""
    from imgtool.data.synthetic.make import make_photos

    make_photos(rungs / "photos", 10, size=64, seed=1)
    assert run("sweep", "sweep.yaml", "--json") == 0
    rows = records(capfd.readouterr().out)
    assert [row["state"] for row in rows] == ["dropped", "completed", "dropped"]
    assert rows[0]["reason"].startswith("dropped at rung 4: val_mse ")
    assert [row["iteration"] for row in rows] == [4, 12, 4]
    assert run("select-winner", "runs", "--rule", "best", "--json") == 0
    winner, *ranking = records(capfd.readouterr().out)
    assert winner["name"] == rows[1]["name"]
    assert set(winner["dropped"]) == {rows[0]["name"], rows[2]["name"]}
    assert [row["state"] for row in ranking] == ["completed", "dropped", "dropped"]
    # By name a dropped one goes on to its end.
    last = rows[2]["name"]
    assert run("sweep", "sweep.yaml", "--only", last, "--json") == 0
    (row,) = records(capfd.readouterr().out)
    assert (row["state"], row["iteration"]) == ("completed", 12)
