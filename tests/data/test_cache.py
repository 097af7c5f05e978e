"""One cache for the processes of a machine: real processes that share it, and what they leave."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgtool.config.schema import Data
from imgtool.data import cache
from imgtool.data.cache import RamCache, shared_memory
from imgtool.data.datasets import open_datasets
from imgtool.errors import DataError

RANK = """
import hashlib, sys
from imgtool.config.schema import Data
from imgtool.data.datasets import open_datasets

class Pipes:
    '''The parent carries the first one's word to the others.'''
    is_first_here = sys.argv[2] == "0"
    def from_first_here(self, text):
        if self.is_first_here:
            print(text, flush=True)
            return text
        return sys.stdin.readline().rstrip("\\n")

data = Data(root=sys.argv[1], val_fraction=0.25, test_fraction=0.0, cache="ram")
opened = open_datasets(data, share=Pipes())
print(opened.unshared_cache, flush=True)
for line in sys.stdin:
    part = getattr(opened, line.strip())
    pixels = b"".join(part.read(i).image.tobytes() for i in range(len(part)))
    print(hashlib.sha256(pixels).hexdigest(), flush=True)
"""


@contextmanager
def rank(root: Path, number: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", RANK, str(root), str(number)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdin is not None
    process.stdin.write(words + "\n")
    process.stdin.flush()
    return answer(process)


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_what_one_process_decodes_the_others_have(make_photos: Callable) -> None:
    folder = make_photos(8)
    before = set(os.listdir("/dev/shm"))
    with rank(folder, 0) as first, rank(folder, 1) as second:
        where = answer(first)
        assert ask(second, where) == answer(first) == "None"
        read = {part: ask(first, part) for part in ("train", "val")}
        shutil.rmtree(folder)
        assert {part: ask(second, part) for part in read} == read
        assert read["train"] != read["val"]
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert ask(second, "train") == read["train"]  # it outlives the one that made it
        second.send_signal(signal.SIGKILL)
        second.wait()
    assert set(os.listdir("/dev/shm")) == before
    assert not Path(where.split()[0]).exists()


class Told:
    """A process that is not the first, or the only one that is."""

    def __init__(self, text: str | None) -> None:
        self.is_first_here, self.text = text is None, text
        self.given: list[str] = []

    def from_first_here(self, text: str) -> str:
        self.given.append(text)
        return text if self.text is None else self.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the first process could not make it"),
        ("/proc/999999999/fd/3 imgtool-cache-00", "No such file"),
        ("/etc/passwd imgtool-cache-00", "names no cache"),
    ],
)
def test_without_a_way_to_share_each_process_has_its_own(
    make_photos: Callable, text: str, words: str
) -> None:
    data = Data(root=str(make_photos(8)), cache="ram")
    opened = open_datasets(data, share=Told(text))
    assert words in (opened.unshared_cache or "")
    assert opened.train.decoded
    assert opened.train.read(0).image.any()
    assert open_datasets(data).unshared_cache is None


def test_only_the_cache_that_is_meant_is_taken() -> None:
    first = Told(None)
    made, why = shared_memory(64, first)
    assert why is None
    (where,) = first.given
    made[:] = 7
    other, why = shared_memory(64, Told(where))
    assert (why, other.tolist()) == (None, [7] * 64)
    assert "64 bytes instead of 72" in (shared_memory(72, Told(where))[1] or "")
    path = where.split()[0]
    assert f"{path} is " in (shared_memory(64, Told(f"{path} imgtool-cache-ff"))[1] or "")
    number = int(path.rsplit("/", 1)[1])
    os.fstat(number)
    del made, other
    with pytest.raises(OSError):
        os.fstat(number)  # closed with the memory


def test_a_first_process_that_cannot_tells_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(cache.os, "memfd_create", none)
    share = Told(None)
    memory, why = shared_memory(16, share)
    assert "Function not implemented" in (why or "")
    assert memory.tolist() == [0] * 16


def test_what_does_not_fit_is_refused_after_the_others_were_told() -> None:
    first = Told(None)
    for share in (None, first):
        with pytest.raises(DataError, match="do not fit into memory"):
            shared_memory(1 << 60, share)
    assert first.given == [""]


def test_memory_is_counted_to_the_byte() -> None:
    sizes = [(3, 5), (7, 1)]
    for with_masks, pixels in ((False, 3 * 22), (True, 4 * 22)):
        count = RamCache.num_bytes(sizes, with_masks=with_masks)
        assert count % 8 == 0
        assert 0 <= count - pixels - 9 * 2 < 8
        memory, _ = shared_memory(count, None)
        cached = RamCache(sizes, memory, with_masks=with_masks)
        assert cached.get(1) is None
