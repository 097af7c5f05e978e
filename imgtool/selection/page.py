"""The report's HTML page: one file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from imgtool.selection.candidates import short_names, shortened
from imgtool.selection.certainty import doubts
from imgtool.selection.records import Selection, Verdict
from imgtool.selection.style import label_of

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; --accent: #D55E00; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p.soft, figcaption, td.soft { color: var(--soft); }
.winner { border-left: 4px solid var(--accent); padding: .4rem 1rem; margin: 1rem 0; }
.winner b { font-size: 1.15rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { white-space: nowrap; } td.number, th.number { text-align: right; white-space: nowrap; }
td.name { white-space: nowrap; } tr.chosen td { font-weight: 600; } tr.out td { color: var(--soft); }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: #fff; border-radius: 4px; }
code { font-size: .88em; } .yes::before { content: "✓ "; } .no::before { content: "✗ "; }
.yes, .no { white-space: nowrap; }
"""
_ENDS = ("", "_low", "_high")
METRICS = (
    "val_mse",
    "val_psnr",
    "val_highpass_psnr",
    "val_seg_boundary_miou",
    "latent_dims",
    "num_parameters",
    "macs_per_image",
    "images_per_sec",
    "midpoint_energy",
    "end_energy",
    "path_length",
    "active_units",
    "fid",
)
DEFINITIONS = {
    "val_mse": "mean squared error on [0,1], over whole validation images",
    "val_psnr": "peak signal-to-noise ratio of each image on [0,1], averaged, dB",
    "val_highpass_psnr": "the same of the image's gradients, dB: spatial detail",
    "val_seg_boundary_miou": "IoU of the segmentation near contours (Cheng et al. 2021)",
    "latent_dims": "elements of the latent of one image: channels times height times width",
    "mse_per_dim": "val_mse over latent_dims; told, never ranked: it always favours the largest",
    "stability": "spread of the relative changes of the last rows",
    "convergence_epochs": "epochs to nine tenths of the whole improvement",
    "midpoint_energy": "gradient energy of the decoded middle between two images over that of its "
    "ends: 1 is as sharp, 0.5 a cross-fade",
    "end_energy": "gradient energy of decoded images over their originals': below 1 is blur",
    "path_length": "perceptual path length in LPIPS (Karras et al. 2019); lower is smoother",
    "95 %": "confidence interval of the mean over seeds, by the noise of all experiments together",
    "chosen": "share of reruns of the whole phase in which the rule would choose it, by resampling",
    "active_units": "latent channels whose variance over the data exceeds 0.01",
    "kld": "KL divergence from the standard normal, nats an element",
}


def render(
    selection: Selection,
    figures: Sequence[tuple[str, str, bytes]],
    latents: Mapping[str, Mapping[str, Any]],
    tested: Mapping[str, Any] | None = None,
) -> str:
    """The page.

    Args:
        figures: (title, caption, PNG), in order.
        latents: candidate -> latents.json.
        tested: the winner's test_metrics.json.
    """
    phase = selection.phase or "experiments"
    number = len(selection.verdicts)
    parts = [
        f"<h1>{escape(phase)}</h1>",
        f'<p class="soft">{number} experiment{"s" * (number != 1)}, rule '
        f"<code>{escape(selection.rule)}</code>: {escape(selection.description)}</p>",
        _winner(selection),
        _tested(selection, tested or {}),
        "<h2>Ranking</h2>",
        _ranking(selection),
        _steps(selection),
    ]
    for title, caption, data in figures:
        parts += [f"<h2>{escape(title)}</h2>", _figure(title, caption, data)]
    parts += [_latent_table(latents), _definitions()]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(phase)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def _winner(selection: Selection) -> str:
    if selection.winner is None:
        return f'<div class="winner"><b>No winner.</b><br>{escape(selection.reason)}</div>'
    winner = selection.winner
    run = winner.candidate.runs[0]
    lines = [f"<b>{escape(winner.candidate.name)}</b>", escape(selection.reason)]
    shape = run.facts.get("latent_shape")
    if isinstance(shape, list | tuple):
        lines.append("latent " + escape(" × ".join(map(str, shape))))
    lines += [escape(line) for line in _sentences(selection)]
    if run.exp_dir is not None:
        lines.append(f"<code>{escape(str(run.exp_dir))}</code>")
    if run.checkpoint is not None:
        lines.append(f"<code>{escape(str(run.checkpoint))}</code>")
    return f'<div class="winner">{"<br>".join(lines)}</div>'


def _tested(selection: Selection, tested: Mapping[str, Any]) -> str:
    """The winner's best run on the test split beside its validation."""
    if selection.winner is None:
        return ""
    run = selection.winner.candidate.runs[0]
    names = tested.get("metrics")
    rows = []
    for name in names if isinstance(names, list) else []:
        values = [run.metrics.get(f"val_{name}"), *(tested.get(f"{name}{e}") for e in _ENDS)]
        if isinstance(tested.get(name), int | float):
            cells = [_value(v) if isinstance(v, int | float) else "-" for v in values]
            rows.append(("", ["", escape(str(name)), *cells]))
    if not rows:
        return ""
    heads = ["", "metric", "validation", "test", "test, low", "test, high"]
    number, path = tested.get("num_images"), str(tested.get("path", ""))
    return (
        f"<h2>The winner on the test set</h2>{_table(heads, rows, range(2, 6))}"
        f'<p class="soft">{escape(str(number))} test images, 95 % bootstrap interval over scenes; '
        f"<code>{escape(path)}</code>. The choice was made on validation images alone.</p>"
    )


