"""The texts of cluster jobs, and the site's profile."""

import re
import shlex
import subprocess
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgtool.errors import UserError
from imgtool.experiment.layout import ExperimentDir
from imgtool.schedulers.base import SchedulerError
from imgtool.schedulers.lsf import Lsf
from imgtool.schedulers.profile import Profile, Site
from imgtool.sweep.job_files import Options, scripts
from tests.fake_lsf.plans import make_plan, make_trial

PLAIN = Profile(site=Site(program=("imgtool",)))
GOLDEN = """\
#!/bin/bash
#BSUB -J "demo-gpuv100-t[1-2]%4"
#BSUB -q gpuv100
#BSUB -n 4
#BSUB -R "span[hosts=1] rusage[mem=8GB] select[gpu32gb]"
#BSUB -gpu num=1:mode=exclusive_process
#BSUB -W 6:00
#BSUB -wa INT
#BSUB -wt 10
#BSUB -o "/x y/jobs/logs/demo_gpuv100.%J.%I.out"
#BSUB -P p123
#BSUB -Q 99

# The scheduler itself writes the log only when the job has ended.
[ -z "${LSB_JOBID-}" ] || exec >> '/x y/jobs/logs/demo_gpuv100.'"$LSB_JOBID"."$LSB_JOBINDEX".out 2>&1
module load cuda/12.4 || exit 1
source env.sh
set -u  # not before: modules and conda do not live with it
cd /tmp || exit 2
manifest='/x y/jobs/demo-gpuv100-t.tsv'
exp_dir="" family="" pause=""
while IFS=$'\\t' read -r index row_dir row_family row_pause; do
    if [ "$index" = "$LSB_JOBINDEX" ]; then exp_dir=$row_dir family=$row_family pause=$row_pause; fi
done < "$manifest"
if [ -z "$exp_dir" ]; then
    echo "error: no trial $LSB_JOBINDEX in $manifest" >&2
    exit 2
fi
export IMGTOOL_JOB=demo-gpuv100-t IMGTOOL_OWNER=t
export IMGTOOL_RUN_LIMIT_SEC=$((21600 - SECONDS))
exec imgtool run-timed --exp-dir "$exp_dir" --duration "$((20940 - SECONDS))s" --requeue -- \
imgtool train "$family" --config "$exp_dir/trial.yaml" --exp-dir "$exp_dir" --quiet \
${pause:+--pause-at "$pause"}
"""


@pytest.fixture(autouse=True)
def in_tmp(monkeypatch):
    monkeypatch.chdir("/tmp")


def plan_of(tmp_path, names=("S1", "S2"), **lsf):
    return make_plan(tmp_path, [make_trial(tmp_path, name, **lsf) for name in names])


def made(plan, trials=None, **options):
    known = {"scheduler": Lsf(), "profile": PLAIN, "stamp": "t", **options}
    return scripts(plan, plan.trials if trials is None else trials, Options(**known))


def directives(script):
    """As bsub would take them as arguments."""
    lines = [line[5:] for line in script.text.splitlines() if line.startswith("#BSUB")]
    return shlex.split("\n".join(lines))


def test_a_whole_script(tmp_path):
    from pathlib import Path

    resources = {"num_cores": 4, "memory": "8 GB", "select": "gpu32gb", "account": "p123"}
    resources |= {"gpu_mode": "exclusive_process", "modules": ["cuda/12.4"], "walltime": "6h"}
    plan = plan_of(tmp_path, **resources, setup=["source env.sh"])
    plan = replace(plan, root=Path("/x y"), max_running={"gpuv100": 4})
    (script,) = made(plan, requeue=True)
    assert script.text == GOLDEN
    assert script.manifest_text == (
        f"1\t{tmp_path}/S1\tautoencoder\n2\t{tmp_path}/S2\tautoencoder\n"
    )
    assert script.memory == "8GB x 4 cores = 32GB"
    assert script.gpu_hours == 12


def test_an_array_for_each_queue_and_resources(tmp_path):
    trials = [make_trial(tmp_path, f"S{n}") for n in range(1, 4)]
    trials.insert(1, make_trial(tmp_path, "S11", queue="gpul40s"))
    trials.append(make_trial(tmp_path, "S12", memory="16GB"))
    plan = replace(make_plan(tmp_path, trials), max_running={"gpul40s": 2})
    first, second, third = made(plan)
    assert [trial.name for (trial,) in first.trials.values()] == ["S1", "S2", "S3"]
    assert directives(second)[1] == "demo-gpul40s-t-1[1]%2"
    assert list(third.trials) == [1]
    assert len({script.path for script in (first, second, third)}) == 3


