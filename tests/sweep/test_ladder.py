"""Rate ladders: who begins with whose weights, how long each trains, and who waits for whom."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from imgtool.config.identity import identity
from imgtool.config.load import read_resolved
from imgtool.data.synthetic.make import make_photos
from imgtool.errors import UserError
from imgtool.experiment import owner
from imgtool.experiment.job import write_job
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import now_iso
from imgtool.models.registry import FAMILIES, schema
from imgtool.schedulers.base import SchedulerError
from imgtool.schedulers.lsf import Lsf
from imgtool.schedulers.slurm import Slurm
from imgtool.sweep import cluster as sweep_cluster
from imgtool.sweep import jobs, local
from imgtool.sweep.choose import choose
from imgtool.sweep.descent import Descent, await_other
from imgtool.sweep.inputs import lacking
from imgtool.sweep.job_files import Options, scripts
from imgtool.sweep.ladder import read_ladder
from imgtool.sweep.over import read_preparation
from imgtool.sweep.plan import make_plan
from imgtool.sweep.slots import Slot
from imgtool.sweep.state import read_state
from tests.fake_lsf.cluster import Cluster
from tests.fake_lsf.plans import behave, starts, trainer_profile
from tests.sweep.test_local import Recorder

GRID = ["loss.lmbda=0.0035,0.0483,0.013"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("LSB_JOBID", "LSB_JOBINDEX", "IMGTOOL_RUN_LIMIT_SEC"):
        monkeypatch.delenv(name, raising=False)


def plan_of(word="hpcm/tiny", *, grid=GRID, ladder="", sets=(), **options):
    return make_plan(
        word, schema_of=schema, ladder=ladder, grid_words=grid,
        sets=["data.root=photos", *sets], **options,
    )  # fmt: skip


def by_rate(plan):
    """The trials, the highest rate first."""
    return sorted(plan.trials, key=lambda one: -one.loaded.experiment.loss.lmbda)


def finished(trial):
    """As its training leaves it."""
    say(trial, "completed")
    trial.directory.checkpoint_path(3).touch()


def say(trial, state, **fields):
    trial.directory.create()
    record = {"state": state, "reason": None, "started": now_iso(), "heartbeat": now_iso()}
    trial.directory.status_path.write_text(json.dumps({**record, **fields}))


# --- the plan ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hpcm_lambdas", "hpcm_msssim"])
def test_each_begins_with_the_next_higher_rate(name):
    plain = make_plan(name, schema_of=schema)
    plan = make_plan(name, schema_of=schema, ladder="")
    top, *others = by_rate(plan)
    assert (top.name, top.identity, top.step) == (
        plain.trials[-1].name,
        plain.trials[-1].identity,
        0,
    )
    assert top.loaded.experiment.train.epochs == 3000
    for number, (above, trial) in enumerate(zip([top, *others], others, strict=False), 1):
        assert trial.above.path == above.directory.path
        assert trial.step == number
        begins_with = trial.loaded.experiment.model.init_ckpt
        assert begins_with == f"experiments/{name}/{above.name}/checkpoints/best.safetensors"
        assert trial.loaded.experiment.train.epochs == 600
        assert trial.overrides["train.epochs"] == 600
        assert trial.name not in [one.name for one in plain.trials]
    assert [one.loaded.experiment.name for one in plan.trials] == [one.name for one in plan.trials]
    assert "trains 1/5" in plan.ladder.words(plan.trials)


def test_a_ladder_for_every_seed_and_whatever_else_differs():
    grid = [*GRID, "train.seed=0,1", "loss.distortion=mse,ms-ssim"]
    plan = plan_of(grid=grid, ladder="1/3")
    assert len(plan.trials) == 12
    named = {trial.directory.path: trial for trial in plan.trials}
    for trial in plan.trials:
        if trial.above is None:
            assert trial.loaded.experiment.loss.lmbda == 0.0483
            continue
        above = named[trial.above.path].loaded.experiment
        own = trial.loaded.experiment
        assert above.loss.lmbda > own.loss.lmbda
        assert (above.train.seed, above.loss.distortion) == (own.train.seed, own.loss.distortion)
    total = 4 * (10000 + 2 * 3334)
    assert plan.ladder.words(plan.trials).endswith(f": {total} instead of 120000 in all")


def test_every_limit_of_a_training_is_shortened():
    sets = ["train.max_time=10m", "train.epochs=30", "train.decay_iterations=9000"]
    *_, last = by_rate(plan_of(sets=sets, ladder="1/4"))
    train = last.loaded.experiment.train
    assert (train.max_iter, train.epochs, train.max_time, train.decay_iterations) == (
        2500, 8, "150s", 2250,
    )  # fmt: skip
    assert last.loaded.origins["train.max_iter"] == "--ladder 1/4"
    tiny = by_rate(plan_of(tiny=True))
    assert [one.loaded.experiment.train.max_iter for one in tiny] == [12, 3, 3]
    assert {one.directory.path.parent.name for one in tiny} == {"tiny"}
    assert "/tiny/" in tiny[1].loaded.experiment.model.init_ckpt


def test_what_begins_otherwise_is_another_experiment_however_long_it_trains():
    short, long = (by_rate(plan_of(ladder=part)) for part in ("1/5", "1/2"))
    assert [one.name for one in short] == [one.name for one in long]
    alone = by_rate(make_plan("hpcm/tiny", schema_of=schema, grid_words=GRID))
    assert alone[0].identity == short[0].identity
    assert not {one.identity for one in alone[1:]} & {one.identity for one in short[1:]}
    for trial in short:
        assert trial.identity == identity(trial.loaded.experiment, "")


def test_the_words_are_a_part():
    assert read_ladder({"part": "1/4"}).part == read_ladder("0.25").part
    for wrong in ({"part": 0}, {"part": 2}, "x", {"par": 1}, True, "1/0"):
        with pytest.raises(UserError) as caught:
            read_ladder(wrong)
        assert caught.value.hint


@pytest.mark.parametrize("family", [name for name in FAMILIES if schema(name).ladder is None])
def test_families_without_a_rate_have_no_ladder(family):
    Path("a.yaml").write_text(f"family: {family}\nname: a\n")
    with pytest.raises(UserError, match=f"trainings of {family} have no rate"):
        make_plan("a.yaml", schema_of=schema, ladder="")


def test_what_is_no_ladder_is_refused():
    for options, said in (
        ({"grid": ["train.seed=0,1"]}, "no two trials differ in loss.lmbda alone"),
        ({"halving": "rungs=10 metric=val_psnr"}, "exclude each other"),
        ({"sets": ["train.max_iter=null"]}, "has no limit"),
        ({"ladder": "3/2"}, "part is '3/2'"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            plan_of(**options)
        assert caught.value.hint


# --- who waits for whom -----------------------------------------------------------------------


def pool(plan, command, *, num_slots=2, listener=None):
    listener = listener or Recorder()
    descent = Descent()
    options = local.Options(
        slots=tuple(Slot(f"cpu {n}", {}) for n in range(num_slots)),
        command_of=command,
        order=descent,
    )
    local.run(plan, descent.begin(choose(plan).run), options, listener)
    return listener


def test_a_pool_starts_each_when_the_one_above_has_completed(trainer):
    plan = plan_of(grid=[*GRID, "train.seed=0,1"])
    told = pool(plan, trainer(), num_slots=4)
    assert {state.state for state in told.states.values()} == {"completed"}
    place = {event[:2]: number for number, event in enumerate(told.events)}
    for trial in plan.trials:
        if trial.above is not None:
            assert place["ended", trial.above.path.name] < place["started", trial.name]
    assert [event[0] for event in told.events[:2]] == ["started"] * 2  # the two chains at once
    assert choose(plan).run == ()


def test_below_one_that_failed_nothing_begins_and_the_same_sweep_goes_on(trainer):
    plan = plan_of()
    top, middle, last = by_rate(plan)
    told = pool(plan, trainer({middle.name: "fail"}))
    assert told.states[middle.name].state == "failed"
    assert told.reasons == {
        last.name: f"it begins with the weights of {middle.name}, which has failed "
        "(ValueError: broken)"
    }
    assert read_state(last.directory).state == "pending"
    left = choose(plan).left
    assert left[top.name] == "completed"
    assert "--retry failed" in left[middle.name]
    assert "which has failed" in left[last.name]
    again = choose(plan, retry=frozenset({"failed"}))
    assert again.run == tuple(one for one in plan.trials if one is not top)
    descent = Descent()
    assert descent.begin(again.run) == [middle]


def test_a_stop_leaves_the_rest_for_the_next_time(trainer):
    plan = plan_of()
    top, middle, last = by_rate(plan)
    say(top, "stopped", reason="SIGINT")
    top.directory.checkpoint_path(1).touch()
    assert Descent().begin(choose(plan).run) == [top]
    finished(top)
    say(middle, "running")  # by somebody else
    middle.directory.checkpoint_path(1).touch()
    with owner.take(middle.directory):
        descent = Descent()
        assert descent.begin(choose(plan).run) == []
        assert descent.waits_for == (middle.name,)
        assert descent.given_up() == []
    finished(middle)
    assert descent.more() == [last]
    say(last, "stopped")
    last.directory.checkpoint_path(1).touch()
    say(middle, "failed")  # which it does not need any more
    assert choose(plan).run == (last,)


def test_a_pool_waits_for_what_others_train(trainer):
    plan = plan_of(grid=["loss.lmbda=0.0035,0.013"])
    top, last = by_rate(plan)
    say(top, "running")
    hold = owner.take(top.directory)

    def finish():
        finished(top)
        hold.release()

    class Impatient(Recorder):
        def note(self, text):
            super().note(text)
            threading.Thread(target=finish, daemon=True).start()

    told = pool(plan, trainer(), listener=Impatient())
    assert told.notes == ["waiting for 1 trial that others run"]
    assert told.states[last.name].state == "completed"


def test_a_part_of_a_ladder_needs_what_stands_above_it():
    plan = plan_of()
    top, middle, last = by_rate(plan)
    part = plan_of(only=[last.name])
    assert choose(part).left[last.name].endswith(f"{middle.name}, which has not begun")
    finished(middle)
    assert [one.name for one in choose(part).run] == [last.name]


@pytest.mark.slow
def test_from_a_sweep_to_a_file_that_is_compressed_with(tmp_path):
    """Real trainings: a ladder that is broken off and goes on, one file of it, one image."""
    make_photos(tmp_path / "photos", 4, size=64, seed=1)

    def imgtool(*words):
        command = [sys.executable, "-m", "imgtool", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)

    sweep = [
        *("sweep", "hpcm/tiny", "--ladder", "--tiny", "--grid", GRID[0], "--json"),
        *("--set", "data.root=photos", "--set", "train.device=cpu", "--set", "train.threads=1"),
        *("--set", "data.val_fraction=0.25", "--set", "data.crop=32"),
    ]
    top, middle, last = by_rate(plan_of(tiny=True, sets=["data.val_fraction=0.25", "data.crop=32"]))
    broken = imgtool(*sweep, "--only", top.name)
    assert broken.returncode == 0, broken.stderr
    early = imgtool(*sweep, "--only", last.name)
    assert early.returncode == 1
    assert f"weights of {middle.name}, which has not begun" in early.stderr
    done = imgtool(*sweep)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert [rows[t.name]["iteration"] for t in (top, middle, last)] == [12, 3, 3]
    assert rows[last.name]["begins_with"] == middle.name
    loaded = json.loads((middle.directory.path / "warm_start.json").read_text())["loaded"]
    assert len(loaded) > 100
    assert not (top.directory.path / "warm_start.json").exists()
    again = imgtool(*sweep)
    assert "3 of 3 trials are completed already" in again.stderr

    made = [t.directory.path for t in (top, middle, last)]
    assert imgtool("export", *made, "ladder.safetensors", "--portable").returncode == 0
    image = next((tmp_path / "photos").rglob("*.png"))
    words = ("compress", image, "--ckpt", "ladder.safetensors", "--device", "cpu", "--json")
    for lmbda in (0.0035, 0.013, 0.0483):
        done = imgtool(*words, "--lambda", lmbda, "-o", f"{lmbda}.hpcm", "--verify")
        assert json.loads(done.stdout)["lmbda"] == lmbda
    done = imgtool(*words, "--target-bpp", 1000, "-o", "t.hpcm")
    assert json.loads(done.stdout)["lmbda"] == 0.0483
    done = imgtool("decompress", tmp_path, "--ckpt", "ladder.safetensors", "-o", "back/")
    assert done.returncode == 0, done.stderr


# --- what a job does --------------------------------------------------------------------------


def test_a_trial_says_what_it_waits_for():
    trial = by_rate(plan_of())[1]
    assert lacking([trial]) == {}
    jobs.write_config(trial)
    assert read_preparation(trial.directory) == trial.preparation
    words = jobs.train_command(trial)
    assert words[3:6] == ["prepare", str(trial.directory.path), "train"]
    found = read_resolved(trial.config_path, schema).experiment
    assert found.model.init_ckpt == trial.loaded.experiment.model.init_ckpt
    assert jobs.train_command(by_rate(plan_of())[0])[3] == "train"


def prepare(trial, *words):
    command = [sys.executable, "-m", "imgtool", "prepare", str(trial.directory.path), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_job_looks_itself_before_it_trains():
    top, middle, _ = by_rate(plan_of())
    jobs.write_config(middle)
    say(top, "failed", reason="ValueError: broken")
    done = prepare(middle, "presets", "list")
    assert (done.returncode, done.stdout) == (1, "")
    error, hint = done.stderr.splitlines()
    assert error.endswith(f"{top.name}, which has failed (ValueError: broken)")
    assert hint.startswith("hint: the same sweep goes on")
    found = read_state(middle.directory)
    assert (found.state, "which has failed" in found.reason) == ("stopped", True)
    finished(top)
    done = prepare(middle, "presets", "list", "--format", "paths")
    assert (done.returncode, "phase1_1" in done.stdout) == (0, True)


def test_a_job_waits_for_one_that_still_trains():
    top = by_rate(plan_of())[0]
    say(top, "running")
    write_job(top.directory, executor="lsf", job_id=3, name="n", stat="running", attempt=1)
    said, looked = [], []

    def look(directories):
        looked.extend(directories)
        if len(looked) == 2:
            finished(top)

    directory = ExperimentDir(top.directory.path)
    assert await_other(directory, said.append, sleep=lambda sec: None, look=look) is None
    assert said == [f"waiting for {top.name}, which is running"]
    assert len(looked) == 2


def texts(plan, scheduler, trials=None):
    options = Options(scheduler=scheduler, profile=trainer_profile(), stamp="s")
    return scripts(plan, plan.trials if trials is None else trials, options)


@pytest.mark.parametrize("scheduler", [Lsf(), Slurm()], ids=["lsf", "slurm"])
def test_an_array_for_every_step(scheduler):
    plan = plan_of(grid=[*GRID, "train.seed=0,1"])
    first, second, third = texts(plan, scheduler)
    for script, step in ((first, 0), (second, 1), (third, 2)):
        steps = {trial.step for trials in script.trials.values() for trial in trials}
        assert steps == {step}
        assert sorted(script.trials) == [1, 2]
    assert first.request.after == ()
    assert second.request.after == (f'"{first.name}"',)
    assert third.parents == (f'"{second.name}"',)
    known = second.after({first.name: 7, "other": 8}, scheduler)
    assert (known.request.after, known.parents) == (("7",), ("7",))
    word = "ended(7)" if scheduler.name == "lsf" else "--dependency=afterany:7"
    assert word in known.text
    assert word not in second.text
    assert 'prepare "$exp_dir" train' in third.text
    check = subprocess.run(["bash", "-n"], input=known.text, text=True, check=False)
    assert check.returncode == 0


def test_the_jobs_of_earlier_submissions_count():
    plan = plan_of()
    top, middle, last = by_rate(plan)
    top.directory.create()
    facts = {"job_id": 41, "name": "n", "stat": "running", "attempt": 1, "submitted": now_iso()}
    write_job(top.directory, executor="lsf", **facts)
    for_middle, for_last = texts(plan, Lsf(), [middle, last])
    assert for_middle.request.after == ("41",)
    assert for_last.request.after == (f'"{for_middle.name}"',)
    with pytest.raises(SchedulerError, match="a job of lsf"):
        texts(plan, Slurm(), [middle])
    finished(top)
    assert texts(plan, Lsf(), [middle, last])[0].request.after == ()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_jobs_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    plan = plan_of(sets=["cluster.queue=gpul40s"])
    top, middle, last = by_rate(plan)
    behave(middle, "crash")
    lsf = Lsf(timeout_sec=10, backoff_sec=0.05)
    options = Options(scheduler=lsf, profile=trainer_profile(), stamp="t")
    cluster = Cluster(tmp_path / "lsf", monkeypatch)
    notes = []
    try:
        made = sweep_cluster.submit(plan, plan.trials, options, note=notes.append)
        ids = [one.job_id for one in made]
        assert [one.script.request.after for one in made] == [(), (str(ids[0]),), (str(ids[1]),)]
        assert sum("it begins with their weights" in text for text in notes) == 2
        wanted = {"DONE", "EXIT"}
        cluster.wait(lambda: all(set(cluster.stats(one).values()) <= wanted for one in ids), 60)
        sweep_cluster.refresh([one.directory for one in plan.trials], get=lambda name: lsf)
    finally:
        cluster.close()
    found = [read_state(one.directory) for one in (top, middle, last)]
    assert [one.state for one in found] == ["completed", "failed", "stopped"]
    assert "which has failed (a bad day)" in found[2].reason
    assert [len(starts(one)) for one in (top, middle, last)] == [1, 1, 0]
    again = choose(replace(plan), retry=frozenset({"failed"}))
    assert [one.name for one in again.run] == [one.name for one in plan.trials if one is not top]
