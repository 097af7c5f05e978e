"""Slurm's words: directives as a text, replies as it prints them. tests/slurm asks a real one."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.config.schema import Cluster
from imgtool.schedulers import slurm_replies as replies
from imgtool.schedulers.base import JOB_STATES, Request, SchedulerError, Unavailable
from imgtool.schedulers.calls import Reply
from imgtool.schedulers.slurm import Slurm, partition_notes
from imgtool.schedulers.slurm_words import clock, own_key, submission_environ

ids = st.integers(1, 2**31)
indices = st.integers(0, 1000)
names = st.text("abcXYZ_.-0123456789|", min_size=1, max_size=20)
states = st.sampled_from(sorted(replies._STATES))
words = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="|"))
anything = st.text() | st.binary().map(lambda data: data.decode("utf-8", "replace"))


def request(**given):
    keys = {key: given.pop(key) for key in list(given) if key in Cluster.__dataclass_fields__}
    resources = Cluster(**keys)
    base = {"name": "phase1-0101-aa", "walltime_sec": 6 * 3600, "log_prefix": "/work/logs/phase1"}
    return Request(resources=resources, **{**base, **given})


def test_the_head_of_an_array():
    asked = request(
        queue="gpuv100",
        account="p1",
        num_gpus=2,
        gpu_type="v100",
        memory="8GB",
        memory_per="job",
        select="gpu32gb&ib",
        indices=(1, 2, 3, 7),
        max_running=2,
        warn_sec=600,
        requeue=True,
        after=("12", "15"),
    )
    assert "\n".join(Slurm().directives(asked)) == (
        "#SBATCH --job-name=phase1-0101-aa\n"
        "#SBATCH --array=1-3,7%2\n"
        "#SBATCH --partition=gpuv100\n"
        "#SBATCH --account=p1\n"
        "#SBATCH --nodes=1\n"
        "#SBATCH --ntasks-per-node=1\n"
        "#SBATCH --cpus-per-task=8\n"
        "#SBATCH --mem=8G\n"
        "#SBATCH --gres=gpu:v100:2\n"
        "#SBATCH --constraint=gpu32gb&ib\n"
        "#SBATCH --time=06:00:00\n"
        "#SBATCH --signal=B:INT@540\n"
        "#SBATCH --output=/work/logs/phase1.%A_%a.out\n"
        "#SBATCH --open-mode=append\n"
        "#SBATCH --requeue\n"
        "#SBATCH --dependency=afterany:12:15\n"
        "#SBATCH --kill-on-invalid-dep=yes"
    )


def test_the_head_of_a_single_job_that_waits_for_jobs_without_an_id_yet():
    lines = Slurm().directives(request(num_gpus=0, num_cores=1, after=('"phase1-a"',)))
    assert "#SBATCH --mem-per-cpu=4G" in lines
    assert "#SBATCH --output=/work/logs/phase1.%j.out" in lines
    assert not any("gres" in line or line.startswith("#SBATCH --dependency") for line in lines)
    assert lines[-1] == "#   phase1-a"


@pytest.mark.parametrize(
    "given",
    [
        {"queue": "gpu v100"},
        {"account": "a;b"},
        {"qos": ""},
        {"gpu_type": "v100:2"},
        {"gpu_mode": "exclusive_process"},
        {"memory": "8"},
        {"select": "a\nb"},
        {"log_prefix": "/work/a\\b/log"},
        {"log_prefix": "/work/a\nb/log"},
    ],
)
def test_what_no_job_can_have_is_refused(given):
    with pytest.raises(SchedulerError):
        Slurm().directives(request(**given))


@given(
    st.text(
        st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\\\u2028\u2029\x85")
    )
)
def test_a_log_path_survives_quotes_and_patterns(folder):
    """sbatch reads a value in double quotes as a shell does; %% is a per cent sign."""
    asked = request(log_prefix=f"/work/{folder}/log", indices=(4,))
    try:
        lines = Slurm().directives(asked)
    except SchedulerError:
        return
    (line,) = [line for line in lines if line.startswith("#SBATCH --output=")]
    value = line.removeprefix("#SBATCH --output=")
    pattern = shlex.split(value)[0] if value.startswith('"') else value
    assert Slurm().log_path(pattern, (12, 4)) == f"/work/{folder}/log.12_4.out"


@given(st.integers(1, 10**7))
def test_a_clock_is_read_back(seconds):
    assert replies.parse_time(clock(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("4:57", 297), ("1-00:00:00", 86400), ("02:00:00", 7200), ("INFINITE", None), ("", None)],
)
def test_times_of_squeue(text, seconds):
    assert replies.parse_time(text) == seconds


@given(ids, indices, states, st.integers(0, 255), words, names)
def test_a_line_of_squeue_is_read(job_id, index, state, code, reason, name):
    shown = str(index) if index else "N/A"
    line = f"{job_id}|{shown}|{state}|{code << 8}|{reason}|{name}|"
    if len(line.splitlines()) > 1:
        return
    (row,) = replies.parse_queue(line)
    assert (row.key, row.name) == ((job_id, index), name)
    assert row.seen.state in JOB_STATES
    if row.seen.state == "failed":
        assert row.seen.exit_code == (None if code in (0, 181) else code)


@given(ids, st.lists(st.integers(1, 900), min_size=1, unique=True), names)
def test_elements_that_still_wait_are_one_line_of_many(job_id, found, name):
    text = ",".join(map(str, found))
    queue = replies.parse_queue(f"{job_id}|{text}%3|PENDING|0|Priority|{name}|")
    assert [row.key for row in queue] == [(job_id, index) for index in found]
    first = min(found)
    records = replies.parse_records(f"{job_id}_[{first}-{first + 2}%2]|PENDING|0:0|{name}")
    assert [row.key[1] for row in records] == [first, first + 1, first + 2]
    assert {row.seen.state for row in records} == {"waiting"}


@given(anything)
def test_no_reply_breaks_a_parser(text):
    replies.parse_queue(text)
    replies.parse_records(text)
    replies.parse_partitions(text)
    replies.parse_time(text)
    replies.parse_submitted(text)


@pytest.mark.parametrize(
    ("line", "key", "state", "code"),
    [
        ("12|COMPLETED|0:0|a|b", (12, 0), "done", 0),
        ("12_4|FAILED|3:0|a|b", (12, 4), "failed", 3),
        ("12_4|FAILED|0:9|a|b", (12, 4), "failed", 137),
        ("12|CANCELLED by 1000|0:15|a|b", (12, 0), "cancelled", 143),
        ("12|OUT_OF_MEMORY|0:125|a|b", (12, 0), "out_of_memory", 253),
        ("12|TIMEOUT|0:0|a|b", (12, 0), "timed_out", None),
        ("12|NODE_FAIL|1:0|a|b", (12, 0), "failed", 1),
        ("12|PREEMPTED|0:0|a|b", (12, 0), "preempted", None),
        ("12|SOMETHING_NEW|0:0|a|b", (12, 0), "running", None),
    ],
)
def test_lines_of_sacct(line, key, state, code):
    (row,) = replies.parse_records(line)
    assert (row.key, row.name) == (key, "a|b")
    assert (row.seen.state, row.seen.exit_code) == (state, code)


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("Resources", "waiting"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "waiting"),
        ("QOSMaxJobsPerUserLimit", "waiting"),
        ("AssocGrpCPURunMinutesLimit", "waiting"),
        ("JobHeldUser", "held"),
        ("JobHeldAdmin", "held"),
        ("launch_failed_requeued_held", "held"),
        ("PartitionTimeLimit", "never"),
        ("DependencyNeverSatisfied", "never"),
        ("QOSMaxWallDurationPerJobLimit", "never"),
        ("AssocMaxCpuPerJobLimit", "never"),
        ("InvalidAccount", "never"),
    ],
)
def test_reasons_of_waiting_jobs(reason, state):
    seen = replies.seen_of("PENDING", reason, exit_code=0)
    assert (seen.state, seen.reason) == (state, reason)


@given(ids, st.sampled_from(["", ";cluster"]), st.sampled_from(["", "note: hello\n", "7 rules\n"]))
def test_the_reply_of_sbatch(job_id, cluster, before):
    assert replies.parse_submitted(f"{before}{job_id}{cluster}\n") == job_id


class Scripted(Slurm):
    """Slurm whose programs answer what a test has put down; what they were asked is kept."""

    def call(self, words, *, text=None, environ=None, timeout_sec=None):
        asked.append(list(words))
        return answers.pop(0)


asked: list = []
answers: list = []


def scripted(*given):
    asked.clear()
    answers[:] = given
    return Scripted(sleep=lambda seconds: None)


TIMED_OUT = Reply(
    1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
)
SILENT = Reply(
    1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
)
NO_ACCOUNTS = Reply(1, "", "Slurm accounting storage is disabled\n")
NONE = Reply(0, "", "")
FOUND = Reply(0, "31|N/A|PENDING|0|None|mine|\n", "")


def submit(slurm, tmp_path):
    return slurm.submit("#!/bin/bash\n", tmp_path / "job.sh", name="mine")


def programs():
    return [words[0] for words in asked]


def test_an_accepted_job_whose_reply_was_lost_is_found(tmp_path):
    assert submit(scripted(TIMED_OUT, SILENT, NONE, NO_ACCOUNTS, FOUND), tmp_path) == 31
    assert programs() == ["sbatch", "squeue", "squeue", "sacct", "squeue"]


def test_it_is_submitted_again_only_when_squeue_has_said_no_twice(tmp_path):
    no = (NONE, NO_ACCOUNTS)
    assert submit(scripted(TIMED_OUT, *no, *no, Reply(0, "32;west\n", "")), tmp_path) == 32
    assert programs() == ["sbatch", *["squeue", "sacct"] * 2, "sbatch"]


def test_nothing_is_submitted_again_while_nobody_answers(tmp_path):
    with pytest.raises(Unavailable, match="nobody says"):
        submit(scripted(TIMED_OUT, *[SILENT] * 5), tmp_path)
    assert programs().count("sbatch") == 1


def test_a_job_of_ours_under_another_ones_id_is_not_there():
    theirs = Reply(0, "31|N/A|RUNNING|0|None|theirs|\n31|N/A|FAILED|256|None|mine|\n", "")
    assert scripted(theirs).poll({31: "mine"})[31, 0].state == "failed"


def test_history_tells_what_has_ended_from_what_has_not():
    shown = "31_1|COMPLETED|0:0|mine\n31_[2-3]|PENDING|0:0|mine\n40|FAILED|1:0|theirs\n"
    wanted = {(31, 1): "mine", (31, 2): "mine", (31, 4): "mine", (40, 0): "mine", (50, 0): "mine"}
    found = scripted(Reply(0, shown, "")).history(wanted)
    assert {key: seen and seen.state for key, seen in found.items()} == {
        (31, 1): "done",
        (31, 2): None,
        (31, 4): "cancelled",  # before its turn: Slurm keeps no record of such an element
    }
    assert scripted(NO_ACCOUNTS).history(wanted) == {}
    with pytest.raises(Unavailable):
        scripted(Reply(1, "", "sacct: error: Problem talking to the database")).history(wanted)


def test_what_went_wrong_with_a_signal_is_told_but_not_that_a_job_is_gone():
    gone = "scancel: error: Kill job error on job id 7: Invalid job id specified\n"
    other = "scancel: error: Kill job error on job id 8: Access/permission denied\n"
    assert scripted(Reply(1, "", gone + other)).remove([(7, 0), (8, 2), (0, 0)]) == [other.strip()]
    assert asked == [["scancel", "7", "8_2"]]
    with pytest.raises(Unavailable):
        scripted(SILENT).signal([(7, 0)], "INT")


PARTITIONS = replies.parse_partitions(
    "PartitionName=short Default=YES MaxTime=02:00:00 State=UP Nodes=a\n"
    "PartitionName=long Default=NO MaxTime=UNLIMITED State=UP Nodes=a\n"
    "PartitionName=old Default=NO MaxTime=UNLIMITED State=INACTIVE Nodes=a\n"
)


@pytest.mark.parametrize(
    ("queue", "told"),
    [
        (None, "2h"),
        ("short", "2h"),
        ("long", ""),
        ("short,long", ""),
        ("old", "inactive"),
        ("new", ""),
    ],
)
def test_limits_below_what_is_asked_for_are_noted(queue, told):
    notes = partition_notes(PARTITIONS, request(queue=queue))
    assert bool(notes) == bool(told)
    assert told in " ".join(notes)


def test_a_job_names_itself_and_hands_nothing_of_itself_to_the_next():
    environ = {"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert own_key(environ) == (12, 3)
    assert own_key({"SLURM_JOB_ID": "14"}) == (14, 0)
    assert own_key({}) is None
    user = {"HOME": "/h", "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "p1", "SBATCH_QOS": "q"}
    given = {**environ, **user, "SBATCH_TIMELIMIT": "5", "CUDA_VISIBLE_DEVICES": "0"}
    left = submission_environ("#!/bin/bash\n#SBATCH --qos=mine\n", given)
    assert left == {"HOME": "/h", "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "p1"}


def test_cores_and_time_left_by_variables():
    slurm = Slurm()
    job = {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "8"}
    assert slurm.cores({**job, "SLURM_CPUS_PER_TASK": "4"}, "host") == 4
    assert slurm.cores(job, "host") == 8
    assert slurm.cores({"SLURM_CPUS_PER_TASK": "4"}, "host") is None
    assert slurm.time_left({**job, "SLURM_JOB_END_TIME": "1700000000"}) == 0.0
    assert slurm.time_left({}) is None


def test_what_a_person_types(tmp_path):
    command = Slurm().submit_command(tmp_path / "a b.sh", request())
    assert shlex.split(command) == ["sbatch", str(tmp_path / "a b.sh")]
    then = Slurm().submit_command(tmp_path / "then.sh", request(after=('"a"', '"b"')))
    assert "afterany:$(squeue -h --me -n a,b " in then
