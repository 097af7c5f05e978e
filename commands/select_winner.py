"""imgtool select-winner: choose among the experiments of a phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from commands._output import Output, say

if TYPE_CHECKING:
    from imgtool.selection.records import Selection
    from imgtool.selection.rule_file import Rule

SHOWN_REJECTED = 40


def complete_rules(incomplete: str) -> list[str]:
    """Shipped rules for the shell."""
    from importlib import resources

    folder = resources.files("imgtool.selection").joinpath("rules")
    found = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir())
    return [name for name in found if name.startswith(incomplete)]


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """The rule, and how what it reads is read."""

    rule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="efficiency, best, vae-test, loss-tuning, fid, generation, bd-rate, or a rule file; "
            "chosen by the phase when not given.",
            autocompletion=complete_rules,
            show_default=False,
        ),
    ] = None
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change the rule: threshold=0.01, threshold='30 dB', step_up=true, "
            "metric=val_psnr; repeatable.",
        ),
    ] = None
    columns: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Whose column names the CSVs use: imgtool, or imginav (val_MSE_rgb on [-1,1]).",
        ),
    ] = "imgtool"
    split: Annotated[
        Literal["val", "test"] | None,
        typer.Option(
            show_default=False,
            help="Images that --rule bd-rate codes: held out for validation (the default), or for "
            "the final test.",
        ),
    ] = None


def run(
    output: Output,
    asked: RuleOptions,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DIR|CSV",
            show_default=False,
            help="A phase's shared folder, experiments or a folder of them, metrics CSVs; "
            "- reads paths or records from stdin, as does no argument in a pipe.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write an HTML page and its pictures here."),
    ] = None,
) -> None:
    """Choose the winner of a phase by a rule, and say why each other one lost.

    Prints a record of the winner (checkpoint, latent shape, the config keys that the phase
    decides, metrics, reason, how sure the choice is) and the ranking. Runs whose configs differ
    in train.seed alone are one experiment; of bare CSVs those named NAME_seed0, NAME_seed1, or
    the rows of a column seed. Their noise is that of the whole phase: what differs by less is a
    tie, and the record says in what part of 1,000 resamples each would be chosen, and how many
    more seeds would decide. An experiment that lost a seed is rejected (--set lost_seeds=1).

    Without a rule the family's own metric decides: val_mse, or val_rd_loss of codecs at one
    lambda; a GeneGAN has none and wants --rule fid. Exit code 1 when nothing passes the rule's
    own filters; what came closest is named. The success criteria of the study (val_mse under
    0.01, psnr over 30 dB, a stable curve, at most 16,384 latent dims) are told, and are a gate
    with --set criteria=gate or criteria='[mse, psnr]'. CSVs need a column val_mse or val_psnr,
    and latent_dims for the rule efficiency.

    \b
    Example:
      imgtool select-winner outputs/phase1_1_latent_shape_sweep
      imgtool select-winner tables/*.csv --rule efficiency --set threshold='30 dB'
      imgtool sweep phase1_1 | imgtool select-winner - --report report > winner.json
    """
    from imgtool.errors import NoAnswer, UsageError, did_you_mean
    from imgtool.selection.columns import SCHEMES

    if asked.columns not in SCHEMES:
        raise UsageError(
            f"no columns {asked.columns!r}", hint=did_you_mean(asked.columns, list(SCHEMES))
        )
    selection, used = _select(words or [], asked)
    for line in _notes(selection, used, to_table=output.mode == "table"):
        say(line)
    _emit(selection, output)
    if selection.winner is not None and words and report is None:
        output.suggest("select-winner", *words, "|", "imgtool", "update-config", "NEXT.yaml")
    if report is not None:  # after the record, which a failure is not to cost
        from imgtool.selection.report import write_report

        say(f"report: {write_report(selection, report)}")
    if selection.winner is None:
        raise NoAnswer(
            f"no winner by rule {used.rule}: {selection.reason}",
            hint=_way_out(selection, used),
        )


def _select(words: Sequence[str], asked: RuleOptions) -> tuple[Selection, Rule]:
    from imgtool.errors import UsageError
    from imgtool.selection.columns import BD_RATE
    from imgtool.selection.gather import phase_in_config, read_evidence
    from imgtool.selection.metric import with_own_metric
    from imgtool.selection.rule_file import MONITOR, load_rule
    from imgtool.selection.rules import select
    from imgtool.selection.sources import find_sources
    from imgtool.selection.winner import default_rule, shipped_decides

    rule_name, sets, columns, split = asked.rule, asked.set or [], asked.columns, asked.split
    paths, records = _inputs(words)
    sources = find_sources(paths, records)
    phase = sources.phase or (None if sources.phases else phase_in_config(sources))
    first = used = load_rule(rule_name or "best", sets)
    evidence = read_evidence(sources, first, columns)
    if rule_name is None:
        named = None if first.metric == MONITOR else first.metric
        chosen, why = default_rule(phase, evidence, named)
        used = load_rule(chosen, sets)
        say(f"rule: {chosen} ({why})")
    used = with_own_metric(used, evidence)
    read_by = {one.monitor for one in evidence} if first.metric == MONITOR else {first.metric}
    if read_by != {used.metric}:
        evidence = read_evidence(sources, used, columns)
    compared = None
    if used.metric == BD_RATE:
        from commands._select_curves import compare_curves

        compared = compare_curves(evidence, used, split or "val")
    elif split is not None:
        raise UsageError(
            f"--split: the rule {used.rule} measures nothing", hint="it is for --rule bd-rate"
        )
    decides = sources.decides or shipped_decides(phase)
    return select(evidence, used, phase=phase, decides=decides, compared=compared), used


def _inputs(words: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """Paths, and records of experiments; other records on stdin are left out."""
    import json
    import sys

    from imgtool.errors import UsageError

    hint = "imgtool select-winner DIR, or imgtool sweep … | imgtool select-winner -"
    if not words and sys.stdin.isatty():
        raise UsageError("nothing to choose from", hint=hint)
    paths: list[str] = []
    records: list[dict[str, Any]] = []
    for word in words or ["-"]:
        if not word.strip():
            raise UsageError("a path is empty", hint="is a variable of the shell unset?")
        if word != "-":
            paths.append(word)
            continue
        if sys.stdin.isatty():
            raise UsageError("`-` reads a pipe, and stdin is a terminal", hint=hint)
        for line in map(str.strip, sys.stdin):
            if not line.startswith("{"):
                paths += [line] if line else []
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UsageError(f"not a JSON record on stdin: {line[:80]}", hint=hint) from error
            is_one = record.get("kind") == "experiment" and not record.get("first")
            if is_one and isinstance(record.get("path"), str):
                records.append(record)
    if not paths and not records:
        raise UsageError("stdin names no experiment", hint=hint)
    return paths, records


def _notes(selection: Selection, rule: Rule, *, to_table: bool) -> list[str]:
    from imgtool.selection.candidates import UNREADABLE
    from imgtool.selection.certainty import doubts
    from imgtool.selection.rules import warnings

    lines = [
        f"warning: {verdict.candidate.name}: {verdict.reason}"
        for verdict in selection.verdicts
        if verdict.candidate.runs[0].state == UNREADABLE
    ]
    lines += [f"warning: {text}" for text in warnings(selection, rule)]
    derived = {
        str(name)
        for verdict in selection.verdicts
        for run in verdict.candidate.runs
        for name in run.facts.get("derived", ())
    }
    for name in sorted(derived):
        source = "val_mse" if name == "val_psnr" else "val_psnr"
        lines.append(f"note: {name} is derived from {source} where the table lacks it")
    if len(lines) > SHOWN_REJECTED:
        lines = [*lines[:SHOWN_REJECTED], f"… and {len(lines) - SHOWN_REJECTED} more such lines"]
    if not to_table:  # which says them itself
        lines += [f"note: {line}" for line in doubts(selection)]
    return lines


def _emit(selection: Selection, output: Any) -> None:
    from imgtool.selection.winner import parameters, ranking_records, winner_record

    record = None
    if selection.winner is not None:
        values, decides, notes = parameters(selection)
        for note in notes:
            say(f"note: {note}")
        record = winner_record(selection, values, decides)
    if output.mode == "table":
        from commands._select_table import show

        show(selection, record)
        return
    if record is not None:
        output.emit("winner", [record])
        say(f"winner: {record['name']}: {record['checkpoint_path'] or record['path']}")
    if output.mode == "json":
        output.emit("ranking", ranking_records(selection))


EDIT = "edit_"
WAYS = {"fid": "imgtool eval-fid --sweep DIR", EDIT: "imgtool eval edit --sweep DIR --judge JUDGE"}


def _way_out(selection: Selection, rule: Rule) -> str:
    from imgtool.selection.candidates import DROPPED, FAILED, FINISHED
    from imgtool.selection.columns import GFID

    states = {verdict.candidate.runs[0].state for verdict in selection.verdicts}
    if states and not states & FINISHED and states - FAILED - {DROPPED}:
        return "wait for the sweep, or compare what is there with --set unfinished=use"
    known = {key for verdict in selection.verdicts for key in verdict.candidate.metrics}
    if states and "val_MSE_rgb" in known and rule.metric not in known:
        return "these are the columns of another program: --columns imginav"
    if rule.metric == GFID and GFID not in known:
        return "measure the probes first: imgtool eval-fid --sweep DIR"
    if states and rule.metric.startswith(EDIT) and rule.metric not in known:
        return f"judge them first: {WAYS[EDIT]}"
    untold = {key for key in rule.weights or {} if key not in known and rule.metric in known}
    if untold and states:
        rest = ", ".join(f"{k}: {v:g}" for k, v in (rule.weights or {}).items() if k not in untold)
        ways = [way for key, way in WAYS.items() if any(one.startswith(key) for one in untold)]
        how = ", ".join(ways or sorted(untold))
        return f"measure it ({how}), or weigh what there is: --set 'weights={{{rest}}}'"
    lacking = [key for key in (rule.metric, selection.size) if key and key not in known]
    if lacking:
        columns = ", ".join(sorted(k for k in known if not k.startswith(("num_", "best_"))))
        return f"no table has a column {lacking[0]}; there are: {columns or 'none with numbers'}"
    if rule.threshold is not None:
        return "loosen the rule, such as --set threshold=…, or train more"
    return "see the ranking with --json, and the rule's file for its limits"
