"""What runs have to say for themselves: metrics, parameters and costs, from wherever they lie."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from imgtool.config.identity import identity_values
from imgtool.config.load import Loaded, load
from imgtool.config.schema import FamilySchema
from imgtool.config.yaml_io import parse_document
from imgtool.errors import DataError, UsageError, UserError
from imgtool.experiment import provenance
from imgtool.experiment.layout import ExperimentDir
from imgtool.models import registry
from imgtool.selection.candidates import DROPPED, UNREADABLE
from imgtool.selection.columns import BD_RATE, GFID, POSITIONS
from imgtool.selection.experiments import SEED_KEY, grouped
from imgtool.selection.generation import AUTOENCODER, of_autoencoders
from imgtool.selection.metric import LAMBDA
from imgtool.selection.records import Evidence
from imgtool.selection.rule_file import MONITOR, Rule
from imgtool.selection.sources import CONFIGS, CSV_END, Source, Sources, read_json
from imgtool.selection.table import Quality, Table, read_table, read_tables

# How hard a latent is to generate; of samples too where it is variational.
DIFFUSABILITY = (
    "spectrum_slope",
    "high_frequency_share",
    "high_frequency_share_quarter",
    "high_frequency_share_three_quarters",
    "spectrum_kl",
    "flow_floor",
    "flow_floor_logit_normal",
    "equivariance_error",
)
# Of latents.json: name there -> metric.
_LATENTS = {
    **{
        key + of + end: key + of + end
        for key in DIFFUSABILITY
        for of in ("", "_sampled")
        for end in ("", "_se")
    },
    **{
        key + end: key + end
        for key in ("midpoint_energy", "end_energy", "path_length")
        for end in ("", "_se")
    },
    **{key: key for key in ("active_units", "active_share")},
    "mean": "latent_mean",
    "std": "latent_std",
}
# Of fid*.json: what has to agree before two of them are compared.
_FID_MEASURE = ("protocol", "features", "weights", "resize", "image_size", "num_images")
# Of edit.json (`imgtool eval edit`): what is told here, as edit_NAME.
_EDITS = tuple(
    name + end
    for name in (
        *("success", "success_Bu", "success_A0", "preservation", "preservation_Bu"),
        *("preservation_A0", "judge_accuracy", "psnr", "background_l1", "background_lpips"),
        *("identity", "monotone"),
    )
    for end in ("", "_se", "_low", "_high")
)
EDIT_FILE = "edit.json"
# And what one of a model of latents says besides: whose latents, and what their decoding costs.
_OF_PROBES = (AUTOENCODER, "fid_floor")
# Keys of a config beside its identity that change what was learnt: how long it was trained.
_LIMITS = ("max_iter", "epochs", "max_time")
TINY = "tiny"  # the folder of trials of `sweep --tiny`
# Metrics that tables of every family may have: they tell no family.
_COMMON = frozenset({"val_mse", "val_loss"})


def read_evidence(sources: Sources, rule: Rule, columns: str = "imgtool") -> list[Evidence]:
    """Read every run; what cannot be read is evidence of state `unreadable`, with its problem.

    Raises:
        DataError: not one can be read.
        UsageError: the rule ranks FIDs, and they, or the probes behind them, were measured or
            trained differently.
        NoAnswer: it ranks autoencoders by their probes, and there is no probe.
    """
    read = [(source, one) for source in sources.runs for one in _read(source, rule, columns)]
    apart = (LAMBDA,) if rule.metric == BD_RATE else ()
    found = grouped([one for _, one in read], [source for source, _ in read], apart=apart)
    if not any(one.state != UNREADABLE for one in found):
        problem = found[0].facts["problem"] if found else "nothing was given"
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise DataError(
            f"no experiment can be read: {problem}{more}", hint="give exp_dirs or metrics CSVs"
        )
    ranked = {rule.metric, *(rule.weights or ())}
    if ranked & {"fid", GFID}:
        _refuse_unlike(found, "FIDs", "fid_measure", "imgtool eval-fid --sweep SPEC")
    if any(name.startswith("edit_") for name in ranked):
        _refuse_unlike(found, "edits", "edit_measure", "imgtool eval edit EXP_DIR... --judge ONE")
    if rule.metric == GFID:
        return of_autoencoders(found, lambda folder: _read_autoencoder(folder, columns))
    return found


def _read_autoencoder(folder: Path, columns: str) -> Evidence | None:
    """An experiment that probes judge, by its own best row; None where it cannot be read."""
    (one,) = _read(Source(path=folder), Rule(rule="", metric=MONITOR), columns)
    return None if one.state == UNREADABLE else one


def _read(source: Source, rule: Rule, columns: str) -> list[Evidence]:
    """A run; several where a bare table has a column `seed`."""
    try:
        if source.path.is_dir():
            return [_read_experiment(source, rule, columns)]
        if source.path.is_file() or source.table:
            path = source.path if source.path.is_file() else source.table
            assert path is not None
            quality: Quality = monitor_of_columns if rule.metric == MONITOR else rule.metric
            tables = read_tables(path, quality=quality, mode=rule.mode, columns=columns)
            return [
                _evidence(source, table, path, state=source.state or "unknown", seed=seed)
                for seed, table in tables.items()
            ]
        if source.state or source.name:  # a sweep planned it, and it has not begun
            return [_evidence(source, None, None, state=source.state or "pending")]
        problem = f"{source.path} does not exist"
    except UserError as error:
        problem = str(error)
    name = source.name or _stem(source.path)
    empty = _evidence(source, None, None, state=UNREADABLE)
    unreadable = replace(empty, name=name, facts={"problem": problem})
    names = set(os.listdir(source.path)) if source.path.is_dir() else set()
    return [_with_config(unreadable, _config(source.path, names))]  # a lost seed of its experiment


@cache
def _schemas() -> tuple[FamilySchema, ...]:
    return tuple(registry.schema(family) for family in registry.FAMILIES)


def monitor_of_columns(names: Sequence[str]) -> str:
    """The metric that tells the best row of a table that came alone: its family's own."""
    found = [schema.monitor for schema in _schemas() if schema.monitor in names]
    return next((metric for metric in found if metric not in _COMMON), "val_mse")


