"""An image that does not fit the memory is refused, not left to the kernel."""

from __future__ import annotations

import os
import resource

import pytest
import torch

from imgtool.errors import OutOfMemory
from imgtool.evaluation.codec import memory
from imgtool.evaluation.rate_distortion.coders import open_coder
from imgtool.models.hpcm.variants import VARIANTS
from tests.evaluation.codec.making import make_image

GB = 10**9
MEMINFO = "MemTotal: 24000000 kB\nMemFree: 1 kB\nMemAvailable:   8000000 kB\nSwapFree: 500000 kB\n"


@pytest.fixture
def root(tmp_path):
    """A machine with 8.5 GB left."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    return tmp_path


def set_limit(folder, names, limit, used, cache):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip((*names, "memory.stat"), (limit, used, cache), strict=True):
        (folder / name).write_text(f"{text}\n")


def test_this_machines_memory():
    free = memory.available_bytes()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert free is not None
    assert 0 < free <= 64 * total
    held = memory.resident_bytes()
    # The kernel counts in batches: a little off.
    assert 0 < held <= 1.1 * 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_without_limits_it_is_the_kernels_word(root, tmp_path):
    assert memory.available_bytes(root) == 8_500_000 * 1024
    assert memory.available_bytes(tmp_path / "elsewhere") is None
    (root / "proc/meminfo").write_text("MemTotal: many kB\n")
    assert memory.available_bytes(root) is None


def test_a_batch_systems_limits_count(root):
    """Of both kinds of groups, and of the groups above; files in the cache are no use of it."""
    (root / "proc/self/cgroup").write_text("0::/jobs/7\n")
    two = ("memory.max", "memory.current")
    set_limit(root / "sys/fs/cgroup/jobs/7", two, "max", 3 * GB, "anon 1")
    assert memory.available_bytes(root) == 8_500_000 * 1024
    set_limit(root / "sys/fs/cgroup/jobs", two, 4 * GB, 3 * GB, f"inactive_file {GB // 2}")
    assert memory.available_bytes(root) == 1.5 * GB
    (root / "proc/self/cgroup").write_text("3:cpuset:/\n2:cpu,memory:/lsf\n0::/\n")
    one = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folder = root / "sys/fs/cgroup/memory/lsf"
    set_limit(folder, one, 2 * GB, 3 * GB, f"total_inactive_file {GB // 4}")
    assert memory.available_bytes(root) == 0
    (folder / one[1]).write_text("nonsense")
    assert memory.available_bytes(root) == 8_500_000 * 1024


def test_what_is_needed_follows_the_padded_pixels():
    tiny, base = VARIANTS["HPCM_Tiny"], VARIANTS["HPCM_Base"]
    assert memory.needed_bytes(tiny, 1, 1) == memory.needed_bytes(tiny, 64, 64) == 108 * 64**2
    assert memory.needed_bytes(base, 65, 64) == 2 * memory.needed_bytes(base, 64, 64)


@pytest.mark.parametrize("work", ["encode", "decode", "estimate"])
def test_what_does_not_fit_is_refused_before_the_work(codec, files, monkeypatch, work):
    image = make_image(40, 200)
    data = codec.encode(image).data
    coder = open_coder(str(files / "codec.safetensors"), real_bytes=False, device="cpu")
    room, code = {
        "encode": (codec.room, lambda: codec.encode(image)),
        "decode": (codec.room, lambda: codec.decode(data)),
        "estimate": (coder._room, lambda: coder(image)),
    }[work]
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    monkeypatch.setattr(room, "_loaded_bytes", 1 << 62)  # nothing to use again
    with pytest.raises(OutOfMemory, match=r"200x40 takes 1\.8 MB of memory with HPCM_Tiny") as e:
        code()
    assert "more memory" in e.value.hint
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    code()
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    monkeypatch.setattr(room, "_loaded_bytes", 0)  # all of it
    code()


def test_a_large_image_gives_its_memory_back(codec, monkeypatch):
    """Kept for the next step, freed memory lies in pieces; small ones are faster with it."""
    keeps = []
    monkeypatch.setattr(memory, "keep_freed_memory", keeps.append)
    codec.encode(make_image(64, 64))
    monkeypatch.setattr(memory, "LARGE_BYTES", 108 * 64**2 + 1)
    for size in ((64, 64), (64, 65), (20, 20)):
        codec.decode(codec.encode(make_image(*size)).data)
    assert keeps == [True, True, True, False, False, True, True]


def test_a_gpu_says_by_itself_that_it_is_full(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    memory.Room(VARIANTS["HPCM_Base"], torch.device("cuda")).make(10**5, 10**5)
