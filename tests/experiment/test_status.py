import errno
import json
import os
import threading
import time
from datetime import UTC, datetime

import pytest

from imgtool.errors import ExperimentError
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import StatusFile, heartbeat_age_sec, read_status
from tests.waiting import wait_until


def test_write_and_read(experiment):
    status = StatusFile(experiment)
    status.write("running", iteration=5, loss=float("nan"), exact_resume=True)
    record = read_status(experiment)
    assert record["state"] == "running"
    assert record["reason"] is None
    assert (record["iteration"], record["loss"], record["exact_resume"]) == (5, None, True)
    assert record["pid"] == os.getpid()
    assert 0 <= heartbeat_age_sec(record) < 60
    assert datetime.fromisoformat(record["started"]) <= datetime.now(UTC)


def test_fields_last_and_reasons_do_not(experiment):
    status = StatusFile(experiment)
    status.write("running", "warming up", iteration=5)
    status.remember(iteration=6)
    assert read_status(experiment)["iteration"] == 5
    status.write("stopped")
    record = read_status(experiment)
    assert (record["state"], record["reason"], record["iteration"]) == ("stopped", None, 6)


def test_numbers_of_other_libraries_become_plain(experiment):
    import numpy as np

    StatusFile(experiment).write("running", loss=np.float32(0.5), iteration=np.int64(3))
    record = read_status(experiment)
    assert (record["loss"], record["iteration"]) == (0.5, 3)


def test_heartbeat_carries_the_last_fields(experiment):
    status = StatusFile(experiment)
    status.write("running", iteration=1)
    status.start_heartbeat(0.01)
    status.start_heartbeat(0.01)
    status.remember(iteration=2)
    wait_until(lambda: read_status(experiment)["iteration"] == 2)
    status.stop_heartbeat()
    assert not [thread for thread in threading.enumerate() if "heartbeat" in thread.name]
    status.stop_heartbeat()
    experiment.status_path.unlink()
    time.sleep(0.05)
    assert not experiment.status_path.exists()


def test_news_are_written_long_before_the_next_heartbeat(experiment):
    status = StatusFile(experiment)
    status.write("running", iteration=1)
    status.start_heartbeat(interval=600, news_interval=0.05)
    before = experiment.status_path.stat().st_mtime_ns
    time.sleep(0.3)
    assert experiment.status_path.stat().st_mtime_ns == before  # no news, no writing
    status.remember(iteration=2)
    wait_until(lambda: read_status(experiment)["iteration"] == 2)
    status.stop_heartbeat()


def test_a_slow_disk_holds_nobody_who_has_news(experiment, monkeypatch):
    from imgtool.experiment import status as module

    is_writing, may_go_on = threading.Event(), threading.Event()

    def slow(path, text):
        is_writing.set()
        may_go_on.wait(20)

    status = StatusFile(experiment)
    monkeypatch.setattr(module, "write_text", slow)
    status.start_heartbeat(0.01)
    assert is_writing.wait(20)
    told = threading.Thread(target=status.remember, kwargs={"iteration": 2}, daemon=True)
    told.start()
    told.join(5)
    assert not told.is_alive()
    may_go_on.set()
    status.stop_heartbeat()


def test_a_full_disk_does_not_end_the_heartbeat(experiment, monkeypatch):
    from imgtool.experiment import status as module

    real, beats = module.write_text, []

    def full(path, text):
        beats.append(text)
        if len(beats) < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, text)

    status = StatusFile(experiment)
    status.write("running", iteration=1)
    monkeypatch.setattr(module, "write_text", full)
    status.remember(iteration=9)
    status.start_heartbeat(0.01)
    wait_until(lambda: read_status(experiment)["iteration"] == 9)
    status.stop_heartbeat()
    beats.clear()
    with pytest.raises(ExperimentError, match="No space left on device"):
        status.write("stopped")


def test_unwritable(tmp_path):
    status = StatusFile(ExperimentDir(tmp_path / "nowhere"))
    with pytest.raises(ExperimentError, match=r"cannot write .*status.json"):
        status.write("running")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\xff"])
def test_damage_is_no_status(experiment, text):
    assert read_status(experiment) is None
    experiment.status_path.write_text(text)
    assert read_status(experiment) is None


@pytest.mark.parametrize("beat", [None, "yesterday", 5, "2026-01-01T00:00:00"])
def test_unreadable_heartbeats(beat):
    assert heartbeat_age_sec({"heartbeat": beat}) is None
    assert heartbeat_age_sec({}) is None


def test_the_file_is_whole_at_any_moment(experiment):
    status = StatusFile(experiment)
    status.write("running")
    status.start_heartbeat(0.001)
    for _ in range(300):
        assert json.loads(experiment.status_path.read_text())["state"] == "running"
    status.stop_heartbeat()
    assert not list(experiment.path.glob(".*tmp*"))
