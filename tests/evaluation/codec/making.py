"""A small HPCM as training would leave it, without the training."""

from __future__ import annotations

from pathlib import Path

import torch

from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoint_file import CheckpointHeader
from imgtool.models.hpcm.network import HPCM
from imgtool.models.hpcm.variants import VARIANTS


def make_model(seed=1):
    """HPCM_Tiny with latents as wide as the scales that it gives them, and z off zero."""
    torch.manual_seed(seed)
    return widen(HPCM(VARIANTS["HPCM_Tiny"]).eval())


def widen(model):
    """Give a model with fresh weights such latents."""
    with torch.no_grad():
        model.scales_hyper.uniform_(0.5, 3)
        model.means_hyper.uniform_(-2, 2)
        model.g_a[0].weight.mul_(60)
        context = model.context
        for last in (model.h_s[-1].reduce, context.coarse.after[-1], context.fine.after[-1]):
            last.bias[: model.variant.M].uniform_(2, 8)
    return model


def write_checkpoint(path, network=None, *, ema=None, **config):
    """A checkpoint of `imgtool train hpcm` with a regulariser's weights in it."""
    network = network or make_model()
    tensors = {f"model.codec.{name}": value for name, value in network.state_dict().items()}
    tensors["model.interscale.align.weight"] = torch.ones(3, 3)
    tensors["optimizer.net.main.codec.x.exp_avg"] = torch.ones(5)
    for name, value in (ema or {}).items():
        tensors[f"ema.codec.{name}"] = value
    header = CheckpointHeader(
        iteration=7,
        epoch=0.5,
        metrics={"loss": 1.0},
        identity="0",
        config={
            "family": "hpcm",
            "model": {"model_name": network.variant.name, "legacy_s2_hyper": False},
            "loss": {"lmbda": 0.013, "distortion": "mse"},
            **config,
        },
    )
    checkpoint_file.write(Path(path), tensors, header)
    return Path(path)


def make_image(height, width, seed=0, *, grey=False):
    """uint8 (3, H, W): smooth with some noise."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1 if grey else 3, 3, 3, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    noisy = smooth + 0.05 * torch.randn(smooth.shape, generator=random)
    return (noisy * 255).clamp(0, 255).to(torch.uint8).expand(3, -1, -1).contiguous()
