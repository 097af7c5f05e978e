"""What is known of each pair of faces and of what an editor made of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from imgtool.data.landmarks import Points
from imgtool.evaluation.edits.background import (
    face_region,
    l1_outside,
    support,
    with_own_inside,
)
from imgtool.evaluation.edits.identity import Identity
from imgtool.evaluation.edits.judge import Judge
from imgtool.evaluation.edits.made import EDITS, Made
from imgtool.evaluation.edits.summary import Values
from imgtool.nn.images import to_pm1
from imgtool.nn.lpips import Lpips
from imgtool.nn.quality import mse, psnr

SLACK = 0.02  # of a probability, by which one of the steps may fall and still count as rising


@dataclass
class Scores:
    """Values by pair, gathered batch by batch.

    Attributes:
        judge, column: and which of its attributes is edited.
        points: landmarks of all faces, (2 N, 5), as `faces.Judged` has them.
        lpips, identity: None where there are none.
    """

    judge: Judge
    column: int
    points: Points | None
    lpips: Lpips | None
    identity: Identity | None
    _values: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add(self, made: Made, rows: Tensor) -> None:
        """Add a batch.

        Args:
            rows: positions of its faces in the part, (2 B,), with and without in turns.
        """
        logits = {name: self.judge.scores(faces) for name, faces in made.faces.items()}
        for name, values in logits.items():
            self._values[f"logits {name}"].append(values)
        self._strength(made, logits["Bu"][:, self.column])
        for number, (edit, (source, back)) in enumerate(EDITS.items()):
            faces = {"edit": made.faces[edit], "source": made.faces[source]}
            faces["back"] = made.faces[back]
            points = None if self.points is None else self.points[rows[1 - number :: 2].numpy()]
            self._background(edit, faces, points)
            self._put(f"psnr {back}", psnr(mse(faces["back"] / 255, faces["source"] / 255)))
        if self.identity is not None:
            self._identities(made)

    def _put(self, name: str, values: Tensor) -> None:
        self._values[name].append(values.cpu().double())

    def _strength(self, made: Made, of_last: Tensor) -> None:
        before = made.steps[:, :-1]
        found = self.judge.scores(before.flatten(0, 1))[:, self.column].view(before.shape[:2])
        share = torch.sigmoid(torch.cat([found, of_last[:, None]], dim=1))
        for step in range(share.shape[1]):
            self._put(f"step {step}", share[:, step])
        self._put("monotone", (share.diff(dim=1) >= -SLACK).all(1))

    def _background(self, edit: str, faces: dict[str, Tensor], points: Points | None) -> None:
        size = faces["edit"].shape[-1]
        own = support(faces["edit"], faces["back"])
        region = own if points is None else face_region(points, size, own.device)
        self._put(f"area {edit}", own.float().mean((1, 2, 3)))
        for name in ("edit", "back"):
            self._put(f"l1 {edit} {name}", l1_outside(faces[name], faces["source"], region))
            if self.lpips is not None:
                device = self.lpips.shift.device
                pasted = with_own_inside(faces[name], faces["source"], region)
                pair = (to_pm1(each.to(device)) for each in (pasted, faces["source"]))
                self._put(f"lpips {edit} {name}", self.lpips(*pair))

    def _identities(self, made: Made) -> None:
        assert self.identity is not None
        of = {name: self.identity.embed(faces) for name, faces in made.faces.items()}
        for edit, (source, back) in EDITS.items():
            self._put(f"identity {edit}", (of[edit] * of[source]).sum(1))
            self._put(f"identity {back}", (of[back] * of[source]).sum(1))
        self._put("identity donor", (of["Bu"] * of["Au"]).sum(1))
        self._put("identity others", (of["B0"] * of["Au"]).sum(1))

    # --- what they come to --------------------------------------------------------------------

    def __getitem__(self, name: str) -> Values:
        """(N,) float64."""
        return torch.cat(self._values[name]).double().numpy()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def decided(self, face: str) -> Values:
        """(N, A): 1 where the judge sees an attribute, 0 elsewhere."""
        return (torch.cat(self._values[f"logits {face}"]) >= 0).double().numpy()

    def shares(self, face: str) -> Values:
        """(N, A): the judge's scores on [0, 1]."""
        return torch.sigmoid(torch.cat(self._values[f"logits {face}"])).double().numpy()

    def probabilities(self, face: str) -> Values:
        """(N, A): as often as the attributes are in its training images."""
        logits = torch.cat(self._values[f"logits {face}"]) + self.judge.prior
        return torch.sigmoid(logits).double().numpy()

    def of_edit(self, edit: str, others: list[int]) -> Values:
        """(N,) from 0 to 1: how surely an edit is what was meant, times how little of the `others`
        has changed against the input. What the page sorts by.
        """
        meant = self.shares(edit)[:, self.column]
        meant = meant if edit == "Bu" else 1 - meant
        if not others:
            return meant
        change = np.abs(self.shares(edit) - self.shares(EDITS[edit][0]))[:, others]
        return np.asarray(meant * (1 - change.mean(axis=1)))
