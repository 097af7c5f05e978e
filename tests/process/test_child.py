"""What becomes of a command when whoever started it is killed, shown by real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from imgtool.experiment.alive import is_word_alive, word_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prctl")

# Says where it is, and saves when it is interrupted.
SAVER = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def stop(number, frame):
    (folder / "saved").write_text(signal.Signals(number).name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGINT, stop)
(folder / "pid").write_text(f"{os.getpid()}\\n")
time.sleep(60)
"""


def words_of(path, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not path.exists() or not path.read_text().endswith("\n"):
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)
    return path.read_text().strip()


def run_timed(tmp_path, *options):
    command = [sys.executable, "-m", "imgtool", "run-timed", "--exp-dir", str(tmp_path / "exp")]
    saver = [sys.executable, "-S", "-c", SAVER, str(tmp_path)]
    return [*command, "--duration", "1h", *options, "--", *saver]


@pytest.mark.parametrize("options", [(), ("--detach",)], ids=["attached", "detached"])
def test_a_command_saves_and_stops_when_its_run_timed_is_killed(tmp_path, options):
    child = None
    if options:
        answer = subprocess.run(
            [*run_timed(tmp_path, *options, "--quiet")], capture_output=True, text=True, check=True
        )
        supervisor = int(answer.stdout)
    else:
        child = subprocess.Popen(run_timed(tmp_path), stderr=subprocess.DEVNULL)
        supervisor = child.pid
    words_of(tmp_path / "pid")
    assert not (tmp_path / "saved").exists()
    os.kill(supervisor, signal.SIGKILL)
    assert words_of(tmp_path / "saved") == "SIGINT"
    if child is not None:
        child.wait()


def test_a_command_whose_parent_died_before_it_could_ask_for_the_signal(tmp_path):
    program = f"""
import os, signal
from imgtool.process import child
begin = child._beginning(signal.SIGINT, ())
os.getppid = lambda: 1
if os.fork() == 0:
    begin()
    open({str(tmp_path / "late")!r}, "w").close()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout == "130\n"
    assert not (tmp_path / "late").exists()


def test_words_that_name_a_process():
    assert is_word_alive(word_of(os.getpid()))
    assert not is_word_alive(f"{os.getpid()}:1")
    for word in ("", ":", "x:1", "0:", "1.5:2"):
        assert not is_word_alive(word)
