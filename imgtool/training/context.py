"""What a run is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from imgtool.config.schema import Experiment
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import Status
from imgtool.process.stopping import StopRequest
from imgtool.training.batches import Batches
from imgtool.training.limits import BestValue, TimeBudget
from imgtool.training.loggers import Logs
from imgtool.training.meters import Meter
from imgtool.training.parts import Position
from imgtool.training.ranks import Ranks
from imgtool.training.report import Reporter
from imgtool.training.schedule import Schedule
from imgtool.training.step import Stepper
from imgtool.training.throughput import Throughput
from imgtool.training.validation import Validator


@dataclass(kw_only=True)
class Run:
    """Everything the loop works with; `imgtool.training.assemble` puts it together.

    `logs` and `status` are silent but for rank 0's. `metrics` are those of the checkpoint that
    the run goes on from. `closed` holds the losses of the logged windows since the last row of
    the metrics table.
    """

    experiment: Experiment
    config: dict[str, Any]
    identity: str
    data_fingerprint: str
    directory: ExperimentDir
    ranks: Ranks
    stepper: Stepper
    batches: Batches
    throughput: Throughput
    validator: Validator | None
    schedule: Schedule
    best: BestValue
    budget: TimeBudget
    stop: StopRequest
    reporter: Reporter
    logs: Logs
    status: Status
    position: Position
    closed: Meter
    metrics: dict[str, float | None] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def row_means(self) -> dict[str, float]:
        """Means of the losses since the last row of the metrics table."""
        row = Meter(self.stepper.device)
        row.absorb(self.closed)
        row.absorb(self.stepper.meter)
        means = row.means(self.ranks.sum)
        return {name: mean for name, mean in means.items() if not name.startswith("grad_norm")}

    def start_row(self) -> None:
        """Count from now on: what the open window has by now is taken off again."""
        self.closed.clear()
        self.closed.absorb(self.stepper.meter, factor=-1.0)
