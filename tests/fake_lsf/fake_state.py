"""What the programs of the fake LSF share: its state under a lock, and the faults to come."""

import contextlib
import fcntl
import json
import os
import sys

HOME = os.environ.get("FAKE_LSF_DIR", "")
SCALE = float(os.environ.get("FAKE_LSF_SCALE", "60"))
ENDED = ("DONE", "EXIT")


@contextlib.contextmanager
def locked():
    """The state, to read and to change."""
    path = os.path.join(HOME, "state.json")
    with open(os.path.join(HOME, "lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with open(path) as file:
                state = json.load(file)
        except FileNotFoundError:
            state = {"next": 101, "jobs": {}, "forgotten": [], "unknown": []}
        before = json.dumps(state)
        yield state
        after = json.dumps(state)
        if after != before:
            with open(path + ".new", "w") as file:
                file.write(after)
            os.replace(path + ".new", path)


def next_fault(command):
    path = os.path.join(HOME, "faults.json")
    with open(os.path.join(HOME, "lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(os.path.join(HOME, "calls.log"), "a") as log:
            log.write(json.dumps([command, *sys.argv[2:]]) + "\n")
        try:
            with open(path) as file:
                faults = json.load(file)
        except FileNotFoundError:
            return None
        if not faults.get(command):
            return None
        fault = faults[command].pop(0)
        with open(path, "w") as file:
            json.dump(faults, file)
        return fault


def fail(text):
    print(text, file=sys.stderr)
    return 255


def find_jobs(word, state):
    jobs = state["jobs"]
    found = {word} if word.isdigit() else {key for key in jobs if jobs[key]["name"] == word}
    return sorted(key for key in found if key in jobs and key not in state["forgotten"])


def end(element, code, reason=None):
    element.update(stat="EXIT" if code else "DONE", exit_code=code, reason=reason)
    text = f"Exited with exit code {code}" if code else "Done successfully"
    element["log"].append(text)
    if reason:
        element["log"].append(f"Completed <exit>; {reason}")
