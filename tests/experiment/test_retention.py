import json
import math
import os
import time
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgtool.errors import UsageError
from imgtool.experiment import retention
from imgtool.experiment.checkpoint_file import CHECKPOINT_NAME
from imgtool.experiment.checkpoints import list_checkpoints
from imgtool.experiment.layout import ExperimentDir, find_checkpoint
from imgtool.files import point, temporary_beside


def iterations(experiment):
    return [entry.iteration for entry in list_checkpoints(experiment.checkpoints_dir)]


def kept(decision):
    return {entry.iteration: reason for entry, reason in decision.kept}


def log_losses(experiment, losses):
    with open(experiment.metrics_path, "w") as file:
        for iteration, loss in losses:
            row = {"iteration": iteration, "loss": loss}
            if loss is None:
                row["nonfinite"] = ["loss"]
            file.write(json.dumps(row) + "\n")


def test_the_newest_stay(experiment, write_checkpoint):
    sizes = [write_checkpoint(i, num_values=i).stat().st_size for i in (100, 200, 300, 400)]
    decision = retention.plan(experiment.checkpoints_dir, keep=2)
    assert kept(decision) == {300: "among the newest 2", 400: "among the newest 2"}
    assert iterations(experiment) == [100, 200, 300, 400]
    result = retention.apply(decision)
    assert iterations(experiment) == [300, 400]
    assert result.freed_bytes == sum(sizes[:2])
    assert [path.name for path in result.removed] == [
        "iter_000100.safetensors",
        "iter_000200.safetensors",
    ]
    assert retention.prune(experiment.checkpoints_dir, keep=2).removed == []


def test_newest_is_by_iteration_not_by_name_or_time(experiment, write_checkpoint):
    write_checkpoint(1000000)
    write_checkpoint(999999)
    retention.prune(experiment.checkpoints_dir, keep=1)
    assert iterations(experiment) == [1000000]


def test_one_between_two_updates_counts_until_something_newer_is_whole(
    experiment, write_checkpoint
):
    folder = experiment.checkpoints_dir

    def between(iteration, update):
        path = experiment.checkpoint_path(iteration, update)
        write_checkpoint(iteration).rename(path)
        return path

    write_checkpoint(100)
    overtaken, pointed = between(200, 1), between(200, 2)
    write_checkpoint(200)
    newest = between(300, 1)
    os.symlink(pointed.name, folder / "best.safetensors")
    decision = retention.plan(folder, keep=2, keep_every=100)
    reasons = {entry.path: reason for entry, reason in decision.kept}
    assert reasons == {
        newest: "among the newest 2",
        experiment.checkpoint_path(200): "among the newest 2",
        pointed: "best.safetensors points to it",
        experiment.checkpoint_path(100): "iteration divisible by 100",
    }
    assert [entry.path for entry in decision.removed] == [overtaken]


@pytest.mark.parametrize("link", ["latest.safetensors", "best.safetensors", "latest.pt", "best.pt"])
def test_what_a_symlink_points_to_stays(experiment, write_checkpoint, link):
    first = write_checkpoint(100)
    write_checkpoint(200)
    write_checkpoint(300)
    point(experiment.checkpoints_dir / link, first.name)
    decision = retention.plan(experiment.checkpoints_dir, keep=1)
    assert kept(decision) == {100: f"{link} points to it", 300: "among the newest 1"}


def test_absolute_and_chained_symlinks_count_too(experiment, write_checkpoint):
    first = write_checkpoint(100)
    write_checkpoint(200)
    os.symlink(first, experiment.checkpoints_dir / "good")
    os.symlink("good", experiment.best_path)
    os.symlink("loop", experiment.checkpoints_dir / "loop")
    retention.prune(experiment.checkpoints_dir, keep=1)
    assert iterations(experiment) == [100, 200]


def test_a_symlinked_folder(experiment, write_checkpoint, tmp_path):
    first = write_checkpoint(100)
    write_checkpoint(200)
    write_checkpoint(300)
    point(experiment.best_path, first.name)
    os.symlink(experiment.checkpoints_dir, tmp_path / "link")
    retention.prune(tmp_path / "link", keep=1)
    assert iterations(experiment) == [100, 300]


