"""Replies of LSF, good and bad, read as they come."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.schedulers.base import SchedulerError, Seen, Unavailable
from imgtool.schedulers.lsf import Lsf
from imgtool.schedulers.lsf_replies import Row, parse_history, parse_rows, parse_time_left, spec

FILE = Path("job.sh")


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts shell texts on PATH in the place of LSF's programs; `calls` counts them."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def put(name, text):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho call >> '{tmp_path}/{name}.calls'\n{text}\n")
        path.chmod(0o755)

    put.calls = lambda name: len((tmp_path / f"{name}.calls").read_text().splitlines())
    return put


def client(**fields):
    pauses = []
    return Lsf(**{"timeout_sec": 5, "sleep": pauses.append, **fields}), pauses


@pytest.mark.parametrize(
    "reply",
    [
        "echo 'Job <12> is submitted to queue <gpuv100>.'",
        "echo 'Job <12> is submitted to default queue <normal>.' >&2",
        "echo 'Job is submitted to <x> project.'; echo 'Job <12> is submitted to queue <q>.'",
        "echo 'overloaded' >&2; echo 'Job <12> is submitted to queue <q>.'; exit 1",
        "cat > /dev/null; printf 'Job <12> is submitted to the queue <q>.'",
    ],
)
def test_every_form_of_success(program, reply):
    program("bsub", reply)
    asked, pauses = client()
    assert asked.submit("#!/bin/sh\n", FILE, name="x") == 12
    assert pauses == []


@pytest.mark.parametrize(
    "text",
    [
        "nope: No such queue. Job not submitted.",
        "RUNLIMIT: Cannot exceed queue's hard limit(s). Job not submitted.",
        "Bad job array index list. Job not submitted.",
        "Error in rusage section. Job not submitted.",
        "Too many processors requested. Job not submitted.",
        "duplicate section. Job not submitted.",
        "-zz: Illegal option. Job not submitted.",
        "User cannot use the queue. Job not submitted.",
    ],
)
def test_a_refusal_is_told_at_once(program, text):
    program("bsub", f'echo "{text}" >&2; exit 255')
    asked, pauses = client()
    with pytest.raises(SchedulerError) as caught:
        asked.submit("x", FILE, name="x")
    assert text.partition(".")[0] in str(caught.value)
    assert caught.value.hint
    assert not isinstance(caught.value, Unavailable)
    assert (pauses, program.calls("bsub")) == ([], 1)


@pytest.mark.parametrize(
    "reply",
    [
        "exit 0",
        "exit 255",
        "echo 'Connection reset by peer' >&2; exit 255",
        "echo 'batch system daemon not responding ... still trying' >&2; exit 255",
        "echo 'Request from non-LSF host rejected. Job not submitted.' >&2; exit 255",
        "exec sleep 60",
    ],
)
def test_silence_is_met_with_patience(program, reply):
    program("bsub", reply)
    program("bjobs", "echo 'Job <x> is not found' >&2; exit 255")
    asked, pauses = client(attempts=3, timeout_sec=0.5)
    with pytest.raises(Unavailable, match="after 3 attempts") as caught:
        asked.submit("x", FILE, name="x")
    assert "not submitted twice" in caught.value.hint
    assert program.calls("bsub") == 3
    assert pauses == [2, 4, 8]


def test_nothing_is_submitted_again_before_lsf_says_that_it_has_not_got_it(program):
    program("bsub", "exit 255")
    program("bjobs", "echo 'LSF is down. Please wait ...' >&2; exit 255")
    asked, _ = client(attempts=3)
    with pytest.raises(Unavailable, match="nobody says whether bsub took job x"):
        asked.submit("x", FILE, name="x")
    assert (program.calls("bsub"), program.calls("bjobs")) == (1, 3)


def test_a_name_that_is_known_is_taken_for_the_answer(program):
    program("bsub", "exit 0")
    program("bjobs", "echo '17^1^PEND^-^-'; echo '17^2^PEND^-^-'")
    assert client()[0].submit("x", FILE, name="x") == 17
    assert program.calls("bsub") == 1


def test_rows_count_whatever_the_exit_code(program):
    program("bjobs", "echo '5^0^RUN^-^-'; echo 'Job <6> is not found' >&2; exit 255")
    assert client()[0].poll({5: "x", 6: "y"}) == {(5, 0): Seen(state="running")}


def test_a_poll_that_fails_says_nothing_about_jobs(program):
    program("bjobs", "exit 0")
    with pytest.raises(Unavailable, match="it says nothing"):
        client()[0].poll({5: "x"})
    program("bjobs", "echo 'Job <5> is not found' >&2; exit 255")
    assert client()[0].poll({5: "x"}) == {}


def test_a_program_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SchedulerError, match="bjobs cannot be run") as caught:
        client()[0].poll({5: "x"})
    assert "--executor local" in caught.value.hint


def test_rows_of_bjobs():
    text = (
        "esub: hello\n"
        "12^3^EXIT^140^TERM_RUNLIMIT: job killed after reaching LSF run time limit\n"
        "12^4^DONE^-^-\n13^0^UNKWN^^\n14^-^PEND\n\nJob <9> is not found\n"
    )
    assert parse_rows(text) == [
        Row(12, 3, "EXIT", 140, "TERM_RUNLIMIT: job killed after reaching LSF run time limit"),
        Row(12, 4, "DONE"),
        Row(13, 0, "UNKWN"),
        Row(14, 0, "PEND"),
    ]


@given(st.text(st.characters(codec="utf-8")))
def test_no_text_of_bjobs_or_bhist_does_harm(text):
    parse_rows(text)
    parse_history(text)
    parse_history(f"Job <1[2]>, x\n{text}")


def test_history_of_bhist():
    text = """
