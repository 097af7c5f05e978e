"""Rate-distortion curves: read from files in CompressAI's results schema, or published."""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeGuard

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
KODAK = frozenset(f"kodim{number:02}" for number in range(1, 25))


Points = tuple[tuple[float, float], ...]  # rate and quality


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
        of_images: the points of every image, in the order of `images`; empty where they are not
            known, or an image has no value of this metric.
        source: where a published curve was read, and how it was made.
    """

    name: str
    metric: Metric
    bpp: tuple[float, ...]
    quality_db: tuple[float, ...]
    images: tuple[str, ...] = ()
    dataset: str | None = None
    real_bytes: bool | None = None
    of_images: tuple[Points, ...] = ()
    source: str | None = None

    @property
    def measured_on(self) -> str | frozenset[str]:
        """The data set, or else the images: equal of curves that may be compared."""
        whole = len(self.images) == len(KODAK)
        if whole and {Path(name).stem.lower() for name in self.images} == KODAK:
            return "kodak"
        return self.dataset or frozenset(self.images)


def load_curve(source: str, metric: Metric) -> Curve:
    """A curve from a file, or a published one.

    Args:
        source: a JSON file; or a name of `published_names`, which is Kodak's curve, with
            `/clic` or `/tecnick` behind it that of another set. A file of that name wins.

    Raises:
        DataError: there is no such curve, or the file has no such metric or is no such file.
    """
    path = Path(source).expanduser()
    known = _published()
    name, _, dataset = source.partition("/")
    if path.is_file() or name not in known:
        return read_curve(path, metric)
    found, dataset = known[name], dataset or "kodak"
    if dataset not in found[metric]:
        raise DataError(
            f"{source}: no published curve on {dataset!r}",
            hint=", ".join(f"{name}/{known_set}" for known_set in found[metric]),
        )
    points = found[metric][dataset]
    values = points["db"] if "db" in points else [ms_ssim_db(x) for x in points["ms_ssim"]]
    return Curve(
        f"{found['name']} ({dataset}, published)",
        metric,
        tuple(points["bpp"]),
        tuple(values),
        dataset=dataset,
        real_bytes=True,
        source=f"{found['repository']}@{found['commit'][:12]}: {points['path']}; {found['note']}",
    )


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
    name, images = document.get("name"), _images(document)
    return Curve(
        name=name if isinstance(name, str) and name else path.stem,
        metric=metric,
        bpp=tuple(rate for rate, _ in points),
        quality_db=tuple(value for _, value in points),
        images=images,
        real_bytes=_real_bytes(document),
        of_images=_of_images(document, images, metric),
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
    return ms_ssim_db(ms_ssim)


def ms_ssim_db(ms_ssim: float) -> float:
    """-10 log10(1 - MS-SSIM), of a value below 1."""
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


def _of_images(
    document: dict[str, Any], images: tuple[str, ...], metric: Metric
) -> tuple[Points, ...]:
    """The points of every image; none at all where a file has other than `eval rd` writes."""
    if len(set(images)) < len(images):
        return ()
    key = {"psnr": "psnr", "ms-ssim": "ms_ssim"}[metric]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in images}
    for point in _points(document):
        rows = point.get("images")
        if not isinstance(rows, list) or len(rows) != len(images):
            return ()
        for row, name in zip(rows, images, strict=True):
            if not isinstance(row, dict) or row.get("name") != name:
                return ()
            rate, value = row.get("bpp"), row.get(key)
            if not (_is_real(rate, MIN_BPP, MAX_BPP) and _is_real(value, -MAX_DB, MAX_DB)):
                return ()
            if metric == "ms-ssim" and value >= 1:
                return ()
            found[name].append((rate, ms_ssim_db(value) if metric == "ms-ssim" else value))
    return tuple(tuple(points) for points in found.values())


def _is_real(value: Any, least: float, most: float) -> TypeGuard[float]:
    return isinstance(value, int | float) and least <= value <= most
