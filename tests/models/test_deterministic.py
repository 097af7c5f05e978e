"""`--deterministic` on CUDA, for every family: each operator that runs has a deterministic way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from imgtool.models import registry
from imgtool.models.base import Noise, StepResult, Task
from tests.small import ALL_LOSSES, keys_and_values

# Operators of ATen for which torch.use_deterministic_algorithms documents that a CUDA tensor
# raises an error, by their overload packets. Where only differentiating raises, the backward
# alone is listed, so that forwards are free.
FORWARD = {
    "nll_loss_forward",
    "nll_loss2d_forward",
    "max_unpool2d",
    "max_unpool3d",
    "put",
    "put_",
    "histc",
    "bincount",
    "median",
    "nanmedian",
    "kthvalue",
    "scatter_reduce",
    "scatter_reduce_",
    "index_reduce",
    "index_reduce_",
}
BACKWARD = {
    "nll_loss_backward",
    "nll_loss2d_backward",
    "avg_pool3d_backward",
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "_upsample_bilinear2d_aa_backward",
    "upsample_bicubic2d_backward",
    "_upsample_bicubic2d_aa_backward",
    "upsample_trilinear3d_backward",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "_ctc_loss_backward",
    "_embedding_bag_backward",
    "_embedding_bag_dense_backward",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
}
REFUSED = FORWARD | BACKWARD

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "autoencoder": [
        {"model.bottleneck": bottleneck, "model.heads": ("rgb", "segmentation", "classification")}
        for bottleneck in ("none", "kl", "vq")
    ]
    + [{"model.norm": "none", "model.upsampling": "nearest"}, keys_and_values(ALL_LOSSES)],
    "genegan": [
        {},
        {"loss.multi_res_mode": "random", "model.norm": "group_norm"},
        {"model.obj_blockconv": True, "model.bg_blockconv": True},
        {"model.multiscale_loss": True, "model.multiscale_critics": True},
    ],
    "flow": [{"model.condition": condition} for condition in ("none", "label", "mask")],
    "hpcm": [
        {"loss.spectral_reg": True, "loss.phase2_reg": True, "loss.phase2_mode": "cosine"},
        {"loss.distortion": "ms-ssim", "loss.phase2_reg": True, "model.legacy_s2_hyper": True},
    ],
}
CASES = [
    (family, changes) for family in registry.FAMILIES for changes in VARIANTS.get(family, [{}])
]


class Recorded(TorchDispatchMode):
    """Names of the operators that run, those of the backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("family", "changes"), CASES, ids=str)
def test_every_operator_of_a_step_has_a_deterministic_way(
    family: str,
    changes: dict[str, Any],
    build: Callable[..., Task],
    batch_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMGTOOL_LPIPS_WEIGHTS", "random")
    task = build(family, **changes)
    task.modules.train()
    batch = batch_of(task, noise=Noise(0, 1)) | {"epoch": 0.0}
    with Recorded() as recorded:
        for update in task.updates(6):
            update(batch)["loss"].backward()
            with torch.no_grad():
                update.after_step(StepResult(torch.tensor(True), batch["noise"], lambda t: t))
    assert "convolution_backward" in recorded.names
    assert not recorded.names & REFUSED


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 4),
        lambda x: torch.nn.functional.interpolate(x, (6, 6), mode="bilinear", antialias=True),
        lambda x: torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: torch.nn.functional.cross_entropy(x, torch.zeros(1, 9, 9, dtype=torch.int64)),
        lambda x: torch.nn.functional.cross_entropy(x[..., 0, 0], torch.tensor([1])),
        lambda x: torch.nn.functional.grid_sample(x, torch.zeros(1, 2, 2, 2), align_corners=False),
    ],
)
def test_the_list_knows_the_names(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.randn(1, 3, 9, 9, requires_grad=True)
    with Recorded() as recorded:
        function(x).sum().backward()
    assert recorded.names & REFUSED


def test_every_name_on_the_list_is_an_operator() -> None:
    assert all(hasattr(torch.ops.aten, name) for name in REFUSED)
