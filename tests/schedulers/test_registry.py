"""What every scheduler of the registry keeps, as far as no cluster is needed."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from imgtool.config.schema import Cluster
from imgtool.schedulers import registry
from imgtool.schedulers.base import JOB_STATES, Request, SchedulerError
from imgtool.schedulers.script import Row, array_body, job_text, manifest_text
from imgtool.schedulers.words import array_spec, memory_words

every = pytest.mark.parametrize("scheduler", [registry.get(name) for name in registry.names()])


def request(**fields):
    known = {"name": "demo-gpu-t", "walltime_sec": 5400, "log_prefix": "/x y/logs/demo"}
    return Request(**{"resources": Cluster(queue="gpu"), **known, **fields})


def script_of(scheduler, asked):
    body = array_body(
        scheduler,
        name=asked.name,
        ticket="t",
        manifest=Path("/x y/demo.tsv"),
        program=["imgtool"],
        launcher=[],
        walltime_sec=asked.walltime_sec,
        duration="60s",
        requeue=asked.requeue,
    )
    return job_text(scheduler, asked, body, folder=Path("/x y"))


@every
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"indices": (1, 2, 3, 9), "max_running": 2, "warn_sec": 600, "requeue": True},
        {"after": ("12", "13"), "resources": Cluster(num_gpus=0, num_cores=1)},
        {"resources": Cluster(account="p1", gpu_type="v100", num_gpus=2, num_nodes=2)},
        {"resources": Cluster(memory="32GB", memory_per="job", select="big"), "extra": ("-B",)},
    ],
)
def test_a_request_is_a_job_file_that_bash_reads(scheduler, fields):
    asked = request(**fields)
    lines = scheduler.directives(asked)
    assert all(line.startswith("#") and "\n" not in line for line in lines)
    assert any("demo-gpu-t" in line for line in lines)
    assert any("/logs/demo" in line for line in lines)
    if asked.indices:
        assert array_spec(asked.indices) in "\n".join(lines)
    text = script_of(scheduler, asked)
    assert text.startswith("#!/bin/bash\n" + "\n".join(lines) + "\n")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@every
def test_a_log_s_path_has_the_job_and_the_index(scheduler):
    array = scheduler.log_pattern(request(indices=(1, 2)))
    paths = {scheduler.log_path(array, (41, index)) for index in (1, 2)}
    assert len(paths) == 2
    for path in paths:
        assert re.fullmatch(r"/x y/logs/demo\.41\D[12]\.out", path)
    single = scheduler.log_pattern(request())
    assert scheduler.log_path(single, (41, 0)) == "/x y/logs/demo.41.out"
    shell = scheduler.shell_log(array)
    if shell is not None:
        job = {scheduler.id_variable: "41", scheduler.index_variable: "2"}
        done = subprocess.run(
            ["bash", "-c", f"printf %s {shell}"], env=job, capture_output=True, text=True
        )
        assert done.stdout == scheduler.log_path(array, (41, 2))


@every
@pytest.mark.parametrize("wrong", [{"queue": "a;b\n"}, {"memory": "8"}, {"gpu_type": 'v"1 0'}])
def test_what_no_job_can_have_is_refused_in_words(scheduler, wrong):
    with pytest.raises(SchedulerError) as caught:
        scheduler.directives(request(resources=Cluster(**wrong)))
    assert caught.value.hint


@every
def test_a_job_knows_its_own_number(scheduler, monkeypatch):
    assert scheduler.own_key({}) is None
    assert scheduler.own_key({scheduler.id_variable: "41"}) == (41, 0)
    job = {scheduler.id_variable: "41", "PATH": "/nowhere"}
    assert registry.of_job(job).name == scheduler.name
    assert registry.own_job(job) == {"executor": scheduler.name, "job_id": 41, "index": 0}
    assert registry.own_job({}) is None
    assert scheduler.time_left({"PATH": "/nowhere"}) is None


@every
def test_without_its_programs_nothing_is_taken_for_an_answer(scheduler, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for ask in (
        lambda: scheduler.poll({5: "x"}),
        lambda: scheduler.history({(5, 1): "x"}),
        lambda: scheduler.find("x"),
        lambda: scheduler.signal([(5, 1)], "INT"),
        lambda: scheduler.remove([(5, 1)]),
    ):
        with pytest.raises(SchedulerError):
            ask()


@every
def test_its_limits_and_words(scheduler):
    assert scheduler.max_array >= 100
    assert scheduler.max_spec >= 255
    typed = scheduler.submit_command(Path("/x y/job.sh"), request())
    assert shlex.split(typed)[0] == scheduler.submit_program
    assert "32GB" in scheduler.memory_words(Cluster(num_cores=8, memory="4GB"))
    words = scheduler.per_node(["echo", "a b"])
    assert words[-2:] == ["echo", "a b"]


def test_auto_is_who_is_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SchedulerError, match="no cluster here"):
        registry.find()
    for number, name in enumerate(registry.names(), 1):
        program = tmp_path / registry.get(name).submit_program
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        if number == 1:
            assert registry.find().name == name
        else:
            with pytest.raises(SchedulerError, match="both here") as caught:
                registry.find()
            assert "scheduler:" in caught.value.hint
    with pytest.raises(SchedulerError, match="no scheduler 'pbs'"):
        registry.get("pbs")


def test_lsf_s_words_are_ours():
    from imgtool.schedulers.lsf_replies import Row as Reply

    ends = {
        "TERM_MEMLIMIT: job killed": "out_of_memory",
        "TERM_RUNLIMIT: job killed": "timed_out",
        "TERM_PREEMPT: x": "preempted",
        "TERM_OWNER: x": "cancelled",
        "TERM_ADMIN: x": "failed",
        None: "failed",
    }
    for reason, state in ends.items():
        seen = Reply(1, 0, "EXIT", 130, reason).seen()
        assert (seen.state, seen.exit_code, seen.reason) == (state, 130, reason)
    assert Reply(1, 0, "A NEW WORD").seen().state == "lost"
    assert set(ends.values()) <= set(JOB_STATES)


def test_the_sum_of_memory_is_told():
    assert memory_words(Cluster(memory="8GB", num_cores=4)) == "8GB x 4 cores = 32GB"
    assert memory_words(Cluster(memory="32GB", memory_per="job", num_cores=4)) == "32GB"
    two = memory_words(Cluster(memory="1GB", num_cores=1, num_nodes=2))
    assert two == "1GB on each of 2 hosts"


def test_a_manifest_holds_no_other_lines():
    assert manifest_text([Row(index=3, exp_dir="/a b", family="hpcm")]) == "3\t/a b\thpcm\n"
    with pytest.raises(SchedulerError, match="no manifest can hold"):
        manifest_text([Row(index=3, exp_dir="/a\tb", family="hpcm")])