def _stem(path: Path) -> str:
    name = path.name
    return name.removesuffix(CSV_END) if name.endswith(CSV_END) else name.removesuffix(".csv")


def _read_experiment(source: Source, rule: Rule, columns: str) -> Evidence:
    names = set(os.listdir(source.path))
    status = read_json(source.path / "status.json") if "status.json" in names else {}
    status = status if isinstance(status, dict) else {}
    is_known = source.name or names & {"status.json", *CONFIGS}
    if not is_known and not any(n.endswith(CSV_END) for n in names):
        raise DataError(f"{source.path} is no experiment")
    told = status.get("state") if isinstance(status.get("state"), str) else None
    tables = sorted(n for n in names if n.endswith(CSV_END))
    own = f"{source.name}{CSV_END}"
    path = source.path / (own if own in names else tables[0]) if tables else source.table
    best = status.get("best") if isinstance(status.get("best"), dict) else {}
    assert isinstance(best, dict)
    iteration = best.get("iteration")
    loaded = _config(source.path, names)
    monitor = _monitor(loaded, best)
    quality: Quality = rule.metric
    if quality == MONITOR:
        quality = monitor or monitor_of_columns
    state = source.state or told or ("unknown" if tables and not names & {*CONFIGS} else "pending")
    table, problem = None, None
    if path is not None:
        try:
            table = read_table(
                path,
                quality=quality,
                mode=rule.mode,
                best_iteration=iteration if isinstance(iteration, int | float) else None,
                columns=columns,
            )
        except DataError as error:
            problem = str(error)
            if state in ("completed", "unknown"):
                raise
    facts = status.get("facts") if isinstance(status.get("facts"), dict) else {}
    assert isinstance(facts, dict)
    facts = {**facts, "reason": source.reason or status.get("reason")}
    if problem:
        facts["problem"] = problem
    if state == DROPPED and isinstance(status.get(DROPPED), dict):
        facts[DROPPED] = status[DROPPED]
    facts |= _further(source.path, names)
    if "provenance.json" in names:
        starts = provenance.read(ExperimentDir(source.path))
        data = starts[-1].get("data_fingerprint") if starts else None
        facts |= {"data_fingerprint": data} if isinstance(data, str) else {}
    one = _evidence(
        source, table, path, state=state, facts=facts, checkpoint=_checkpoint(source.path, status)
    )
    return _with_config(one, loaded, best)


def _with_config(
    one: Evidence, loaded: Loaded | None, best: Mapping[str, Any] | None = None
) -> Evidence:
    if loaded is None:
        return one
    experiment = loaded.experiment
    limits = {f"train.{key}": getattr(experiment.train, key) for key in _LIMITS}
    return replace(
        one,
        family=experiment.family,
        monitor=_monitor(loaded, best or {}),
        seed=experiment.train.seed,
        config=identity_values(experiment) | limits,
        facts={**one.facts, "data_root": experiment.data.root},
    )


def _monitor(loaded: Loaded | None, best: Mapping[str, Any]) -> str | None:
    """What the run calls best; None where its family has no metric that tells."""
    told = best.get("metric")
    if isinstance(told, str) or loaded is None:
        return told if isinstance(told, str) else None
    schema = registry.schema(loaded.experiment.family)
    return loaded.experiment.train.monitor or (schema.monitor if schema.has_best else None)


def _config(folder: Path, names: set[str]) -> Loaded | None:
    """What a run was trained with; None where it has no config that can be read."""
    for name in CONFIGS:
        if name in names:
            with suppress(UserError):  # told where its values are needed
                return load(str(folder / name), family=None, schema_of=registry.schema)
            return None
    return None


