"""One exported codec for all tests of this folder."""

from __future__ import annotations

import pytest
import torch

from imgtool.evaluation.codec.export import open_codec, read, write
from tests.evaluation.codec.making import make_image, write_checkpoint


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with `iter_000007.safetensors` and its exports, codec and portable.safetensors."""
    folder = tmp_path_factory.mktemp("codec")
    export = read(str(write_checkpoint(folder / "iter_000007.safetensors")))
    write([export], folder / "codec.safetensors")
    images = [make_image(70, 130, seed=seed) for seed in range(2)]
    write([export.portable(images, {"images": "two"})], folder / "portable.safetensors")
    return folder


@pytest.fixture(scope="session")
def codec(files):
    return open_codec(str(files / "codec.safetensors"), device="cpu")


@pytest.fixture(scope="session")
def portable(files):
    return open_codec(str(files / "portable.safetensors"), device="cpu")


@pytest.fixture(params=["codec", "portable"])
def either(request):
    """A codec of files of version 1, and one of version 2."""
    return request.getfixturevalue(request.param)
