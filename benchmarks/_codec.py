"""A codec with untrained weights whose latents are as wide as trained ones', and an image."""

from __future__ import annotations

from typing import Any


def make_codec(model_name: str) -> Any:
    """A `Codec` on the CPU."""
    from pathlib import Path

    import torch

    from imgtool.evaluation.codec.codec import Codec, Facts
    from imgtool.models.hpcm.network import HPCM
    from imgtool.models.hpcm.tables import Tables
    from imgtool.models.hpcm.variants import VARIANTS

    torch.manual_seed(0)
    model = HPCM(VARIANTS[model_name]).eval()
    with torch.no_grad():
        model.g_a[0].weight.mul_(60)
        context = model.context
        for last in (model.h_s[-1].reduce, context.coarse.after[-1], context.fine.after[-1]):
            last.bias[: model.variant.M].uniform_(0.5, 8)
    facts = Facts(Path("none"), model_name, 0.013, "mse", 0, "0" * 16, True)
    return Codec(model, Tables.of(model), facts, torch.device("cpu"))


def make_image(height: int, width: int) -> Any:
    """A smooth one, uint8 (3, height, width)."""
    import torch

    torch.manual_seed(1)
    coarse = torch.rand(1, 3, height // 16, width // 16)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return (image * 255).to(torch.uint8)
