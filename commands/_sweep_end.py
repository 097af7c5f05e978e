"""What follows a sweep: `--then`, and `--notify` with a record of the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from commands._notify import notify
from commands._output import say

if TYPE_CHECKING:
    from imgtool.sweep.state import TrialState
    from imgtool.sweep.trial import Plan


def run_then(commands: Sequence[str]) -> int:
    """Run --then. What it prints is talk: standard output has the sweep's records."""
    import subprocess

    from imgtool.process import shell

    for one in commands:
        say(f"then: {one}")
    code = subprocess.run(shell.words(shell.in_turn(commands)), stdout=2, check=False).returncode
    if code:
        say(f"the command of --then ended with {code}")
    return code


def tell(command: str | None, plan: Plan, code: int) -> None:
    """--notify, at the very end."""
    from imgtool.sweep.state import read_state

    if command is not None:
        states = [read_state(trial.directory) for trial in plan.trials]
        notify(command, "sweep", _record(plan, states, code))


def _record(plan: Plan, states: Sequence[TrialState], code: int) -> dict[str, Any]:
    from imgtool.sweep.state import BROKEN

    found: Counter[str] = Counter(state.state for state in states)
    broken = BROKEN & set(found)
    done = found["completed"] + found["dropped"] == len(states)
    rows = zip(plan.trials, states, strict=True)
    return {
        "path": plan.root,
        "name": plan.name,
        "phase": plan.phase,
        "state": "failed" if broken else "completed" if done else "stopped",
        "exit_code": int(code),
        "num_trials": len(states),
        "states": dict(found),
        "trials": [
            {"name": t.name, "path": t.directory.path, "state": s.state, "reason": s.reason}
            for t, s in rows
        ],
    }
