"""Rate-distortion curves: read from files in CompressAI's results schema, or published."""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from imgtool.errors import DataError, did_you_mean

Metric = Literal["psnr", "ms-ssim"]
# What a metric is called in a file: ours and CompressAI's today, then its older files.
KEYS: dict[Metric, tuple[str, ...]] = {
    "psnr": ("psnr-rgb", "psnr"),
    "ms-ssim": ("ms-ssim-rgb", "ms-ssim"),
}
MAX_BYTES = 1 << 26  # a file of results; 64 MB is a million images
MAX_POINTS = 10_000
# Far beyond any codec, and near enough that no sum of logarithms runs over.
MIN_BPP, MAX_BPP = 1e-6, 1e6
MAX_DB = 1000.0
SCHEMA_HINT = "give a file of `imgtool eval rd --out`, or one in the results schema of CompressAI"
DATASETS = ("kodak", "clic", "tecnick")


@dataclass(frozen=True)
class Curve:
    """Points of a codec, by rising rate.

    Attributes:
        name: for people.
        metric: what `quality_db` is.
        bpp: bits a pixel, MIN_BPP to MAX_BPP.
        quality_db: PSNR, or -10 log10(1 - MS-SSIM), in dB.
        images: names of the images that it was measured on; empty where the file says none.
        dataset: of a published curve.
        real_bytes: whether `bpp` counts files, not likelihoods; None where the file says nothing.
    """

    name: str
    metric: Metric
    bpp: tuple[float, ...]
    quality_db: tuple[float, ...]
    images: tuple[str, ...] = ()
    dataset: str | None = None
    real_bytes: bool | None = None


def load_curve(source: str, metric: Metric) -> Curve:
    """A curve from a file, or a published one.

    Args:
        source: a JSON file; or `hpcm-base`, `hpcm-large`, which are Kodak's curves, with
            `/clic` or `/tecnick` behind it those of the other sets. A file of that name wins.

    Raises:
        DataError: there is no such curve, or the file has no such metric or is no such file.
    """
    path = Path(source).expanduser()
    known = _published()
    name, _, dataset = source.partition("/")
    if path.is_file() or name not in known:
        return read_curve(path, metric)
    dataset = dataset or DATASETS[0]
    if dataset not in DATASETS:
        raise DataError(
            f"{source}: no published curve on {dataset!r}",
            hint=", ".join(f"{name}/{known_set}" for known_set in DATASETS),
        )
    points = known[name][metric][dataset]
    title = known[name]["name"].replace("(published)", f"({dataset}, published)")
    return Curve(title, metric, tuple(points["bpp"]), tuple(points["db"]), dataset=dataset)


def published_names() -> list[str]:
    """Names that stand for a published curve on Kodak."""
    return list(_published())


def read_curve(path: Path, metric: Metric) -> Curve:
    """A curve from a file in CompressAI's results schema.

    Raises:
        DataError: as load_curve.
    """
    document = _document(path)
    results = document.get("results")
    if not isinstance(results, dict):
        raise DataError(f"{path}: no results in this file", hint=SCHEMA_HINT)
    key = next((key for key in KEYS[metric] if key in results), None)
    if key is None:
        raise DataError(
            f"{path}: no {metric} in its results",
            hint=f"it has {', '.join(map(str, results)) or 'nothing'}; images below 161 pixels "
            "have no MS-SSIM"
            if metric == "ms-ssim"
            else SCHEMA_HINT,
        )
    rates = _numbers(path, "bpp", results.get("bpp"))
    values = _numbers(path, key, results[key])
    if len(rates) != len(values):
        raise DataError(
            f"{path}: {len(rates)} values of bpp and {len(values)} of {key}", hint=SCHEMA_HINT
        )
    for rate in rates:
        if not MIN_BPP <= rate <= MAX_BPP:
            hint = f"rates are bits a pixel, {MIN_BPP:g} to {MAX_BPP:g}"
            raise DataError(f"{path}: a rate of {rate:g} bpp", hint=hint)
    if metric == "ms-ssim":
        values = [_decibels(path, value) for value in values]
    for value in values:
        if abs(value) > MAX_DB:
            raise DataError(f"{path}: a {metric} of {value:g} dB", hint=SCHEMA_HINT)
    points = sorted(zip(rates, values, strict=True))
    name = document.get("name")
    return Curve(
        name=name if isinstance(name, str) and name else path.stem,
        metric=metric,
        bpp=tuple(rate for rate, _ in points),
        quality_db=tuple(value for _, value in points),
        images=_images(document),
        real_bytes=_real_bytes(document),
    )


def _published() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _document(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: more than {MAX_BYTES} bytes", hint=SCHEMA_HINT)
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = published_names()
        close = did_you_mean(str(path), names)
        raise DataError(
            f"{path}: no such file",
            hint=close
            if close and close.startswith("did")
            else "a file of `imgtool eval rd "
            f"--out`, or a published curve: {', '.join(names)} (Kodak), {names[0]}/clic …",
        ) from None
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}", hint=SCHEMA_HINT) from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: no JSON object", hint=SCHEMA_HINT)
    return document


def _numbers(path: Path, key: str, values: Any) -> list[float]:
    if not isinstance(values, list) or len(values) > MAX_POINTS:
        raise DataError(f"{path}: no list of {key} in its results", hint=SCHEMA_HINT)
    numbers = []
    for value in values:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        try:
            number = float(value) if is_number else math.nan
        except OverflowError:  # JSON's integers have any length
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"{path}: {reprlib.repr(value)} among its values of {key}", hint=SCHEMA_HINT
            )
        numbers.append(number)
    return numbers


def _decibels(path: Path, ms_ssim: float) -> float:
    if not ms_ssim < 1:
        raise DataError(
            f"{path}: an MS-SSIM of {ms_ssim} has no value in dB",
            hint="values lie below 1; leave lossless points out",
        )
    return -10 * math.log10(1 - ms_ssim)


def _points(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What our own files say besides the results; CompressAI's have none."""
    points = document.get("points")
    return (
        [point for point in points if isinstance(point, dict)] if isinstance(points, list) else []
    )


def _real_bytes(document: dict[str, Any]) -> bool | None:
    said = [point.get("real_bytes") for point in _points(document)]
    return next((kind for kind in (True, False) if said and all(s is kind for s in said)), None)


def _images(document: dict[str, Any]) -> tuple[str, ...]:
    first = next(iter(_points(document)), {})
    images = first.get("images")
    rows = images if isinstance(images, list) else []
    return tuple(str(row["name"]) for row in rows if isinstance(row, dict) and "name" in row)
