"""torchrun, run by `imgtool.process.torchrun`: `python -m imgtool.process.agent FILE WORDS`.

Who failed by itself, and how, goes to FILE as JSON (rank of this host -> exit code, -n for signal n) rather
than to a banner.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from imgtool.errors import ExitCode
from imgtool.process.torchrun import SAVE_SEC


def main(report: Path, words: list[str]) -> int:
    """Run torchrun with these words."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    # It warns that it sets OMP_NUM_THREADS; imgtool sets the threads itself.
    logging.getLogger("torch.distributed.run").setLevel(logging.ERROR)
    # Whom it ends, and who failed: imgtool says so in words of its own.
    logging.getLogger("torch.distributed.elastic.multiprocessing").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic.agent").setLevel(logging.ERROR)
    _be_patient()
    try:
        torchrun(words)
    except ChildFailedError as error:
        codes = {one.local_rank: one.exitcode for one in error.failures.values()}
        report.write_text(json.dumps(codes), encoding="utf-8")
        return ExitCode.NO
    except SignalException:
        return ExitCode.NO
    return ExitCode.OK


def _be_patient() -> None:
    """Let ranks save when one has failed: torchrun kills them then after 30 s.

    Its --shutdown-timeout is for signals alone.
    """
    from torch.distributed.elastic.multiprocessing.api import PContext

    plain = PContext.close

    def close(self: Any, death_sig: Any = None, timeout: int = 30) -> None:
        plain(self, death_sig, max(timeout, int(SAVE_SEC)))

    PContext.close = close  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
