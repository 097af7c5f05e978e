"""A sweep of 200 trials that do nothing, against starting their processes and nothing else.

Bound: less than 20 ms a trial beyond starting the process. Then `imgtool status` on 1,000
experiments, against reading their status files (bound: a second in all).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

from _pairs import report, run_pairs

NUM_TRIALS, NUM_SLOTS, NUM_EXPERIMENTS = 200, 2, 1000
COMMAND = ["true"]


def ours() -> float:
    """Seconds that the pool takes for all trials."""
    from imgtool.config.load import load
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.models.registry import schema
    from imgtool.sweep import local
    from imgtool.sweep.slots import find_slots
    from imgtool.sweep.trial import Plan, Trial

    class Quiet:
        def started(self, *news: object) -> None: ...
        def ended(self, *news: object) -> None: ...
        def left(self, *news: object) -> None: ...
        def tick(self, *news: object) -> None: ...
        def note(self, *news: object) -> None: ...

    loaded = load("phase1_1/S4", family=None, schema_of=schema)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        first = Trial(
            name="t",
            identity="0" * 16,
            family="autoencoder",
            directory=ExperimentDir(root / "t"),
            overrides={},
            loaded=loaded,
            source="benchmark",
        )
        trials = tuple(
            replace(first, name=f"t{n}", directory=ExperimentDir(root / f"t{n}"))
            for n in range(NUM_TRIALS)
        )
        plan = Plan(
            name="b", phase=None, source="b", root=root, shared_dir=None, decides=(), trials=trials
        )
        slots = find_slots(slots=NUM_SLOTS)[:NUM_SLOTS]
        options = local.Options(slots=slots, command_of=lambda plan, trial: COMMAND)
        start = time.monotonic()
        local.run(plan, trials, options, Quiet())
        return time.monotonic() - start


def baseline() -> float:
    """Seconds for the processes alone, as many at once."""
    start = time.monotonic()
    running: deque[subprocess.Popen[bytes]] = deque()
    for _ in range(NUM_TRIALS):
        if len(running) == NUM_SLOTS:
            running.popleft().wait()
        running.append(subprocess.Popen(COMMAND, stdin=subprocess.DEVNULL, start_new_session=True))
    for process in running:
        process.wait()
    return time.monotonic() - start


def make_experiments(root: Path) -> None:
    """Directories as a finished sweep leaves them."""
    for number in range(NUM_EXPERIMENTS):
        folder = root / f"e{number:04d}"
        folder.mkdir()
        status = {
            "state": "completed",
            "reason": "max_iter",
            "iteration": 100,
            "best": {"metric": "val_mse", "value": 0.01, "iteration": 100},
            "facts": {"latent_dims": number},
            "heartbeat": "2026-01-01T00:00:00Z",
        }
        (folder / "status.json").write_text(json.dumps(status, indent=2))


def main() -> int:
    """Run both comparisons; 1 when a bound is missed."""
    here = [sys.executable, __file__]
    pairs = run_pairs([*here, "--ours"], [*here, "--baseline"], rate=True)
    extra = [1000 * (1 / a - 1 / b) for a, b in zip(pairs.ours, pairs.baseline, strict=True)]
    overhead_ms = sorted(extra)[len(extra) // 2]
    report(
        "sweep of 200 empty trials", pairs, overhead_ms_a_trial=round(overhead_ms, 2), limit_ms=20
    )
    with tempfile.TemporaryDirectory() as folder:
        make_experiments(Path(folder))
        read = "import json,pathlib,sys; [json.loads(p.read_bytes()) for p in pathlib.Path(sys.argv[1]).glob('*/status.json')]"
        status = run_pairs(
            [sys.executable, "-m", "imgtool", "status", folder, "--json"],
            [sys.executable, "-c", read, folder],
        )
    seconds = sorted(status.ours)[len(status.ours) // 2]
    report("status of 1,000 experiments", status, median_sec=round(seconds, 3), limit_sec=1)
    return int(overhead_ms >= 20 or seconds >= 1)


if __name__ == "__main__":
    if sys.argv[1:] in (["--ours"], ["--baseline"]):
        seconds = ours() if sys.argv[1] == "--ours" else baseline()
        print(json.dumps({"rate": NUM_TRIALS / seconds}))
    else:
        raise SystemExit(main())
