"""Rungs: who goes on, in pools of real processes whose training is a small program."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import psutil
import pytest

from imgtool.errors import ConfigError, UsageError
from imgtool.sweep.halving import metric_of, read_halving
from imgtool.sweep.jobs import train_command
from imgtool.sweep.spec import read_spec
from tests.sweep.racing import SIX, WORDS, Silence, legs, make_plan, record, run, states, trainer
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

WINNERS = {"1ep": {"a", "b", "d"}, "3ep": {"d"}}


def promoted(plan):
    found = record(plan)
    return {
        rung: {name for name, verdicts in found.items() if verdicts.get(rung) == "promoted"}
        for rung in ("1ep", "3ep")
    }


def whole(plan, winners=("d-seed0",)):
    """Every leg is trained once, without a gap, and everybody knows what he is."""
    for name, found in legs(plan).items():
        ends = [tuple(map(int, leg.split("-"))) for leg in found]
        assert ends[0][0] == 0
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ends)), (name, found)
    assert {n for n, state in states(plan).items() if state == "completed"} == set(winners)
    assert set(states(plan).values()) == {"completed", "dropped"}


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "rungs=1ep,3ep keep=1/4 metric=val_psnr",
        {"rungs": ["1ep", "3ep"], "keep": 0.25, "metric": "val_psnr"},
        {"rungs": "1ep, 3EP", "keep": "25e-2", "metric": "val_psnr"},
    ],
)
def test_what_is_said(value):
    found = read_halving(value)
    assert (found.rungs, found.keep, found.metric) == (("1ep", "3ep"), Fraction(1, 4), "val_psnr")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("rungs", "halving: 'rungs' is no key=value"),
        ("rungs=", "halving: 'rungs=' is no key=value"),
        ("rungs=1 rungs=2", "halving: rungs is given twice"),
        ("rung=1ep", "halving: unknown key rung"),
        ("keep=1/3", "halving: there are no rungs"),
        ("rungs=1ep,200", "halving: rungs has iterations and epochs"),
        ("rungs=3ep,1ep", "halving: rungs does not rise"),
        ("rungs=1ep,01ep", "halving: rungs does not rise"),
        ("rungs=1.5ep", "halving: rungs: '1.5ep' is neither iterations"),
        ("rungs=1ep,", "halving: rungs: '' is neither iterations"),
        ("rungs=1ep keep=1", "halving: keep is '1', expected a part between 0 and 1"),
        ("rungs=1ep keep=0", "halving: keep is '0', expected a part"),
        ("rungs=1ep keep=1/0", "halving: keep is '1/0', expected a part"),
        ({"rungs": ["1ep"], "keep": True}, "halving: keep is True, expected a part"),
        ({"rungs": ["1ep"], "metric": 3}, "halving: metric is 3, expected a name"),
        ({"rungs": {}}, r"halving: rungs is {}, expected a list"),
        ([], r"halving is \[\], expected rungs"),
    ],
)
def test_wrong_words(value, problem):
    with pytest.raises(ConfigError, match=problem):
        read_halving(value)


def test_in_a_sweeps_file(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("base: phase1_1/S5\nmatrix:\n  train.lr: [1e-3]\nhalving:\n  rungs: [10, 20]\n")
    assert read_spec(str(path)).halving == read_halving("rungs=10,20")
    path.write_text("base: phase1_1/S5\nseeds: [0]\nhalving: rungs=2ep keep=x\n")
    with pytest.raises(ConfigError, match=r"sweep.yaml:3: halving: keep is 'x'"):
        read_spec(str(path))


def test_the_metric_and_the_rungs_must_fit_the_trainings(tmp_path):
    plan = make_plan(tmp_path, SIX, "rungs=1ep")
    assert metric_of(plan.halving, plan.trials) == "val_mse"
    (first, *rest) = plan.trials
    train = first.loaded.experiment.train

    def changed(**values):
        experiment = replace(first.loaded.experiment, train=replace(train, **values))
        return [replace(first, loaded=replace(first.loaded, experiment=experiment)), *rest]

    with pytest.raises(UsageError, match="calls val_psnr best and b-seed0 val_mse"):
        metric_of(plan.halving, changed(monitor="val_psnr"))
    with pytest.raises(UsageError, match=r"ends at the first rung, 1ep, or before \(train.epochs"):
        metric_of(plan.halving, changed(epochs=1))
    with pytest.raises(UsageError, match="genegan has no metric of its own"):
        metric_of(plan.halving, [replace(first, family="genegan"), *rest])


def test_the_rung_is_an_option_of_the_run_and_not_of_the_config(tmp_path):
    (trial, *_) = make_plan(tmp_path, SIX, WORDS).trials
    paused = train_command(replace(trial, pause_at="3ep"))
    assert paused == [*train_command(trial), "--pause-at", "3ep"]


# --- one slot ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_one_slot_is_synchronous_whatever_the_order(tmp_path, seed):
    names = random.Random(seed).sample(list(SIX), len(SIX))
    values = {name: SIX[name] for name in names}
    plan = make_plan(tmp_path / "root", values, WORDS)
    assert run(plan, trainer(values)) is None
    assert promoted(plan) == WINNERS
    whole(plan)
    reasons = {t.name: json.loads(t.directory.status_path.read_text()) for t in plan.trials}
    assert reasons["c-seed0"]["reason"] == "dropped at rung 1ep: val_mse 0.9, place 5 of 6"
    assert reasons["a-seed0"]["dropped"] == {
        "rung": "3ep", "metric": "val_mse", "value": 0.3, "place": 2, "of": 3, "num_kept": 1
    }  # fmt: skip
    before = legs(plan)
    assert run(plan, trainer(values)) is None  # all is done
    assert legs(plan) == before


def test_seeds_rise_and_fall_together(tmp_path):
    values = {
        "a": {1: [0.29, 0.52], 9: [0.4, 0.4]},  # one seed is the best of all
        "b": {1: [0.30, 0.33], 9: [0.1, 0.1]},
        "c": {1: [0.34, 0.30], 9: [0.2, 0.2]},  # within the noise of b
        "d": {1: [0.90, 0.95], 9: [0.9, 0.9]},
        "e": {1: [0.92, 0.95], 9: [0.9, 0.9]},
    }
    plan = make_plan(tmp_path / "root", values, "rungs=1ep keep=1/4 metric=val_mse")
    run(plan, trainer(values), num_slots=2)
    found = states(plan)
    assert all(found[f"{name}-seed0"] == found[f"{name}-seed1"] for name in values)
    assert (found["b-seed0"], found["c-seed0"]) == ("completed", "completed")
    assert (found["d-seed0"], found["e-seed0"]) == ("dropped", "dropped")


def test_what_fails_does_not_rise_and_holds_nobody_up(tmp_path):
    values = {
        "a": {1: ["fail", "fail"]},
        "b": {1: ["fail", 0.5], 9: [0.1, 0.1]},
        "c": {1: [0.6, 0.6], 9: [0.1, 0.1]},
        "d": {1: [0.7, None], 9: [0.1, 0.1]},  # a value that is not finite
    }
    plan = make_plan(tmp_path / "root", values, "rungs=1ep keep=1/3 metric=val_mse")
    run(plan, trainer(values))
    found = states(plan)
    assert [found[f"a-seed{n}"] for n in (0, 1)] == ["failed", "failed"]
    assert [found[f"b-seed{n}"] for n in (0, 1)] == ["failed", "completed"]
    assert [found[f"{name}-seed{n}"] for name in "cd" for n in (0, 1)] == ["dropped"] * 4
    assert legs(plan)["b-seed1"] == ["0-1", "1-9"]


def test_only_ties_rise_where_no_noise_is_known(tmp_path):
    values = {
        name: {1: [value], 9: [value]} for name, value in zip("abc", (0.5, 0.5, 0.51), strict=True)
    }
    plan = make_plan(tmp_path / "root", values, "rungs=1ep keep=1/3 metric=val_mse")
    run(plan, trainer(values))
    assert list(states(plan).values()) == ["completed", "completed", "dropped"]


def test_a_dropped_trial_goes_on_to_its_end_when_it_is_asked_for(tmp_path):
    plan = make_plan(tmp_path / "root", SIX, WORDS)
    run(plan, trainer(SIX))
    named = replace(plan, trials=tuple(t for t in plan.trials if t.name == "c-seed0"))
    run(named, trainer(SIX), retry=frozenset({"dropped"}))
    assert states(named) == {"c-seed0": "completed"}
    assert legs(plan)["c-seed0"] == ["0-1", "1-9"]
    assert promoted(plan) == WINNERS  # the verdict of then stays


def test_a_trial_that_comes_later_is_judged_among_all(tmp_path):
    few = {name: SIX[name] for name in "cef"}
    run(make_plan(tmp_path / "root", few, WORDS), trainer(SIX))
    plan = make_plan(tmp_path / "root", {**few, **SIX}, WORDS)
    run(plan, trainer(SIX))
    assert promoted(plan) == {"1ep": {"e", "a", "b", "d"}, "3ep": {"e", "a", "d"}}
    whole(plan, ("e-seed0", "a-seed0", "d-seed0"))


def test_other_rungs_and_unknown_metrics_are_refused(tmp_path):
    plan = make_plan(tmp_path / "root", SIX, WORDS)
    run(plan, trainer(SIX))
    other = replace(plan, halving=read_halving("rungs=2ep keep=1/2 metric=val_mse"))
    with pytest.raises(UsageError, match="rungs is 2ep, and the verdicts in .* are by 1ep,3ep"):
        run(other, trainer(SIX))
    wrong = make_plan(tmp_path / "wrong", SIX, "rungs=1ep metric=val_mses")
    with pytest.raises(UsageError, match="a-seed0 has no metric val_mses"):
        run(wrong, trainer(SIX))


# --- several slots, several sweeps ------------------------------------------------------------


class Starts(Silence):
    """Which trials began, in order."""

    def __init__(self):
        self.names = []

    def started(self, trial, slot, pid):
        self.names.append((trial.name, trial.pause_at))


def test_a_slot_takes_the_next_trial_at_once(tmp_path):
    values = {**SIX, "z": {1: [0.55], 3: [0.1], 9: [0.01]}}
    plan = make_plan(tmp_path / "root", values, WORDS)
    plain = trainer(values)

    def command(plan, trial):
        words = plain(plan, trial)
        slow = trial.name == "z-seed0" and trial.pause_at == "1ep"
        return [*words[:-1], "1.5" if slow else "0.0"]

    told = Starts()
    run(plan, command, told, num_slots=2)
    names = told.names
    # While z was on its way to the first rung the best of the others went on, to the second too.
    assert names.index(("b-seed0", "3ep")) > names.index(("z-seed0", "1ep"))
    rungs = json.loads((plan.root / "halving.json").read_text())["experiments"].values()
    why = {entry["name"]: entry["verdicts"]["1ep"]["why"] for entry in rungs}
    assert "early" in why.values()
    # Nothing is left that should have been promoted, and nothing is trained twice.
    assert promoted(plan)["1ep"] >= {"a", "b", "z"}
    assert states(plan)["z-seed0"] == "completed"
    whole(plan, {f"{name}-seed0" for name in promoted(plan)["3ep"]})


def test_two_sweeps_at_once_share_the_work(tmp_path):
    root = tmp_path / "root"
    command = [sys.executable, "-m", "tests.sweep.racing", str(root), "1", "0"]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [one.wait(120) for one in both] == [0, 0]
    plan = make_plan(root, SIX, WORDS)
    assert promoted(plan)["1ep"] >= WINNERS["1ep"]
    whole(plan, {f"{name}-seed0" for name in promoted(plan)["3ep"]})
    assert "d-seed0" in {n for n, state in states(plan).items() if state == "completed"}


def test_an_interrupted_sweep_goes_on(tmp_path):
    plan = make_plan(tmp_path / "root", SIX, WORDS)

    class Interrupting(Silence):
        def started(self, trial, slot, pid):
            if (trial.name, trial.pause_at) == ("b-seed0", "3ep"):
                running = threading.Thread(target=interrupt, args=(trial,), daemon=True)
                running.start()

    def interrupt(trial):
        wait_until(lambda: '"running"' in trial.directory.status_path.read_text())
        os.kill(os.getpid(), signal.SIGINT)

    assert run(plan, trainer(SIX, sec=0.3), Interrupting()) == signal.SIGINT
    assert states(plan)["b-seed0"] == "stopped"
    before = record(plan)
    assert run(plan, trainer(SIX)) is None
    assert {name: verdicts["1ep"] for name, verdicts in record(plan).items()} == {
        name: verdicts["1ep"] for name, verdicts in before.items()
    }
    assert promoted(plan) == WINNERS
    whole(plan)


# --- kills ------------------------------------------------------------------------------------


def killed(root: Path, step: int, slots: int = 1) -> bool:
    """Run the six in a process that kills itself at a step; whether it did."""
    command = [sys.executable, "-m", "tests.sweep.racing", str(root), str(slots), str(step)]
    code = subprocess.run(command, check=False, timeout=120).returncode
    assert code in (0, -signal.SIGKILL)
    # Its trainings end with it, soon: a trial that is still in use would be left alone.
    wait_until(lambda: not any(str(root) in line for line in command_lines()))
    return code != 0


def command_lines():
    return [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]


def verdicts_so_far(plan):
    return record(plan) if (plan.root / "halving.json").exists() else {}


def goes_on_from(plan, before):
    """No verdict of before the kill has changed."""
    after = record(plan)
    for name, verdicts in before.items():
        assert verdicts.items() <= after[name].items()


@pytest.mark.slow
def test_killed_again_and_again_it_comes_to_the_same_end(tmp_path):
    plan = make_plan(tmp_path / "root", SIX, WORDS)
    before, num_kills = {}, 0
    while killed(plan.root, 12):
        num_kills += 1
        goes_on_from(plan, before) if before else None
        before = verdicts_so_far(plan)
    assert num_kills >= 2
    goes_on_from(plan, before)
    assert promoted(plan)["1ep"] >= WINNERS["1ep"]
    assert states(plan)["d-seed0"] == "completed"
    whole(plan, {f"{name}-seed0" for name in promoted(plan)["3ep"]})


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 2])
def test_killed_at_every_boundary_it_goes_on(tmp_path, slots):
    for step in itertools.count(1):
        plan = make_plan(tmp_path / f"root{step}", SIX, WORDS)
        was_killed = killed(plan.root, step, slots)
        before = verdicts_so_far(plan)
        run(plan, trainer(SIX), num_slots=slots)
        goes_on_from(plan, before)
        assert promoted(plan)["1ep"] >= WINNERS["1ep"], step
        assert states(plan)["d-seed0"] == "completed", step
        whole(plan, {f"{name}-seed0" for name in promoted(plan)["3ep"]})
        if not was_killed:
            break
    assert step > 20
