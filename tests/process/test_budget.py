import os
import stat

import pytest

from imgtool.errors import UsageError
from imgtool.process import budget
from imgtool.schedulers import lsf

HOUR = 3600.0


def choose(duration, *, margin=600.0, **environment):
    return budget.choose(duration, margin_sec=margin, environment=environment)


@pytest.fixture
def bjobs(tmp_path, monkeypatch):
    """bjobs('text', seconds=0) puts a bjobs on PATH that prints this and notes its arguments."""

    def put(text, *, seconds=0, code=0):
        program = tmp_path / "bin" / "bjobs"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path}/arguments\n"
            f"[ {seconds} = 0 ] || exec sleep {seconds}\ncat <<'END'\n{text}\nEND\nexit {code}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return {"LSB_JOBID": "123", "PATH": f"{program.parent}:{os.environ['PATH']}"}

    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return put


def test_without_a_run_limit_the_duration_counts():
    assert choose(3 * HOUR) == budget.Budget(3 * HOUR, "duration", [])
    with pytest.raises(UsageError, match="no --duration"):
        choose(None)
    with pytest.raises(UsageError, match="--duration is 0"):
        choose(0.0)


def test_the_variable_caps():
    assert choose(HOUR, IMGTOOL_RUN_LIMIT_SEC="7200").source == "duration"
    capped = choose(3 * HOUR, IMGTOOL_RUN_LIMIT_SEC="7200")
    assert (capped.seconds, capped.source) == (6600.0, "run limit")
    assert capped.notes == ["capped by the job's run limit: 1h50m"]
    assert choose(None, IMGTOOL_RUN_LIMIT_SEC="7200").seconds == 6600.0


def test_a_limit_shorter_than_stopping_may_take_leaves_half():
    short = choose(HOUR, IMGTOOL_RUN_LIMIT_SEC="300")
    assert (short.seconds, short.source) == (150.0, "run limit")
    assert "half of it is used" in short.notes[0]


@pytest.mark.parametrize("value", ["soon", "-5", "0", "nan", "inf"])
def test_a_senseless_variable(value):
    with pytest.raises(UsageError, match="IMGTOOL_RUN_LIMIT_SEC"):
        choose(HOUR, IMGTOOL_RUN_LIMIT_SEC=value)


def test_bjobs_is_asked_once_about_this_job(bjobs, tmp_path):
    environment = bjobs("1:59 L^120.0^60 second(s)")
    found = budget.choose(None, margin_sec=600.0, environment=environment)
    assert (found.seconds, found.source) == (119 * 60 - 600.0, "run limit")
    words = (tmp_path / "arguments").read_text().splitlines()
    assert words[0] == "-noheader"
    assert words[-1] == "123"
    budget.choose(None, margin_sec=600.0, environment={**environment, "LSB_JOBINDEX": "7"})
    assert (tmp_path / "arguments").read_text().splitlines()[-1] == "123[7]"
    budget.choose(None, margin_sec=600.0, environment={**environment, "LSB_JOBINDEX": "0"})
    assert (tmp_path / "arguments").read_text().splitlines()[-1] == "123"


def test_the_variable_spares_the_question(bjobs, tmp_path):
    environment = bjobs("0:01 L^1.0^1 second(s)")
    found = budget.choose(
        HOUR, margin_sec=600.0, environment={**environment, "IMGTOOL_RUN_LIMIT_SEC": "99999"}
    )
    assert found.source == "duration"
    assert not (tmp_path / "arguments").exists()


@pytest.mark.parametrize("text", ["", "-^-^-", "Job <123> is not found", "0:30 E^-^20 second(s)"])
def test_an_unknown_limit_caps_nothing_and_is_said(bjobs, text):
    found = budget.choose(HOUR, margin_sec=600.0, environment=bjobs(text))
    assert (found.seconds, found.source) == (HOUR, "duration")
    assert "unknown" in found.notes[0]


def test_a_bjobs_that_hangs_or_is_missing(bjobs, monkeypatch):
    monkeypatch.setattr(lsf, "ASK_SEC", 0.2)
    environment = bjobs("1:00 L^60.0^0 second(s)", seconds=30)
    assert budget.choose(HOUR, margin_sec=1.0, environment=environment).source == "duration"
    monkeypatch.setenv("PATH", "/nowhere")
    found = budget.choose(HOUR, margin_sec=1.0, environment={"LSB_JOBID": "1", "PATH": "/nowhere"})
    assert found.source == "duration"
