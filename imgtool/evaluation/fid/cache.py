"""Statistics on disk, as .npz files that pytorch-fid reads as well; no pickles.

A file holds mu and sigma (float64), the features (float32) that KID, the extrapolation and few
images need, n, and JSON text with the settings that they were measured with. A cache that lacks
what is wanted says in which setting its nearest file differs.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from scipy import linalg

from imgtool import __version__
from imgtool.errors import DataError, UsageError
from imgtool.evaluation.fid.statistics import Floats, Statistics
from imgtool.files import replacing

FORMAT = 1
MAX_WIDTH = 8192  # features
MAX_NUMBERS = 1 << 29  # in one array: 262,144 images
MAX_PIXELS = 1 << 34  # of all images of an array, times 3: 16 GiB
MAX_TEXT = 100_000
MAX_PACKED = 100  # times smaller than its content: what is worse takes memory and says nothing
MIN_PACKED_BYTES = 1_000_000
NUM_ROWS = 1024
NUM_NEAREST = 200  # files that are compared with what is wanted
# What must agree before two sets of statistics are compared; the rest says of what they are.
MEASURE = ("features", "weights", "resize", "dtype", "tf32", "layout", "image_size", "decoder")
_DEFAULTS = {"decoder": "imgtool"}  # of files that do not say
_ROUNDING = 1e-6

Settings = Mapping[str, Any]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Stored:
    """A file's contents.

    Attributes:
        settings: None in files of other tools.
    """

    statistics: Statistics
    settings: dict[str, Any] | None


def write_statistics(path: Path, statistics: Statistics, settings: Settings) -> None:
    """Write atomically.

    Raises:
        OSError: the disk refuses.
    """
    text = json.dumps({"format": FORMAT, "tool": f"imgtool {__version__}", **settings})
    arrays: dict[str, Any] = {
        "mu": statistics.mu,
        "sigma": statistics.sigma,
        "settings": np.frombuffer(text.encode(), np.uint8),
    }
    if statistics.n is not None:
        arrays["n"] = np.int64(statistics.n)
    if statistics.features is not None:
        arrays["features"] = statistics.features
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_statistics(path: Path) -> Stored:
    """Read statistics of ours or of pytorch-fid.

    Raises:
        DataError: not there, damaged, not statistics, or too large.
    """
    with _archive(path, "statistics", "mu and sigma, as imgtool and pytorch-fid write it") as file:
        return _read(file)


def read_array(path: Path, name: str) -> Any:
    """One array of four dimensions: images.

    Raises:
        DataError: not there, damaged, or too large.
    """
    with _archive(path, "images", f"{name}: (N, H, W, 3) uint8") as file:
        _shape(file, name, (None,) * 4, limit=MAX_PIXELS)
        return _array(file, name)


@contextmanager
def _archive(path: Path, what: str, wanted: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged archive makes zipfile and numpy raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} holds no {what}: {reason}", hint=f"give an .npz with {wanted}"
        ) from error


def _read(archive: zipfile.ZipFile) -> Stored:
    names = set(archive.namelist())
    (width,) = _shape(archive, "mu", (None,))
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"mu has {width} numbers")
    _shape(archive, "sigma", (width, width))
    settings = _read_settings(archive)
    n = features = None
    if "n.npy" in names:
        _shape(archive, "n", (), kinds="iu")
        n = int(_array(archive, "n"))
        if n < 2:
            raise ValueError(f"n is {n}")
    has_features = "features.npy" in names and n is not None
    if has_features:
        _shape(archive, "features", (n, width), dtype="float32")
    mu = _array(archive, "mu").astype(np.float64, copy=False)
    sigma = _array(archive, "sigma").astype(np.float64, copy=False)
    if not (_is_finite(mu) and _is_finite(sigma)):
        raise ValueError("values are not finite")
    largest = max(sigma.max(), -sigma.min())
    if any(np.abs(sigma[rows] - sigma[:, rows].T).max() > 1e-6 * largest for rows in _rows(sigma)):
        raise ValueError("sigma is not symmetric")
    if not _is_positive(sigma):
        raise ValueError("sigma is not positive semi-definite, as covariances are")
    if has_features:
        features = _array(archive, "features")
        if not _is_finite(features):
            raise ValueError("features are not finite")
    return Stored(Statistics(mu, sigma, n, features), settings)


def _rows(array: Any) -> list[slice]:
    """A few at a time: what is computed of all at once takes as much memory again."""
    return [slice(at, at + NUM_ROWS) for at in range(0, len(array), NUM_ROWS)]


def _is_finite(array: Any) -> bool:
    return all(np.isfinite(array[rows]).all() for rows in _rows(array))


def _is_positive(sigma: Floats) -> bool:
    """Whether no eigenvalue is below what rounding to float32 explains."""
    spread = float(np.trace(sigma))
    if not sigma.any():
        return True
    shifted = sigma + np.eye(len(sigma)) * (_ROUNDING * spread)
    return spread > 0 and linalg.get_lapack_funcs("potrf", (shifted,))(shifted, lower=1)[1] == 0


def _read_settings(archive: zipfile.ZipFile) -> dict[str, Any] | None:
    if "settings.npy" not in archive.namelist():
        return None
    (length,) = _shape(archive, "settings", (None,), dtype="uint8")
    if length > MAX_TEXT:
        raise ValueError("its settings are damaged")
    raw = _array(archive, "settings")
    settings = json.loads(raw.tobytes().decode())
    if not isinstance(settings, dict):
        raise ValueError("its settings are damaged")
    return settings


def _shape(
    archive: zipfile.ZipFile,
    name: str,
    wanted: tuple[int | None, ...],
    *,
    kinds: str = "fiu",
    dtype: str | None = None,
    limit: int = MAX_NUMBERS,
) -> tuple[int, ...]:
    """The shape that an array's header gives, once it is seen to be what it should be.

    Args:
        wanted: the shape; None stands for any length.
        kinds, dtype: those that its numbers may have.
        limit: of how many numbers there may be.
    """
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError(f"there is no {name}") from None
    with archive.open(entry) as stream:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        found, _, its = read(stream)
    if its.hasobject or its.kind not in kinds or dtype not in (None, its.name):
        raise ValueError(f"{name} is of {its}" + (f", not {dtype}" if dtype else ""))
    if len(found) != len(wanted) or any(
        length not in (None, has) for length, has in zip(wanted, found, strict=True)
    ):
        raise ValueError(f"{name} has shape {found}")
    count = math.prod(found)
    if count > limit:
        raise ValueError(f"{name} has shape {found}, which is too large")
    if count * its.itemsize > entry.file_size:
        raise ValueError(f"{name} is shorter than its header says")
    if entry.file_size > MAX_PACKED * max(entry.compress_size, MIN_PACKED_BYTES):
        raise ValueError(f"{name} is packed more tightly than measured numbers can be")
    return tuple(found)


def _array(archive: zipfile.ZipFile, name: str) -> Any:
    """One array, whose header has been judged."""
    with archive.open(f"{name}.npy") as stream:
        return npy.read_array(stream, allow_pickle=False)


def differences(wanted: Settings, found: Settings, keys: Sequence[str] | None = None) -> list[str]:
    """Words such as `seed is 1, not 0`; empty when all agree."""
    keys = list(wanted) if keys is None else keys
    there, asked = {**_DEFAULTS, **found}, {**_DEFAULTS, **wanted}
    return [
        f"{key} is {_shown(there.get(key))}, not {_shown(asked.get(key))}"
        for key in keys
        if there.get(key) != asked.get(key)
    ]


def _shown(value: object) -> str:
    text = "unset" if value is None else str(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{24,}", text) else text


def refuse_unlike(path: Path, stored: Stored, wanted: Settings, note: Note) -> None:
    """See that foreign statistics may be compared with features measured as `wanted`.

    Raises:
        UsageError: they were measured otherwise.
    """
    if stored.settings is None:
        note(f"warning: {path} does not say how it was measured; resize and weights may differ")
        return
    keys = [key for key in MEASURE if key in stored.settings or key in wanted]
    keys = [key for key in keys if key != "image_size" or wanted.get(key) is not None]
    differ = differences(wanted, stored.settings, keys)
    if differ:
        raise UsageError(
            f"{path} was measured otherwise: {'; '.join(differ)}",
            hint="measure both sides alike: statistics of different kinds say nothing together",
        )


class Cache:
    """Statistics in a folder, by their settings.

    Args:
        note: hears why something had to be measured.
    """

    def __init__(self, folder: Path, note: Note) -> None:
        self.folder, self._note = folder, note

    def path(self, settings: Settings) -> Path:
        """Where statistics of these settings lie."""
        text = json.dumps({"format": FORMAT, **settings}, sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        words = [settings.get("attribute"), settings.get("side"), f"n{settings.get('n')}"]
        stem = re.sub(r"[^\w.-]", "_", "-".join(str(word) for word in words if word))
        return self.folder / f"{stem}-{digest}.npz"

    def find(self, settings: Settings) -> Statistics | None:
        """What is kept for exactly these settings; None, with a note that says why, else."""
        path = self.path(settings)
        if not path.exists():
            self._note(f"{self._why_not(settings)}; they are measured now")
            return None
        try:
            stored = read_statistics(path)
        except DataError as error:
            self._note(f"warning: {error}; they are measured again")
            return None
        differ = differences(settings, stored.settings or {})
        if differ or stored.statistics.features is None:
            what = "; ".join(differ) or "it has no features"
            self._note(f"warning: {path}: {what}; they are measured again")
            return None
        return stored.statistics

    def keep(self, settings: Settings, statistics: Statistics) -> None:
        """Write them; a disk that refuses costs a note."""
        path = self.path(settings)
        try:
            write_statistics(path, statistics, settings)
        except OSError as error:
            self._note(f"warning: cannot keep {path}: {error.strerror or error}")

    def _why_not(self, settings: Settings) -> str:
        what = f"no statistics of side `{settings.get('side')}` in {self.folder}"
        nearest = None
        for path in _newest(self.folder):
            with suppress(Exception), zipfile.ZipFile(path) as archive:
                found = _read_settings(archive)
                if found is None or found.get("side") != settings.get("side"):
                    continue
                differ = differences({"format": FORMAT, **settings}, found)
                if nearest is None or len(differ) < len(nearest[1]):
                    nearest = path, differ
        if nearest is None:
            return what
        return f"{what} measured so: in {nearest[0].name} {'; '.join(nearest[1])}"


def _newest(folder: Path) -> list[Path]:
    with suppress(OSError):
        found = [(path.stat().st_mtime, path) for path in folder.glob("*.npz")]
        return [path for _, path in sorted(found, reverse=True)[:NUM_NEAREST]]
    return []