def test_damaged_files_older_than_a_whole_one_go_and_newer_ones_stay(experiment, write_checkpoint):
    write_checkpoint(100, cut=3)
    write_checkpoint(200)
    write_checkpoint(300)
    write_checkpoint(400, cut=3)
    write_checkpoint(500, cut=3)
    decision = retention.plan(experiment.checkpoints_dir, keep=1)
    assert [entry.iteration for entry in decision.removed] == [100, 200]
    assert kept(decision)[500] == "damaged, but newer than any whole one"
    assert any("iter_000100.safetensors: it is truncated" in note for note in decision.notes)


def test_a_broken_newest_never_costs_the_good_one(experiment, write_checkpoint):
    write_checkpoint(100)
    write_checkpoint(200, cut=1)
    retention.prune(experiment.checkpoints_dir, keep=1)
    assert iterations(experiment) == [100, 200]


def test_nothing_goes_when_nothing_is_whole(experiment, write_checkpoint):
    write_checkpoint(100, cut=1)
    write_checkpoint(200, cut=1)
    result = retention.prune(experiment.checkpoints_dir, keep=1)
    assert iterations(experiment) == [100, 200]
    assert "no checkpoint is whole, so none is removed" in result.notes


@pytest.mark.parametrize(
    "trouble", [{"loss": math.nan}, {"loss": -math.inf}, {"finite": False}, {"loss": 500.0}]
)
def test_one_older_stays_when_the_last_loss_is_bad(experiment, write_checkpoint, trouble):
    for iteration in (100, 200, 300, 400):
        write_checkpoint(iteration, loss=1.0)
    write_checkpoint(500, **trouble)
    decision = retention.plan(experiment.checkpoints_dir, keep=2)
    assert sorted(kept(decision)) == [300, 400, 500]
    assert any("one older checkpoint stays as well" in note for note in decision.notes)


def test_the_newest_finite_and_the_newest_sound_one_stay_however_old(experiment, write_checkpoint):
    for iteration in (100, 200, 300, 400):
        write_checkpoint(iteration, loss=0.5)
    write_checkpoint(500, loss=80.0)
    for iteration in (600, 700, 800):
        write_checkpoint(iteration, finite=False)
    decision = retention.plan(experiment.checkpoints_dir, keep=1)
    assert sorted(kept(decision)) == [400, 500, 700, 800]
    assert kept(decision)[500] == "newest with a finite loss"
    assert kept(decision)[400] == "newest with a sound loss"


def test_exploded_is_ten_times_the_usual_unless_a_limit_is_given(experiment, write_checkpoint):
    for iteration in (100, 200, 300):
        write_checkpoint(iteration, loss=-1.0)

    def num_kept(loss, **choices):
        write_checkpoint(400, loss=loss)
        return len(retention.plan(experiment.checkpoints_dir, keep=1, **choices).kept)

    assert num_kept(9.9) == num_kept(-9.9) == 1
    assert num_kept(10.1) == num_kept(-10.1) == 2
    assert num_kept(10.1, max_loss=20) == 1
    assert num_kept(0.5, max_loss=0.4) == 2


def test_too_few_losses_cannot_explode(experiment, write_checkpoint):
    write_checkpoint(100, loss=1.0)
    write_checkpoint(200, loss=1.0)
    write_checkpoint(300, loss=1000.0)
    assert sorted(kept(retention.plan(experiment.checkpoints_dir, keep=1))) == [300]
    log_losses(experiment, [(i, 1.0) for i in range(10, 300, 10)])
    assert sorted(kept(retention.plan(experiment.checkpoints_dir, keep=1))) == [200, 300]


def test_foreign_files_are_judged_by_the_log(experiment, write_foreign):
    for iteration in (100, 200, 300):
        write_foreign(iteration)
    assert sorted(kept(retention.plan(experiment.checkpoints_dir, keep=1))) == [300]
    log_losses(experiment, [*((i, 0.1) for i in range(10, 280, 10)), (290, None), (310, 0.1)])
    decision = retention.plan(experiment.checkpoints_dir, keep=1)
    assert sorted(kept(decision)) == [200, 300]
    assert any("iter_000300.pt: its loss is nan" in note for note in decision.notes)
    log_losses(experiment, [*((i, 0.1) for i in range(10, 280, 10)), (290, 5.0)])
    assert sorted(kept(retention.plan(experiment.checkpoints_dir, keep=1))) == [200, 300]


def test_both_kinds_in_one_folder(experiment, write_checkpoint, write_foreign):
    write_foreign(100)
    write_checkpoint(200)
    write_foreign(300)
    retention.prune(experiment.checkpoints_dir, keep=2)
    assert iterations(experiment) == [200, 300]


