"""The Python of docs/codec.md, docs/latents.md and docs/export.md."""

from __future__ import annotations

from typing import Any

from tests.data.latents_made import contents_of, write_latents
from tests.docs.materials import kodak
from tests.docs.pages import DOCS, blocks
from tests.evaluation.codec.making import write_checkpoint


def test_five_lines_code_an_image(tmp_path, monkeypatch):
    from imgtool.evaluation.codec.export import read, write

    (block,) = [block for block in blocks(DOCS / "codec.md") if block.language == "python"]
    assert len([line for line in block.text.splitlines() if line]) == 5
    kodak(tmp_path)
    folder = tmp_path / "out/h"
    folder.mkdir(parents=True)
    checkpoint = write_checkpoint(tmp_path / "iter_000007.safetensors")
    write([read(str(checkpoint))], folder / "codec.safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block.text, names)
    codec, encoded = names["codec"], names["encoded"]
    assert codec.decode(encoded.data).equal(encoded.reconstruction)


def test_a_few_lines_read_latents(tmp_path, monkeypatch):
    (block,) = [block for block in blocks(DOCS / "latents.md") if block.language == "python"]
    file = write_latents(tmp_path / "out" / "flips.safetensors", contents_of(dtype="float16"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block.text, names)
    assert names["meta"]["names"] == list(file.names)
    assert (names["z"] == file.mean(slice(4))).all()


def test_five_lines_use_an_autoencoder_in_diffusers(tmp_path, monkeypatch):
    import torch

    from imgtool.evaluation.export.diffusers import write
    from imgtool.evaluation.export.formats import Request
    from tests.evaluation.export.making import KL, write_checkpoint, write_photos

    (block,) = [block for block in blocks(DOCS / "export.md") if block.language == "python"]
    assert len([line for line in block.text.splitlines() if line]) == 5
    photos = write_photos(tmp_path / "photos")
    path = write_checkpoint(tmp_path / "a.safetensors", *KL, f"data.root={photos}")
    write(Request(source=path, out=tmp_path / "out/kl_diffusers", device="cpu"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"image": torch.zeros(1, 3, 16, 16)}
    exec(block.text, names)
    assert names["decoded"].shape == (1, 3, 16, 16)
