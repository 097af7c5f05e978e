"""What eval edit tells: numbers by name, each with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from imgtool.evaluation.edits.made import EDITS
from imgtool.evaluation.edits.scores import Scores
from imgtool.evaluation.edits.summary import Values, summarised

# What comes with an attribute by its nature is no flaw of an edit: told apart.
RELATED = {
    "Smiling": ("High_Cheekbones", "Mouth_Slightly_Open"),
    "Mouth_Slightly_Open": ("Smiling", "High_Cheekbones"),
    "Eyeglasses": ("Bags_Under_Eyes",),
    "Bald": ("Receding_Hairline", "Bangs"),
    "Male": ("No_Beard", "Heavy_Makeup", "Wearing_Lipstick", "Goatee", "Mustache", "Sideburns"),
}
# Attributes whose labels two people hardly agree on (Lingenfelter et al. 2022, arXiv 2210.07356).
UNRELIABLE = ("High_Cheekbones", "Pointy_Nose", "Oval_Face")
BINS = 10


def others_of(scores: Scores, attribute: str, alike: set[str]) -> list[int]:
    """Columns of the attributes that an edit should keep."""
    out = {attribute, *RELATED.get(attribute, ()), *UNRELIABLE, *alike}
    return [i for i, name in enumerate(scores.judge.names) if name not in out]


def summary(
    scores: Scores, attribute: str, others: Sequence[int], alike: set[str], num_resamples: int
) -> dict[str, Any]:
    """The numbers, and what they are of."""
    names = scores.judge.names
    own = names.index(attribute)
    related = [
        names.index(name)
        for name in RELATED.get(attribute, ())
        if name in names and name not in alike
    ]
    values: dict[str, Values] = {**_success(scores, own)}
    for edit, (source, back) in EDITS.items():
        decided = {face: scores.decided(face) for face in (edit, source, back)}
        change = np.abs(scores.shares(edit) - scores.shares(source))
        for column in (*others, *related):
            kept = (decided[edit] == decided[source])[:, column]
            values[f"kept_{edit}_{names[column]}"] = kept.astype(float)
        if others:
            for end, face in (("", source), ("_of_reconstruction", back)):
                kept = (decided[edit] == decided[face])[:, others]
                values[f"preservation_{edit}{end}"] = kept.mean(1)
            values[f"shift_{edit}"] = change[:, others].mean(1)
            values[f"agreement_{back}"] = (decided[back] == decided[source])[
                :, [*others, own]
            ].mean(1)
        values |= _background(scores, edit)
        values[f"psnr_{back}"] = scores[f"psnr {back}"]
        if "identity donor" in scores:
            values[f"identity_{edit}"] = scores[f"identity {edit}"]
            values[f"identity_{back}"] = scores[f"identity {back}"]
    if "identity donor" in scores:
        values["identity_donor"] = scores["identity donor"]
        values["identity_others"] = scores["identity others"]
    _together(values)
    steps = [name for name in scores._values if name.startswith("step ")]
    for number, name in enumerate(steps):
        values[f"strength_{number}"] = scores[name]
    values["monotone"] = scores["monotone"]
    found = summarised(values, num_resamples)
    return {
        **found,
        "metrics": list(values),
        "others": [names[i] for i in others],
        "related": [names[i] for i in related],
        "left_out": sorted(alike | ({*UNRELIABLE} & {*names}) - {attribute}),
        "num_steps": len(steps),
    }


def _success(scores: Scores, own: int) -> dict[str, Values]:
    """Shares judged as meant: of edits; of real faces (the judge), of reconstructions (the most
    that can be had), and of what was not edited (the least).
    """
    sees = {
        face: scores.decided(face)[:, own] for face in ("Au", "B0", "Bu", "A0", "Au_hat", "B0_hat")
    }
    return {
        "success_Bu": sees["Bu"],
        "success_A0": 1 - sees["A0"],
        "judge_Au": sees["Au"],
        "judge_B0": 1 - sees["B0"],
        "ceiling_Bu": sees["Au_hat"],
        "ceiling_A0": 1 - sees["B0_hat"],
        "floor_Bu": sees["B0"],
        "floor_A0": 1 - sees["Au"],
    }


def _background(scores: Scores, edit: str) -> dict[str, Values]:
    found = {f"change_area_{edit}": scores[f"area {edit}"]}
    for measure in ("l1", "lpips"):
        if f"{measure} {edit} edit" in scores:
            of_edit, of_back = (scores[f"{measure} {edit} {which}"] for which in ("edit", "back"))
            found[f"background_{measure}_{edit}"] = of_edit
            found[f"background_{measure}_{edit}_excess"] = of_edit - of_back
    return found


def _together(values: dict[str, Values]) -> None:
    """Means over both edits, of what both have, before what they are means of."""
    means = {
        "success": ("success_Bu", "success_A0"),
        "judge_accuracy": ("judge_Au", "judge_B0"),
        "preservation": ("preservation_Bu", "preservation_A0"),
        "psnr": ("psnr_Au_hat", "psnr_B0_hat"),
        "background_l1": ("background_l1_Bu", "background_l1_A0"),
        "background_l1_excess": ("background_l1_Bu_excess", "background_l1_A0_excess"),
        "background_lpips": ("background_lpips_Bu", "background_lpips_A0"),
        "background_lpips_excess": ("background_lpips_Bu_excess", "background_lpips_A0_excess"),
        "identity": ("identity_Bu", "identity_A0"),
    }
    found = {
        name: (values[a] + values[b]) / 2
        for name, (a, b) in means.items()
        if a in values and b in values
    }
    rest = dict(values)
    values.clear()
    values |= {**found, **rest}


def judge_on(scores: Scores, labels: Tensor | None, num_resamples: int) -> list[dict[str, Any]]:
    """The judge on the real faces among these, by attribute: balanced accuracy and calibration.

    Args:
        labels: (2 N, A), with and without the edited attribute in turns; None without a table.
    """
    if labels is None:
        return []
    truth = {"Au": labels[0::2].numpy(), "B0": labels[1::2].numpy()}
    records = []
    for column, name in enumerate(scores.judge.names):
        shown = {face: truth[face][:, column] for face in truth}
        seen = {face: scores.decided(face)[:, column] for face in truth}
        with_it = np.sum([*shown.values()], axis=0).astype(float)
        hits = np.sum([shown[face] * seen[face] for face in truth], axis=0)
        rejected = np.sum([(1 - shown[face]) * (1 - seen[face]) for face in truth], axis=0)
        rates = summarised(
            {"sensitivity": (hits, with_it), "specificity": (rejected, 2 - with_it)},
            num_resamples,
            means={"balanced_accuracy": ("sensitivity", "specificity")},
        )
        probability = np.concatenate([scores.probabilities(face)[:, column] for face in truth])
        held = np.concatenate([shown[face] for face in truth])
        bins = _calibration(probability, held)
        records.append({"attribute": name, **rates, "bins": bins})
    return records


def _calibration(probability: Values, held: Values) -> list[dict[str, float]]:
    """Of each tenth of the probabilities that occurs: faces, mean probability, share with it."""
    number = np.minimum((probability * BINS).astype(int), BINS - 1)
    return [
        {
            "num_faces": int(inside.sum()),
            "probability": float(probability[inside].mean()),
            "share": float(held[inside].mean()),
        }
        for tenth in range(BINS)
        for inside in [number == tenth]
        if inside.any()
    ]