def test_a_foreign_file_that_may_be_in_writing_stays(experiment, write_checkpoint, write_foreign):
    write_checkpoint(200)
    half = write_foreign(100, cut=40)
    now = time.time()
    os.utime(experiment.checkpoint_path(200), (now - 60, now - 60))
    os.utime(half, (now - 1, now - 1))
    retention.prune(experiment.checkpoints_dir, keep=1)
    assert half.exists()
    os.utime(half, (now - 4000, now - 4000))
    retention.prune(experiment.checkpoints_dir, keep=1)
    assert not half.exists()


def test_keep_every_and_keep_best(experiment, write_checkpoint):
    for iteration, loss in ((100, 0.9), (150, 0.2), (200, 0.5), (250, 0.6), (300, 0.7)):
        write_checkpoint(iteration, loss=loss)
    choices = {"keep": 1, "keep_every": 100, "keep_best": True}
    decision = retention.plan(experiment.checkpoints_dir, **choices)
    assert kept(decision) == {
        100: "iteration divisible by 100",
        150: "lowest loss, 0.2",
        200: "iteration divisible by 100",
        300: "among the newest 1",
    }


def test_best_is_by_val_loss_where_there_is_one(experiment, write_checkpoint):
    write_checkpoint(100, metrics={"loss": 0.1, "val_loss": 0.9})
    write_checkpoint(200, metrics={"loss": 0.5, "val_loss": 0.3})
    write_checkpoint(300, metrics={"loss": 0.4, "val_loss": 0.4})
    decision = retention.plan(experiment.checkpoints_dir, keep=1, keep_best=True)
    assert sorted(kept(decision)) == [200, 300]


def test_other_peoples_files_stay(experiment, write_checkpoint):
    folder = experiment.checkpoints_dir
    for iteration in (100, 200, 300):
        write_checkpoint(iteration)
    disguised = folder / "iter_000050.safetensors"
    disguised.write_bytes(b"\x80\x02}q\x00" + bytes(60))
    others = [
        folder / "iter_old.pt",
        folder / "notes.txt",
        temporary_beside(folder / "iter_000400.pt"),
    ]
    for path in others:
        path.write_text("x")
    (folder / "iter_000010.pt").mkdir()
    retention.prune(folder, keep=1)
    assert iterations(experiment) == [50, 300]
    assert all(path.exists() for path in others)
    assert (folder / "iter_000010.pt").is_dir()


def test_nothing_to_do(experiment, tmp_path):
    assert retention.prune(experiment.checkpoints_dir, keep=1) == retention.Result()
    assert retention.prune(tmp_path / "missing", keep=1) == retention.Result()


@pytest.mark.parametrize(
    "choices",
    [{"keep": 0}, {"keep": -1}, {"keep": 1, "keep_every": 0}, {"keep": 1, "max_loss": -1.0}],
)
def test_senseless_numbers(experiment, choices):
    with pytest.raises(UsageError) as caught:
        retention.plan(experiment.checkpoints_dir, **choices)
    assert caught.value.hint


def test_what_happens_between_plan_and_apply_is_respected(experiment, write_checkpoint):
    paths = {i: write_checkpoint(i) for i in (100, 200, 300, 400, 500)}
    decision = retention.plan(experiment.checkpoints_dir, keep=1)
    paths[100].unlink()
    write_checkpoint(200, num_values=9)
    point(experiment.best_path, paths[300].name)
    write_checkpoint(600)
    result = retention.apply(decision)
    assert iterations(experiment) == [200, 300, 500, 600]
    assert [path.name for path in result.removed] == [paths[400].name]


def test_it_stops_when_the_good_one_vanishes(experiment, write_checkpoint):
    paths = {i: write_checkpoint(i) for i in (100, 200, 300)}
    decision = retention.plan(experiment.checkpoints_dir, keep=1)
    paths[300].unlink()
    result = retention.apply(decision)
    assert iterations(experiment) == [100, 200]
    assert "vanished" in result.notes[0]


def test_hard_links_free_nothing(experiment, write_checkpoint):
    first = write_checkpoint(100)
    write_checkpoint(200)
    os.link(first, experiment.path / "backup")
    assert retention.prune(experiment.checkpoints_dir, keep=1).freed_bytes == 0
    assert not first.exists()


