"""What metrics are called, and what follows from their names.

imgtool's own names need no change. `--columns imginav` reads the tables of an earlier system:
losses are weighted, and the mean squared error is that of values on [-1, 1].
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

BD_RATE = "bd_rate_percent"  # against the best curve
GFID = "gfid"  # of an autoencoder: FID of what probes generate from its latents
POSITIONS = "latent_positions"  # height times width of the latent: its spatial resolution
SCHEMES = ("imgtool", "imginav")
# Earlier name without train_/val_ -> (name here, factor).
_IMGINAV = {
    "MSE_rgb": ("mse", 0.25),  # weight 1.0, on [-1, 1]; on [0, 1] a quarter
    "KLD": ("kld_weighted", 1.0),
    "CE_segmentation": ("seg_weighted", 1.0),
    "CE_classification": ("cls_weighted", 1.0),
}

_HIGHER = re.compile(
    r"psnr|ssim|accuracy|iou|images_per_sec|num_images|smoothness|energy|active_units"
    r"|latent_positions|success|preservation"
)
_LOWER = re.compile(
    r"mse|l1|mae|loss|cycle|seg$|cls$|fid|kid|kld|lpips|bpp|bd_rate|dims|parameters|macs|bytes"
    r"|_sec|stability|path_length|spikes|epochs|nonfinite|spectrum_slope|spectrum_kl"
    r"|high_frequency_share|flow_floor|equivariance_error"
)
# Words of names of metrics that are never below 0, and words that undo it.
_NONNEGATIVE = frozenset(
    ["mse", "rmse", "mae", "l1", "lpips", "bpp", "dims", "parameters", "macs", "bytes", "sec",
     "accuracy", "iou", "miou", "units", "energy", "std", "positions", "num", "spikes", "epochs", "frequency",
     "kl", "floor", "equivariance", "success", "preservation"]
)  # fmt: skip
_SIGNED = frozenset(["log", "delta", "diff", "change", "gain"])


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


def direction(metric: str) -> str | None:
    """`min` or `max`: which way a metric is better; None when its name does not tell."""
    if _HIGHER.search(metric):
        return "max"
    return "min" if _LOWER.search(metric) else None


def is_nonnegative(metric: str) -> bool:
    """Whether a metric's name tells that it is never below 0."""
    words = set(metric.split("_"))
    return bool(words & _NONNEGATIVE) and not words & _SIGNED


def is_in_db(metric: str) -> bool:
    """Whether a metric is a logarithm already."""
    return "psnr" in metric or metric.endswith("_db")


def is_positive(metric: str, values: Sequence[float]) -> bool:
    """Whether a metric's noise is relative: its values are above 0, and always will be."""
    always = is_nonnegative(metric) or metric.endswith("rd_loss") or metric in ("fid", GFID)
    return always and all(value > 0 for value in values)
