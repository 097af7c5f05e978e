"""A scheduler's programs, called as they really behave: they hang, and they lose replies."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from imgtool.schedulers.base import SchedulerError, Unavailable


@dataclass(frozen=True)
class Reply:
    """What a call printed; `code` is None where it was given up after the time-out."""

    code: int | None
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        """Everything that it said."""
        return f"{self.stdout}\n{self.stderr}"

    @property
    def first_line(self) -> str:
        """The first thing that it said."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return lines[0] if lines else "it says nothing"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """What schedulers have in common that are asked by programs.

    Attributes:
        timeout_sec: after which a call is given up.
        attempts: most submissions of one job file, and most look-ups of a name.
        backoff_sec: first pause between two of them; each later one is twice as long.
        sleep: waits.
    """

    timeout_sec: float = 60.0
    attempts: int = 5
    backoff_sec: float = 2.0
    sleep: Callable[[float], None] = time.sleep

    def call(
        self,
        words: Sequence[str],
        *,
        text: str | None = None,
        environ: Mapping[str, str] | None = None,
        timeout_sec: float | None = None,
    ) -> Reply:
        """One call with its time-out.

        Args:
            words: program and arguments.
            text: what it reads from standard input; None for nothing.
            environ: its environment; ours when None.
            timeout_sec: instead of the attribute.

        Raises:
            SchedulerError: there is no such program.
        """
        limit_sec = self.timeout_sec if timeout_sec is None else timeout_sec
        try:
            done = subprocess.run(
                list(words),
                input=text,
                stdin=subprocess.DEVNULL if text is None else None,
                capture_output=True,
                timeout=limit_sec,
                env=None if environ is None else dict(environ),
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            return Reply(None, "", f"{words[0]} has not answered for {limit_sec:g} s")
        except OSError as error:
            raise SchedulerError(
                f"{words[0]} cannot be run: {(error.strerror or str(error)).lower()}",
                hint=f"log in where {words[0]} is, or use --script-dir DIR or --executor local",
            ) from error
        return Reply(done.returncode, done.stdout, done.stderr)

    def submit_once(
        self,
        program: str,
        name: str,
        ask: Callable[[], int | Reply],
        find: Callable[[], int | None],
    ) -> int:
        """Submit a job once, whatever becomes of the replies.

        Args:
            program: what `ask` calls, for messages.
            name: of the job, unique.
            ask: submits it; the job's id, or a reply that leaves open whether it was taken.
            find: the id of the job of this name, which was accepted though its reply was lost.

        Raises:
            Unavailable: there is no answer; the job may have been accepted.
            SchedulerError: whatever `ask` raises.
        """
        reply = Reply(None, "", "")
        for attempt in range(self.attempts):
            if attempt:
                self.pause(attempt)
                found = self._look_for(program, name, find)
                if found is not None:
                    return found
            answer = ask()
            if isinstance(answer, int):
                return answer
            reply = answer
        self.pause(self.attempts)
        found = self._look_for(program, name, find)
        if found is not None:
            return found
        raise Unavailable(
            f"{program} does not answer after {self.attempts} attempts: {reply.first_line}",
            hint="run the same command again later: what was accepted is not submitted twice",
        )

    def _look_for(self, program: str, name: str, find: Callable[[], int | None]) -> int | None:
        """As `find`, patiently: a job must not be submitted again while nobody can tell."""
        for attempt in range(1, self.attempts + 1):
            try:
                return find()
            except Unavailable as error:
                if attempt == self.attempts:
                    raise Unavailable(
                        f"nobody says whether {program} took job {name}: {error}",
                        hint="run the same command again later: it looks for the job first",
                    ) from error
                self.pause(attempt)
        return None

    def pause(self, attempt: int) -> None:
        """Between attempt number `attempt` and the next."""
        self.sleep(min(60.0, self.backoff_sec * 2 ** (attempt - 1)))
