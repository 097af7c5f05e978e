"""Where the weights of Inception come from; no file is opened before its SHA-256 is known.

Looked for in this order: what was given (a path, or `random`), the variable
IMGTOOL_FID_WEIGHTS, our cache folder, torch hub's cache, the network.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imgtool.errors import DataError
from imgtool.evaluation.fid.options import Listener, Options
from imgtool.files import replacing
from imgtool.units import format_bytes

VARIABLE = "IMGTOOL_FID_WEIGHTS"
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
        url: https only.
        names: it goes by these in caches.
    """

    url: str
    names: tuple[str, ...]
    sha256: str
    num_bytes: int


# The first is the Inception of 2015 that every published FID uses, as pytorch-fid converted it;
# torch-fidelity publishes the same bytes under the second name. The other is torchvision's own.
PUBLISHED = {
    "inception-fid": Published(
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        names=(
            "pt_inception-2015-12-05-6726825d.pth",
            "weights-inception-2015-12-05-6726825d.pth",
        ),
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        num_bytes=95_628_359,
    ),
    "inception-imagenet": Published(
        url="https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
        names=("inception_v3_google-0cc3c7bd.pth",),
        sha256="0cc3c7bd75056d25e46cba549dc184522069b81e9787eff6df84f397bd52a5ef",
        num_bytes=108_949_747,
    ),
}


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


def _ignore(*_: object) -> None:
    return None


def find_weights(
    features: str,
    given: str | None = None,
    *,
    download: bool = True,
    allow_unverified: bool = False,
    tell: Tell = _ignore,
    note: Note = _ignore,
) -> Weights:
    """The weights of a feature set.

    Args:
        features: a key of PUBLISHED.
        given: a path or `random`; else the variable, the caches and the network are tried.
        download: fetch them when they are nowhere.
        allow_unverified: take a given file whose hash is another.
        tell: hears of bytes downloaded and in all.
        note: hears of files passed over.

    Raises:
        DataError: a given file is missing or is not the published one; or they are nowhere, and
            cannot be fetched.
    """
    published = PUBLISHED[features]
    chosen, origin = (given, "--weights") if given else (os.environ.get(VARIABLE), VARIABLE)
    if chosen == RANDOM:
        return Weights(None, RANDOM, verified=False)
    if chosen:
        return _given(Path(chosen).expanduser(), origin, published, allow_unverified)
    for path in _cached(published):
        if not path.is_file():
            continue
        if sha256_of(path) == published.sha256:
            return Weights(path, published.sha256, verified=True)
        note(f"{path} is passed over: its SHA-256 is not the published one")
    if not download:
        raise _absent(f"the weights of {features} are not on this machine", published)
    path = cache_folder() / published.names[0]
    _download(published, path, features, tell)
    return Weights(path, published.sha256, verified=True)


def weights_for(options: Options, listener: Listener) -> Weights:
    """As `find_weights`; who watches hears what these weights are worth."""
    found = find_weights(
        options.features,
        options.weights,
        download=options.download,
        allow_unverified=options.allow_unverified,
        tell=lambda done, total: listener.progress("downloading", "bytes", done, total),
        note=lambda text: listener.note(f"warning: {text}"),
    )
    if not found.verified:
        kind = "random" if found.path is None else "unverified"
        listener.note(f"warning: {kind} weights: these numbers compare with nobody else's")
    return found


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


def _cached(published: Published) -> Iterator[Path]:
    for folder in (cache_folder(), _hub_folder()):
        for name in published.names:
            yield folder / name


def _given(path: Path, origin: str, published: Published, allow_unverified: bool) -> Weights:
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
        raise DataError(
            f"{path} is not the published {published.names[0]}: {what}, not {wanted}",
            hint="fetch it again; --allow-unverified-weights takes it, for FIDs that compare "
            "with nobody else's",
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
            raise DataError(f"{path} has {format_bytes(status.st_size)}: no weights of Inception")
        if key not in _known_hashes:
            with open(path, "rb") as stream:
                _known_hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return _known_hashes[key]


def _absent(what: str, published: Published) -> DataError:
    searched = ", ".join(str(path) for path in _cached(published))
    return DataError(
        f"{what}; looked for {searched}",
        hint=f"fetch {published.url} (SHA-256 {published.sha256}) elsewhere and give "
        f"--weights FILE or set {VARIABLE}; --weights {RANDOM} tests without them",
    )


def _download(published: Published, path: Path, features: str, tell: Tell) -> None:
    """Fetch a file; it gets its name once its length and hash are right."""
    failure = f"cannot download the weights of {features}"
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            for done, chunk in _fetch(published):
                digest.update(chunk)
                file.write(chunk)
                tell(done, published.num_bytes)
            if digest.hexdigest() != published.sha256:
                raise _absent(f"{failure}: what arrived is another file", published)
    except urllib.error.URLError as error:
        reason = error.reason if not isinstance(error, urllib.error.HTTPError) else error
        raise _absent(f"{failure}: {reason}", published) from error
    except OSError as error:
        raise _absent(f"{failure}: {error.strerror or error}", published) from error


def _fetch(published: Published) -> Iterator[tuple[int, bytes]]:
    """(bytes so far, bytes) in pieces; never more than there should be."""
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
