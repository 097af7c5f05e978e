"""Sweeps with rungs whose trainings are a small program, in this process or in one of their own.

    python -m tests.sweep.racing ROOT SLOTS KILL_AT

runs six experiments there, and kills itself at its KILL_AT-th step (0 never): each time before and
after halving.json, or a dropped trial's status.json, is written, or a trial is started.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from imgtool.config.identity import identity
from imgtool.config.load import load
from imgtool.experiment.layout import ExperimentDir
from imgtool.models.registry import schema
from imgtool.selection.cut import Cutter
from imgtool.sweep import local, manifest, race, rungs
from imgtool.sweep.choose import choose
from imgtool.sweep.halving import read_halving
from imgtool.sweep.slots import Slot
from imgtool.sweep.state import read_state
from imgtool.sweep.trial import Plan, Trial

# A trainer: goes on from where it was to 9 epochs or to its pause, and says how good it is.
TRAINER = """
import json, os, signal, socket, sys, time
from datetime import UTC, datetime
folder, pause, values, sec = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), float(sys.argv[4])
def say(state, reason=None, **more):
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    record = dict(state=state, reason=reason, host=socket.gethostname(), pid=os.getpid(),
                  started=started, heartbeat=now, **more)
    with open(folder + "/status.tmp", "w") as file:
        json.dump(record, file)
    os.replace(folder + "/status.tmp", folder + "/status.json")
started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
def stop(number, frame):
    say("stopped", "SIGINT", iteration=begin)
    sys.exit(0)
signal.signal(signal.SIGINT, stop)
path = folder + "/epochs"
begin = int(open(path).read()) if os.path.exists(path) else 0
end = int(pause.removesuffix("ep")) if pause else 9
say("running", iteration=begin)
time.sleep(sec * (end - begin))
with open(folder + "/legs", "a") as file:
    file.write(f"{begin}-{end} ")
value = values.get(str(end))
if value == "fail":
    say("failed", "ValueError: broken", iteration=begin)
    sys.exit(1)
with open(path + ".tmp", "w") as file:
    file.write(str(end))
os.replace(path + ".tmp", path)
metrics = {"val_mse": value}
if pause:
    say("stopped", "paused at " + pause, iteration=end,
        paused=dict(at=pause, iteration=end, metrics=metrics))
else:
    with open(folder + "/metrics.jsonl", "a") as file:
        file.write(json.dumps(dict(iteration=end, **metrics)) + "\\n")
    say("completed", "epochs", iteration=end)
"""


def make_plan(root: Path, values: dict[str, dict[int, list[float]]], words: str) -> Plan:
    """A sweep of experiments by name: epoch -> the value of each seed."""
    loaded = load("phase1_1/S5", family=None, schema_of=schema)
    trials = []
    for number, (name, by_epoch) in enumerate(values.items()):
        for seed in range(len(next(iter(by_epoch.values())))):
            trial = f"{name}-seed{seed}"
            directory = ExperimentDir(root / trial)
            train = replace(loaded.experiment.train, seed=seed, lr=1e-4 * (number + 1))
            output = replace(loaded.experiment.output, exp_dir=str(directory.path))
            experiment = replace(loaded.experiment, name=trial, train=train, output=output)
            trials.append(
                Trial(
                    name=trial,
                    identity=identity(experiment, ""),
                    family="autoencoder",
                    directory=directory,
                    overrides={"train.lr": train.lr, "train.seed": seed},
                    loaded=replace(loaded, experiment=experiment),
                    source="test",
                )
            )
    return Plan(
        name="test",
        phase=None,
        source="test",
        root=root,
        shared_dir=None,
        decides=(),
        trials=tuple(trials),
        halving=read_halving(words),
    )


def trainer(
    values: dict[str, dict[int, list[float]]], sec: float = 0.0
) -> Callable[[Plan, Trial], list[str]]:
    """The command of a trial; it takes `sec` an epoch."""

    def command(plan: Plan, trial: Trial) -> list[str]:
        name, _, seed = trial.name.rpartition("-seed")
        own = {epoch: seeds[int(seed)] for epoch, seeds in values[name].items()}
        script = [sys.executable, "-S", "-c", TRAINER, str(trial.directory.path)]
        return [*script, trial.pause_at or "", json.dumps(own), str(sec)]

    return command


class Silence:
    def started(self, *given): ...
    def ended(self, *given): ...
    def left(self, *given): ...
    def tick(self, *given): ...
    def note(self, *given): ...


def run(plan, command, listener=None, *, num_slots=1, retry=frozenset()):
    """What `imgtool sweep` does with a plan; the signal that ended it."""
    manifest.write(plan)
    judge = Cutter(plan.halving.metric or "val_mse")
    found = race.Race(plan, judge)
    trials = found.begin(choose(plan, retry=retry).run)
    options = local.Options(
        slots=tuple(Slot(f"cpu {n}") for n in range(num_slots)),
        command_of=command,
        grace_sec=30.0,
        kill_after_sec=5.0,
        order=found,
    )
    return local.run(plan, trials, options, listener or Silence())


def states(plan):
    """Trial -> state."""
    return {trial.name: read_state(trial.directory).state for trial in plan.trials}


def legs(plan):
    """Trial -> what it trained, start by start."""
    paths = {trial.name: trial.directory.path / "legs" for trial in plan.trials}
    return {name: path.read_text().split() for name, path in paths.items() if path.exists()}


def record(plan):
    """Experiment -> rung -> verdict."""
    found = json.loads((plan.root / rungs.HALVING_NAME).read_text())["experiments"].values()
    return {
        entry["name"].rpartition("-seed")[0]: {
            rung: verdict["verdict"] for rung, verdict in entry["verdicts"].items()
        }
        for entry in found
    }


SIX = {
    # The best after one epoch is not the best after three.
    "a": {1: [0.6], 3: [0.30], 9: [0.10]},
    "b": {1: [0.5], 3: [0.45], 9: [0.30]},
    "c": {1: [0.9], 3: [0.60], 9: [0.50]},
    "d": {1: [0.7], 3: [0.20], 9: [0.05]},
    "e": {1: [0.8], 3: [0.70], 9: [0.60]},
    "f": {1: [0.95], 3: [0.80], 9: [0.70]},
}
WORDS = "rungs=1ep,3ep keep=1/2 metric=val_mse"


def _killed_at(step: int) -> None:
    """Count the steps at which a kill would hurt most, and die at one."""
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(plain):
        def wrapped(*args, **kwargs):
            tick()
            found = plain(*args, **kwargs)
            tick()
            return found

        return wrapped

    rungs.write_text = watched(rungs.write_text)
    race.set_aside = watched(race.set_aside)
    local.start = watched(local.start)


if __name__ == "__main__":
    if int(sys.argv[3]):
        _killed_at(int(sys.argv[3]))
    sweep = make_plan(Path(sys.argv[1]), SIX, WORDS)
    run(sweep, trainer(SIX), num_slots=int(sys.argv[2]))
