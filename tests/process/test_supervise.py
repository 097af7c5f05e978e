"""Real processes on short clocks. Children say when they are ready, so a busy machine only waits."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from imgtool.process import ladder, leftovers, supervise
from imgtool.process.child import NotFound, NotRunnable
from imgtool.process.supervise import Outcome, Sent, exit_code
from tests.waiting import is_alive, wait_until

LOOP = "while :; do sleep 0.02; done"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.fixture
def start(tmp_path):
    """start('sh text', duration=…) -> Outcome; {dir} in the text is the test's folder."""

    def run(text, *, duration=30.0, grace=30.0, kill_after=30.0, **choices):
        return supervise.run(
            ["sh", "-c", text.replace("{dir}", str(tmp_path))],
            duration_sec=duration,
            grace_sec=grace,
            kill_after_sec=kill_after,
            **{"log": lambda line: None, "output": tmp_path / "child.log", **choices},
        )

    return run


def wait_for(path: Path):
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return path.read_text()


def when_ready(path, act):
    """Do `act` in a thread once a file is there."""

    def body():
        wait_for(path)
        act()

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


def signal_us(*numbers, pause=0.0):
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(pause)


def names(outcome):
    return [sent.signal for sent in outcome.signals]


def test_a_command_that_ends_by_itself(start, tmp_path):
    outcome = start("echo out; echo err >&2; exit 3")
    assert (outcome.reason, outcome.child_code, outcome.signals) == ("finished", 3, [])
    assert not outcome.forced
    assert outcome.num_leftover == 0
    assert sorted((tmp_path / "child.log").read_text().split()) == ["err", "out"]
    assert exit_code(outcome, saved=None) == 3


def test_a_command_that_dies_of_a_signal_by_itself(start):
    outcome = start("kill -9 $$")
    assert (outcome.reason, outcome.forced, outcome.child_code) == ("finished", False, 137)


def test_the_budget_interrupts_and_waits(start, tmp_path):
    start_time = time.monotonic()
    outcome = start(f"trap 'sleep 0.3; echo saved; exit 0' INT; {LOOP}", duration=0.6)
    assert time.monotonic() - start_time >= 0.9
    assert (outcome.reason, outcome.child_code, names(outcome)) == ("budget", 0, ["INT"])
    assert 0.6 <= outcome.signals[0].at_sec <= outcome.elapsed_sec
    assert (tmp_path / "child.log").read_text() == "saved\n"


def test_interrupt_is_for_the_leader_alone(start, tmp_path):
    outcome = start(
        'sh -c \'trap "echo hit > {dir}/hit; exit" INT; '
        f"echo > {{dir}}/member; {LOOP}' & "
        f"trap 'exit 0' INT; while [ ! -e {{dir}}/member ]; do sleep 0.02; done; {LOOP}",
        duration=1.0,
    )
    assert names(outcome) == ["INT"]
    assert outcome.num_leftover >= 1
    assert not (tmp_path / "hit").exists()


def test_who_ignores_the_interrupt_gets_term(start):
    text = f"trap '' INT; trap 'exit 0' TERM; {LOOP}"
    outcome = start(text, duration=0.4, grace=0.3)
    assert (outcome.reason, outcome.child_code, names(outcome)) == ("budget", 0, ["INT", "TERM"])
    assert not outcome.forced
    assert outcome.signals[1].at_sec - outcome.signals[0].at_sec >= 0.29
    assert exit_code(outcome, saved=False) == 0


def test_who_dies_of_term_was_killed(start):
    outcome = start(f"trap '' INT; {LOOP}", duration=0.4, grace=0.2)
    assert (outcome.child_code, outcome.forced, names(outcome)) == (143, True, ["INT", "TERM"])
    assert exit_code(outcome, saved=False) == 124


