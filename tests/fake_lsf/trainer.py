"""A trainer without torch, for jobs of the fake LSF: `trainer.py run-timed|train ...`.

The file `behaviour` in the exp_dir says what it does: complete, crash, hang (deaf to signals),
long (runs until it is asked, saves, and completes at its next start), memory (runs out of it at
its first start), silent (ends without a word). Each start adds a line to `starts`. With `--pause-at` it pauses there; its val_mse says how
far its learning rate is from 1e-3. `trainer.py sweep ...` is imgtool's own.
"""

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time


def run_timed(words):
    cut = words.index("--")
    if "--requeue" in words[:cut]:
        os.environ["TRAINER_REQUEUE"] = "1"
    if "--grace" in words[:cut]:  # of a job that trials share
        os.environ["TRAINER_SEC"] = words[words.index("--duration") + 1].rstrip("s")
    os.execv(words[cut + 1], words[cut + 1 :])


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write(folder, started, **fields):
    record = {"host": socket.gethostname(), "pid": os.getpid(), "started": started, **fields}
    if "IMGTOOL_ATTEMPT" in os.environ:  # by the real run-timed
        record["attempt"] = int(os.environ["IMGTOOL_ATTEMPT"])
    path = os.path.join(folder, "status.json")
    with open(path + ".new", "w") as file:
        json.dump({**record, "heartbeat": now()}, file)
    os.replace(path + ".new", path)


def train(words):
    folder = words[words.index("--exp-dir") + 1]
    config = words[words.index("--config") + 1]
    asked = []
    signal.setitimer(signal.ITIMER_REAL, float(os.environ.get("TRAINER_SEC", 0)))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGALRM):
        signal.signal(number, lambda got, frame: asked.append(got))
    behaviour = "complete"
    with contextlib.suppress(FileNotFoundError), open(f"{folder}/behaviour") as file:
        behaviour = file.read().strip()
    started = now()
    with open(f"{folder}/starts", "a") as file:
        job, index = os.environ.get("LSB_JOBID"), os.environ.get("LSB_JOBINDEX")
        limit = os.environ.get("IMGTOOL_RUN_LIMIT_SEC")
        line = {
            "job": job,
            "index": index,
            "limit_sec": limit,
            "config": config,
            "cwd": os.getcwd(),
        }
        file.write(json.dumps({**line, "words": words}) + "\n")
    with open(f"{folder}/starts") as file:
        turn = len(file.readlines())
    if behaviour == "silent":
        return 0
    write(folder, started, state="running", iteration=turn)
    if behaviour == "crash":
        write(folder, started, state="failed", reason="a bad day", iteration=turn)
        return 1
    if behaviour == "memory" and turn == 1:
        reason = "OutOfMemoryError: out of memory"
        write(folder, started, state="failed", reason=reason, iteration=turn)
        return 1
    while behaviour == "hang":
        time.sleep(0.05)
    if behaviour == "long" and turn == 1:
        while not asked:
            time.sleep(0.02)
        write(folder, started, state="stopped", reason="asked", iteration=turn)
        by_itself = "TRAINER_SEC" not in os.environ or signal.SIGALRM in asked
        return 99 if os.environ.get("TRAINER_REQUEUE") and by_itself else 0
    ending = {"state": "completed", "iteration": turn}
    with open(config) as file:
        lr = float(re.search(r"^  lr: (\S+)", file.read(), re.M)[1])
    metrics = {"val_mse": abs(math.log10(lr) + 3)}
    if "--pause-at" in words:
        at = words[words.index("--pause-at") + 1]
        paused = {"at": at, "iteration": turn, "metrics": metrics}
        ending = {"state": "stopped", "reason": f"paused at {at}", "paused": paused}
    else:
        with open(f"{folder}/metrics.jsonl", "a") as file:
            file.write(json.dumps({"iteration": turn, **metrics}) + "\n")
    write(folder, started, **ending)
    return 0


def sweep(words):
    if "--index" in words:
        pool = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pool.py")
        os.execv(sys.executable, [sys.executable, pool, "sweep", *words])
    os.execv(sys.executable, [sys.executable, "-m", "imgtool", "sweep", *words])


def prepare(words):
    """imgtool's own; what follows is ours."""
    done = subprocess.run([sys.executable, "-m", "imgtool", "prepare", words[0]])
    return done.returncode or main(words[1:])


def main(words):
    known = {"run-timed": run_timed, "train": train, "sweep": sweep, "prepare": prepare}
    return known[words[0]](words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
