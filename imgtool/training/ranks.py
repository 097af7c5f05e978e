"""The processes that train together: a group of one, or torch's own as torchrun starts it.

Rank 0 decides what is decided once and tells the others. One process is a group of one, so that
nobody asks whether a run is distributed. Torch-free at import.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from imgtool.errors import ErrorKind, ExitCode, ExperimentError, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")
KILLED = "Killed"  # the kind of a failure without a word


@dataclass(frozen=True)
class Failure:
    """Why a rank ended.

    Attributes:
        rank: its number.
        kind: the error's class.
        error, hint: the words for people.
        exit_code: that of the whole group.
    """

    rank: int
    kind: str
    error: str
    hint: str | None
    exit_code: int


class RankFailed(UserError):
    """Another rank failed first; this one can only follow."""

    kind = ErrorKind.RANK

    def __init__(self, failure: Failure) -> None:
        who = f"rank {failure.rank}"
        text = failure.error if failure.error.startswith(f"{who} ") else f"{who}: {failure.error}"
        super().__init__(text, hint=failure.hint)
        self.failure = failure
        self.exit_code = ExitCode(failure.exit_code)  # type: ignore[misc]


class Ranks:
    """One process: it is the first, and there is nobody to wait for.

    Attributes:
        rank, size: this process, of so many.
        local_rank, local_size: the same on this machine.
        is_saving: set while a file is written that nothing should cut short.
        may_write: set once the experiment's directory is this run's own.
        on_failure: is told of a failure when this process leaves by force.
    """

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1
    is_saving = False
    may_write = False
    on_failure: Callable[[BaseException], None] | None = None

    @property
    def is_first(self) -> bool:
        """True for the one process that decides and writes."""
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        """True when there is more than one process."""
        return self.size > 1

    def join(self, device: torch.device) -> None:
        """Form the group for sums of tensors on `device`."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place; returns it."""
        return tensor

    def ask(self, number: int) -> int:
        """The largest number that any rank has put forward.

        With several ranks the answer is one call late: the exchange runs while the next update
        is computed. Only the first call waits for its own.
        """
        return number

    def forget_wishes(self) -> None:
        """Begin to `ask` anew; what was put forward last counts no more."""

    def decide(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank; a JSON value. The others wait for it."""
        return make()

    def wait_for_first(self) -> None:
        """Until rank 0 is here too: it has more to do at the end, may fail in it, or be killed."""

    @property
    def is_first_here(self) -> bool:
        """True for one process of this machine."""
        return self.local_rank == 0

    def from_first_here(self, text: str) -> str:
        """What the first process of this machine gives; the others' `text` is ignored."""
        return text

    def warn(self, text: str) -> None:
        """Say something that concerns this rank alone; rank 0 has a reporter for it."""
        with suppress(OSError):
            os.write(2, f"rank {self.rank}: {text}\n".encode())

    def gather(self, value: T) -> list[T]:
        """The JSON values of all ranks, in order."""
        return [value]

    def check_equal(self, digests: Mapping[str, str], what: str) -> None:
        """See that every rank has the same values.

        Args:
            digests: a hash, or a short text, by name.
            what: is compared, for the message.

        Raises:
            ExperimentError: on all ranks; names two of them and the first value that differs.
        """
        names = list(digests)
        content = json.dumps(list(digests.items())).encode()
        whole = self.gather(hashlib.sha256(content).hexdigest())
        other = next((rank for rank, found in enumerate(whole) if found != whole[0]), None)
        if other is None:
            return
        each = self.gather(dict(digests))
        differ = [n for n in names if each[0].get(n) != each[other].get(n)]
        name = differ[0] if differ else "their names"
        raise ExperimentError(
            f"ranks 0 and {other} differ in {what}: {name} is {each[0].get(name)} on rank 0 "
            f"and {each[other].get(name)} on rank {other} ({len(differ)} of {len(names)} differ)",
            hint="do all hosts see the same files and run the same versions?",
        )

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A file is being written: do not leave by force meanwhile."""
        self.is_saving = True
        try:
            yield
        finally:
            self.is_saving = False

    def wrap(self, update: nn.Module, *, takes_turns: bool = False) -> nn.Module:
        """The update with gradients averaged over the ranks.

        Args:
            takes_turns: as `FamilySchema.takes_turns`.
        """
        return update

    def explain(self, error: BaseException) -> BaseException:
        """The error to report: itself, or the first cause on another rank."""
        return error


def launcher_number(name: str, default: int) -> int:
    """A number among the launcher's variables."""
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        return default


def is_launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return launcher_number("WORLD_SIZE", 1) > 1


def is_first_launched() -> bool:
    """Whether this process is, or will be, rank 0."""
    return launcher_number("RANK", 0) == 0


def err_path(directory: Path, rank: int) -> Path:
    """Where a rank says what ended it."""
    return directory / f"rank_{rank}.err"


def forget_errors(directory: Path) -> None:
    """Remove what earlier starts' ranks left of their ends."""
    for path in directory.glob("rank_*.err"):
        with suppress(OSError):
            path.unlink()
