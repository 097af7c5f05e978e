"""run-timed as its users meet it: through real processes, on short clocks."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands.main import main
from tests.waiting import is_alive, wait_until

IMGTOOL = [sys.executable, "-m", "imgtool", "run-timed"]
LOOP = "while :; do sleep 0.02; done"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.fixture(autouse=True)
def outside_lsf(monkeypatch):
    for name in ("LSB_JOBID", "LSB_JOBINDEX", "IMGTOOL_RUN_LIMIT_SEC", "IMGTOOL_FORMAT"):
        monkeypatch.delenv(name, raising=False)


def run_timed(*words, **choices):
    return subprocess.run(
        [*IMGTOOL, *map(str, words)], capture_output=True, text=True, timeout=60, **choices
    )


def begin(*words, **choices):
    return subprocess.Popen(
        [*IMGTOOL, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **choices,
    )


def header(iteration):
    record = {"format": 1, "iteration": iteration, "epoch": 0, "identity": "x"}
    record |= {"metrics": {"loss": 1.0}, "finite": True}
    text = json.dumps({"__metadata__": {"imgtool": json.dumps(record)}}).encode()
    return len(text).to_bytes(8, "little") + text


def save(experiment, iteration):
    path = experiment / "checkpoints" / f"iter_{iteration:06d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header(iteration))
    return path


def test_a_run_that_stops_in_time(tmp_path):
    experiment = tmp_path / "exp"
    for iteration in (100, 200, 300):
        save(experiment, iteration)
    text = f"echo training; echo trouble >&2; trap 'echo saved; exit 0' INT; {LOOP}"
    words = ["--exp-dir", experiment, "--duration", "0.6s", "--keep", 2]
    answer = run_timed(*words, "--", "sh", "-c", text)
    assert answer.returncode == 0
    record = json.loads(answer.stdout)
    assert record["schema"] == "imgtool/1"
    assert record["kind"] == "job"
    assert (record["reason"], record["exit_code"], record["child_code"]) == ("budget", 0, 0)
    assert [sent["signal"] for sent in record["signals"]] == ["INT"]
    assert record["pruned"]["removed"] == [str(save(experiment, 100))]
    assert record["checkpoint_after"]["iteration"] == 300
    assert record["path"] == str(experiment)
    assert (experiment / "child.log").read_text() == "training\ntrouble\nsaved\n"
    for line in ("training", "trouble", "saved", "run-timed: sending SIGINT to process"):
        assert line in answer.stderr
    watch = (experiment / "watch.log").read_text()
    assert "the time is up" in watch
    assert "training\n" not in watch


def test_the_older_spelling_and_the_commands_own_directory(tmp_path):
    experiment = tmp_path / "EXP00"
    for iteration in (100, 200):
        save(experiment, iteration)
    child = ["sh", "-c", "exit 3", "train", "--exp_dir", experiment, "--max_iter", 300000]
    answer = run_timed("--duration", "3h", "--keep", 1, "--kill_after", "1s", "--", *child)
    assert answer.returncode == 3
    record = json.loads(answer.stdout)
    assert record["path"] == str(experiment)
    assert record["pruned"]["removed"] == [str(save(experiment, 100))]
    answer = run_timed("--exp_dir", tmp_path / "other", "--duration", "3h", "--", *child)
    assert json.loads(answer.stdout)["path"] == str(tmp_path / "other")
    assert (tmp_path / "other" / "watch.log").exists()


def test_the_commands_own_options_stay_its_own(tmp_path):
    answer = run_timed(
        "--duration", "9", "--quiet", "--exp-dir", tmp_path, "echo", "--keep", "0", "--", "--grace"
    )
    assert (tmp_path / "child.log").read_text() == "--keep 0 -- --grace\n"
    assert answer.stdout == f"{tmp_path}\n"


def test_without_a_directory(tmp_path):
    answer = run_timed("--duration", "9s", "--keep", 2, "--", "echo", "hi", cwd=tmp_path)
    assert answer.returncode == 0
    assert "hi\n" in answer.stderr
    assert "no logs are kept and nothing is pruned" in answer.stderr
    assert json.loads(answer.stdout)["pruned"] is None
    assert os.listdir(tmp_path) == []


def test_killed(tmp_path):
    limits = ["--duration", "0.4s", "--grace", "0.2s", "--kill-after", "0.2s"]
    text = f"trap '' INT TERM; (setsid sh -c 'echo $$ > {tmp_path}/rank; exec sleep 60' &); {LOOP}"
    answer = run_timed("--exp-dir", tmp_path, *limits, "--", "sh", "-c", text)
    assert answer.returncode == 124
    record = json.loads(answer.stdout)
    assert (record["reason"], record["child_code"]) == ("killed", 137)
    assert [sent["signal"] for sent in record["signals"]] == ["INT", "TERM", "KILL"]
    assert not is_alive((tmp_path / "rank").read_text())
    strict = run_timed("--exp-dir", tmp_path, *limits, "--strict-status", "--", "sh", "-c", text)
    assert strict.returncode == 137


MISTAKES = [
    (["--duratoin", "3h", "--", "true"], 2, "no such option: --duratoin"),
    (["--duration", "soon", "--", "true"], 2, "'soon' is not a duration"),
    (["--duration", "0", "--", "true"], 2, "--duration is 0"),
    (["--duration", "-5", "--", "true"], 2, "'-5' is not a duration"),
    (["--duration", "3h"], 2, "no command to run"),
    (["--duration", "3h", "--"], 2, "no command to run"),
    (["--", "true"], 2, "no --duration"),
    (["--duration", "3h", "--keep", "0", "--", "true"], 2, "--keep is 0"),
    (["--duration", "3h", "--detach", "--", "true"], 2, "--detach needs"),
    (["--duration", "3h", "--exp-dir", "/proc/x", "--", "true"], 2, "cannot write to"),
    (["--duration", "3h", "--exp-dir", "{tmp}/file", "--", "true"], 2, "a file is in the way"),
    (["--duration", "3h", "--exp-dir", "{tmp}/e", "--", "no-such"], 127, "command not found"),
    (["--duration", "3h", "--exp-dir", "{tmp}/e", "--", "{tmp}/file"], 126, "cannot run"),
]
MISTAKES_OF_A_PROCESS = [
    *(MISTAKES[number] for number in (0, 6, -1, -2)),
    (["--duration", "3h", "--exp-dir", "{tmp}/e", "--detach", "--", "no-such"], 127, "not found"),
    (["--duration", "3h", "--exp-dir", "{tmp}/e", "--detach", "--", "{tmp}/file"], 126, "cannot"),
    (["--duration", "3h", "--exp-dir", "/proc/x", "--detach", "--", "true"], 2, "cannot write"),
]


def check_mistake(tmp_path, code, out, err, expected, message):
    assert code == expected
    assert out == ""
    error, hint = [line for line in err.splitlines() if not line.startswith("run-timed:")]
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("hint: ")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(("words", "expected", "message"), MISTAKES)
def test_mistakes(tmp_path, capsys, words, expected, message):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SystemExit) as caught:
        main(["run-timed", *[word.replace("{tmp}", str(tmp_path)) for word in words]])
    out, err = capsys.readouterr()
    check_mistake(tmp_path, caught.value.code, out, err, expected, message)


@pytest.mark.parametrize(("words", "expected", "message"), MISTAKES_OF_A_PROCESS)
def test_mistakes_as_a_process(tmp_path, words, expected, message):
    (tmp_path / "file").write_text("x")
    answer = run_timed(*[word.replace("{tmp}", str(tmp_path)) for word in words])
    check_mistake(tmp_path, answer.returncode, answer.stdout, answer.stderr, expected, message)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_signals_are_passed_on(tmp_path, number):
    name = number.name.removeprefix("SIG")
    text = f"trap 'echo got {name}; exit 0' {name}; echo up; {LOOP}"
    process = begin("--exp-dir", tmp_path, "--duration", "1h", "--", "sh", "-c", text)
    log = tmp_path / "child.log"
    wait_until(lambda: log.exists() and "up" in log.read_text())
    process.send_signal(number)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert log.read_text() == f"up\ngot {name}\n"
    record = json.loads(out)
    assert (record["reason"], [sent["signal"] for sent in record["signals"]]) == ("signal", [name])


def test_the_run_limit_caps(tmp_path):
    environment = {**os.environ, "IMGTOOL_RUN_LIMIT_SEC": "62"}
    words = ["--duration", "1h", "--grace", "0.5s", "--kill-after", "0.5s", "--exp-dir", tmp_path]
    text = f"trap 'exit 0' INT; echo up; {LOOP}"
    process = begin(*words, "--", "sh", "-c", text, env=environment)
    child_log, log = tmp_path / "child.log", tmp_path / "watch.log"
    wait_until(lambda: child_log.exists() and "up" in child_log.read_text())
    assert "running for 31s" in log.read_text()
    process.send_signal(signal.SIGINT)
    record = json.loads(process.communicate(timeout=60)[0])
    assert (record["budget_sec"], record["budget_source"]) == (31.0, "run limit")
    assert "half of it is used" in log.read_text()


@pytest.mark.parametrize("words", [["--json"], ["--quiet"]])
def test_detached(tmp_path, words):
    experiment = tmp_path / "exp"
    for iteration in (100, 200):
        save(experiment, iteration)
    text = f"trap 'echo saved; exit 0' INT; echo up; {LOOP}"
    limits = ["--exp-dir", experiment, "--duration", "1h", "--keep", 1]
    answer = run_timed(*limits, "--detach", *words, "--", "sh", "-c", text, start_new_session=True)
    assert answer.returncode == 0
    if words == ["--quiet"]:
        pid = int(answer.stdout)
    else:
        record = json.loads(answer.stdout)
        pid = record["pid"]
        assert record["kind"] == "job"
        assert is_alive(record["child_pid"])
        assert record["watch_log"] == str(experiment / "watch.log")
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert stat[3] != str(pid)  # no session leader, so it can never get a terminal
    assert stat[4] == "0"  # and has none
    log = experiment / "child.log"
    wait_until(lambda: "up" in log.read_text())
    os.kill(pid, signal.SIGHUP)
    time.sleep(0.2)
    assert is_alive(pid)
    os.kill(pid, signal.SIGINT)
    wait_until(lambda: not is_alive(pid))
    assert log.read_text() == "up\nsaved\n"
    last = json.loads((experiment / "watch.log").read_text().splitlines()[-1])
    assert (last["kind"], last["reason"], last["exit_code"]) == ("job", "signal", 0)
    assert last["pruned"]["removed"] == [str(save(experiment, 100))]


def read_all(handle):
    data = b""
    while True:
        try:
            more = os.read(handle, 65536)
        except OSError:  # the other side has closed
            return data.decode()
        if not more:
            return data.decode()
        data += more


def on_terminal(experiment, text):
    """Start run-timed with a terminal of its own; returns its pid and the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        words = ["--exp-dir", str(experiment), "--duration", "1h", "--grace", "9s"]
        os.execv(sys.executable, [*IMGTOOL, *words, "--kill-after", "9s", "--", "sh", "-c", text])
    log = experiment / "child.log"
    wait_until(lambda: log.exists() and "up" in log.read_text())
    return pid, terminal


