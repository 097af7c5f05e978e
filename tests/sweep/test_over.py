"""A sweep over candidates: its trials, and what is made once for them."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from imgtool.config import presets
from imgtool.config.identity import identity
from imgtool.errors import UserError
from imgtool.experiment import owner
from imgtool.experiment.checkpoint_file import CheckpointHeader, write
from imgtool.experiment.layout import ExperimentDir
from imgtool.models.registry import schema
from imgtool.schedulers.lsf import Lsf
from imgtool.schedulers.profile import Profile, Site
from imgtool.sweep import jobs, manifest
from imgtool.sweep.inputs import lacking
from imgtool.sweep.job_files import Options, scripts
from imgtool.sweep.over import Preparation, prepare, read_over, read_preparation
from imgtool.sweep.plan import make_plan
from imgtool.sweep.race import _key
from imgtool.sweep.spec import read_spec

SPEC = """\
sweep: probe
base: phase1_1/S1
seeds: [0, 1]
root: probes
over:
  key: data.manifest
  file: made/{name}/made.csv
  command: schema autoencoder --output {file} {candidate}
"""
IMGTOOL = [sys.executable, "-m", "imgtool"]


def trained(folder, weight=1.0):
    """An experiment with a checkpoint."""
    path = folder / "checkpoints" / "iter_000001.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"name": "a", "family": "autoencoder", "identity": "i", "data_fingerprint": "d"}
    header = CheckpointHeader(iteration=1, epoch=1.0, config={}, **about)
    write(path, {"net.w": torch.full((3,), float(weight))}, header)
    (folder / "status.json").write_text('{"state": "completed"}')
    return folder


@pytest.fixture
def phase(tmp_path, monkeypatch):
    """A phase of two experiments, one that has no checkpoint, and other files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probe.yaml").write_text(SPEC)
    folder = tmp_path / "phase"
    for number, name in enumerate(("S1", "S2")):
        trained(folder / name, number)
    (folder / "S3").mkdir()
    (folder / "S3/status.json").write_text('{"state": "failed"}')
    (folder / "jobs").mkdir()
    (folder / "sweep.json").write_text("{}")
    return folder


def plan(*over, **options):
    return make_plan("probe.yaml", schema_of=schema, over=[str(one) for one in over], **options)


def test_every_trial_for_every_candidate(phase):
    notes = []
    found = plan(*sorted(phase.iterdir()), note=notes.append)
    assert [t.name.rpartition("-")[0] for t in found.trials] == ["S1", "S2"] * 2
    assert [t.overrides["train.seed"] for t in found.trials] == [0, 0, 1, 1]
    files = [t.preparation.file for t in found.trials]
    assert files[:2] == files[2:]
    assert files[0] != files[1]
    assert files[0].parent.parent == found.shared_dir / "made"
    for trial in found.trials:
        made, data = trial.preparation, trial.loaded.experiment.data
        assert data.manifest == str(made.file)
        assert str(trial.candidate.path) in made.command
        assert str(made.file) in made.command
        fingerprint = trial.candidate.fingerprint
        assert trial.identity == identity(trial.loaded.experiment, fingerprint)
    assert any("S3" in line for line in notes)
    assert not any("sweep.json" in line for line in notes)
    assert [t.name for t in plan(phase).trials] == [t.name for t in found.trials]
    assert [t.name for t in plan("phase/S[12]").trials] == [t.name for t in found.trials]
    assert len({_key(t) for t in found.trials}) == 2  # seeds of a candidate rise and fall together


def test_other_weights_are_another_trial(phase):
    before = plan(phase / "S1").trials[0]
    (phase / "S1/note.txt").write_text("nothing")
    assert plan(phase / "S1").trials[0].identity == before.identity
    trained(phase / "S1", 7.0)
    after = plan(phase / "S1").trials[0]
    assert after.identity != before.identity
    assert after.name != before.name
    assert after.preparation.file != before.preparation.file


def test_the_sweep_remembers_its_candidates(phase):
    with pytest.raises(UserError, match="there are none"):
        plan()
    first = plan(phase / "S2")
    manifest.write(first)
    assert [t.name for t in plan().trials] == [t.name for t in first.trials]


