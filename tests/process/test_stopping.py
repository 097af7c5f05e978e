import os
import signal
import subprocess
import sys
import time

from imgtool.process.stopping import StopRequest

CHILD = """
import sys, time
from imgtool.process.stopping import StopRequest
assert "torch" not in sys.modules
stop = StopRequest(); stop.install()
print("ready", flush=True)
end = time.monotonic() + 20
while not stop.wanted and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.3)
print(stop.reason)
"""


def stopped_by(*signals):
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    for number in signals:
        os.kill(child.pid, number)
        time.sleep(0.05)
    out, _ = child.communicate(timeout=30)
    return out.strip(), child.returncode


def test_each_signal_is_a_wish_and_repeats_are_ignored():
    assert stopped_by(signal.SIGUSR2, signal.SIGINT, signal.SIGINT) == ("SIGUSR2", 0)
    assert stopped_by(signal.SIGTERM) == ("SIGTERM", 0)
    assert stopped_by(signal.SIGHUP) == ("SIGHUP", 0)


def test_the_first_reason_stays():
    stop = StopRequest()
    assert not stop.wanted
    stop.ask("a")
    stop.ask("b")
    assert stop.reason == "a"
