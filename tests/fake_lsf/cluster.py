"""The fake LSF as tests hold it: on PATH, with faults to inject and a state to look at."""

import json
import os
import sys
import time
from pathlib import Path

BIN = Path(__file__).parent / "bin"


class Cluster:
    """A cluster in a folder of its own; `close` ends its daemon and all its jobs."""

    def __init__(self, folder, monkeypatch, *, minute_sec=0.5):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_LSF_DIR", str(self.folder))
        monkeypatch.setenv("FAKE_LSF_SCALE", str(minute_sec))
        monkeypatch.setenv("FAKE_LSF_PYTHON", sys.executable)

    def fault(self, command, *faults):
        """The next calls of `command` meet these: rc255, refused, empty, lost, hang, hang_after."""
        path = self.folder / "faults.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        known[command] = [*known.get(command, []), *faults]
        path.write_text(json.dumps(known))

    def change(self, **fields):
        """Set forgotten (ids that bjobs lost), erased (bhist too), unknown (`101[2]` is UNKWN)."""
        import fcntl

        with open(self.folder / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.state()
            state.update(fields)
            new = self.folder / "state.json.new"
            new.write_text(json.dumps(state))
            new.replace(self.folder / "state.json")

    def state(self):
        return json.loads((self.folder / "state.json").read_text())

    @property
    def jobs(self):
        """Id -> job."""
        path = self.folder / "state.json"
        return self.state()["jobs"] if path.exists() else {}

    def stats(self, job_id):
        """Index -> stat."""
        elements = self.jobs[str(job_id)]["elements"]
        return {int(index): element["stat"] for index, element in elements.items()}

    def calls(self, command=None):
        """Arguments of every call so far."""
        path = self.folder / "calls.log"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if command in (None, call[0])]

    def wait(self, condition, seconds=30.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.jobs, self.log())
            time.sleep(0.03)

    def log(self):
        path = self.folder / "daemon.log"
        return path.read_text() if path.exists() else ""

    def close(self):
        """End the daemon, which kills the jobs, and wait for it."""
        import fcntl

        (self.folder / "stop").touch()
        with open(self.folder / "daemon.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
