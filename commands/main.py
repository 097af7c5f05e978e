"""The `imgtool` program's first step: so little that a Ctrl-C of any moment meets it.

Everything else is in `_program`, and is imported only here, where an interruption is caught.
"""

from __future__ import annotations

import signal
import sys


def main(args: list[str] | None = None) -> None:
    """Run the program and leave with its exit code.

    Args:
        args: the words after `imgtool`; of this process when None.
    """
    is_program = args is None
    try:
        from commands._program import run

        code = run(sys.argv[1:] if args is None else args)
    except KeyboardInterrupt:
        code = 130
    if is_program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the code is known; what is left is to leave
    raise SystemExit(code)


if __name__ == "__main__":
    main()
