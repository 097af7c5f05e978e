import math
import os
import signal
import subprocess
import sys
import time

from hypothesis import given
from hypothesis import strategies as st

from imgtool.training.stopping import BestValue, StopRequest, TimeBudget

CHILD = """
import sys, time
from imgtool.training.stopping import StopRequest
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


def test_a_budget_counts_earlier_starts():
    assert TimeBudget(10.0, 10.0).over
    assert not TimeBudget(10.0, 9.0).over
    assert TimeBudget(None).left_sec is None
    assert 0 < TimeBudget(10.0, 9.0).left_sec <= 1


def test_patience_counts_small_gains_as_none_but_best_takes_them():
    best = BestValue("val_mse", "min", patience=2, min_delta=0.1)
    assert best.see(1.0, 10)
    assert best.see(0.95, 20)  # better, but by less than min_delta
    assert (best.value, best.iteration) == (0.95, 20)
    assert not best.exhausted
    assert not best.see(0.97, 30)
    assert best.exhausted


def test_nothing_measured_is_no_gain():
    best = BestValue("val_psnr", "max", patience=2, min_delta=0.0)
    assert not best.see(math.nan, 1)
    assert not best.see(math.inf, 1)
    assert not best.see(None, 2)
    assert best.exhausted
    assert best.value is None


def test_forgetting_the_best_keeps_patience():
    best = BestValue("val_mse", "min", patience=2, min_delta=0.0)
    best.see(0.1, 1)
    best.forget()
    assert best.see(0.5, 2)
    assert (best.value, best.iteration) == (0.5, 2)
    best.see(0.6, 3)
    assert best.exhausted


@given(st.lists(st.floats(-5, 5) | st.just(math.nan), max_size=20), st.integers(0, 20))
def test_restoring_in_the_middle_changes_nothing(values, cut):
    def fresh():
        return BestValue("m", "min", patience=3, min_delta=0.5)

    straight, first, second = fresh(), fresh(), fresh()
    for i, value in enumerate(values):
        straight.see(value, i)
        (first if i < cut else second).see(value, i)
        if i + 1 == cut:
            second.restore(first.state())
    if cut <= len(values):
        if cut == 0 or len(values) == 0:
            return
        assert second.state() == straight.state()