def test_indices_stay_with_their_trials(tmp_path):
    plan = plan_of(tmp_path, [f"S{n}" for n in range(1, 11)])
    unfinished = [plan.trials[n - 1] for n in (3, 7, 9)]
    (script,) = made(plan, unfinished, max_running=2)
    assert directives(script)[1] == "demo-gpuv100-t[3,7,9]%2"
    rows = [line.split("\t") for line in script.manifest_text.splitlines()]
    assert [(row[0], row[1].rpartition("/")[2]) for row in rows] == [
        ("3", "S3"), ("7", "S7"), ("9", "S9"),
    ]  # fmt: skip
    assert made(plan, []) == []


def test_arrays_stay_within_lsfs_limits(tmp_path):
    trial = make_trial(tmp_path, "S")
    trials = [
        replace(trial, name=f"S{n}", directory=ExperimentDir(tmp_path / f"S{n}"))
        for n in range(1, 2402)
    ]
    plan = make_plan(tmp_path, trials)
    assert [len(script.trials) for script in made(plan)] == [1000, 1000, 401]
    odd = made(plan, trials[::2])
    for script in odd:
        assert len(directives(script)[1]) <= 255
        assert max(script.trials) <= 1000
    assert [t.name for s in odd for (t,) in s.trials.values()] == [t.name for t in trials[::2]]


@pytest.mark.parametrize(
    ("duration_sec", "walltime", "limit", "warn", "duration"),
    [
        (None, "6h", "6:00", "10", '"$((20940 - SECONDS))s"'),
        (None, "1:30", "1:30", "10", '"$((4740 - SECONDS))s"'),
        (None, "90s", "0:02", "1", '"$((30 - SECONDS))s"'),
        (None, "5m", "0:05", "2", '"$((120 - SECONDS))s"'),
        (10800.0, "6h", "3:15", "10", "10800s"),
        (10.0, "6h", "0:16", "8", "10s"),
    ],
)
def test_the_run_limit_leaves_time_to_save(tmp_path, duration_sec, walltime, limit, warn, duration):
    plan = replace(plan_of(tmp_path, walltime=walltime), duration_sec=duration_sec)
    (script,) = made(plan)
    words = directives(script)
    assert words[words.index("-W") + 1] == limit
    assert words[words.index("-wt") + 1] == warn
    assert f"--duration {duration} -- imgtool train" in script.text


def test_a_job_without_gpu_or_warning(tmp_path):
    (script,) = made(plan_of(tmp_path, num_gpus=0, walltime="1m", memory_per="job"))
    assert not {"-gpu", "-wa", "-wt"} & set(directives(script))
    assert script.gpu_hours == 0
    assert script.memory == "8GB"


def test_a_job_with_several_gpus_trains_on_as_many_ranks(tmp_path):
    (script,) = made(plan_of(tmp_path, num_gpus=4))
    words = directives(script)
    assert words[words.index("-gpu") + 1].startswith("num=4")
    assert '-- imgtool torchrun --nproc-per-node 4 train "$family"' in script.text


@pytest.mark.parametrize(("num_gpus", "each"), [(0, 1), (1, 1), (2, 1), (4, 2)])
def test_trials_that_share_a_job(tmp_path, num_gpus, each):
    exclusive = {"gpu_mode": "exclusive_process"} if num_gpus > 1 else {}
    plan = plan_of(tmp_path, ("A", "B", "C", "D", "E"), num_gpus=num_gpus, **exclusive)
    (script,) = made(plan, plan.trials[1:], trials_per_job=2, requeue=True)
    assert script.request.indices == (1, 2)
    assert [line.split("\t")[0] for line in script.manifest_text.splitlines()] == list("1122")
    assert script.num_trials == 4
    assert script.gpu_hours == 2 * 6 * num_gpus
    words = f'--index "$LSB_JOBINDEX" --gpus-per-trial {each} --duration '
    assert words in script.text
    assert " --requeue\n" in script.text


def test_a_follow_up(tmp_path):
    array, after = made(plan_of(tmp_path), then="imgtool status . | tee 'a b'")
    words = directives(after)
    assert words[words.index("-w") + 1] == f'ended("{array.name}")'
    assert "-ti" in words
    assert "#BSUB -w 'ended(\"demo-gpuv100-t\")'" in after.text
    assert after.text.endswith(
        "imgtool() { command imgtool \"$@\"; }\nimgtool status . | tee 'a b'\n"
    )
    large = {"queue": "gpuv100", "num_gpus": 1, "num_cores": 4, "walltime": "12h"}
    _, after = made(replace(plan_of(tmp_path), then_resources=large), then="imgtool status .")
    words = directives(after)
    assert [words[words.index(flag) + 1] for flag in ("-q", "-n", "-W")] == [
        "gpuv100",
        "4",
        "12:00",
    ]
    assert "-gpu" in words
    with pytest.raises(UserError, match="--then is empty"):
        made(plan_of(tmp_path), then=" ")


