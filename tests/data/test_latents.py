"""The format of latents files: what is written is what is read, and nothing else is taken."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from imgtool.data.latent_statistics import rounding
from imgtool.data.latent_writing import LatentsWriter, beginning, finish, partial_path
from imgtool.data.latents import LatentsFile
from imgtool.errors import DataError, UsageError
from tests.data.latents_made import contents_of, rows_of, write_latents

several = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
ALL = {"labels": 3, "classes": 4, "with_logvar": True, "with_flipped": True}


@pytest.mark.parametrize(
    ("given_", "dtype"),
    [({}, "float32"), (ALL, "float16"), ({"classes": 2}, "float16"), ({"labels": 2}, "float32")],
)
def test_what_is_written_is_read(tmp_path, given_, dtype):
    contents = contents_of(7, dtype=dtype, parts=[0, 0, 1, 0, 2, 1, 0], **given_)
    rows = rows_of(contents)
    file = write_latents(tmp_path / "x.safetensors", contents, rows)
    assert (file.num_images, file.shape, file.names) == (7, (3, 2, 4), contents.names)
    assert (file.groups, file.autoencoder, file.data) == (
        contents.groups, contents.autoencoder, contents.data,
    )  # fmt: skip
    assert file.parts.tolist() == [0, 0, 1, 0, 2, 1, 0]
    assert [file.rows_of(part).tolist() for part in ("train", "val", "test")] == [
        [0, 1, 3, 6], [2, 5], [4],
    ]  # fmt: skip
    assert file.image_size == (8, 16)
    assert (file.has_logvar, file.has_flipped) == (contents.with_logvar, contents.with_flipped)
    stored = {name: rows[name].astype(dtype).astype(np.float32) for name in contents.latents}
    for name, values in stored.items():
        read = {"mean": file.mean, "logvar": file.logvar}[name.partition("_")[0]]
        flipped = name.endswith("_flipped")
        assert np.array_equal(read(slice(None), flipped=flipped), values)
        assert np.array_equal(read(3, flipped=flipped), values[3])
        assert np.array_equal(read([4, 1], flipped=flipped), values[[4, 1]])
        assert read(3).flags.writeable
    if file.has_label:
        assert file.label([0, 5]).tolist() == rows["label"][[0, 5]].tolist()
    if file.has_mask:
        assert np.array_equal(file.mask(slice(None)), rows["mask"])
        assert np.array_equal(file.mask(2, flipped=True), rows["mask"][2, :, ::-1])
    assert file.check_values() == []
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("with_logvar", [False, True])
def test_statistics_are_those_of_the_training_images(tmp_path, monkeypatch, with_logvar):
    monkeypatch.setattr("imgtool.data.latent_statistics.CHUNK_BYTES", 8 * 24 * 2)  # blocks of two
    contents = contents_of(9, parts=[0, 1, 0, 0, 2, 0, 1, 0, 0], with_logvar=with_logvar)
    rows = rows_of(contents)
    rows["mean"] += np.array([1e4, -3, 0], np.float32)[:, None, None]
    file = write_latents(tmp_path / "x.safetensors", contents, rows)
    train = contents.parts == 0
    mean = rows["mean"][train].astype(np.float64)
    variance = mean.var((0, 2, 3))
    if with_logvar:
        variance = variance + np.exp(rows["logvar"][train].astype(np.float64)).mean((0, 2, 3))
    assert file.channel_mean == pytest.approx(mean.mean((0, 2, 3)), rel=1e-6)
    assert file.channel_std == pytest.approx(np.sqrt(variance), rel=1e-6)
    assert file.shift == pytest.approx(mean.mean(), rel=1e-12)
    whole = mean.var() + (variance - mean.var((0, 2, 3))).mean()
    assert file.scale == pytest.approx(1 / np.sqrt(whole), rel=1e-9)
    if not with_logvar:
        normal = file.normalise(file.mean(np.flatnonzero(train)))
        assert np.abs(normal.mean((0, 2, 3))).max() < 1e-2
        assert normal.std((0, 2, 3)) == pytest.approx(1, rel=1e-3)


def test_a_channel_that_never_changes(tmp_path):
    contents = contents_of()
    rows = rows_of(contents)
    rows["mean"][:, 1] = 0.25
    file = write_latents(tmp_path / "x.safetensors", contents, rows)
    assert file.channel_std[1] == 1
    assert not file.normalise(file.mean(0))[1].any()


def test_the_library_reads_it(tmp_path):
    contents = contents_of(dtype="float16", **ALL)
    rows = rows_of(contents)
    write_latents(tmp_path / "x.safetensors", contents, rows)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        meta = json.loads(file.metadata()["imgtool-latents"])
        assert meta["names"] == list(contents.names)
        assert file.get_tensor("mean").dtype.itemsize == 2
        assert file.get_tensor("mean").numpy().tolist() == rows["mean"].astype("f2").tolist()
        assert file.get_tensor("label").tolist() == rows["label"].tolist()
        assert file.get_slice("mask")[1:3].tolist() == rows["mask"][1:3].tolist()


def test_the_order_of_the_tensors_does_not_matter(tmp_path):
    ours = write_latents(tmp_path / "x.safetensors", contents_of(**ALL))
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file(tensors, tmp_path / "y.safetensors", file.metadata())
    other = LatentsFile(tmp_path / "y.safetensors")
    assert other.check_values() == []
    assert np.array_equal(other.mean(slice(None)), ours.mean(slice(None)))


# --- what is no such file -------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "x.safetensors"
    write_latents(path, contents_of(4, dtype="float16", **ALL))
    return path.read_bytes()


def header_end(raw):
    return 8 + int(struct.unpack("<Q", raw[:8])[0])


def use(path):
    """Open a file and touch all of it."""
    file = LatentsFile(path)
    for index in range(len(file)):
        assert file.mean(index).shape == file.shape
        file.mask(index), file.label(index)
    file.check_values()


def test_every_cut_of_the_header_is_found(made, tmp_path):
    path, end = tmp_path / "x.safetensors", header_end(made)
    for length in [*range(16), *range(16, end + 40, 7), len(made) - 1]:
        path.write_bytes(made[:length])
        with pytest.raises(DataError, match=r"x\.safetensors: not a sound file of latents"):
            LatentsFile(path)
    path.write_bytes(made + b"\0")
    with pytest.raises(DataError, match="instead of"):
        LatentsFile(path)


@several
@given(data=st.data())
def test_truncated_files(made, tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(made[: data.draw(st.integers(0, len(made) - 1))])
    with pytest.raises(DataError):
        LatentsFile(path)


@several
@given(data=st.data())
def test_mutated_bytes_are_refused_or_harmless(made, tmp_path, data):
    changed = bytearray(made)
    for _ in range(data.draw(st.integers(1, 5))):
        changed[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.safetensors"
    path.write_bytes(changed)
    try:
        use(path)
    except DataError:
        return


def test_a_changed_byte_of_the_data_is_found(made, tmp_path):
    path, end = tmp_path / "x.safetensors", header_end(made)
    for at in range(end, len(made), 61):
        changed = bytearray(made)
        changed[at] ^= 1
        path.write_bytes(changed)
        try:
            bad = LatentsFile(path).check_values()
        except DataError:
            continue
        assert bad, at


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@several
@given(data=st.data())
def test_any_value_in_the_header(made, tmp_path, data):
    end = header_end(made)
    header = json.loads(made[8:end])
    meta = json.loads(header["__metadata__"]["imgtool-latents"])
    value = data.draw(json_values)
    where = data.draw(st.sampled_from(["tensor", "field", "meta", "fact", "metadata", "top"]))
    if where in ("meta", "fact"):
        of = meta if where == "meta" else meta[data.draw(st.sampled_from(["autoencoder", "data"]))]
        key = data.draw(st.sampled_from(sorted(of)))
        old, of[key] = of[key], value
        header["__metadata__"]["imgtool-latents"] = json.dumps(meta)
    elif where == "metadata":
        old, header["__metadata__"] = header["__metadata__"], value
    elif where == "top":
        old, header = header, value
    else:
        name = data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        of, key = (header, name) if where == "tensor" else (header[name], field)
        old, of[key] = of[key], value
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + made[end:])
    same_kind = where in ("meta", "fact") and (type(value) is type(old) or value is None)
    if old == value or same_kind or key_takes_any(where, value):
        try:
            use(path)
        except DataError:
            return
    else:
        with pytest.raises(DataError):
            use(path)


def key_takes_any(where, value):
    """Numbers stand for one another where a number is wanted: 1 for 1.0, and a crop for None."""
    return where in ("meta", "fact") and isinstance(value, int | float | str)


# --- writing by and by ----------------------------------------------------------------------


def begin(out, contents, first, count, **how):
    """Write some images, and leave."""
    with beginning(out, contents, **how) as goes_on, LatentsWriter(out, contents) as writer:
        assert goes_on
        rows = rows_of(contents)
        writer.put(first, {name: values[first : first + count] for name, values in rows.items()})
        return writer.done()


def test_several_turns_make_the_same_bytes_as_one(tmp_path):
    contents = contents_of(6, dtype="float16", **ALL)
    whole = write_latents(tmp_path / "a.safetensors", contents)
    out = tmp_path / "b.safetensors"
    begin(out, contents, 4, 2)
    begin(out, contents, 0, 3)
    with LatentsWriter(out, contents) as writer:
        assert writer.done().tolist() == [True] * 3 + [False] + [True] * 2
    assert not out.exists()
    with pytest.raises(DataError):
        LatentsFile(partial_path(out))
    begin(out, contents, 3, 1)
    with beginning(out, contents) as goes_on:
        assert goes_on
        finish(out, contents)
    assert out.read_bytes() == whole.path.read_bytes()
    assert not partial_path(out).exists()


def test_ended_between_the_last_two_steps(tmp_path, monkeypatch):
    contents, out = contents_of(**ALL), tmp_path / "x.safetensors"
    monkeypatch.setattr("imgtool.data.latent_writing._put_in_place", lambda out: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_latents(out, contents)
    monkeypatch.undo()
    assert not out.exists()
    with beginning(out, contents) as goes_on, LatentsWriter(out, contents) as writer:
        assert goes_on
        assert writer.done().all()
        finish(out, contents)
    assert LatentsFile(out).check_values() == []


def test_the_same_again_is_left_alone_and_another_refused(tmp_path):
    out, contents = tmp_path / "x.safetensors", contents_of()
    write_latents(out, contents)
    before = out.stat()
    with beginning(out, contents) as goes_on:
        assert not goes_on
    assert out.stat() == before
    other = contents_of(dtype="float16")
    with pytest.raises(UsageError, match=r"another encoding \(dtype\)"), beginning(out, other):
        pass
    assert write_latents(out, other, force=True).contents.dtype == "float16"


def test_a_beginning_of_something_else(tmp_path):
    out, contents = tmp_path / "x.safetensors", contents_of()
    begin(out, contents, 0, 2)
    other = contents_of(dtype="float16")
    with pytest.raises(UsageError, match="beginning of another"), beginning(out, other):
        pass
    assert begin(out, contents, 0, 1).sum() == 2
    assert begin(out, other, 0, 1, force=True).sum() == 0
    partial_path(out).write_bytes(b"somebody's diary")
    with pytest.raises(UsageError, match="in the way"), beginning(out, other):
        pass
    partial_path(out).write_bytes(bytes(500))  # killed before it said what it was
    write_latents(out, other)


def test_one_writes_at_a_time(tmp_path):
    out, contents = tmp_path / "x.safetensors", contents_of()
    with (
        beginning(out, contents),
        pytest.raises(UsageError, match="another process"),
        beginning(out, contents),
    ):
        pass


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    out = tmp_path / "new" / "x.safetensors"
    with pytest.raises(DataError, match=r"needs \d.* kB, 1\.0 kB are free"):
        write_latents(out, contents_of(20))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        write_latents(tmp_path / "file" / "x.safetensors")


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [(7e4, "float16", "float16 ends at 65504"), (np.nan, "float32", "not finite"),
     (-np.inf, "float16", "not finite")],
)  # fmt: skip
def test_numbers_that_cannot_be_stored(tmp_path, value, dtype, words):
    contents = contents_of(dtype=dtype)
    rows = rows_of(contents)
    rows["mean"][2, 1, 0, 3] = value
    with pytest.raises(DataError, match=rf"p2\.png: .*{words}"):
        write_latents(tmp_path / "x.safetensors", contents, rows)


def test_what_float16_costs(tmp_path):
    contents = contents_of(64, shape=(2, 8, 8), dtype="float16")
    rows = rows_of(contents)
    rows["mean"][:, 1] += 1000
    file = write_latents(tmp_path / "x.safetensors", contents, rows)
    lost = file.mean(slice(None)) - rows["mean"]
    measured = np.sqrt((lost**2).mean((0, 2, 3))) / rows["mean"].std((0, 2, 3))
    assert measured.max() <= rounding(file) <= 2.5 * measured.max()
