import hashlib
import io
import os
import re
import urllib.error
import urllib.request

import pytest

from imgtool import published as weights
from imgtool.errors import DataError, ExitCode
from imgtool.evaluation.fid.weights import FLAGS
from imgtool.evaluation.fid.weights import PUBLISHED as INCEPTION
from imgtool.nn.lpips_weights import VGG16
from imgtool.published import Published, find_weights

CONTENT = b"published weights " * 1000
VARIABLE = "IMGTOOL_ONE_WEIGHTS"
REAL = {**INCEPTION, "vgg16": VGG16}
NAMES = ("pt_one.pth", "weights-two.pth")


@pytest.fixture(autouse=True)
def published(tmp_path, monkeypatch):
    """A published file of our own, empty caches, and no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (VARIABLE, "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    one = Published(
        of="one",
        url="https://example.org/pt_one.pth",
        names=NAMES,
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        num_bytes=len(CONTENT),
        variable=VARIABLE,
    )

    def offline(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    return one


def put(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def serve(monkeypatch, content, url="https://cdn.example.org/x"):
    class Answer(io.BytesIO):
        def geturl(self):
            return url

    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: Answer(content))


@pytest.mark.parametrize("features", sorted(REAL))
def test_hashes_agree_with_the_names_that_quote_them(features):
    one = REAL[features]
    assert re.fullmatch(r"[0-9a-f]{64}", one.sha256)
    assert one.url.startswith("https://")
    assert one.url.endswith(one.names[0])
    assert all(one.sha256[:8] in name for name in one.names)
    assert 90e6 < one.num_bytes < 560e6 < weights.MAX_BYTES


def test_the_order_in_which_they_are_looked_for(tmp_path, monkeypatch, published):
    hub = put(tmp_path / "cache/torch/hub/checkpoints" / NAMES[1])
    assert find_weights(published).path == hub
    home = put(tmp_path / "home/hub/checkpoints" / NAMES[0])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    assert find_weights(published).path == home
    ours = put(tmp_path / "cache/imgtool" / NAMES[0])
    assert find_weights(published).path == ours
    named = put(tmp_path / "named.pth")
    monkeypatch.setenv(VARIABLE, str(named))
    assert find_weights(published).path == named
    given = put(tmp_path / "given.pth")
    found = find_weights(published, str(given))
    assert (found.path, found.verified) == (given, True)
    random = find_weights(published, "random")
    assert (random.path, random.identity, random.verified) == (None, "random", False)


def test_a_given_file_that_is_another(tmp_path, monkeypatch, published):
    other = put(tmp_path / "other.pth", CONTENT[:-1] + b"?")
    with pytest.raises(DataError, match="is not the published pt_one.pth") as caught:
        find_weights(published, str(other), flags=FLAGS)
    assert "--allow-unverified-weights" in caught.value.hint
    found = find_weights(published, str(other), allow_unverified=True)
    assert (found.verified, found.identity) == (False, weights.sha256_of(other))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.pth"))
    with pytest.raises(DataError, match=f"{VARIABLE}: no file"):
        find_weights(published)


def test_a_truncated_file_in_a_cache_is_passed_over(tmp_path, published):
    put(tmp_path / "cache/imgtool" / NAMES[0], CONTENT[:500])
    whole = put(tmp_path / "cache/torch/hub/checkpoints" / NAMES[0])
    notes = []
    assert find_weights(published, note=notes.append).path == whole
    assert len(notes) == 1
    assert "passed over" in notes[0]


def test_a_file_that_changes_is_hashed_again(tmp_path, monkeypatch):
    path = put(tmp_path / "a.pth")
    first = weights.sha256_of(path)
    reads = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: reads.append(1) or digest(*a))
    assert weights.sha256_of(path) == first
    assert reads == []
    path.write_bytes(b"another")
    os.utime(path, ns=(1, 1))
    assert weights.sha256_of(path) != first
    assert len(reads) == 1


def test_absent_and_offline(published):
    for download, flags, reason in (
        (False, FLAGS, "the weights of one are not on this machine"),
        (True, None, "cannot download the weights of one: Name or service not known"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            find_weights(published, download=download, flags=flags)
        assert caught.value.exit_code == ExitCode.UNREADABLE
        for path in weights.cached(published):
            assert str(path) in str(caught.value)
        for word in ("https://example.org/pt_one.pth", published.sha256, VARIABLE, "random"):
            assert word in caught.value.hint
        assert ("--weights" in caught.value.hint) == (flags is not None)


def test_a_download(tmp_path, monkeypatch, published):
    monkeypatch.setattr(weights, "_CHUNK", 7000)
    serve(monkeypatch, CONTENT)
    heard = []
    found = find_weights(published, tell=lambda *count: heard.append(count))
    assert found.path == tmp_path / "cache/imgtool" / NAMES[0]
    assert found.path.read_bytes() == CONTENT
    assert found.verified
    assert heard == [(7000, 18000), (14000, 18000), (18000, 18000)]


@pytest.mark.parametrize(
    ("content", "url", "reason"),
    [
        (CONTENT[:-5], "https://x.org", "17,995 bytes arrived"),
        (CONTENT + b"more", "https://x.org", "bytes arrived"),
        (CONTENT[::-1], "https://x.org", "another file"),
        (CONTENT, "http://x.org", "away from https"),
    ],
)
def test_a_bad_download_leaves_nothing(content, url, reason, tmp_path, monkeypatch, published):
    serve(monkeypatch, content, url)
    with pytest.raises(DataError, match=reason):
        find_weights(published)
    assert list((tmp_path / "cache/imgtool").iterdir()) == []
