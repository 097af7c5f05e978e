"""Weights that somebody has published; no file is opened before its SHA-256 is known.

Looked for in this order: what was given (a path, or `random`), an environment variable, our cache
folder, torch hub's cache, the network.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imgtool.errors import DataError
from imgtool.files import replacing
from imgtool.units import format_bytes

RANDOM = "random"
MAX_BYTES = 1 << 30
TIMEOUT_SEC = 30.0
_CHUNK = 1 << 20

Tell = Callable[[int, int], None]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Published:
    """A file that the world calls by one hash.

    Attributes:
        of: whose weights it has, for people.
        url: https only.
        names: it goes by these in caches.
        variable: the environment variable that may name it.
    """

    of: str
    url: str
    names: tuple[str, ...]
    sha256: str
    num_bytes: int
    variable: str


@dataclass(frozen=True)
class Weights:
    """Weights that may be used.

    Attributes:
        path: the file; None for random ones.
        identity: its SHA-256, or `random`.
        verified: whether they are the published ones.
    """

    path: Path | None
    identity: str
    verified: bool


@dataclass(frozen=True)
class Flags:
    """Options of a command by which people say which weights they mean.

    Attributes:
        file: takes a path, or `random`.
        unverified: takes a given file whose hash is another.
    """

    file: str
    unverified: str


def _ignore(*_: object) -> None:
    return None


def find_weights(
    published: Published,
    given: str | None = None,
    *,
    download: bool = True,
    allow_unverified: bool = False,
    flags: Flags | None = None,
    tell: Tell = _ignore,
    note: Note = _ignore,
) -> Weights:
    """The weights of a published file.

    Args:
        given: a path or `random`; else the variable, the caches and the network are tried.
        download: fetch them when they are nowhere.
        allow_unverified: take a given file whose hash is another.
        flags: of the command that asks, for hints; None where there is the variable alone.
        tell: hears of bytes downloaded and in all.
        note: hears of files passed over.

    Raises:
        DataError: a given file is missing or is not the published one; or they are nowhere, and
            cannot be fetched.
    """
    chosen = given or os.environ.get(published.variable)
    origin = flags.file if given and flags else published.variable
    if chosen == RANDOM:
        return Weights(None, RANDOM, verified=False)
    if chosen:
        path = Path(chosen).expanduser()
        return _given(path, origin, published, flags, allow_unverified)
    for path in cached(published):
        if not path.is_file():
            continue
        if sha256_of(path) == published.sha256:
            return Weights(path, published.sha256, verified=True)
        note(f"{path} is passed over: its SHA-256 is not the published one")
    if not download:
        what = f"the weights of {published.of} are not on this machine"
        raise _absent(what, published, flags)
    path = cache_folder() / published.names[0]
    _download(published, path, flags, tell)
    return Weights(path, published.sha256, verified=True)


def cache_folder() -> Path:
    """Where downloaded weights are kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "imgtool"


def _hub_folder() -> Path:
    """torch hub's own, found as torch finds it."""
    root = os.environ.get("XDG_CACHE_HOME")
    cache = Path(root) if root else Path.home() / ".cache"
    home = os.environ.get("TORCH_HOME")
    return (Path(home).expanduser() if home else cache / "torch") / "hub" / "checkpoints"


def cached(published: Published) -> Iterator[Path]:
    """Where a file is looked for when none is named."""
    for folder in (cache_folder(), _hub_folder()):
        for name in published.names:
            yield folder / name


def _given(
    path: Path, origin: str, published: Published, flags: Flags | None, allow_unverified: bool
) -> Weights:
    if not path.is_file():
        raise DataError(
            f"{origin}: no file {path}", hint=f"give {published.names[0]}, or `{RANDOM}` for a test"
        )
    found = sha256_of(path)
    if found == published.sha256:
        return Weights(path, found, verified=True)
    if not allow_unverified:
        size = path.stat().st_size
        what = f"SHA-256 {found[:12]}…, {size:,} bytes"
        wanted = f"{published.sha256[:12]}…, {published.num_bytes:,} bytes"
        hint = f"fetch {published.url} again"
        if flags:
            hint += f"; {flags.unverified} takes it, for numbers that compare with nobody else's"
        raise DataError(
            f"{path} is not the published {published.names[0]}: {what}, not {wanted}", hint=hint
        )
    return Weights(path, found, verified=False)


_known_hashes: dict[tuple[str, int, int], str] = {}


def sha256_of(path: Path) -> str:
    """A file's SHA-256; computed once while its size and time of change stay.

    Raises:
        DataError: it cannot be read, or is far too large for weights.
    """
    try:
        status = path.stat()
        key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        if status.st_size > MAX_BYTES:
            raise DataError(f"{path} has {format_bytes(status.st_size)}: no published weights")
        if key not in _known_hashes:
            with open(path, "rb") as stream:
                _known_hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return _known_hashes[key]


def _absent(what: str, published: Published, flags: Flags | None) -> DataError:
    searched = ", ".join(str(path) for path in cached(published))
    variable = published.variable
    give = f"give {flags.file} FILE or set {variable}" if flags else f"set {variable}=FILE"
    test = f"{flags.file} {RANDOM}" if flags else f"{variable}={RANDOM}"
    return DataError(
        f"{what}; looked for {searched}",
        hint=f"fetch {published.url} (SHA-256 {published.sha256}) elsewhere and {give}; "
        f"{test} tests without them",
    )


def _download(published: Published, path: Path, flags: Flags | None, tell: Tell) -> None:
    """Fetch a file; it gets its name once its length and hash are right."""
    import urllib.error

    failure = f"cannot download the weights of {published.of}"
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            for done, chunk in _fetch(published):
                digest.update(chunk)
                file.write(chunk)
                tell(done, published.num_bytes)
            if digest.hexdigest() != published.sha256:
                raise _absent(f"{failure}: what arrived is another file", published, flags)
    except urllib.error.URLError as error:
        reason = error.reason if not isinstance(error, urllib.error.HTTPError) else error
        raise _absent(f"{failure}: {reason}", published, flags) from error
    except OSError as error:
        raise _absent(f"{failure}: {error.strerror or error}", published, flags) from error


def _fetch(published: Published) -> Iterator[tuple[int, bytes]]:
    """(bytes so far, bytes) in pieces; never more than there should be."""
    import urllib.request

    request = urllib.request.Request(published.url, headers={"User-Agent": "imgtool"})
    done = 0
    with urllib.request.urlopen(request, timeout=TIMEOUT_SEC) as answer:
        if not str(answer.geturl()).startswith("https://"):
            raise OSError("redirected away from https")
        while done <= published.num_bytes:
            chunk = answer.read(_CHUNK)
            if not chunk:
                break
            done += len(chunk)
            yield done, chunk
    if done != published.num_bytes:
        raise OSError(f"{done:,} bytes arrived instead of {published.num_bytes:,}")
