"""Plans of trials whose training is a small program."""

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from imgtool.config.identity import identity
from imgtool.config.load import load
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import now_iso
from imgtool.models.registry import schema
from imgtool.sweep.trial import Plan, Trial

# A trainer: says that it runs, obeys INT by saving, ends as its last word says.
TRAINER = """
import json, os, signal, socket, sys, time
from datetime import UTC, datetime, timedelta
folder, ending = sys.argv[1], sys.argv[2]
def clock():
    ahead = timedelta(seconds=float(os.environ.get("TRAINER_AHEAD_SEC", 0)))
    return (datetime.now(UTC) + ahead).strftime("%Y-%m-%dT%H:%M:%SZ")
def say(state, reason=None, **more):
    now = clock()
    record = dict(state=state, reason=reason, host=socket.gethostname(), pid=os.getpid(),
                  started=started, heartbeat=now, iteration=5, max_iteration=10, loss=0.5,
                  attempt=int(os.environ["IMGTOOL_ATTEMPT"]), **more)
    with open(folder + "/status.tmp", "w") as file:
        json.dump(record, file)
    os.replace(folder + "/status.tmp", folder + "/status.json")
started = clock()
def stop(number, frame):
    if ending == "deaf":
        return
    say("stopped", signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGINT, stop)
if ending == "refuse":
    print("error: no such data")
    print("hint: look for it")
    sys.exit(2)
say("running")
print("at work", flush=True)
if ending in ("wait", "deaf"):
    while True:
        time.sleep(0.05)
if ending == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if ending == "fail":
    say("failed", "ValueError: broken")
    sys.exit(1)
if ending == "memory":
    say("failed", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    sys.exit(1)
say("completed", "max_iter")
"""


@pytest.fixture(scope="session")
def loaded():
    return load("phase1_1/S5", family=None, schema_of=schema)


@pytest.fixture
def make_plan(tmp_path, loaded):
    """make_plan('a', 'b') -> a Plan of trials of these names, each another experiment."""

    def make(*names, **train):
        trials = []
        for number, name in enumerate(names):
            directory = ExperimentDir(tmp_path / "root" / name)
            settings = replace(loaded.experiment.train, seed=number, **train)
            output = replace(loaded.experiment.output, exp_dir=str(directory.path))
            experiment = replace(loaded.experiment, name=name, train=settings, output=output)
            trials.append(
                Trial(
                    name=name,
                    identity=identity(experiment, ""),
                    family="autoencoder",
                    directory=directory,
                    overrides={},
                    loaded=replace(loaded, experiment=experiment),
                    source="test",
                )
            )
        return Plan(
            name="test",
            phase=None,
            source="test",
            root=tmp_path / "root",
            shared_dir=None,
            decides=(),
            trials=tuple(trials),
        )

    return make


@pytest.fixture
def trainer(tmp_path):
    """trainer({'a': 'fail'}) -> a command_of for Options; trials complete by default."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)

    def make(endings=None, default="complete"):
        def command(plan, trial):
            ending = (endings or {}).get(trial.name, default)
            return [sys.executable, "-S", str(script), str(trial.directory.path), ending]

        return command

    return make


@pytest.fixture
def write_status(tmp_path):
    """write_status('a', state='running', …) -> the ExperimentDir whose status.json says so."""

    def write(name, folder=None, **fields):
        directory = ExperimentDir((folder or tmp_path) / name)
        directory.path.mkdir(parents=True, exist_ok=True)
        now = now_iso()
        record = {"state": "running", "host": socket.gethostname(), "pid": 1, "started": now}
        Path(directory.status_path).write_text(json.dumps({**record, "heartbeat": now, **fields}))
        return directory

    return write
