"""What a run is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imgtool.config.schema import Experiment
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import StatusFile
from imgtool.training.agreement import Agreement
from imgtool.training.loggers import Logs
from imgtool.training.parts import Position
from imgtool.training.report import Reporter
from imgtool.training.schedule import Schedule
from imgtool.training.step import Stepper
from imgtool.training.stopping import BestValue, StopRequest, TimeBudget
from imgtool.training.validation import Validator


@dataclass
class Run:
    """Everything the loop works with; `imgtool.training.run` puts it together.

    `logs`, `status` belong to the first rank alone and are None on the others. `metrics` are
    those of the checkpoint that the run goes on from.
    """

    experiment: Experiment
    config: dict[str, Any]
    identity: str
    data_fingerprint: str
    facts: dict[str, Any]
    directory: ExperimentDir
    stepper: Stepper
    validator: Validator | None
    schedule: Schedule
    position: Position
    metrics: dict[str, float | None]
    best: BestValue
    budget: TimeBudget
    stop: StopRequest
    agreement: Agreement
    reporter: Reporter
    logs: Logs | None
    status: StatusFile | None
