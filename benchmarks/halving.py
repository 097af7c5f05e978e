"""A sweep of 12 tiny trials with rungs, against training all of them to their end.

    python benchmarks/halving.py [--seeds 5] [--iterations 180] [--keep 1/3]

Four learning rates by three widths of the latent, on photos of our own drawing, a cosine schedule;
rungs at a ninth and a third of the training. Both sides train in this process, one trial after
the other, through the engine and `imgtool.sweep.race`: a start of a process of its own, which the
rungs need more of, comes on top (`starts` times some seconds). A record a seed, then their
summary: iterations, processor and wall time as parts of the full sweep's; whether the same trial
wins, and by how much the full training of the one that was chosen is worse than the best (`regret`,
relative).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPEC = """\
sweep: halving
base: base.yaml
matrix: {{train.lr: [3e-4, 1e-3, 3e-3, 1e-2], model.latent_channels: [2, 4, 8]}}
seeds: [{seed}]
root: {root}
halving: {{rungs: [{first}, {second}], keep: {keep}, metric: val_mse}}
"""
BASE = """\
name: tiny
family: autoencoder
model: {{downsampling_steps: 2, base_channels: 16, heads: [rgb]}}
data: {{root: photos, crop: 32, num_workers: 0}}
train:
  batch_size: 8
  max_iter: {iterations}
  val_every: {iterations}
  save_every: {iterations}
  sample_every: {iterations}
  schedule: cosine
  threads: 1
  device: cpu
"""
RECORD = {"schema": "imgtool/1", "kind": "benchmark", "name": "halving"}


def main() -> None:
    """Both sweeps for every seed; one JSON record each, and one of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=180)
    parser.add_argument("--keep", default="1/3")
    args = parser.parse_args()
    from imgtool.training.environment import prepare, processor

    prepare(deterministic=False)
    from imgtool.data.synthetic.make import make_photos

    records = []
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        make_photos(Path("photos"), 48, size=64, seed=1)
        Path("base.yaml").write_text(BASE.format(iterations=args.iterations))
        for seed in range(args.seeds):
            records.append(_compare(seed, args.iterations, args.keep))
            print(json.dumps(records[-1]), flush=True)
    parts = {
        f"median_{key}": round(statistics.median(one[key] for one in records), 4)
        for key in ("iterations_part", "cpu_part", "wall_part", "regret")
    }
    same = sum(one["same_winner"] for one in records)
    facts = {"seeds": args.seeds, "trials": 12, "same_winner": same, "load": os.getloadavg()[0]}
    print(json.dumps({**RECORD, **parts, **facts, "processor": processor()}))


def _compare(seed: int, iterations: int, keep: str) -> dict[str, Any]:
    full = _measured(_plan("full", seed, iterations, keep), _train_all)
    rungs = _measured(_plan("rungs", seed, iterations, keep), _train_with_rungs)
    values = full["values"]
    best, chosen = (min(v, key=v.__getitem__) for v in (values, rungs["values"]))
    return {
        **RECORD,
        "seed": seed,
        "iterations_part": round(rungs["iterations"] / full["iterations"], 4),
        "cpu_part": round(rungs["cpu_sec"] / full["cpu_sec"], 4),
        "wall_part": round(rungs["wall_sec"] / full["wall_sec"], 4),
        "starts": [full["starts"], rungs["starts"]],
        "full_sec": round(full["wall_sec"], 1),
        "winner": best,
        "chosen": chosen,
        "same_winner": best == chosen,
        "place_of_chosen": sorted(values, key=values.__getitem__).index(chosen) + 1,
        "regret": round(values[chosen] / values[best] - 1, 4),
        # What was promoted equals what never paused, to the last bit.
        "is_exact": all(values[name] == value for name, value in rungs["values"].items()),
        "completed": len(rungs["values"]),
    }


def _plan(name: str, seed: int, iterations: int, keep: str) -> Any:
    from imgtool.models.registry import schema
    from imgtool.sweep.plan import make_plan

    words = {"first": iterations // 9, "second": iterations // 3, "keep": keep}
    path = Path(f"{name}{seed}.yaml")
    path.write_text(SPEC.format(seed=seed, root=f"{name}{seed}", **words))
    plan = make_plan(str(path), schema_of=schema)
    plan.root.mkdir()
    return plan


def _measured(plan: Any, run: Callable[[Any], int]) -> dict[str, Any]:
    """Starts, iterations, seconds, and the val_mse of every trial that came to its end."""
    from imgtool.sweep.state import read_state

    wall, cpu = time.perf_counter(), time.process_time()
    starts = run(plan)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    states = [read_state(trial.directory) for trial in plan.trials]
    pairs = zip(plan.trials, states, strict=True)
    return {
        "starts": starts,
        "iterations": sum(state.iteration or 0 for state in states),
        "wall_sec": wall,
        "cpu_sec": cpu,
        "values": {
            str(trial.overrides): state.metrics["val_mse"]
            for trial, state in pairs
            if state.state == "completed"
        },
    }


def _train_all(plan: Any) -> int:
    for trial in plan.trials:
        _train(trial)
    return len(plan.trials)


def _train_with_rungs(plan: Any) -> int:
    from imgtool.selection.cut import Cutter
    from imgtool.sweep.race import Race
    from imgtool.sweep.state import read_state

    race, starts = Race(plan, Cutter("val_mse")), 0
    trials = race.begin(plan.trials)
    while trials:
        for trial in trials:
            _train(trial)
            race.ended(trial, read_state(trial.directory))
        starts += len(trials)
        trials = race.more()
    return starts


def _train(trial: Any) -> None:
    from imgtool.process.stopping import StopRequest
    from imgtool.training.report import Silence
    from imgtool.training.run import train
    from imgtool.units import parse_interval

    trial.directory.create()
    pause = None if trial.pause_at is None else parse_interval(trial.pause_at)
    stop, reporter = StopRequest(), Silence()
    train(trial.loaded, trial.directory, stop=stop, reporter=reporter, pause_at=pause)


if __name__ == "__main__":
    main()
