import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgtool.errors import DataError, UsageError
from imgtool.evaluation.fid.cache import Cache, read_statistics, refuse_unlike, write_statistics
from imgtool.evaluation.fid.statistics import Statistics

SETTINGS = {
    "features": "inception-fid",
    "weights": "a" * 64,
    "resize": "clean",
    "dtype": "float32",
    "tf32": False,
    "layout": "channels_last",
    "image_size": 64,
    "attribute": "Smiling",
    "side": "with",
    "split": "all",
    "n": 30,
    "seed": 0,
    "data": "0123456789abcdef01234567",
}


@pytest.fixture
def some():
    return Statistics.of(np.random.default_rng(0).random((30, 8), np.float32))


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_there_and_back(some, tmp_path):
    path = tmp_path / "deep/a.npz"
    write_statistics(path, some, SETTINGS)
    found = read_statistics(path)
    for name in ("mu", "sigma", "features"):
        assert np.array_equal(getattr(found.statistics, name), getattr(some, name))
    assert found.statistics.n == 30
    assert found.settings["tool"].startswith("imgtool ")
    assert SETTINGS.items() <= found.settings.items()
    assert [p.name for p in path.parent.iterdir()] == ["a.npz"]


def test_other_tools_read_it(some, tmp_path):
    """As pytorch-fid does: by the names mu and sigma."""
    write_statistics(tmp_path / "a.npz", some, SETTINGS)
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(file["mu"][:], some.mu)
        assert np.array_equal(file["sigma"][:], some.sigma)


def test_other_tools_files(some, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", mu=some.mu.astype("f4"), sigma=some.sigma)
    found = read_statistics(tmp_path / "a.npz")
    assert found.settings is None
    assert (found.statistics.n, found.statistics.features) == (None, None)
    assert found.statistics.mu.dtype == np.float64
    notes = []
    refuse_unlike(tmp_path / "a.npz", found, SETTINGS, notes.append)
    assert "does not say how it was measured" in notes[0]


def test_unlike_statistics_are_never_compared(some, tmp_path):
    write_statistics(tmp_path / "a.npz", some, SETTINGS)
    stored = read_statistics(tmp_path / "a.npz")
    notes = []
    more = {"seed": 3, "side": "fake", "n": 7, "data": "other", "split": "val"}
    refuse_unlike(tmp_path / "a.npz", stored, {**SETTINGS, **more}, notes.append)
    refuse_unlike(tmp_path / "a.npz", stored, {**SETTINGS, "image_size": None}, notes.append)
    assert notes == []
    for key, value in (("resize", "tf1"), ("weights", "random"), ("image_size", 128)):
        with pytest.raises(UsageError, match=f"measured otherwise: {key} is "):
            refuse_unlike(tmp_path / "a.npz", stored, {**SETTINGS, key: value}, notes.append)


def test_a_hit_and_why_there_is_none(some, tmp_path):
    notes = []
    kept = Cache(tmp_path / "cache", notes.append)
    assert kept.find(SETTINGS) is None
    assert "no statistics of side `with`" in notes.pop()
    kept.keep(SETTINGS, some)
    assert np.array_equal(kept.find(SETTINGS).sigma, some.sigma)
    assert notes == []
    kept.keep({**SETTINGS, "resize": "tf1", "seed": 5}, some)
    for key, value, said in (
        ("seed", 1, "seed is 0, not 1"),
        ("data", "f" * 32, "data is 0123456789ab…, not ffffffffffff…"),
        ("image_size", 128, "image_size is 64, not 128"),
        ("weights", "random", "weights is aaaaaaaaaaaa…, not random"),
    ):
        assert kept.find({**SETTINGS, key: value}) is None
        assert notes.pop().endswith(f"{said}; they are measured now")
    assert kept.find({**SETTINGS, "side": "without"}) is None
    assert "measured so" not in notes.pop()


@pytest.mark.parametrize("damage", ["truncated", "empty", "renamed"])
def test_damaged_files_are_measured_again(damage, some, tmp_path):
    notes = []
    kept = Cache(tmp_path, notes.append)
    kept.keep(SETTINGS, some)
    path = kept.path(SETTINGS)
    if damage == "renamed":
        kept.keep({**SETTINGS, "seed": 9}, some)
        kept.path({**SETTINGS, "seed": 9}).replace(path)
    else:
        path.write_bytes(path.read_bytes()[: 900 if damage == "truncated" else 0])
    assert kept.find(SETTINGS) is None
    assert notes[0].startswith("warning: ")
    assert notes[0].endswith("measured again")
    kept.keep(SETTINGS, some)
    assert kept.find(SETTINGS) is not None


def test_a_folder_that_refuses_costs_a_note(some, tmp_path):
    (tmp_path / "file").write_text("")
    notes = []
    Cache(tmp_path / "file/below", notes.append).keep(SETTINGS, some)
    assert notes[0].startswith("warning: cannot keep")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mu": None}, "there is no mu"),
        ({"mu": np.zeros((8, 1))}, "mu has shape"),
        ({"mu": np.zeros(9)}, "sigma has shape"),
        ({"mu": np.full(8, np.nan)}, "not finite"),
        ({"sigma": np.arange(64.0).reshape(8, 8)}, "not symmetric"),
        ({"sigma": -np.eye(8)}, "not positive semi-definite"),
        ({"sigma": np.diag([1.0] * 7 + [-1e-3])}, "not positive semi-definite"),
        ({"sigma": np.full((8, 8), np.inf)}, "not finite"),
        ({"sigma": np.array([["a"] * 8] * 8)}, "sigma is of"),
        ({"mu": np.array([None] * 8)}, "mu is of object"),
        ({"mu": np.array([1j] * 8)}, "mu is of complex"),
        ({"n": np.int64(-3)}, "n is -3"),
        ({"n": np.int64(31)}, "features has shape"),
        ({"settings": np.frombuffer(b"[1]", np.uint8)}, "settings are damaged"),
        ({"settings": np.frombuffer(b"{", np.uint8)}, "holds no statistics"),
    ],
)
def test_what_is_refused(change, reason, some, tmp_path):
    arrays = {"mu": some.mu, "sigma": some.sigma, "n": np.int64(30), "features": some.features}
    arrays = {key: value for key, value in {**arrays, **change}.items() if value is not None}
    with pytest.raises(DataError, match=reason):
        read_statistics(saved(tmp_path / "a.npz", **arrays))


