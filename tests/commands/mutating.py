"""Runs many command lines quickly: a process with everything imported forks once a line.

Its stdin has a JSON task a line, {"words": …, "folder": …, "limit_sec": …}; its answer is a line
{"code": …, "output": …}, code None where the time was up.
"""

import gc
import json
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stderr, suppress
from importlib import import_module

import commands.main
import imgtool

MAX_FILE_BYTES = 200_000_000
LIMIT_BYTES = 24 * 2**30


def child(task, output):
    """Be `imgtool` with these words; never returns."""
    os.setsid()
    os.chdir(task["folder"])
    null = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((null, output, output)):
        os.dup2(descriptor, number)
    for number in (signal.SIGXFSZ, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    sys.argv = ["imgtool", *task["words"]]
    code = 1
    try:
        from commands.main import main

        main(task["words"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def run(task):
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            child(task, output.fileno())
        end = time.monotonic() + task["limit_sec"]
        code = None
        while code is None and time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.005)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if code is None:
            os.waitpid(pid, 0)
        output.seek(0)
        return {"code": code, "output": output.read(400_000).decode(errors="replace")}


def run_here(words):
    """What the first command of a process loads and looks up is done once."""
    with suppress(SystemExit), open(os.devnull, "w") as null, redirect_stderr(null):
        commands.main.main(words)


def main():
    from imgtool.training.environment import prepare

    prepare(deterministic=False)
    import torch

    torch.set_num_threads(1)
    for package in (imgtool, commands):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                import_module(module.name)
    run_here(["prune", "nowhere", "--keep", "1"])
    gc.collect()
    gc.freeze()  # or every child would copy what it counts
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
