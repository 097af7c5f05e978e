"""`imgtool export --to onnx`, seen by onnxruntime at sizes that the export did not see."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.export import Dim

from imgtool.evaluation.export.folder import open_model
from imgtool.models.autoencoder import graphs
from imgtool.models.autoencoder.network import Autoencoder
from imgtool.models.autoencoder.schema import Model
from tests.evaluation.export.making import KL, records, write_checkpoint
from tests.evaluation.export.test_export import run
from tests.shell import ROOT

HEADS = "model.heads=[rgb,segmentation,classification]"
LAYOUTS = ("data.dataset=layouts", HEADS)
PLAIN = ("model.upsampling=nearest", "model.norm=none", "model.heads=[rgb]")
TINY = {"downsampling_steps": 2, "base_channels": 8, "norm_groups": 4, "codebook_size": 8}
SLOW = pytest.mark.slow
MODELS = [
    pytest.param((*KL,), marks=SLOW, id="kl-kl"),
    pytest.param(("model.bottleneck=vq", *LAYOUTS), id="plain-vq", marks=SLOW),
    pytest.param(("model.bottleneck=kl", *PLAIN), id="plain-kl", marks=SLOW),
    pytest.param(("model.bottleneck=none", *PLAIN), id="plain-none", marks=SLOW),
    pytest.param((*KL, "model.bottleneck=vq", *LAYOUTS), id="kl-vq", marks=SLOW),
    pytest.param((*KL, "model.bottleneck=none"), id="kl-none", marks=SLOW),
]


@pytest.mark.parametrize("sets", MODELS)
@torch.no_grad()
def test_onnxruntime_gets_what_torch_gets(tmp_path, capfd, monkeypatch, sets):
    path, out = write_checkpoint(tmp_path / "a.safetensors", *sets), tmp_path / "out"
    assert run("export", path, out, "--to", "onnx") == 0
    said = capfd.readouterr()
    (record,) = records(said.out)
    assert not said.err
    assert record["files"] == ["encoder.onnx", "decoder.onnx", "README.md"]
    assert record["checked_with"].startswith("onnxruntime ")
    assert record["max_difference"] < 1e-4
    parts = open_model(path).task.graphs()
    source = torch.Generator().manual_seed(5)
    for name, channels, unit in (("encoder", 3, 4), ("decoder", 3, 1)):
        file = out / f"{name}.onnx"
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        assert [output.name for output in session.get_outputs()] == [*parts[name].outputs]
        for batch, height, width in ((1, 7, 3), (5, 2, 2)):
            x = torch.rand(batch, channels, unit * height, unit * width, generator=source) * 2 - 1
            theirs = session.run(None, {parts[name].input: x.numpy()})
            for own, other in zip(parts[name].module(x), theirs, strict=True):
                assert np.allclose(own.numpy(), other, atol=1e-4)
        assert str(ROOT).encode() not in file.read_bytes()
        assert onnx.load(file).opset_import[0].version == record["opset"]
    text = (out / "README.md").read_text()
    assert f"Opset {record['opset']}" in text
    assert str(tmp_path) not in text
    monkeypatch.chdir(out)
    names = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    assert names["image"].shape == (1, 3, 32, 32)


@torch.no_grad()
def test_a_codebook_s_graph_is_for_any_number_of_vectors():
    torch.manual_seed(0)
    network = Autoencoder(Model(bottleneck="vq", heads=("rgb",), **TINY)).eval()
    network.bottleneck.codebook.normal_()
    network.bottleneck.initialised.fill_(True)
    graph = graphs.of(network, Model(bottleneck="vq", heads=("rgb",), **TINY), {"rgb": 3})
    module = graph["encoder"].module
    free = {0: Dim("batch", min=1), 2: 4 * Dim("h", min=1), 3: 4 * Dim("w", min=1)}
    program = torch.export.export(module, (torch.rand(2, 3, 12, 16),), dynamic_shapes=(free,))
    x = torch.rand(3, 3, 8, 20)
    assert torch.equal(program.module()(x)[0], module(x)[0])