def _further(folder: Path, names: set[str]) -> dict[str, Any]:
    """Numbers of latents.json, and the FID measured on most images, with how it was measured."""
    found: dict[str, Any] = {}
    if "latents.json" in names:
        numbers = _numbers(read_json(folder / "latents.json"))
        found |= {_LATENTS[key]: value for key, value in numbers.items() if key in _LATENTS}
    for name in sorted(n for n in names if n.startswith("fid") and n.endswith(".json")):
        content = read_json(folder / name)
        numbers = _numbers(content)
        count = numbers.get("num_images", numbers.get("n", 0.0))
        if "fid" in numbers and count > found.get("num_images", -1):
            found |= {"fid": numbers["fid"], "num_images": count}
            found |= (
                {"fid_se": error} if (error := _fid_error(content, numbers)) is not None else {}
            )
            found["fid_measure"] = {key: content[key] for key in _FID_MEASURE if key in content}
            found |= {key: content[key] for key in _OF_PROBES if key in content}
    if EDIT_FILE in names:
        found |= _of_edits(read_json(folder / EDIT_FILE))
    return found


def _of_edits(content: object) -> dict[str, Any]:
    numbers = _numbers(content)
    found: dict[str, Any] = {f"edit_{k}": numbers[k] for k in _EDITS if k in numbers}
    if found and isinstance(content, Mapping):
        judge = content.get("judge")
        found["edit_measure"] = {
            "attribute": content.get("attribute"),
            "image_size": content.get("image_size"),
            "others": content.get("others"),
            "judge": judge.get("hash") if isinstance(judge, Mapping) else None,
        }
    return found


def _fid_error(content: Mapping[str, Any], numbers: Mapping[str, float]) -> float | None:
    """The standard error of a FID; of several parts that of their mean, were they independent."""
    if "fid_se" in numbers:
        return numbers["fid_se"]
    parts = [key.removesuffix("_against") for key in content if key.endswith("_against")]
    errors = [numbers.get(f"fid_{part}_se", math.nan) for part in parts]
    error = math.hypot(*errors) / len(errors) if errors else math.nan
    return error if math.isfinite(error) else None


def _refuse_unlike(found: Sequence[Evidence], what: str, fact: str, command: str) -> None:
    """FIDs of other features, resizes, weights or numbers of images, or edits of other judges,
    cannot be ranked together.
    """
    told = [one for one in found if one.facts.get(fact)]
    for one in told[1:]:
        first, other = told[0].facts[fact], one.facts[fact]
        for key in first.keys() & other.keys():
            if first[key] != other[key]:
                raise UsageError(
                    f"{what} measured differently: {key} is {first[key]} in {told[0].name} and "
                    f"{other[key]} in {one.name}",
                    hint=f"{command} measures all of them alike",
                )


def _checkpoint(folder: Path, status: Mapping[str, Any]) -> Path | None:
    best = folder / "checkpoints" / "best.safetensors"
    if best.exists():
        return best
    named = status.get("checkpoint")
    return Path(named) if isinstance(named, str) and os.path.exists(named) else None


def _numbers(content: object) -> dict[str, float]:
    if not isinstance(content, Mapping):
        return {}
    return {
        str(key): float(value)
        for key, value in content.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _evidence(
    source: Source,
    table: Table | None,
    path: Path | None,
    *,
    state: str,
    facts: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    seed: int | None = None,
) -> Evidence:
    facts = dict(facts or {})
    is_tiny = source.sweep is not None and source.path.parent.name == TINY
    facts |= {
        "is_tiny": is_tiny,
        "sweep": source.sweep,
        "origin": source.origin,
        "overrides": dict(source.overrides),
        "also": list(source.also),
    }
    metrics = {**_numbers(facts), **(table.metrics if table else {})}
    shape = facts.get("latent_shape")
    if isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) for n in shape):
        metrics[POSITIONS] = float(shape[1] * shape[2])
    if table and table.num_nonfinite:
        metrics["num_nonfinite"] = float(table.num_nonfinite)
    if table and table.derived:
        facts["derived"] = list(table.derived)
    is_dir = source.path.is_dir() or source.path.suffix != ".csv"
    name = source.name or _stem(path if path is not None else source.path)
    if seed is None and isinstance(source.overrides.get(SEED_KEY), int):
        seed = source.overrides[SEED_KEY]
    told = {s.monitor: s for s in _schemas()}.get(table.quality) if table else None
    return Evidence(
        name=name,
        group=name,
        exp_dir=source.path if is_dir else None,
        table_path=path,
        state=state,
        epochs=table.epochs if table else (),
        iterations=table.iterations if table else (),
        curves=table.curves if table else {},
        metrics=metrics,
        facts=facts,
        checkpoint=checkpoint,
        seed=seed,
        family=told.name if told and told.monitor not in _COMMON else None,
        monitor=table.quality if table and (told is None or told.has_best) else None,
    )


def phase_in_config(sources: Sources) -> str | None:
    """The phase that the first experiment's config names."""
    for source in sources.runs:
        for name in CONFIGS:
            try:
                text = (source.path / name).read_text(encoding="utf-8")
                entry = parse_document(text, name).get("phase")
            except (OSError, ValueError, UserError):
                continue
            return entry.value if entry and isinstance(entry.value, str) else None
    return None