def test_who_ignores_all_is_killed_with_all_below(start, tmp_path):
    outcome = start(
        "trap '' INT TERM; setsid sh -c 'echo $$ > {dir}/rank; exec sleep 60' & "
        "sleep 60 & echo $! > {dir}/member; while :; do sleep 0.02; done",
        duration=1.0,
        grace=0.2,
        kill_after=0.2,
    )
    assert (outcome.child_code, outcome.forced) == (137, True)
    assert names(outcome) == ["INT", "TERM", "KILL"]
    assert exit_code(outcome, saved=True) == 124
    assert exit_code(outcome, saved=True, strict=True) == 137
    for name in ("rank", "member"):
        assert not is_alive(wait_for(tmp_path / name))


LEAVERS = {
    "background": "sh -c 'echo $$ > {dir}/pid; exec sleep 60' &",
    "own session": "setsid sh -c 'echo $$ > {dir}/pid; exec sleep 60' &",
    "daemon": "( ( setsid sh -c 'echo $$ > {dir}/pid; exec sleep 60' & ) & )",
    "deaf daemon": (
        '( ( setsid sh -c \'trap "" TERM INT HUP; echo $$ > {dir}/pid;'
        " while :; do sleep 0.02; done' & ) & )"
    ),
}


@pytest.mark.parametrize("kind", LEAVERS)
def test_nothing_outlives_a_command_that_ended(start, tmp_path, kind):
    lines, ours = [], leftovers.children()
    wait = "while [ ! -s {dir}/pid ]; do sleep 0.02; done; exit 5"
    outcome = start(f"{LEAVERS[kind]}\n{wait}", kill_after=0.3, log=lines.append)
    assert (outcome.reason, outcome.child_code) == ("finished", 5)
    assert outcome.num_leftover >= 1
    assert not is_alive((tmp_path / "pid").read_text())
    assert any("outlived the command" in line for line in lines)
    assert any("SIGKILL" in line for line in lines) == (kind == "deaf daemon")
    assert leftovers.descendants(ours) == []


def test_a_trainer_below_a_wrapper_gets_time_to_save_after_the_stop(start, tmp_path):
    # The wrapper dies at once of the interrupt; what it leaves gets TERM and may take its time.
    inner = f"trap 'sleep 0.5; echo saved > {{dir}}/saved; exit 0' TERM; echo > {{dir}}/up; {LOOP}"
    outcome = start(
        f'sh -c "{inner}" & while [ ! -e {{dir}}/up ]; do sleep 0.02; done; '
        "exec python3 -S -c 'import signal; signal.signal(signal.SIGINT, signal.SIG_DFL);"
        " signal.pause()'",
        duration=1.2,
    )
    assert outcome.reason == "budget"
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("number", ladder.FORWARDED)
def test_signals_are_passed_on_once(start, tmp_path, number):
    name = number.name.removeprefix("SIG")
    text = f"trap 'echo {name} >> {{dir}}/got; sleep 0.3; exit 0' {name}; echo > {{dir}}/up; {LOOP}"
    when_ready(tmp_path / "up", lambda: signal_us(number, number, number, pause=0.05))
    outcome = start(text)
    assert (outcome.reason, outcome.child_code, names(outcome)) == ("signal", 0, [name])
    assert (tmp_path / "got").read_text().split() == [name]


@pytest.mark.parametrize("number", ladder.AS_TERM)
def test_hangup_and_quit_are_passed_on_as_term(start, tmp_path, number):
    when_ready(tmp_path / "up", lambda: signal_us(number))
    outcome = start(f"trap 'exit 0' TERM; echo > {{dir}}/up; {LOOP}")
    assert (outcome.reason, names(outcome)) == ("signal", ["TERM"])


def test_a_passed_on_signal_starts_the_ladder(start, tmp_path):
    when_ready(tmp_path / "up", lambda: signal_us(signal.SIGUSR2))
    outcome = start(f"trap '' INT TERM USR2; echo > {{dir}}/up; {LOOP}", grace=0.2, kill_after=0.2)
    assert (outcome.reason, outcome.forced) == ("signal", True)
    assert names(outcome) == ["USR2", "TERM", "KILL"]