def test_what_is_no_candidate_is_refused(phase):
    for words, problem in ((["nothing"], "no experiment"), ([phase / "S3"], "no experiment has")):
        with pytest.raises(UserError, match=problem):
            plan(*words)
    with pytest.raises(UserError, match="makes nothing of candidates"):
        make_plan("phase1_1", schema_of=schema, over=[str(phase)])
    with pytest.raises(UserError, match="the sweep varies data.manifest"):
        plan(phase, sets=["data.manifest=other.csv"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"file": "made.csv"}, "has to name {name}"),
        ({"file": "/made/{name}/x"}, "over: file"),
        ({"file": "../{name}/x"}, "over: file"),
        ({"file": "made/{name}.csv"}, "over: file"),
        ({"command": "encode {candidate}"}, "has to name {candidate} and {file}"),
        ({"command": "encode {candidate} -o '{file}"}, "over: command"),
        ({"command": "encode {candidate} -o {file} {0}"}, "has to name"),
        ({"key": ""}, "over: key"),
        ({"more": "x"}, "expected key, file and command"),
    ],
)
def test_what_is_wrong_with_over_is_said(change, problem):
    good = {"key": "data.root", "file": "m/{name}/x", "command": "encode {candidate} -o {file}"}
    read_over(good)
    with pytest.raises(UserError, match=problem.replace("{", r"\{")) as caught:
        read_over({**good, **change})
    assert caught.value.hint


# --- what is made -----------------------------------------------------------------------------


def test_a_trial_says_what_it_reads_and_is_started_with_it(phase):
    found = plan(phase)
    trial = found.trials[0]
    assert not any("made.csv" in lack.text for lack in lacking(found.trials))
    jobs.write_config(trial)
    assert read_preparation(trial.directory) == trial.preparation
    words = jobs.train_command(trial)
    assert words[3:6] == ["prepare", str(trial.directory.path), "train"]
    two = jobs.train_command(replace(trial, num_ranks=2))
    assert two[3:6] == ["prepare", str(trial.directory.path), "torchrun"]
    (script,) = scripts(
        found,
        found.trials,
        Options(scheduler=Lsf(), profile=Profile(site=Site(program=("imgtool",)))),
    )
    assert 'imgtool prepare "$exp_dir" train "$family"' in script.text
    assert subprocess.run(["bash", "-n"], input=script.text, text=True, check=False).returncode == 0


def waiting_trial(folder, name, file):
    """A trial whose preparation writes a file."""
    directory = ExperimentDir(folder / name)
    directory.create()
    content = {"file": str(file), "command": ["schema", "autoencoder", "-o", str(file)]}
    (directory.path / "prepare.json").write_text(json.dumps(content))
    return directory.path


def test_of_several_at_once_one_makes_it_and_all_go_on(tmp_path):
    file = tmp_path / "made/S1/made.json"
    folders = [waiting_trial(tmp_path, f"t{n}", file) for n in range(3)]
    children = [
        subprocess.Popen(
            [*IMGTOOL, "prepare", str(folder), "presets", "list", "--format", "paths"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for folder in folders
    ]  # fmt: skip
    answers = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert all("phase1_1" in out for out, _ in answers)
    assert sum("imgtool schema" in err for _, err in answers) == 1
    assert json.loads(file.read_text())
    assert owner.holder(ExperimentDir(file.parent)) is None


def test_nothing_follows_what_could_not_be_made(tmp_path):
    folder = waiting_trial(tmp_path, "t", tmp_path / "made/S1/made.json")
    (folder / "prepare.json").write_text(
        json.dumps({"file": str(tmp_path / "made/S1/x"), "command": ["schema", "nothing"]})
    )
    answer = subprocess.run(
        [*IMGTOOL, "prepare", str(folder), "presets", "list"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert "nothing" in answer.stderr
    (folder / "prepare.json").write_text("{")
    answer = subprocess.run(
        [*IMGTOOL, "prepare", str(folder)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert "prepare.json" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_who_waits_goes_on_when_the_other_is_done(tmp_path):
    file = tmp_path / "made/S1/made.json"
    hold, said = owner.take(ExperimentDir(file.parent)), []

    def sleep(_):
        file.write_text("done")
        hold.release()

    never = pytest.fail
    assert prepare(Preparation(file=file, command=("x",)), never, said.append, sleep=sleep) == 0
    assert "waiting for" in said[0]


@pytest.mark.parametrize("name", [n for n in presets.sweeps() if read_spec(n).over is not None])
def test_shipped_sweeps_over_candidates(phase, name):
    found = make_plan(name, schema_of=schema, over=[str(phase)])
    key = read_spec(name).over.key
    assert len(found.trials) == 4  # two candidates, two seeds
    for trial in found.trials:
        section, _, field = key.partition(".")
        assert getattr(getattr(trial.loaded.experiment, section), field) == str(
            trial.preparation.file
        )
    assert len(make_plan(name, schema_of=schema, over=None).trials) == 2
