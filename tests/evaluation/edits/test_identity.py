"""Networks that tell faces apart: which are taken, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from imgtool.errors import DataError, UsageError, UserError
from imgtool.evaluation.edits.identity import open_identity
from imgtool.published import sha256_of

JUDGE: Any = None


def write(path: Path, taken: list[Any], given: list[Any], kind: int = TensorProto.FLOAT) -> Path:
    """A network that flattens a face of 8 px and weighs it."""
    weights = np.random.default_rng(0).normal(size=(192, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["face"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["vector"]),
    ]
    graph = helper.make_graph(
        nodes,
        "identity",
        [helper.make_tensor_value_info("face", kind, taken)],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, given)],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("batch", [1, "N"])
def test_equal_faces_are_one_person_and_others_are_not(tmp_path: Path, batch: Any) -> None:
    path = write(tmp_path / "face.onnx", [batch, 3, 8, 8], [batch, 4])
    found = open_identity(str(path), JUDGE, sha256=sha256_of(path).upper(), device="cpu")
    random = torch.Generator().manual_seed(0)
    faces = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=random)
    vectors = found.embed(faces)
    assert vectors.shape == (6, 4)
    cosines = vectors @ found.embed(faces.clone()).T
    assert torch.allclose(cosines.diag(), torch.ones(6), atol=1e-6)
    assert cosines.fill_diagonal_(0).max() < 0.999
    assert found.facts["verified"] is True
    assert not open_identity(str(path), JUDGE, sha256=None, device="cpu").facts["verified"]


@pytest.mark.parametrize(
    ("taken", "given", "kind"),
    [
        (["N", 1, 8, 24], ["N", 4], TensorProto.FLOAT),
        (["N", 3, 4, 16], ["N", 4], TensorProto.FLOAT),
        ([5, 3, 8, 8], [5, 4], TensorProto.FLOAT),
        (["N", 3, 8, 8], ["N", 4], TensorProto.UINT8),
        (["N", 3, "h", "w"], ["N", 4], TensorProto.FLOAT),
    ],
)
def test_a_network_of_another_shape_is_refused(
    tmp_path: Path, taken: list[Any], given: list[Any], kind: int
) -> None:
    path = write(tmp_path / "face.onnx", taken, given, kind)
    with pytest.raises(UsageError, match="no network of one face to one vector"):
        open_identity(str(path), JUDGE, sha256=None, device="cpu")


def test_what_is_no_network_or_another_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "face.onnx", ["N", 3, 8, 8], ["N", 4])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    cases: list[tuple[Path, str | None, type[UserError], str]] = [
        (path, "0" * 64, DataError, "has the SHA-256"),
        (broken, None, DataError, "cannot read it"),
        (tmp_path / "none.onnx", None, DataError, "no such file"),
    ]
    for given, sha256, kind, text in cases:
        with pytest.raises(kind, match=text):
            open_identity(str(given), JUDGE, sha256=sha256, device="cpu")
