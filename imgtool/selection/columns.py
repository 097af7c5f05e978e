"""What the columns of a metrics table are called, and what follows from them.

imgtool's own names need no change. `--columns imginav` reads the tables of an earlier system:
losses are weighted, and the mean squared error is that of values on [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

SCHEMES = ("imgtool", "imginav")
# Earlier name without train_/val_ -> (name here, factor).
_IMGINAV = {
    "MSE_rgb": ("mse", 0.25),  # weight 1.0, on [-1, 1]; on [0, 1] a quarter
    "KLD": ("kld_weighted", 1.0),
    "CE_segmentation": ("seg_weighted", 1.0),
    "CE_classification": ("cls_weighted", 1.0),
}


def rename(scheme: str) -> Callable[[str], tuple[str, float]]:
    """A function: column of the file -> (name here, factor on its values)."""
    if scheme == "imgtool":
        return lambda column: (column, 1.0)

    def translate(column: str) -> tuple[str, float]:
        split, _, rest = column.partition("_")
        if split in ("train", "val") and rest in _IMGINAV:
            name, factor = _IMGINAV[rest]
            return f"{split}_{name}", factor
        return column, 1.0

    return translate


def psnr_of(mse: float) -> float:
    """dB on [0, 1]; of an average, which is not the average over images."""
    return -10 * math.log10(mse) if mse > 0 else 100.0


def mse_of(psnr: float) -> float:
    """On [0, 1]."""
    return float(10 ** (-psnr / 10))


def derived(metrics: Mapping[str, float]) -> dict[str, float]:
    """val_psnr where only val_mse is known, and the other way round."""
    if "val_mse" in metrics and "val_psnr" not in metrics:
        return {"val_psnr": psnr_of(metrics["val_mse"])}
    if "val_psnr" in metrics and "val_mse" not in metrics:
        return {"val_mse": mse_of(metrics["val_psnr"])}
    return {}
