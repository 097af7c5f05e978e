"""Trials on several GPUs: how many slots each takes, and with what command."""

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.errors import UsageError
from imgtool.experiment.layout import ExperimentDir
from imgtool.sweep import jobs, local
from imgtool.sweep.listener import Silence
from imgtool.sweep.slots import Slot, find_slots, fit, give_back, take
from imgtool.sweep.state import read_job


@pytest.fixture
def of_gpus(make_plan):
    """of_gpus(a=2, b=1) -> a plan of trials that ask for so many GPUs."""

    def make(**numbers):
        plan = make_plan(*numbers)
        trials = []
        for trial in plan.trials:
            experiment = trial.loaded.experiment
            lsf = replace(experiment.cluster, num_gpus=numbers[trial.name])
            loaded = replace(trial.loaded, experiment=replace(experiment, cluster=lsf))
            trials.append(replace(trial, loaded=loaded))
        return replace(plan, trials=tuple(trials))

    return make


def gpus(monkeypatch, number, **choices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(number))))
    return find_slots(**choices)


def test_a_trial_trains_on_as_many_ranks_as_it_asks_for_gpus(of_gpus, monkeypatch):
    plan = of_gpus(a=2, b=1, c=0, d=4)
    fitted, notes = fit(plan.trials, gpus(monkeypatch, 4))
    assert ([trial.num_ranks for trial in fitted], notes) == ([2, 1, 1, 4], [])
    words = jobs.train_command(fitted[0])
    assert words[:6] == [*jobs.program(), "torchrun", "--nproc-per-node", "2"]
    assert words[6:8] == ["train", "autoencoder"]
    assert "torchrun" not in jobs.train_command(fitted[1])
    timed = jobs.timed_command(replace(plan, duration_sec=60.0), fitted[0])
    assert timed[timed.index("--") + 1 :] == words


@pytest.mark.parametrize("choices", [{"slots": 1}, {"slots": 2}, {"slots_per_gpu": 2}])
def test_more_gpus_than_there_are_is_refused(of_gpus, monkeypatch, choices):
    with pytest.raises(UsageError, match=r"b asks for 3 GPUs .* and there are [12]") as caught:
        fit(of_gpus(a=1, b=3).trials, gpus(monkeypatch, 2, **choices))
    assert "--set cluster.num_gpus=" in caught.value.hint


def test_without_a_gpu_it_trains_as_one_process_unless_there_are_slots(of_gpus, monkeypatch):
    trials = of_gpus(a=2, b=1, c=2).trials
    fitted, (note,) = fit(trials, gpus(monkeypatch, 0))
    assert [trial.num_ranks for trial in fitted] == [1, 1, 1]
    assert "a asks for 2 GPUs (cluster.num_gpus) and 1 more, and there is none" in note
    fitted, notes = fit(trials, gpus(monkeypatch, 0, slots=2))
    assert ([trial.num_ranks for trial in fitted], notes) == ([2, 1, 2], [])


def test_slots_are_joined_over_gpus(monkeypatch):
    free = deque(gpus(monkeypatch, 3, slots_per_gpu=2))
    slot = take(free, 2)
    assert (slot.label, slot.env["CUDA_VISIBLE_DEVICES"]) == ("gpu 0 a+1 a", "0,1")
    assert slot.env["IMGTOOL_SLOTS"] == "3"  # two ranks of it on two of six shares
    assert take(free, 4) is None
    assert len(free) == 4
    assert take(free, 3).env["CUDA_VISIBLE_DEVICES"] == "2,0,1"
    assert take(free, 2) is None  # one GPU's second slot alone is left
    give_back(free, slot)
    assert len(free) == 3


@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(1, 4), max_size=8))
def test_no_slot_is_taken_twice_or_lost(num_gpus, per_gpu, wanted):
    slots = [
        Slot(f"gpu {n} {turn}", {"CUDA_VISIBLE_DEVICES": str(n), "IMGTOOL_SLOTS": "1"})
        for turn in range(per_gpu)
        for n in range(num_gpus)
    ]
    free, taken = deque(slots), []
    for number in wanted:
        slot = take(free, number)
        if slot is not None:
            taken.append(slot)
            names = slot.env["CUDA_VISIBLE_DEVICES"].split(",")
            assert len(names) == len(set(names)) == number
        elif taken:
            give_back(free, taken.pop(0))
    for slot in taken:
        give_back(free, slot)
    assert sorted(slot.label for slot in free) == sorted(slot.label for slot in slots)


def test_a_pool_gives_each_its_gpus_and_never_more_than_there_are(
    of_gpus, trainer, monkeypatch, tmp_path
):
    plan = of_gpus(a=2, b=2, c=1, d=3)
    trials, _ = fit(plan.trials, gpus(monkeypatch, 3))
    options = local.Options(slots=gpus(monkeypatch, 3), command_of=trainer())
    used, most = {}, []

    class Listener(Silence):
        def started(self, trial, slot, pid):
            used[trial.name] = slot
            names = [n for one in used.values() for n in one.env["CUDA_VISIBLE_DEVICES"].split(",")]
            assert len(names) == len(set(names))
            most.append(len(names))

        def ended(self, trial, state):
            assert state.state == "completed"
            del used[trial.name]

    local.run(plan, trials, options, Listener())
    assert (len(most), max(most)) == (4, 3)
    assert read_job(ExperimentDir(plan.root / "d"))["slot"].startswith("gpu ")


def test_what_no_slots_can_hold_fails_and_the_rest_go_on(of_gpus, trainer):
    plan = of_gpus(a=1, b=1)
    trials = [replace(plan.trials[0], num_ranks=2), plan.trials[1]]
    states = {}

    class Listener(Silence):
        def ended(self, trial, state):
            states[trial.name] = state.state

    local.run(plan, trials, local.Options(slots=(Slot("cpu 0"),), command_of=trainer()), Listener())
    assert states == {"a": "failed", "b": "completed"}
