"""The fake itself: strict where LSF is, and on time."""

import subprocess
import sys
import time

import pytest

from tests.fake_lsf.cluster import Cluster

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Cluster(tmp_path / "lsf", monkeypatch, minute_sec=0.3)
    yield found
    found.close()


def bsub(directives, body="true", *words):
    lines = [f"#BSUB {line}" for line in directives]
    text = "\n".join(["#!/bin/bash", *lines, body, ""])
    return subprocess.run(["bsub", *words], input=text, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("directive", "words"),
    [
        ("-zz 1", "Illegal option"),
        ("-q nope", "No such queue"),
        ("-W 24:01", "RUNLIMIT"),
        ("-W soon", "Bad argument"),
        ("-J 'a b[1-2]'", "Bad job array index"),
        ("-J 'a[0-2]'", "Bad job array index"),
        ("-J 'a[1-1001]'", "Bad job array index"),
        ("-R 'rusage[mem=8]'", "rusage section"),
        ("-R 'span[hosts=1] span[hosts=1]'", "duplicate section"),
        ("-R a -R b", "duplicate section"),
        ("-R 'span[hosts=1'", "syntax"),
        ("-n 65", "Too many processors"),
        ("-wa INT", "together"),
        ("-w 'ended(7)'", "No matching job"),
        ("-q", "requires an argument"),
        ("-J 'open", "quotation"),
        ("-gpu 1", "GPU"),
    ],
)
def test_what_lsf_refuses_is_refused(cluster, directive, words):
    done = bsub([directive])
    assert done.returncode == 255
    assert words in done.stderr
    assert done.stdout == ""
    assert cluster.jobs == {}


def test_directives_of_a_file_that_is_named_are_not_read(cluster, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n#BSUB -q nope\ntrue\n")
    script.chmod(0o755)
    done = subprocess.run(["bsub", "-J", "x", str(script)], capture_output=True, text=True)
    assert "default queue <normal>" in done.stdout


def test_no_more_elements_run_than_the_limit_allows(cluster):
    assert bsub(['-J "x[1-4]%2"'], "sleep 0.3").returncode == 0
    most = 0
    while set(cluster.stats(101).values()) != {"DONE"}:
        most = max(most, list(cluster.stats(101).values()).count("RUN"))
        time.sleep(0.02)
    assert most == 2


def test_signals_come_on_the_scaled_clock(cluster, tmp_path):
    body = (
        f"trap 'echo INT >> {tmp_path}/got' INT\ntrap 'echo USR2 >> {tmp_path}/got; exit 7' USR2\n"
    )
    begun = time.monotonic()
    bsub(["-W 4 -wa INT -wt 2"], body + "while :; do sleep 0.02; done")
    cluster.wait(lambda: cluster.stats(101) == {0: "EXIT"})
    assert time.monotonic() - begun >= 1.2
    assert (tmp_path / "got").read_text() == "INT\nUSR2\n"
    assert cluster.jobs["101"]["elements"]["0"]["exit_code"] == 7


def test_without_a_handler_the_run_limit_kills(cluster):
    bsub(["-W 1"], "exec sleep 60")
    cluster.wait(lambda: cluster.stats(101) == {0: "EXIT"})
    assert cluster.jobs["101"]["elements"]["0"]["exit_code"] == 140


def test_bkill_of_a_parallel_job_gives_it_no_chance(cluster, tmp_path):
    bsub(["-n 4"], f"trap 'touch {tmp_path}/asked; exit 0' INT TERM\nwhile :; do sleep 0.02; done")
    cluster.wait(lambda: cluster.stats(101) == {0: "RUN"})
    subprocess.run(["bkill", "101"], check=True, capture_output=True)
    cluster.wait(lambda: cluster.stats(101) == {0: "EXIT"})
    assert not (tmp_path / "asked").exists()
    assert subprocess.run(["bkill", "0"], capture_output=True).returncode == 255


def test_orphans_of_a_failed_parent_end_with_ti_alone(cluster):
    bsub([], "exit 3")
    bsub(["-w 'done(101)'"])
    bsub(["-w 'done(101)' -ti"])
    bsub(["-w 'ended(101)'"])
    cluster.wait(lambda: cluster.stats(104) == {0: "DONE"})
    cluster.wait(lambda: cluster.stats(103) == {0: "EXIT"})
    assert cluster.stats(102) == {0: "PEND"}