def test_ctrl_c_on_a_terminal_reaches_the_command_once_and_its_group_never(tmp_path):
    text = (
        f"sh -c \"trap 'echo worker hit' INT; {LOOP}\" & "
        f"trap 'echo got it; exit 0' INT; echo up; {LOOP}"
    )
    pid, terminal = on_terminal(tmp_path, text)
    os.write(terminal, b"\x03")
    seen = read_all(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert (tmp_path / "child.log").read_text() == "up\ngot it\n"
    assert "got it" in seen
    assert "exit_code" in seen  # the record as a table


def test_ctrl_c_again_goes_one_step_further(tmp_path):
    pid, terminal = on_terminal(tmp_path, f"trap '' INT; echo up; {LOOP}")
    start = time.monotonic()
    os.write(terminal, b"\x03")
    wait_until(lambda: "sending SIGINT" in (tmp_path / "watch.log").read_text())
    time.sleep(2.2)
    os.write(terminal, b"\x03")
    seen = read_all(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 124
    os.close(terminal)
    assert "interrupted again" in seen
    assert time.monotonic() - start < 9


def test_a_closed_terminal_stops_gracefully(tmp_path):
    pid, terminal = on_terminal(tmp_path, f"trap 'echo saved; exit 0' TERM; echo up; {LOOP}")
    os.close(terminal)
    assert os.waitpid(pid, 0)[0] == pid
    assert (tmp_path / "child.log").read_text() == "up\nsaved\n"


def test_nothing_heavy_is_loaded():
    program = (
        "import sys, commands.run_timed, commands.prune, imgtool.process.timed\n"
        "from imgtool.experiment import owner, provenance, retention, status\n"
        "heavy = {'torch', 'numpy', 'safetensors', 'PIL', 'rich.table'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout == "[]\n", answer.stderr


# --- taking turns -------------------------------------------------------------------------

# Saves one iteration further at every start, unless told to stand still.
TURNS = r"""
import json, pathlib, signal, struct, sys, time
exp, still, state = pathlib.Path(sys.argv[1]), sys.argv[2] == "still", sys.argv[3]
folder = exp / "checkpoints"
folder.mkdir(parents=True, exist_ok=True)
number = 7 if still else len(list(folder.iterdir())) + 1
record = {"format": 1, "iteration": number, "epoch": 0, "identity": "x", "metrics": {"loss": 1.0},
          "finite": True}
def stop(*_):
    text = json.dumps({"__metadata__": {"imgtool": json.dumps(record)}}).encode()
    path = folder / f"iter_{number:06d}.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    (exp / "status.json").write_text(json.dumps({"state": state, "at": time.time()}))
    sys.exit(0)
signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


def turn(experiment, how="on", state="stopped", *options):
    child = [sys.executable, "-S", "-c", TURNS, str(experiment), how, state]
    answer = run_timed(
        *("--exp-dir", experiment, "--duration", "1s", "--requeue", *options), "--", *child
    )
    return answer.returncode, json.loads(answer.stdout), answer.stderr


def test_turns_until_there_were_enough(tmp_path):
    found = [turn(tmp_path / "a", "on", "stopped", "--max-turns", 2) for _ in range(2)]
    assert [code for code, _, _ in found] == [99, 0]
    assert [record["turn"] for _, record, _ in found] == [1, 2]
    assert "number 2 of at most 2" in found[1][2]


def test_a_completed_run_wants_no_other_turn(tmp_path):
    assert turn(tmp_path / "a", "on", "completed")[0] == 0


def test_turns_without_progress_end_the_chain(tmp_path):
    found = [turn(tmp_path / "a", "still") for _ in range(3)]
    assert [code for code, _, _ in found] == [99, 99, 1]
    assert "did not come past iteration 7" in found[2][2]


def test_turns_need_a_directory():
    answer = run_timed("--duration", "1s", "--requeue", "--", "true")
    assert answer.returncode == 2
    assert "hint: add --exp-dir" in answer.stderr
