"""Sweeps for tests of the cluster."""

import json
import sys
from pathlib import Path

from imgtool.config import load
from imgtool.config.identity import identity
from imgtool.experiment.layout import ExperimentDir
from imgtool.models.registry import schema
from imgtool.schedulers.profile import Profile, Site
from imgtool.sweep.trial import Plan, Trial

TRAINER = [sys.executable, "-I", "-S", str(Path(__file__).parent / "trainer.py")]


def make_trial(root, name, **lsf):
    directory = ExperimentDir(root / name)
    sets = [f"cluster.{key}={json.dumps(value)}" for key, value in lsf.items()]
    sets += [f"output.exp_dir={json.dumps(str(directory.path))}", f"name={name}"]
    loaded = load.load("phase1_1/S1", family=None, schema_of=schema, sets=sets)
    return Trial(
        name=name,
        identity=identity(loaded.experiment, ""),
        family="autoencoder",
        directory=directory,
        overrides={},
        loaded=loaded,
        source="test",
    )


def make_plan(root, trials, **fields):
    known = {"name": "demo", "phase": None, "source": "test", "root": root, "shared_dir": None}
    return Plan(**{**known, "decides": (), "trials": tuple(trials), **fields})


def trainer_profile(**site):
    """A site whose imgtool is the stand-in trainer."""
    return Profile(site=Site(**{"program": tuple(TRAINER), **site}))


def starts(trial):
    """What each start of the stand-in trainer wrote down."""
    path = trial.directory.path / "starts"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def behave(trial, how):
    trial.directory.create()
    (trial.directory.path / "behaviour").write_text(how)
