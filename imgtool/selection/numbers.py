"""What metrics are called for people, and how their values are written."""

from __future__ import annotations

from imgtool.units import format_bytes

# metric -> what it is called, and its unit.
LABELS = {
    "val_mse": ("val MSE", ""),
    "val_psnr": ("val PSNR", "dB"),
    "val_highpass_psnr": ("val high-pass PSNR", "dB"),
    "val_seg_boundary_miou": ("val boundary IoU", ""),
    "val_rd_loss": ("val RD loss", ""),
    "val_bpp": ("val rate", "bpp"),
    "bd_rate_percent": ("BD-rate", "%"),
    "fid": ("FID", ""),
    "gfid": ("gFID", ""),
    "gfid_floor": ("gFID floor", ""),
    "latent_dims": ("latent dims", ""),
    "latent_positions": ("latent positions", ""),
    "num_parameters": ("parameters", ""),
    "macs_per_image": ("MACs an image", ""),
    "images_per_sec": ("training", "images/s"),
    "peak_memory_bytes": ("peak memory", ""),
    "convergence_epochs": ("convergence", "epochs"),
    "iteration_sec": ("time an iteration", "s"),
    "edit_success": ("success of edits", ""),
    "edit_preservation": ("attributes kept by edits", ""),
    "edit_psnr": ("PSNR of reconstructions", "dB"),
    "kld": ("KL divergence", "nats"),
}
COUNTS = ("latent_dims", "latent_positions")  # told to the last digit


def name_of(metric: str) -> str:
    """What a metric is called."""
    return LABELS.get(metric, (metric.replace("_", " "), ""))[0]


def unit_of(metric: str) -> str:
    """Its unit; empty without one, and of bytes, which `number` tells with theirs."""
    return LABELS.get(metric, ("", "dB" if "psnr" in metric else ""))[1]


def label_of(metric: str) -> str:
    """A metric with its unit."""
    unit = unit_of(metric)
    return f"{name_of(metric)} ({unit})" if unit else name_of(metric)


def number(value: float, metric: str = "") -> str:
    """In four digits at most: 0.01234, 1,234, 44.5 M; 16,384 latent dims in full."""
    if metric.endswith("_bytes"):
        return format_bytes(value)
    if metric in COUNTS and value == int(value):
        return f"{value:,.0f}"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size and abs(value) >= 10_000:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
