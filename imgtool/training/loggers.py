"""Where logged values go: metrics.jsonl and CSV always, TensorBoard and W&B when asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from imgtool.config.schema import Experiment
from imgtool.errors import UsageError
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.metrics import MetricsLog
from imgtool.training.parts import Position


class Logger(Protocol):
    """One more reader of the values."""

    def log(self, values: Mapping[str, float], iteration: int) -> None:
        """Numbers with names such as `train/loss`."""

    def words(self, values: Mapping[str, str], iteration: int) -> None:
        """Texts with such names."""

    def picture(self, name: str, picture: Tensor, iteration: int) -> None:
        """uint8 (3, H, W)."""

    def close(self) -> None:
        """Flush and let go."""


class TensorBoardLogger:
    """Event files in `folder`; steps past `start` of an earlier start are purged."""

    def __init__(self, folder: Path, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "TensorBoard is not installed", hint="pip install 'imgtool[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def log(self, values: Mapping[str, float], iteration: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def words(self, values: Mapping[str, str], iteration: int) -> None:
        for name, value in values.items():
            self._writer.add_text(name, value, iteration)

    def picture(self, name: str, picture: Tensor, iteration: int) -> None:
        self._writer.add_image(name, picture, iteration)

    def close(self) -> None:
        self._writer.close()


_WITHOUT_WANDB = "--wandb offline keeps the run here for `wandb sync`; --wandb off leaves it out"


def _refuse_without_key(wandb: Any) -> None:
    """A training asks nobody for a key, not even on a terminal."""
    try:
        is_known = wandb.login(prompt=False, verify=False)
    except (TypeError, wandb.errors.Error):  # an older one; or init will say what is wrong
        return
    if not is_known:
        raise UsageError(
            "--wandb online: no key of W&B is known",
            hint=f"`wandb login` once, or WANDB_API_KEY=…; {_WITHOUT_WANDB}",
        )


class WandbLogger:
    """One W&B run an experiment, gone on with when the experiment is resumed."""

    def __init__(
        self, experiment: Experiment, config: Mapping[str, Any], run_id: str, folder: Path
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb
        except ImportError as error:
            raise UsageError("W&B is not installed", hint="pip install 'imgtool[wandb]'") from error
        self._wandb = wandb
        folder.mkdir(parents=True, exist_ok=True)
        online = experiment.output.wandb == "online"
        if online:
            _refuse_without_key(wandb)
        try:
            self._run = wandb.init(
                project=experiment.output.wandb_project,
                name=experiment.name,
                group=experiment.phase,
                config=dict(config),
                dir=str(folder),
                mode="online" if online else "offline",
                id=run_id,
                resume="allow" if online else None,
            )
        except wandb.errors.Error as error:
            text = " ".join(str(error).split())
            raise UsageError(f"W&B: {text}", hint=_WITHOUT_WANDB) from error

    def log(self, values: Mapping[str, float], iteration: int) -> None:
        self._run.log(dict(values), step=iteration)

    def words(self, values: Mapping[str, str], iteration: int) -> None:
        self._run.log(dict(values), step=iteration)

    def picture(self, name: str, picture: Tensor, iteration: int) -> None:
        image = self._wandb.Image(picture.permute(1, 2, 0).numpy())
        self._run.log({name: image}, step=iteration)

    def close(self) -> None:
        self._run.finish()


class Logs:
    """Writes every logged value to wherever the experiment wants it."""

    def __init__(self, metrics: MetricsLog, others: list[Logger]) -> None:
        self._metrics, self._others = metrics, others

    def train(self, row: Mapping[str, Any]) -> None:
        """One logged iteration."""
        self._metrics.log({"kind": "train", **row})
        self._forward(row, "train")
        words = {key: value for key, value in row.items() if isinstance(value, str)}
        if words:
            for logger in self._others:
                logger.words(words, int(row["iteration"]))

    def evaluation(self, row: Mapping[str, Any]) -> str | None:
        """One validation: a row of the CSV. Returns a warning when the shared copy failed."""
        self._metrics.log({"kind": "evaluation", **row})
        self._forward(
            {k[4:]: v for k, v in row.items() if k.startswith("val_")} | _where(row), "val"
        )
        return self._metrics.log_epoch(row)

    def picture(self, name: str, picture: Tensor, iteration: int) -> None:
        """A sample grid."""
        for logger in self._others:
            logger.picture(f"samples/{name}", picture, iteration)

    def _forward(self, row: Mapping[str, Any], prefix: str) -> None:
        values = {
            key if "/" in key else f"{prefix}/{key}": float(value)
            for key, value in row.items()
            if isinstance(value, int | float) and key != "iteration"
        }
        for logger in self._others:
            logger.log(values, int(row["iteration"]))

    def close(self) -> None:
        """Close all."""
        self._metrics.close()
        for logger in self._others:
            logger.close()


class SilentLogs(Logs):
    """The logs of a rank that writes none."""

    def __init__(self) -> None:
        pass

    def train(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def evaluation(self, row: Mapping[str, Any]) -> str | None:
        """Nothing."""
        return None

    def picture(self, name: str, picture: Tensor, iteration: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _where(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"iteration": row["iteration"], "epoch": row["epoch"]}


def open_logs(
    experiment: Experiment,
    config: Mapping[str, Any],
    directory: ExperimentDir,
    run_id: str,
    position: Position,
) -> Logs:
    """Open the logs of a run that goes on from `position`; rows that it will write are cut."""
    output = experiment.output
    shared = Path(output.shared_dir) if output.shared_dir else None
    metrics = MetricsLog(directory, experiment.name, shared_dir=shared)
    metrics.truncate_after(position.logged, evaluation=position.validated)
    folder = Path(output.log_dir) if output.log_dir else directory.path
    others: list[Logger] = []
    if output.tensorboard:
        others.append(TensorBoardLogger(folder / "tensorboard", position.iteration))
    if output.wandb != "off":
        others.append(WandbLogger(experiment, config, run_id, folder))
    return Logs(metrics, others)