def test_another_signal_is_passed_on_too(start, tmp_path):
    when_ready(tmp_path / "up", lambda: signal_us(signal.SIGINT, signal.SIGTERM, pause=0.2))
    outcome = start(f"trap 'echo ok' INT; trap 'exit 0' TERM; echo > {{dir}}/up; {LOOP}")
    assert (outcome.reason, outcome.child_code, names(outcome)) == ("signal", 0, ["INT", "TERM"])


@pytest.mark.parametrize("at_terminal", [True, False])
def test_a_later_second_interrupt_climbs_on_a_terminal_only(
    start, tmp_path, monkeypatch, at_terminal
):
    monkeypatch.setattr(ladder, "REPEAT_SEC", 0.2)
    monkeypatch.setattr(supervise, "at_terminal", lambda: at_terminal)
    when_ready(
        tmp_path / "up", lambda: signal_us(signal.SIGINT, signal.SIGINT, signal.SIGINT, pause=0.4)
    )
    outcome = start(f"trap '' INT TERM; echo > {{dir}}/up; {LOOP}", grace=2.0, kill_after=0.5)
    assert names(outcome) == ["INT", "TERM", "KILL"]
    assert (outcome.elapsed_sec < 2.0) == at_terminal


def test_a_suspended_command_can_be_stopped(start):
    outcome = start(f"trap 'exit 0' INT; kill -STOP $$; {LOOP}", duration=0.5)
    assert (outcome.child_code, names(outcome)) == (0, ["INT"])


def test_output_is_handed_on_as_it_comes_and_only_what_is_new(start, tmp_path):
    log, heard, released = tmp_path / "child.log", [], []
    log.write_text("earlier\n")

    def hear(data):
        heard.append(data)
        if b"first" in data and not released:
            released.append((tmp_path / "go").write_text("\n"))

    start(
        "echo first; while [ ! -e {dir}/go ]; do sleep 0.02; done; echo last >&2; printf end",
        on_output=hear,
    )
    assert b"".join(heard) == b"first\nlast\nend"
    assert log.read_bytes() == b"earlier\nfirst\nlast\nend"


def test_a_stalled_listener_holds_nobody_up(start, tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "STALL_SEC", 0.1)
    forever = threading.Event()
    outcome = start(
        "i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done",
        on_output=lambda data: forever.wait(),
    )
    assert outcome.child_code == 0
    assert (tmp_path / "child.log").stat().st_size == 3000 * 41
    forever.set()


def test_without_a_file_the_output_goes_to_our_stderr(start, capfd):
    start("echo out; echo err >&2", output=None)
    assert capfd.readouterr() == ("", "out\nerr\n")


