"""What follows a sweep on this machine: once, after the last trial of the plan has ended.

Several sweeps may train one plan side by side. Whoever finds all trials ended takes a folder of
the command's and runs it; a note tells the others, who looked at it when they began, that it was
run on the very results that they see. A sweep that is killed leaves neither the folder taken nor
a note, so that another one runs the command.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from imgtool.experiment import owner
from imgtool.experiment.layout import ExperimentDir
from imgtool.files import write_text
from imgtool.process.shell import in_turn
from imgtool.sweep.state import ACTIVE, read_state
from imgtool.sweep.trial import Plan, Trial
from imgtool.sweep.verdict import traces

LOOK_SEC = 2.0


class FollowUp:
    """The commands of `--then`; made before the first trial starts.

    Args:
        plan: the sweep.
        commands: of a shell.
    """

    def __init__(self, plan: Plan, commands: Sequence[str]) -> None:
        self._plan, self._commands = plan, commands
        name = hashlib.sha256(in_turn(commands).encode()).hexdigest()[:8]
        self._folder = ExperimentDir(plan.root / f".then-{name}")
        self._note_path = self._folder.path / "done.json"
        self._before = self._note()

    def wait(
        self, say: Callable[[str], None], *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Until the trials that others run have ended too, and nobody has them any more.

        A trial's own last word comes before that of whoever started it.

        Args:
            say: takes a line for people.
        """
        is_told = False
        while names := [trial.name for trial in self._plan.trials if _is_at_work(trial)]:
            if not is_told:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                say(f"then: waiting for {names[0]}{more}, run by others")
                is_told = True
            sleep(LOOK_SEC)

    def run(self, start: Callable[[Sequence[str]], int], say: Callable[[str], None]) -> int:
        """Run the command, if nobody else does or has, after `wait`.

        Args:
            start: runs the command to its end and gives its exit code.
            say: takes a line for people.

        Raises:
            ExperimentError: the sweep's folder cannot be written to.
        """
        try:
            hold = owner.take(self._folder)
        except owner.InUse as error:
            say(f"then: {error.owner} runs it")
            return 0
        with hold:
            found, seen = self._note(), self._seen()
            if found is not None and found != self._before and found.get("seen") == seen:
                say("then: another sweep has run it")
                return int(found.get("code", 0))
            code = start(self._commands)
            with suppress(OSError):
                content = {
                    "command": [*self._commands],
                    "code": code,
                    "seen": seen,
                    "at": time.time(),
                }
                write_text(self._note_path, json.dumps(content) + "\n")
            return code

    def _seen(self) -> str:
        """Of the results that the command is run on."""
        found = [traces(trial.directory) for trial in self._plan.trials]
        return hashlib.sha256(repr(found).encode()).hexdigest()[:16]

    def _note(self) -> dict[str, Any] | None:
        with suppress(OSError, ValueError, RecursionError):
            found = json.loads(self._note_path.read_bytes())
            return found if isinstance(found, dict) else None
        return None


def _is_at_work(trial: Trial) -> bool:
    if read_state(trial.directory).state in ACTIVE:
        return True
    return owner.holder(trial.directory) is not None