@pytest.mark.parametrize(
    ("lsf", "message"),
    [
        ({"memory": "8"}, "no amount of memory with its unit"),
        ({"memory": "lots"}, "no amount of memory"),
        ({"walltime": "soon"}, "cluster.walltime is 'soon'"),
        ({"walltime": "0h"}, "cluster.walltime"),
        ({"extra": ["B"]}, "no option of a scheduler"),
        ({"qos": "high"}, "LSF has none"),
        ({"queue": "a;b"}, "cluster.queue"),
        ({"select": "a] rusage[mem=1"}, "cluster.select"),
        ({"account": 'a"b'}, "cannot stand in a directive"),
        ({"trials_per_job": 2, "gpu_mode": "exclusive_process"}, "takes one trial, and 2 are to"),
        ({"trials_per_job": 2, "num_gpus": 3}, "3 GPUs cannot be divided among 2 trials"),
        ({"trials_per_job": 2, "num_nodes": 2}, "cannot share a job of 2 nodes"),
    ],
)
def test_resources_that_no_job_can_have(tmp_path, lsf, message):
    with pytest.raises(SchedulerError, match=re.escape(message)) as caught:
        made(plan_of(tmp_path, **lsf))
    assert caught.value.hint


names = st.text(
    st.characters(codec="utf-8", min_codepoint=32, exclude_characters="/\x7f", exclude_categories=["C"]),
    min_size=1,
    max_size=30,
).filter(lambda name: name not in (".", ".."))  # fmt: skip


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=names, program=names)
def test_bash_hands_every_path_on_unchanged(tmp_path, name, program):
    """The script run by bash itself, with `printf` in the place of imgtool."""
    trial = replace(make_trial_once(tmp_path), directory=ExperimentDir(tmp_path / name))
    profile = Profile(site=Site(program=("printf", "%s\\n", program)))
    folder = tmp_path / "scripts it's"
    folder.mkdir(exist_ok=True)
    (script,) = made(make_plan(tmp_path, [trial]), profile=profile, script_dir=folder, requeue=True)
    script.manifest_path.write_text(script.manifest_text, encoding="utf-8")
    done = subprocess.run(
        ["bash", "-c", script.text], env={"LSB_JOBINDEX": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True, timeout=20,
    )  # fmt: skip
    where = str(tmp_path / name)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.decode().split("\n")
    assert printed[:4] == [program, "run-timed", "--exp-dir", where]
    train = ["train", "autoencoder", "--config", f"{where}/trial.yaml", "--exp-dir", where]
    assert printed[-8:] == [*train, "--quiet", ""]


_trials = []


def make_trial_once(tmp_path):
    if not _trials:
        _trials.append(make_trial(tmp_path, "S1"))
    return _trials[0]


def test_an_index_without_a_trial_says_so(tmp_path):
    (script,) = made(plan_of(tmp_path), script_dir=tmp_path)
    script.manifest_path.write_text(script.manifest_text)
    done = subprocess.run(
        ["bash", "-c", script.text], env={"LSB_JOBINDEX": "7"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no trial 7" in done.stderr
    known = {"LSB_JOBID": "31", "LSB_JOBINDEX": "7"}  # in a job it stands in the log, at once
    for is_there in (False, True):
        done = subprocess.run(
            ["bash", "-c", script.text], env=known, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert ("no trial 7" in done.stderr) is not is_there
        (tmp_path / "logs").mkdir(exist_ok=True)
    (log,) = tmp_path.glob("logs/demo_gpuv100.*.out")
    assert log.name == "demo_gpuv100.31.7.out"
    assert "no trial 7" in log.read_text()


def test_paths_that_no_manifest_holds(tmp_path):
    trial = replace(make_trial_once(tmp_path), directory=ExperimentDir("/a\tb"))
    with pytest.raises(SchedulerError, match="no manifest can hold"):
        made(make_plan(tmp_path, [trial]))
    with pytest.raises(SchedulerError, match="cannot stand in a directive"):
        made(make_plan(tmp_path / "100%", [make_trial_once(tmp_path)]))


def test_directives_of_the_site(tmp_path):
    site = Site(program=("imgtool",), margin="30m")
    extra = ("-B", '-app "m l"')
    plan = replace(plan_of(tmp_path), duration_sec=3600.0)
    (script,) = made(plan, profile=Profile(site=site, cluster={"extra": extra}))
    assert '\n#BSUB -B\n#BSUB -app "m l"\n' in script.text
    assert "#BSUB -W 1:30" in script.text
    assert directives(script)[-3:] == ["-B", "-app", "m l"]
