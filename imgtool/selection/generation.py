"""Autoencoders judged by what can be generated from their latents.

A probe is a generative model that was trained on one autoencoder's latents. Its fid.json
(`imgtool eval-fid`) and its latents file name the autoencoder; what was measured of the probe
becomes a measurement of the autoencoder, the probe's seed that of the measurement.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from imgtool.errors import DataError, NoAnswer, UsageError
from imgtool.selection.columns import GFID
from imgtool.selection.experiments import SEED_KEY
from imgtool.selection.records import Evidence

AUTOENCODER = "autoencoder"  # of fid.json and of a latents file: path, hash, name, ...
# In what probes may differ and still be the same measurement.
_OWN = frozenset({SEED_KEY, "data.root", "model.patch_size"})
# What a probe's FID tells of its autoencoder, by the name that it has there.
_TOLD = {"fid": GFID, "fid_se": f"{GFID}_se", "fid_floor": f"{GFID}_floor"}
# Facts of the run itself, which the probe's are; all others are the autoencoder's.
_PROBES = ("reason", "is_tiny", "overrides", "problem", "dropped", "fid_measure")


def of_autoencoders(
    probes: Sequence[Evidence], read: Callable[[Path], Evidence | None]
) -> list[Evidence]:
    """Evidence of the autoencoders, one a probe; what names no autoencoder is left out.

    Args:
        probes: grouped: of one group differ in their seed alone.
        read: an autoencoder's exp_dir -> what is known of it; None where it is gone.

    Raises:
        NoAnswer: not one is a probe.
        UsageError: probes that were trained differently.
    """
    named = [(probe, found) for probe in probes if (found := autoencoder_of(probe))]
    if not named:
        raise NoAnswer(
            "no experiment was trained on an autoencoder's latents",
            hint="imgtool sweep flow_probe --over EXP_DIR..., imgtool eval-fid --sweep flow_probe",
        )
    _refuse_unlike([probe for probe, _ in named])
    names = _names([(probe.group, found) for probe, found in named])
    known: dict[str, Evidence | None] = {}
    result = []
    for probe, found in named:
        folder = exp_dir_of(found)
        if str(folder) not in known:
            known[str(folder)] = read(folder) if folder is not None else None
        result.append(_judged(probe, found, known[str(folder)], names[probe.group, found["hash"]]))
    return result


def autoencoder_of(probe: Evidence) -> Mapping[str, Any] | None:
    """The autoencoder whose latents a probe was trained on; None where it is no probe.

    As its fid.json says, or else its latents file: path, hash and name are texts.
    """
    found = probe.facts.get(AUTOENCODER)
    if found is None:
        found = _latents(probe).get(AUTOENCODER)
    if not isinstance(found, Mapping):
        return None
    return found if all(isinstance(found.get(k), str) for k in ("path", "hash", "name")) else None


def _latents(probe: Evidence) -> Mapping[str, Any]:
    """What the header of a probe's latents file says; empty where there is none."""
    config = probe.config or {}
    root = probe.facts.get("data_root")
    if config.get("data.dataset") != "latents" or not isinstance(root, str):
        return {}
    from imgtool.data.latents import LatentsFile

    try:
        file = LatentsFile(root)
    except DataError:
        return {}
    return {AUTOENCODER: {**asdict(file.autoencoder), "latent_shape": [*file.shape]}}


def exp_dir_of(autoencoder: Mapping[str, Any]) -> Path | None:
    """The experiment whose checkpoint it is; None where that is none, or is gone."""
    path = Path(autoencoder["path"])
    for folder in (path, path.parent.parent if path.parent.name == "checkpoints" else path.parent):
        if folder.is_dir() and any((folder / n).is_file() for n in ("status.json", "config.yaml")):
            return folder
    return None


def _refuse_unlike(probes: Sequence[Evidence]) -> None:
    """gFIDs of probes of other sizes, or trained for longer, cannot be ranked together."""
    told = [probe for probe in probes if probe.config is not None]
    for probe in told[1:]:
        first, other = told[0].config or {}, probe.config or {}
        for key in sorted((first.keys() | other.keys()) - _OWN):
            if first.get(key) != other.get(key):
                raise UsageError(
                    f"probes trained differently: {key} is {first.get(key)} in {told[0].name} and "
                    f"{other.get(key)} in {probe.name}",
                    hint="compare autoencoders by the probes of one sweep",
                )


def _names(pairs: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[tuple[str, str], str]:
    """(group of probes, hash of the autoencoder) -> a name that no other has."""
    several: dict[str, dict[tuple[str, str], None]] = defaultdict(dict)
    for group, found in pairs:
        several[found["name"]][group, found["hash"]] = None
    names = {}
    for name, keys in several.items():
        hashes = {code for _, code in keys}
        for group, code in keys:
            own = name if len(hashes) == 1 else f"{name}-{code[:8]}"
            is_alone = sum(other == code for _, other in keys) == 1
            names[group, code] = own if is_alone else f"{own} ({group})"
    return names


def _judged(probe: Evidence, found: Mapping[str, Any], own: Evidence | None, name: str) -> Evidence:
    """The autoencoder, as this probe judges it."""
    told = {new: probe.metrics[old] for old, new in _TOLD.items() if old in probe.metrics}
    count = {"num_generated": probe.metrics["num_images"]} if "num_images" in probe.metrics else {}
    facts = {key: probe.facts[key] for key in _PROBES if key in probe.facts}
    facts |= {"probe": probe.exp_dir, "sweep": None, "origin": None, AUTOENCODER: dict(found)}
    if own is None:
        path = Path(found["path"])
        empty = replace(probe, curves={}, epochs=(), iterations=(), config=None, family=None)
        return replace(
            empty, name=name, group=name, exp_dir=None, table_path=None, monitor=None,
            metrics={**_sizes(found), **told, **count}, facts=facts,
            checkpoint=path if path.is_file() else None,
        )  # fmt: skip
    kept = {key: value for key, value in own.metrics.items() if key not in ("num_nonfinite",)}
    return replace(
        own,
        name=name,
        group=name,
        state=probe.state,
        seed=probe.seed,
        metrics={**kept, **told, **count},
        facts={**own.facts, **facts},
    )


def _sizes(found: Mapping[str, Any]) -> dict[str, float]:
    shape = found.get("latent_shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) for n in shape):
        return {}
    dims = 1
    for n in shape:
        dims *= n
    return {"latent_dims": float(dims)}
