"""What is told of a selection: the winner's record, and one for every candidate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imgtool.config import presets
from imgtool.config.identity import identity_values, to_dict
from imgtool.config.load import SET, TINY, Loaded, load
from imgtool.config.yaml_io import parse_tree
from imgtool.errors import UserError
from imgtool.models import registry
from imgtool.selection.candidates import DROPPED
from imgtool.selection.certainty import doubts
from imgtool.selection.columns import GFID
from imgtool.selection.generation import autoencoder_of
from imgtool.selection.metric import PLAIN, lambdas, own_metric
from imgtool.selection.records import Evidence, Selection, Verdict

MAX_CONFIGS = 100  # more are not compared to find what differs


def shipped_decides(phase: str | None) -> list[str]:
    """What a phase of the shipped study decides; nothing for other phases."""
    if phase is None:
        return []
    for name in presets.sweeps():
        if not (phase == name or phase.startswith(f"{name}_")):
            continue
        values, _ = parse_tree(presets.text(name), f"preset {name}")
        decides = values.get("decides")
        if "sweep" in values and isinstance(decides, list):
            return [str(key) for key in decides]
    return []


def default_rule(
    phase: str | None, evidence: Sequence[Evidence], named: str | None = None
) -> tuple[str, str]:
    """The rule for a phase, and why.

    Args:
        named: the metric that the user names.

    Raises:
        NoAnswer: a family has no metric that tells better weights from worse ones.
        UsageError: experiments call different things best.
    """
    for start, rule in (
        ("phase1_1", "efficiency"),
        ("legacy_1", "efficiency"),
        ("phase1_2", "vae-test"),
        ("phase1_3", "loss-tuning"),
    ):
        if phase is not None and phase.startswith(start):
            return rule, f"the phase is {phase}"
    if named is None and evidence and all(autoencoder_of(one) for one in evidence):
        return "generation", "they were trained on autoencoders' latents"
    metric = named or own_metric(evidence)
    found = lambdas(evidence)
    if metric.endswith("rd_loss") and len(found) > 1:
        return "bd-rate", f"{len(found)} lambdas, {found[0]:g} to {found[-1]:g}"
    if metric != PLAIN and named is None:
        return "best", f"{metric} is what the family calls best"
    sizes = {one.metrics["latent_dims"] for one in evidence if "latent_dims" in one.metrics}
    if len(sizes) > 1:
        return "efficiency", "latent_dims vary"
    return "best", "latent_dims do not vary" if sizes else "no latent_dims are known"


def load_config(run: Evidence) -> Loaded | None:
    """The config that a run was trained with; None for a table that came alone.

    Raises:
        ConfigError: it is damaged.
    """
    for name in ("config.yaml", "trial.yaml"):
        path = run.exp_dir / name if run.exp_dir else None
        if path is not None and path.is_file():
            return load(str(path), family=None, schema_of=registry.schema)
    return None


def parameters(selection: Selection) -> tuple[dict[str, Any], list[str], list[str]]:
    """The winner's values of the keys that the phase decides.

    Where nothing says which these are, the keys in which the candidates' configs differ. A key
    that means nothing without another's value (loss.kld without a variational bottleneck) is None.

    Returns:
        values by dotted key; the keys; notes on what could not be told.

    Raises:
        ConfigError: the winner's config is damaged.
    """
    assert selection.winner is not None
    loaded = load_config(selection.winner.candidate.runs[0])
    if loaded is None:
        return {}, list(selection.decides), []
    notes: list[str] = []
    decides = list(selection.decides)
    if not decides:
        decides, notes = _differing(selection)
    values = _dotted(loaded)
    needs = registry.schema(loaded.experiment.family).needs
    found: dict[str, Any] = {}
    for key in decides:
        if key not in values:
            notes.append(f"the winner's config has no {key}")
            continue
        needed = needs.get(key)
        is_void = needed is not None and values.get(needed[0]) != needed[1]
        found[key] = None if is_void else values[key]
    return found, decides, notes


def _dotted(loaded: Loaded) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in to_dict(loaded.experiment).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat


def _differing(selection: Selection) -> tuple[list[str], list[str]]:
    runs = [verdict.candidate.runs[0] for verdict in selection.verdicts]
    if len(runs) > MAX_CONFIGS:
        return [], [f"more than {MAX_CONFIGS} configs: what differs was not looked for"]
    configs = []
    for run in runs:
        try:
            loaded = load_config(run)
        except UserError:
            continue
        if loaded is not None:
            configs.append(identity_values(loaded.experiment))
    if len(configs) < 2:
        return [], []
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [
        key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)
    ]
    return [key for key in differing if key not in ("train.seed", "family")], []


def winner_record(
    selection: Selection, values: Mapping[str, Any], decides: Sequence[str]
) -> dict[str, Any]:
    """The winner as a record; `mse_per_dim` is told and never ranked."""
    verdict = selection.winner
    assert verdict is not None
    candidate, run = verdict.candidate, verdict.candidate.runs[0]
    metrics = candidate.metrics
    mse, dims = metrics.get("val_mse"), metrics.get("latent_dims")
    shape = run.facts.get("latent_shape")
    peak = metrics.get("peak_memory_bytes")
    return {
        "name": candidate.name,
        "also": candidate.also,
        "path": _path(run),
        "exp_dir": run.exp_dir,
        "phase": selection.phase,
        "family": _family(run),
        "rule": selection.rule,
        "checkpoint_path": run.checkpoint,
        "latent_shape": list(shape) if isinstance(shape, list | tuple) else None,
        "parameters": dict(values),
        "decides": list(decides),
        "overridden": overridden(selection, decides),
        "metrics": _plain(metrics),
        "deviations": _plain(candidate.deviations),
        "num_seeds": candidate.num_seeds,
        "lost_seeds": candidate.num_lost,
        **_certainty(selection, verdict),
        "images_per_sec": metrics.get("images_per_sec"),
        "peak_memory_bytes": None if peak is None else int(peak),
        "mse_per_dim": mse / dims if mse is not None and dims else None,
        "criteria": dict(verdict.criteria),
        "ties": list(selection.ties),
        "dropped": {
            v.candidate.name: found
            for v in selection.verdicts
            if (found := _dropped(v.candidate.runs[0])) is not None
        },
        "reason": verdict.reason,
        **_correlations(selection),
    }


def _correlations(selection: Selection) -> dict[str, Any]:
    """How cheap measures rank beside gFID, where that is what was ranked by."""
    if selection.quality != GFID:
        return {}
    from imgtool.selection.correlation import correlations

    return {"correlations": [asdict(one) for one in correlations(selection)]}


def overridden(selection: Selection, decides: Sequence[str]) -> dict[str, str]:
    """Of the keys that the phase decides, those that nothing was chosen among, and what set them.

    `--tiny` shrinks what the phase's own files say, and `--set` puts one value in its place for
    every candidate. A value of `--set` that the candidates differ in is a choice like any other.
    """
    assert selection.winner is not None
    runs = [verdict.candidate.runs[0] for verdict in selection.verdicts]
    loaded = load_config(selection.winner.candidate.runs[0])
    if loaded is None:
        return {}
    found = {k: loaded.origins[k] for k in decides if loaded.origins.get(k) in (TINY, SET)}
    if SET not in found.values():
        return found
    configs = []
    for run in runs[:MAX_CONFIGS]:
        with suppress(UserError):  # a damaged rival's
            one = load_config(run)
            configs += [] if one is None else [_dotted(one)]
    return {
        key: origin
        for key, origin in found.items()
        if origin == TINY or all(one.get(key) == configs[0].get(key) for one in configs)
    }


def _certainty(selection: Selection, verdict: Verdict) -> dict[str, Any]:
    """How sure the choice is, for the winner's record."""
    certainty = selection.certainty
    assert certainty is not None
    noise = None
    if certainty.std is not None:
        dof = certainty.dof
        noise = {
            "metric": selection.quality,
            "source": certainty.source,
            "std": certainty.std,
            "is_log": certainty.is_log,
            "dof": dof if dof is not None and math.isfinite(dof) else None,
            "is_equal": certainty.is_equal,
        }
    return {
        "interval": None if verdict.interval is None else list(verdict.interval),
        "noise": noise,
        "rivals": list(certainty.rivals),
        "shares": {v.candidate.name: v.share for v in selection.verdicts if v.share is not None},
        "num_resamples": certainty.num_resamples,
        "more_seeds": certainty.more_seeds,
        "more_seeds_commands": list(certainty.commands),
        "doubts": doubts(selection),
    }