def _sentences(selection: Selection) -> list[str]:
    """How sure the choice is, each with a capital and a full stop."""
    return [f"{line[0].upper()}{line[1:]}." for line in doubts(selection)]


def _ranking(selection: Selection) -> str:
    known = [
        m
        for m in dict.fromkeys((selection.quality, selection.size or "latent_dims", *METRICS))
        if any(m in v.candidate.metrics for v in selection.verdicts)
    ]
    is_known = any(v.interval is not None for v in selection.verdicts)
    sure = ["95 %", "chosen"] if is_known else []
    metrics = [m.replace("_", " ") for m in known]
    heads = ["", "experiment", *metrics[:1], *sure, *metrics[1:], "criteria", "reason"]
    short = short_names([v.candidate.name for v in selection.verdicts])
    cells = [_row(v, known, selection, short, is_known) for v in selection.verdicts]
    return _table(heads, cells, numbers=range(2, 2 + len(known) + len(sure)))


def _row(
    verdict: Verdict,
    metrics: Sequence[str],
    selection: Selection,
    short: Mapping[str, str],
    is_known: bool,
) -> tuple[str, list[str]]:
    chosen = selection.winner is not None and verdict is selection.winner
    kind = "chosen" if chosen else "" if verdict.is_eligible else "out"
    candidate = verdict.candidate
    values = [_value(candidate.metrics.get(m), candidate.deviations.get(m)) for m in metrics]
    if is_known:
        low_high = "-" if verdict.interval is None else " to ".join(map(_value, verdict.interval))
        values[1:1] = [low_high, "-" if verdict.share is None else f"{verdict.share:.0%}"]
    marks = " ".join(
        f'<span class="{"yes" if met else "no"}">{escape(name.replace("_", " "))}</span>'
        for name, met in verdict.criteria.items()
        if met is not None
    )
    rank = "" if verdict.rank is None else str(verdict.rank)
    name = f'<span title="{escape(candidate.name)}">{escape(short[candidate.name])}</span>'
    if candidate.lost:
        name += f'<br><span class="no">{escape(candidate.loss_told)}</span>'
    reason = "the winner" if chosen else shortened(verdict.reason, short)
    return kind, [rank, name, *values, marks, escape(reason)]


def _value(value: float | None, deviation: float | None = None) -> str:
    if value is None:
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} ± {deviation:.2g}" if deviation else text


def _table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], numbers: Any) -> str:
    """Cells are HTML already."""
    kinds = ["number" if i in numbers else "name" if i == 1 else "" for i in range(len(heads))]
    head = "".join(f'<th class="{k}">{escape(h)}</th>' for k, h in zip(kinds, heads, strict=True))
    body = "".join(
        f'<tr class="{kind}">'
        + "".join(f'<td class="{k}">{c}</td>' for k, c in zip(kinds, cells, strict=True))
        + "</tr>\n"
        for kind, cells in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def _steps(selection: Selection) -> str:
    if not selection.steps:
        return ""
    words = {True: "worth it", False: "not worth it", None: "the rule does not say"}
    rows = [
        (
            "",
            [
                "",
                f"{escape(step.smaller)} → {escape(step.larger)}",
                f"{100 * step.gain:.1f} %",
                f"{step.growth:.3g}×",
                words[step.is_worth_it],
            ],
        )
        for step in selection.steps
    ]
    quality = label_of(selection.quality)
    return "<h2>What a larger latent gains</h2>" + _table(
        ["", "along the frontier", f"gain in {quality}", "size", ""], rows, range(2, 4)
    )


def _figure(title: str, caption: str, data: bytes) -> str:
    text = base64.b64encode(data).decode("ascii")
    return (
        f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{text}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _latent_table(latents: Mapping[str, Mapping[str, Any]]) -> str:
    keys = (
        "midpoint_energy",
        "midpoint_energy_se",
        "end_energy",
        "end_energy_se",
        "path_length",
        "path_length_se",
        "mean",
        "std",
        "std_sampled",
        "active_units",
        "active_share",
        "num_images",
        "num_pairs",
    )
    known = [k for k in keys if any(isinstance(f.get(k), int | float) for f in latents.values())]
    if not known:
        return ""
    rows = []
    for name, found in latents.items():
        values = [
            _value(float(found[k])) if isinstance(found.get(k), int | float) else "-" for k in known
        ]
        rows.append(("", ["", escape(name), *values]))
    heads = ["", "experiment", *(k.replace("_", " ") for k in known)]
    return "<h2>Latents in numbers</h2>" + _table(heads, rows, range(2, len(heads)))


def _definitions() -> str:
    lines = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(text)}</td></tr>"
        for name, text in DEFINITIONS.items()
    )
    return f"<h2>What the numbers are</h2><table>{lines}</table>"
