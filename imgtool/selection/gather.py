"""What runs have to say for themselves: metrics, parameters and costs, from wherever they lie."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imgtool.config.yaml_io import parse_document
from imgtool.errors import DataError, UsageError, UserError
from imgtool.selection.candidates import UNREADABLE
from imgtool.selection.records import Evidence
from imgtool.selection.rule_file import Rule
from imgtool.selection.sources import CONFIGS, CSV_END, Source, Sources, read_json
from imgtool.selection.table import Table, read_table

# Of latents.json: name there -> metric.
_LATENTS = {
    **{key: key for key in ("interpolation_smoothness", "path_length", "max_step_ratio")},
    **{key: key for key in ("active_units", "active_share")},
    "mean": "latent_mean",
    "std": "latent_std",
}
# Of fid*.json: what has to agree before two of them are compared.
_FID_MEASURE = ("features", "weights", "resize", "image_size", "num_images")
_SEED = re.compile(r"[-_.]?seed[-_=]?(\d+)$", re.IGNORECASE)
_HASH = re.compile(r"-[0-9a-f]{8}$")


def read_evidence(sources: Sources, rule: Rule, columns: str = "imgtool") -> list[Evidence]:
    """Read every run; what cannot be read is evidence of state `unreadable`, with its problem.

    Raises:
        DataError: not one can be read.
        UsageError: the rule ranks FIDs, and they were measured differently.
    """
    found = [_read(source, rule, columns) for source in sources.runs]
    if not any(one.state != UNREADABLE for one in found):
        problem = found[0].facts["problem"] if found else "nothing was given"
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise DataError(
            f"no experiment can be read: {problem}{more}", hint="give exp_dirs or metrics CSVs"
        )
    if rule.metric == "fid":
        _refuse_unlike_fids(found)
    return _grouped(found, sources.runs)


def _read(source: Source, rule: Rule, columns: str) -> Evidence:
    try:
        if source.path.is_dir():
            return _read_experiment(source, rule, columns)
        if source.path.is_file() or source.table:
            path = source.path if source.path.is_file() else source.table
            assert path is not None
            table = read_table(path, quality=rule.metric, mode=rule.mode, columns=columns)
            return _evidence(source, table, path, state=source.state or "unknown")
        if source.state or source.name:  # a sweep planned it, and it has not begun
            return _evidence(source, None, None, state=source.state or "pending")
        problem = f"{source.path} does not exist"
    except UserError as error:
        problem = str(error)
    name = source.name or _stem(source.path)
    return replace(
        _evidence(source, None, None, state=UNREADABLE), name=name, facts={"problem": problem}
    )


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
    state = source.state or told or ("unknown" if tables and not names & {*CONFIGS} else "pending")
    table, problem = None, None
    if path is not None:
        try:
            table = read_table(
                path,
                quality=rule.metric,
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
    more = _further(source.path, names)
    checkpoint = _checkpoint(source.path, status)
    return _evidence(
        source, table, path, state=state, facts={**facts, **more}, checkpoint=checkpoint
    )


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
            found["fid_measure"] = {key: content[key] for key in _FID_MEASURE if key in content}
    return found


def _refuse_unlike_fids(found: Sequence[Evidence]) -> None:
    """FIDs of other features, resizes, weights or numbers of images cannot be ranked together."""
    told = [one for one in found if one.facts.get("fid_measure")]
    for one in told[1:]:
        first, other = told[0].facts["fid_measure"], one.facts["fid_measure"]
        for key in first.keys() & other.keys():
            if first[key] != other[key]:
                raise UsageError(
                    f"FIDs measured differently: {key} is {first[key]} in {told[0].name} and "
                    f"{other[key]} in {one.name}",
                    hint="imgtool eval-fid --sweep SPEC measures all of them alike",
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
) -> Evidence:
    facts = dict(facts or {})
    metrics = {**_numbers(facts), **(table.metrics if table else {})}
    if table and table.num_nonfinite:
        metrics["num_nonfinite"] = float(table.num_nonfinite)
    if table and table.derived:
        facts["derived"] = list(table.derived)
    is_dir = source.path.is_dir() or source.path.suffix != ".csv"
    name = source.name or _stem(path if path is not None else source.path)
    seed = source.overrides.get("train.seed")
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
        seed=seed if isinstance(seed, int) and not isinstance(seed, bool) else None,
    )


def _grouped(found: Sequence[Evidence], sources: Sequence[Source]) -> list[Evidence]:
    """Give runs that differ in their seed alone one group.

    They do where the sweep says so (`train.seed` among what sets a trial apart), or where their
    names end in `seed0`, `_seed1` and so on.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, (one, source) in enumerate(zip(found, sources, strict=True)):
        match = _SEED.search(one.name)
        if "train.seed" in source.overrides:
            rest = {k: v for k, v in source.overrides.items() if k != "train.seed"}
            key: tuple[str, ...] = ("sweep", source.origin or "", json.dumps(rest, sort_keys=True))
        elif match and one.name[: match.start()]:
            key = ("name", one.name[: match.start()])
        else:
            continue
        groups.setdefault(key, []).append(index)
    result = list(found)
    taken = {one.name for one in found}
    for _, members in sorted(groups.items()):
        if len(members) < 2:
            continue
        names = sorted(found[index].name for index in members)
        short = _SEED.sub("", _HASH.sub("", names[0])) or names[0]
        group = short if short not in taken or short in names else names[0]
        taken.add(group)
        for index in members:
            one = found[index]
            match = _SEED.search(one.name)
            seed = one.seed if one.seed is not None or not match else int(match[1])
            result[index] = replace(one, group=group, seed=seed)
    return result


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
