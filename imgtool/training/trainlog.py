"""train.log: what the engine says, kept in the experiment's directory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from imgtool.experiment.layout import ExperimentDir
from imgtool.training.report import Progress, Reporter


class _LogFile(logging.FileHandler):
    """A full disk is met where something that matters is written, not here."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class LoggedReporter:
    """Passes news on and keeps what matters of them in train.log."""

    def __init__(self, inner: Reporter) -> None:
        self._inner = inner
        self._log = logging.getLogger("imgtool.train")

    def message(self, text: str) -> None:
        """Log and pass on."""
        self._log.info(text)
        self._inner.message(text)

    def progress(self, progress: Progress) -> None:
        """Log the iterations whose losses were read."""
        if progress.logged:
            losses = " ".join(f"{k}={v:.5g}" for k, v in progress.losses.items())
            self._log.info(
                "iteration %d epoch %.2f %s %.1f images/s",
                progress.iteration,
                progress.epoch,
                losses,
                progress.images_per_sec,
            )
        self._inner.progress(progress)


@contextmanager
def train_log(directory: ExperimentDir, *, first: bool) -> Iterator[None]:
    """Send messages and Python's warnings to train.log, and keep them off the terminal."""
    handler: logging.Handler = logging.NullHandler()
    if first:
        handler = _LogFile(directory.log_path, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    loggers = [logging.getLogger(n) for n in ("imgtool.train", "py.warnings")]
    logging.captureWarnings(True)
    before = [list(logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.handlers = [handler]
        logger.propagate = False
    loggers[0].setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers = handlers
        logging.captureWarnings(False)
        with suppress(OSError):  # what a full disk did not take
            handler.close()
