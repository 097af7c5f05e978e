"""One exported codec for all tests of this folder."""

from __future__ import annotations

import pytest
import torch

from imgtool.evaluation.codec.export import open_codec, read
from tests.evaluation.codec.making import write_checkpoint


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with `iter_000007.safetensors` and its export, `codec.safetensors`."""
    folder = tmp_path_factory.mktemp("codec")
    read(str(write_checkpoint(folder / "iter_000007.safetensors"))).write(
        folder / "codec.safetensors"
    )
    return folder


@pytest.fixture(scope="session")
def codec(files):
    return open_codec(str(files / "codec.safetensors"), device="cpu")
