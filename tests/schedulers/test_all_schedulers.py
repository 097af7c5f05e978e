"""What every scheduler of the registry must do, whether it is here or not."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from imgtool.config.schema import Cluster
from imgtool.schedulers import registry
from imgtool.schedulers.base import Request, Scheduler

JOB = Request(name="demo", resources=Cluster(), walltime_sec=3600, log_prefix="/logs/demo")
ARRAY = replace(JOB, indices=(1, 2, 5), max_running=2, after=("17",))


@pytest.fixture(params=registry.names())
def scheduler(request: pytest.FixtureRequest) -> Scheduler:
    return registry.get(request.param, timeout_sec=1.0)


def test_it_answers_every_question_with_the_protocols_words(scheduler: Scheduler) -> None:
    for name, asked in inspect.getmembers(Scheduler, inspect.isfunction):
        if not name.startswith("_"):
            ours = inspect.signature(getattr(type(scheduler), name)).parameters
            assert list(ours) == list(inspect.signature(asked).parameters), name
    for attribute in ("submit_program", "id_variable", "index_variable"):
        assert getattr(scheduler, attribute)
    assert scheduler.max_array >= 1


def test_its_name_finds_it_and_its_variable_its_job(scheduler: Scheduler) -> None:
    assert registry.find(scheduler.name).name == scheduler.name
    inside = {scheduler.id_variable: "12", scheduler.index_variable: "3"}
    job = registry.own_job(inside)
    assert job == {"executor": scheduler.name, "job_id": 12, "index": 3}
    assert registry.own_job({}) is None


@pytest.mark.parametrize("request_", [JOB, ARRAY], ids=["job", "array"])
def test_a_job_file_begins_with_comments(scheduler: Scheduler, request_: Request) -> None:
    lines = scheduler.directives(request_)
    assert lines
    assert all(line.startswith("#") and "\n" not in line for line in lines)
    found = {"17"} & set(
        " ".join(lines).replace(":", " ").replace("(", " ").replace(")", " ").split()
    )
    assert bool(found) == bool(request_.after)


def test_a_log_has_a_path_of_its_own_for_each_element(scheduler: Scheduler) -> None:
    pattern = scheduler.log_pattern(ARRAY)
    paths = {scheduler.log_path(pattern, (12, index)) for index in ARRAY.indices}
    assert len(paths) == len(ARRAY.indices)
    assert all(path.startswith("/logs/demo") and "%" not in path for path in paths)


def test_outside_a_job_nothing_is_known(scheduler: Scheduler) -> None:
    assert scheduler.time_left({}) is None
    assert scheduler.cores({}, "host") is None
