"""What only a GPU can show: mixed precision with a scaler, and exact resuming there."""

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("bottleneck", ["none", "kl", "vq"])
def test_resuming_on_a_gpu_is_exact_when_deterministic(run, tmp_path, precision, bottleneck):
    sets = [
        "train.device=cuda",
        "train.deterministic=true",
        f"train.precision={precision}",
        f"model.bottleneck={bottleneck}",
    ]
    straight = run(tmp_path / "straight", *sets, "train.max_iter=10")
    run(tmp_path / "parts", *sets, "train.max_iter=5")
    parts = run(tmp_path / "parts", *sets, "train.max_iter=10")
    a, b = straight.tensors(), parts.tensors()
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def test_a_training_on_the_gpu_learns(run, tmp_path):
    trained = run(tmp_path / "a", "train.device=cuda:0", "train.max_iter=60", "train.val_every=30")
    losses = [row["loss"] for row in trained.rows() if row["kind"] == "train"]
    assert losses[-1] < 0.7 * losses[0]
