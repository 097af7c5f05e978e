"""What torch is told of arithmetic, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from imgtool.config.load import load
from imgtool.config.schema import Train
from imgtool.models.registry import FAMILIES, schema
from imgtool.training.device import (
    Precision,
    arithmetic,
    channels_last,
    configure_torch,
    doubt_precision,
)
from imgtool.training.environment import cpuinfo
from imgtool.training.ranks import Ranks
from imgtool.training.validation import Validator

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


@pytest.fixture
def cudnn() -> Iterator[object]:
    """Its flags, and the precision of products, as they were afterwards."""
    flags, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    kept = flags.allow_tf32, flags.benchmark
    yield flags
    flags.allow_tf32, flags.benchmark = kept
    torch.set_float32_matmul_precision(before)


def test_tf32_is_for_products_and_convolutions_alike(cudnn):
    cudnn.allow_tf32 = True  # as torch has it
    threads = torch.get_num_threads()
    for wanted in ("highest", "high", "highest"):
        configure_torch(Train(matmul_precision=wanted, threads=threads), CPU, 0, Ranks())
        assert torch.get_float32_matmul_precision() == wanted
        assert cudnn.allow_tf32 == (wanted == "high")
    assert Train().matmul_precision == "highest"


def test_whole_images_try_out_no_kernels(cudnn):
    cudnn.benchmark = True
    task = SimpleNamespace(modules=nn.Module(), compiled=False)
    validator = Validator(task, None, Precision(CPU), None)
    with pytest.raises(KeyError), validator.looking():
        assert not cudnn.benchmark
        raise KeyError
    assert cudnn.benchmark


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_layout_is_the_familys_unless_it_is_asked_for(family):
    for wanted in (None, True, False):
        sets = [] if wanted is None else [f"train.channels_last={str(wanted).lower()}"]
        experiment = load(None, family=family, schema_of=schema, sets=sets).experiment
        for device in (CPU, CUDA):
            found = channels_last(experiment, device)
            own = schema(family).channels_last(experiment, device.type)
            assert found is (own if wanted is None else wanted)
        said = arithmetic(experiment, CPU, 2)
        assert said["layout"] == ("NHWC" if channels_last(experiment, CPU) else "NCHW")
        assert (said["matmul_precision"], said["num_threads"]) == ("highest", 2)
