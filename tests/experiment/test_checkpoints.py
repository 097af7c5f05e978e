import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgtool.errors import CheckpointError
from imgtool.experiment import whole
from imgtool.experiment.checkpoint_file import read_header
from imgtool.experiment.checkpoints import list_checkpoints, newest_valid, remove_temporaries
from imgtool.experiment.whole import DamagedCheckpoint
from imgtool.files import point, temporary_beside


def test_header_of_a_whole_file(write_checkpoint):
    path = write_checkpoint(20000, metrics={"loss": 0.5, "val_psnr": 21, "val_fid": None})
    header = read_header(path)
    assert (header.iteration, header.epoch, header.finite) == (20000, 200.0, True)
    assert header.metrics == {"loss": 0.5, "val_psnr": 21.0, "val_fid": None}
    assert header.loss == 0.5
    assert header.identity == "abc"
    assert header.family == "autoencoder"
    assert header.num_bytes == path.stat().st_size
    assert header.path == path


def test_safetensors_itself_agrees(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    record = {
        "format": 1,
        "iteration": 7,
        "epoch": 0,
        "identity": "x",
        "metrics": {},
        "finite": True,
    }
    tensors = {
        "w": np.zeros((2, 3), np.float32),
        "h": np.zeros(5, np.float16),
        "e": np.zeros(0, np.uint8),
        "step": np.array(3, np.int64),
    }
    path = tmp_path / "iter_000007.safetensors"
    save_file(tensors, path, metadata={"imgtool": json.dumps(record)})
    assert read_header(path).iteration == 7


def test_every_truncation_is_noticed(write_checkpoint):
    path = write_checkpoint(1)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedCheckpoint) as caught:
            read_header(path)
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == 4


def test_bytes_too_many_are_noticed(write_checkpoint):
    path = write_checkpoint(1)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DamagedCheckpoint, match="1 bytes too many"):
        read_header(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_never_escape_as_something_else(tmp_path: Path, data: bytes):
    for suffix in ("safetensors", "pt"):
        path = tmp_path / f"iter_000001.{suffix}"
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            read_header(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    facts=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "imgtool", "w"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_arbitrary_headers_never_escape_as_something_else(tmp_path: Path, facts: object):
    path = tmp_path / "iter_000001.safetensors"
    text = json.dumps(facts).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(CheckpointError):
        read_header(path)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 15]}, "wrong size"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [4, 20]}, "gaps"),
        ({"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}, "wrongly"),
        ({"dtype": "F32", "shape": [4]}, "wrongly"),
        ({"dtype": [], "shape": [4], "data_offsets": [0, 16]}, "wrongly"),
    ],
)
def test_contradicting_tensors(tmp_path, tensor, words):
    path = tmp_path / "iter_000001.safetensors"
    text = json.dumps({"w": tensor}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(DamagedCheckpoint, match=words):
        read_header(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s." + bytes(40), "pickle"),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.", "pickle"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00" + bytes(100), "zip archive"),
    ],
)
def test_pickles_in_disguise_are_named_and_not_called_damaged(tmp_path, data, words):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_header(path)
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_weights_of_others_and_newer_formats(tmp_path, write_checkpoint):
    path = tmp_path / "weights.safetensors"
    text = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match=r"no checkpoint of imgtool"):
        read_header(path)
    with pytest.raises(CheckpointError, match=r"newer imgtool \(format 2\)"):
        read_header(write_checkpoint(5, format=2))


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_header(tmp_path / "iter_000001.safetensors")


def test_foreign_files(write_foreign):
    header = read_header(write_foreign(31318))
    assert (header.iteration, header.epoch, header.finite, header.metrics) == (
        31318,
        None,
        None,
        {},
    )
    for cut in (1, 30, 100):
        with pytest.raises(DamagedCheckpoint, match="zip"):
            read_header(write_foreign(31318, cut=cut))


def test_listing_takes_only_our_regular_files(experiment, write_checkpoint, write_foreign):
    folder = experiment.checkpoints_dir
    write_checkpoint(200)
    write_foreign(1000000)
    write_checkpoint(3)
    point(folder / "latest.safetensors", "iter_000200.safetensors")
    point(folder / "iter_000777.safetensors", "iter_000200.safetensors")
    for name in (
        "iter_x.pt",
        "iter_5.ckpt",
        "notes.txt",
        "iter_9.safetensors.bak",
        "iter_1.pt.part",
    ):
        (folder / name).write_text("x")
    (folder / "iter_000001.pt").mkdir()
    temporary_beside(folder / "iter_000300.safetensors").write_text("x")
    assert [entry.iteration for entry in list_checkpoints(folder)] == [3, 200, 1000000]
    assert list_checkpoints(folder / "missing") == []
    assert list_checkpoints(folder / "notes.txt") == []


def test_one_between_two_updates_comes_after_its_iteration(experiment, write_checkpoint):
    folder = experiment.checkpoints_dir
    between = experiment.checkpoint_path(200, 12)
    assert between.name == "iter_000200_update_12.safetensors"
    for update in (12, 3):
        position = {"iteration": 200, "update": update}
        path = write_checkpoint(200, position=position)
        path.rename(experiment.checkpoint_path(200, update))
    write_checkpoint(200)
    write_checkpoint(201)
    write_checkpoint(199)
    for name in ("iter_000300_update_.safetensors", "iter_000300_update_1.pt", "iter_3_x.pt"):
        (folder / name).write_text("x")
    found = list_checkpoints(folder)
    assert [entry.reached for entry in found] == [(199, 0), (200, 0), (200, 3), (200, 12), (201, 0)]
    assert [read_header(entry.path).reached for entry in found] == [e.reached for e in found]
    experiment.checkpoint_path(201).unlink()
    assert newest_valid(folder).path == between
    half = temporary_beside(between)
    half.write_text("x")
    assert remove_temporaries(folder) == [half]


def test_newest_valid_skips_what_is_damaged_or_foreign(experiment, write_checkpoint, write_foreign):
    folder = experiment.checkpoints_dir
    assert newest_valid(folder) is None
    write_checkpoint(100)
    write_checkpoint(200, cut=1)
    write_foreign(300)
    assert newest_valid(folder).iteration == 100
    assert newest_valid(folder, foreign=True).iteration == 300


def test_only_our_temporaries_are_removed(experiment):
    folder = experiment.checkpoints_dir
    ours = [
        temporary_beside(folder / "iter_000300.safetensors"),
        temporary_beside(folder / "latest.safetensors"),
    ]
    theirs = [
        temporary_beside(folder / "thesis.tex"),
        folder / ".iter_000300.safetensors.tmp-",
        folder / "iter_000300.safetensors",
    ]
    for path in ours + theirs:
        path.write_text("x")
    assert sorted(remove_temporaries(folder)) == sorted(ours)
    assert sorted(folder.iterdir()) == sorted(theirs)
    half = temporary_beside(experiment.csv_path("S1"))
    half.write_text("x")
    assert remove_temporaries(experiment.path) == [half]


def test_a_header_of_very_many_tensors_is_refused_before_it_is_parsed(experiment, monkeypatch):
    path = experiment.checkpoint_path(1)
    head = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = b"{" + b",".join(head % number for number in range(whole.MAX_TENSORS + 1)) + b"}"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    monkeypatch.delattr(whole.json, "loads")
    with pytest.raises(CheckpointError, match="more than 100000 tensors"):
        read_header(path)