checkpoint = st.fixed_dictionaries(
    {
        "iteration": st.integers(0, 12).map(lambda number: number * 50),
        "kind": st.sampled_from(["own", "own", "own", "foreign", "cut", "cut foreign", "pickle"]),
        "loss": st.sampled_from([0.0, 0.5, 1.0, -1.0, 90.0, math.nan, math.inf, None]),
        "finite": st.booleans(),
    }
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    files=st.lists(checkpoint, max_size=9),
    links=st.dictionaries(
        st.sampled_from(["latest.safetensors", "best.safetensors", "latest.pt", "best.pt"]),
        st.integers(0, 8),
    ),
    keep=st.integers(1, 4),
    keep_best=st.booleans(),
    keep_every=st.none() | st.sampled_from([50, 100, 300]),
    max_loss=st.none() | st.sampled_from([0.1, 50.0]),
)
def test_the_promises_hold_for_any_folder(
    tmp_path_factory, files, links, keep, keep_best, keep_every, max_loss
):
    from imgtool.experiment.checkpoint_file import CheckpointError, read_header

    experiment = ExperimentDir(tmp_path_factory.mktemp("exp"))
    folder = experiment.checkpoints_dir
    folder.mkdir()
    for facts in files:
        make(folder, **facts)
    names = sorted(os.listdir(folder))
    for link, number in links.items():
        if names:
            os.symlink(names[number % len(names)], folder / link)
    (folder / "notes.txt").write_text("x")

    whole = {}
    for name in names:
        try:
            whole[name] = read_header(folder / name)
        except CheckpointError:
            continue
    by_age = sorted(whole, key=lambda name: (whole[name].iteration, name))
    finite = [
        name
        for name in by_age
        if whole[name].finite is not False and math.isfinite(whole[name].loss or 0.0)
    ]
    pointed = {os.path.basename(os.path.realpath(folder / link)) for link in links}
    before = set(os.listdir(folder))

    result = retention.prune(
        folder, keep=keep, keep_best=keep_best, keep_every=keep_every, max_loss=max_loss
    )

    after = set(os.listdir(folder))
    gone = before - after
    assert after <= before
    assert gone == {path.name for path in result.removed}
    assert all(CHECKPOINT_NAME.fullmatch(name) for name in gone)
    assert not gone & pointed
    assert not gone & set(by_age[-keep:])
    if finite:
        assert finite[-1] in after
    if by_age and by_age[-1] not in finite:
        assert not gone & set(by_age[-keep - 1 :])
    if keep_every:
        assert all(whole[name].iteration % keep_every for name in gone if name in whole)
    if not whole:
        assert not gone
    else:
        newest = whole[by_age[-1]].iteration
        assert all(int(CHECKPOINT_NAME.fullmatch(name)[1]) <= newest for name in gone)
    if max_loss is not None:  # without it the median may move when files go
        again = {"keep_best": keep_best, "keep_every": keep_every, "max_loss": max_loss}
        assert retention.prune(folder, keep=keep, **again).removed == []


def make(folder, *, iteration, kind, loss, finite):
    import zipfile

    suffix = "pt" if "foreign" in kind else "safetensors"
    path = folder / f"iter_{iteration:06d}.{suffix}"
    if "foreign" in kind:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", b"\x80\x02}.")
    elif kind == "pickle":
        path.write_bytes(b"\x80\x02}q\x00" + bytes(60))
    else:
        record = {"format": 1, "iteration": iteration, "epoch": 0, "identity": "x"}
        record |= {"metrics": {"loss": loss}, "finite": finite}
        text = json.dumps({"__metadata__": {"imgtool": json.dumps(record)}}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
    if "cut" in kind:
        path.write_bytes(path.read_bytes()[:-3])


def test_a_newest_one_with_a_flipped_bit_costs_no_older_one(experiment, write_checkpoint):
    content = zlib.crc32(bytes(8)), zlib.crc32(bytes(16))
    sums = dict(zip("ab", content, strict=True))
    paths = [write_checkpoint(number, checksums=sums) for number in (100, 200, 300, 400)]
    data = paths[-1].read_bytes()
    paths[-1].write_bytes(data[:-1] + b"\1")
    result = retention.prune(experiment.checkpoints_dir, keep=1, intact=True)
    assert result.removed == paths[:2]
    assert "b is not what was written" in result.notes[0]
    assert find_checkpoint(experiment.path) == paths[2]