Job <101[1]>, Job Name <x[1-4]>, User <me>, Project <default>, Command <#!/bin/b
                     ash;#BSUB -J x>
Thu Jan  1 00:00:00: Submitted from host <login1>, to Queue <gpuv100>;
Thu Jan  1 00:00:01: Done successfully. The CPU time used is 1.0 seconds;
------------------------------------------------------------------------------

Job <101[2]>, Job Name <x[1-4]>
Thu Jan  1 00:00:01: Exited with exit co
                     de 137. The CPU time used is 1.0 seconds;
Thu Jan  1 00:00:01: Completed <exit>; TERM_MEMLIMIT: job killed after reaching LSF memory usage limit;
------------------------------------------------------------------------------
Job <101[3]>, Job Name <x[1-4]>
Thu Jan  1 00:00:01: Exited with exit code 99;
Thu Jan  1 00:00:01: Pending: Job has been requeued;
------------------------------------------------------------------------------
Job <102>, Job Name <y>
Thu Jan  1 00:00:01: Exited by signal 9. The CPU time used is 1.0 seconds;
"""
    assert parse_history(text) == {
        (101, 1): Row(101, 1, "DONE", 0),
        (101, 2): Row(
            101, 2, "EXIT", 137, "TERM_MEMLIMIT: job killed after reaching LSF memory usage limit"
        ),
        (101, 3): None,
        (102, 0): Row(102, 0, "EXIT"),
    }


def test_names_of_jobs():
    assert (spec(5, 0), spec(5, 3)) == ("5", "5[3]")


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        ("23:12 L^1440.0^2880 second(s)", 1392 * 60),
        ("23:12 L^-^2880 second(s)", 1392 * 60),
        ("1:00 E^120.0^60 second(s)", 119 * 60),
        ("0:10 X^90.0/hostA^60 second(s)", 89 * 60),
        ("-^60.0 min^0 second(s)", 3600),
        ("01:00:00 L^02:00:00^01:00:30", 3570),
        ("0:00 L^60.0^3700 second(s)", 0),
        ("100:05 L^-^-", 100 * 3600 + 300),
        ("-^-^12 second(s)", None),
        ("1:00 L^60.0", None),
        ("1:00 L^60.0^0 second(s)\n2:00 L^60.0^0 second(s)", None),
        ("some chatter\n1:00 L^60.0^0 second(s)", 3600),
        ("soon L^lots^none", None),
    ],
)
def test_what_bjobs_may_say(line, seconds):
    assert parse_time_left(line) == seconds


@given(st.text(alphabet="0123456789:^-. LEX/minsecond()\n", max_size=60))
def test_any_answer_is_a_time_or_none(text):
    found = parse_time_left(text)
    assert found is None or 0 <= found < float("inf")