def test_a_pickle_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "sprung",))

    trap = np.empty(8, object)
    trap[:] = [Trap()] * 8
    with pytest.raises(DataError):
        read_statistics(saved(tmp_path / "a.npz", mu=trap, sigma=np.eye(8)))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("shape", [(10**12,), (2**29,), (1000,)])
def test_a_header_that_promises_too_much(shape, tmp_path):
    header = io.BytesIO()
    content = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("mu.npy", header.getvalue())
    with pytest.raises(DataError, match="which is too large|shorter than its header says"):
        read_statistics(tmp_path / "a.npz")


def test_too_many_features(tmp_path):
    with pytest.raises(DataError, match="mu has 8193 numbers"):
        read_statistics(saved(tmp_path / "a.npz", mu=np.zeros(8193), sigma=np.eye(2)))


def test_missing(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_statistics(tmp_path / "none.npz")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_file_breaks_the_reader(data, tmp_path):
    path = tmp_path / "a.npz"
    some = Statistics(np.zeros(3), np.eye(3), 5, np.zeros((5, 3), np.float32))
    write_statistics(path, some, {"side": "x"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        found = read_statistics(path)
    except DataError:
        return
    assert found.statistics.sigma.shape == (3, 3)
    json.dumps(found.settings)


def hollow(path, **heads):
    """An archive of zeros that its reader should not unpack."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, (dtype, shape) in heads.items():
            header = io.BytesIO()
            content = {"descr": dtype, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(header, content)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                stream.write(header.getvalue())
                left = int(np.prod(shape)) * np.dtype(dtype).itemsize
                while left:
                    left -= stream.write(bytes(min(left, 1 << 22)))
    return path


@pytest.mark.parametrize(
    ("heads", "reason"),
    [
        ({"mu": ("<f8", (1 << 20,))}, "mu has 1048576 numbers"),
        ({"sigma": ("<f8", (512, 8192))}, "sigma has shape"),
        ({"features": ("<f8", (1 << 18, 8))}, "features is of float64"),
        ({"features": ("<f4", (1 << 20, 1))}, "features has shape"),
        ({"settings": ("|u1", (1 << 20,))}, "settings are damaged"),
        ({"n": ("<f8", ())}, "n is of float64"),
        ({"mu": ("<f8", (4096,)), "sigma": ("<f8", (4096, 4096))}, "packed more tightly"),
    ],
)
def test_a_header_decides_before_anything_is_unpacked(heads, reason, tmp_path, monkeypatch):
    sound = {"mu": ("<f8", (8,)), "sigma": ("<f8", (8, 8)), "n": ("<i8", ())}
    path = hollow(tmp_path / "a.npz", **{**sound, **heads})
    unpacked = []
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: unpacked.append(1) or 30)
    with pytest.raises(DataError, match=reason):
        read_statistics(path)
    assert len(unpacked) <= 1  # n, a single number