def _family(run: Evidence) -> str | None:
    """The model family, for which the parameters alone mean something."""
    return run.family if run.config is not None else None


def ranking_records(selection: Selection) -> Iterator[dict[str, Any]]:
    """A record for every candidate, winner first, rejected last."""
    for verdict in selection.verdicts:
        yield _ranking_record(verdict)


def _ranking_record(verdict: Verdict) -> dict[str, Any]:
    run = verdict.candidate.runs[0]
    return {
        "rank": verdict.rank,
        "name": verdict.candidate.name,
        "also": verdict.candidate.also,
        "path": _path(run),
        "state": run.state,
        "is_eligible": verdict.is_eligible,
        "on_frontier": verdict.on_frontier,
        "metrics": _plain(verdict.candidate.metrics),
        "deviations": _plain(verdict.candidate.deviations),
        "num_seeds": verdict.candidate.num_seeds,
        "lost_seeds": verdict.candidate.num_lost,
        "interval": None if verdict.interval is None else list(verdict.interval),
        "share": verdict.share,
        "criteria": dict(verdict.criteria),
        "dropped": _dropped(run),
        "reason": verdict.reason,
    }


def _dropped(run: Evidence) -> dict[str, Any] | None:
    """At which rung of its sweep, and by what: rung, metric, value, place, of, num_kept."""
    found = run.facts.get(DROPPED)
    return None if found is None else dict(found)


def _plain(metrics: Mapping[str, float]) -> dict[str, float]:
    """Whole numbers without a point."""
    return {key: int(v) if v == int(v) and abs(v) < 2**53 else v for key, v in metrics.items()}


def _path(run: Evidence) -> Path | None:
    return run.exp_dir or run.table_path