def test_python_children_do_not_buffer_unless_told(start, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    start("echo $PYTHONUNBUFFERED")
    monkeypatch.setenv("PYTHONUNBUFFERED", "")
    start("echo [$PYTHONUNBUFFERED]")
    assert (tmp_path / "child.log").read_text() == "1\n[]\n"


def test_a_log_on_a_full_disk_does_not_cut_the_command_loose(start):
    def full(line):
        raise OSError(28, "No space left on device")

    outcome = start(f"trap 'exit 0' INT; {LOOP}", duration=0.3, log=full, on_stop=lambda: full(""))
    assert (outcome.reason, outcome.child_code) == ("budget", 0)


def test_hooks(start, tmp_path):
    pids, stops = [], []
    start(
        f"echo $$ > {{dir}}/pid; trap 'exit 0' INT; {LOOP}",
        duration=0.5,
        on_start=pids.append,
        on_stop=lambda: stops.append(is_alive(pids[0])),
    )
    assert pids == [int((tmp_path / "pid").read_text())]
    assert stops == [True]


def test_handlers_are_put_back(start):
    numbers = (*ladder.FORWARDED, *ladder.AS_TERM, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    start("exit 0")
    with pytest.raises(NotFound):
        supervise.run(
            ["/nowhere/x"], duration_sec=1, grace_sec=1, kill_after_sec=1, log=lambda line: None
        )
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_zombie_of_others_does_not_hide_orphans():
    theirs, ours = (subprocess.Popen(["true"]) for _ in range(2))
    for child in (theirs, ours):
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    kept = leftovers.children() - {ours.pid}
    leftovers.reap(kept)
    assert theirs.pid in leftovers.children()
    assert ours.pid not in leftovers.children()
    theirs.wait()
    ours.wait()


def test_orphans_that_end_meanwhile_are_collected(start, tmp_path):
    counts, ours = [], leftovers.children()

    def count():
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            counts.append(len(leftovers.children() - ours))
            if counts[-1] == 1:
                break
            time.sleep(0.02)
        (tmp_path / "go").write_text("\n")

    when_ready(tmp_path / "up", count)
    outcome = start(
        "for i in 1 2 3 4 5; do ( ( exec true ) & ) ; done; echo > {dir}/up; "
        "while [ ! -e {dir}/go ]; do sleep 0.02; done"
    )
    assert counts[-1] == 1
    assert outcome.num_leftover == 0


def test_other_children_of_ours_are_left_alone(start):
    bystander = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60")
    try:
        outcome = start("trap '' INT TERM; sleep 60", duration=0.2, grace=0.1, kill_after=0.1)
        assert outcome.child_code == 137
        assert is_alive(bystander)
    finally:
        os.kill(bystander, signal.SIGKILL)
        assert os.waitpid(bystander, 0)[1] == signal.SIGKILL


def test_in_a_thread_without_signals(start):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(start(f"trap 'exit 0' INT; {LOOP}", duration=0.3))
    )
    thread.start()
    thread.join(timeout=30)
    assert (found[0].reason, found[0].child_code) == ("budget", 0)


def run_program(*command):
    return supervise.run(
        command, duration_sec=5, grace_sec=1, kill_after_sec=1, log=lambda line: None
    )


def test_not_found_and_not_runnable(tmp_path):
    for program in ("no-such-program", "/nowhere/x"):
        with pytest.raises(NotFound, match="command not found") as caught:
            run_program(program)
        assert caught.value.exit_code == 127
    script = tmp_path / "script"
    cases = [("echo hi\n", 0o644), ("echo hi\n", 0o755), ("#!/no/such/shell\n", 0o755)]
    for text, mode in cases:
        script.write_text(text)
        script.chmod(mode)
        with pytest.raises(NotRunnable, match="cannot run") as caught:
            run_program(str(script))
        assert caught.value.exit_code == 126
        assert caught.value.hint
    with pytest.raises(NotRunnable):
        run_program(str(tmp_path))


def ended(code, *, reason="budget", forced=False):
    return Outcome(reason, forced, code, [Sent("INT", 1.0)], 1.0, 0)


@pytest.mark.parametrize(
    ("outcome", "saved", "code"),
    [
        (ended(7, reason="finished"), None, 7),
        (ended(130, reason="finished"), True, 130),
        (ended(0), False, 0),
        (ended(130), None, 0),
        (ended(130), True, 0),
        (ended(130), False, 130),
        (ended(1), True, 0),
        (ended(1), False, 1),
        (ended(1), None, 1),
        (ended(140, reason="signal"), None, 140),
        (ended(143, forced=True), False, 124),
        (ended(143, forced=True), True, 0),
        (ended(143, reason="signal"), None, 143),
        (ended(137, forced=True), True, 124),
    ],
)
def test_exit_codes(outcome, saved, code):
    assert exit_code(outcome, saved=saved) == code
    assert exit_code(outcome, saved=saved, strict=True) == outcome.child_code
