"""What is said of precisions that a device only emulates."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from imgtool.training.device import doubt_precision
from imgtool.training.environment import cpuinfo

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("line", "emulated"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512bw avx512_vnni", True),
        ("flags\t\t: fpu avx512f avx512_bf16", False),
        ("flags\t\t: fpu amx_bf16 amx_tile", False),
        ("Features\t: fp asimd i8mm bf16", False),
        ("Features\t: fp asimd", True),
        ("nothing of the kind", False),
    ],
)
def test_a_processor_without_bf16_is_named(tmp_path, monkeypatch, line, emulated):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr("imgtool.training.device.cpuinfo", partial(cpuinfo, path=path))
    for precision in ("bf16-mixed", "16-mixed"):
        assert doubt_precision(precision, CPU) is None  # nothing says
    path.write_text(f"processor\t: 0\nvendor_id\t: x\n{line}\n")
    for precision in ("bf16-mixed", "16-mixed"):
        assert (doubt_precision(precision, CPU) is not None) == emulated
    assert doubt_precision("32", CPU) is None


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_without_bf16_is_named(monkeypatch, native):
    """A V100 says that it supports bf16, and emulates it."""
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native,
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    said = doubt_precision("bf16-mixed", CUDA)
    assert said == (
        None
        if native
        else "Tesla V100 emulates bf16-mixed, slowly: 16-mixed is what it is made for"
    )
    assert doubt_precision("16-mixed", CUDA) is None
