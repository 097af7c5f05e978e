import csv
import json
import math
import os
import re
import resource
import subprocess
import sys
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgtool.errors import ExperimentError
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.metrics import MetricsLog, read_rows


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_there_at_once(experiment):
    log = MetricsLog(experiment, "S1")
    log.log({"iteration": 1, "epoch": 0.5, "loss": 0.25, "lr": 1e-4})
    log.log({"iteration": 2, "epoch": 1.0, "loss": 0.125, "note": "x", "none": None})
    assert list(read_rows(experiment.metrics_path)) == [
        {"iteration": 1, "epoch": 0.5, "loss": 0.25, "lr": 1e-4},
        {"iteration": 2, "epoch": 1.0, "loss": 0.125, "note": "x", "none": None},
    ]


def test_values_that_are_not_finite(experiment):
    import numpy as np

    log = MetricsLog(experiment, "S1")
    log.log(
        {"iteration": 1, "loss": math.nan, "psnr": -math.inf, "kld": np.float32("nan"), "a": 1.0}
    )
    (row,) = read_rows(experiment.metrics_path)
    assert row["loss"] is row["psnr"] is row["kld"] is None
    assert row["nonfinite"] == ["kld", "loss", "psnr"]
    assert row["a"] == 1.0


def test_a_line_cut_by_a_kill_does_not_spoil_the_next(experiment):
    experiment.metrics_path.write_text('{"iteration": 1}\n{"iteration": 2, "lo')
    assert [row["iteration"] for row in read_rows(experiment.metrics_path)] == [1]
    MetricsLog(experiment, "S1").log({"iteration": 2})
    assert [row["iteration"] for row in read_rows(experiment.metrics_path)] == [1, 2]
    assert experiment.metrics_path.read_text().count("\n") == 2


def test_csv_gains_columns(experiment):
    log = MetricsLog(experiment, "S1")
    log.log_epoch({"iteration": 10, "epoch": 1, "train_loss": 0.5})
    log.log_epoch(
        {"iteration": 20, "epoch": 2, "train_loss": 0.4, "val_loss": math.nan, "val_iou": None}
    )
    assert table(experiment.csv_path("S1")) == [
        {"iteration": "10", "epoch": "1", "train_loss": "0.5", "val_loss": "", "val_iou": ""},
        {"iteration": "20", "epoch": "2", "train_loss": "0.4", "val_loss": "nan", "val_iou": ""},
    ]
    MetricsLog(experiment, "S1").log_epoch({"val_loss": 0.1, "epoch": 3, "iteration": 30})
    assert [row["val_loss"] for row in table(experiment.csv_path("S1"))] == ["", "nan", "0.1"]
    assert experiment.csv_path("S1").read_text().startswith("iteration,epoch,train_loss,")


def test_copy_in_the_shared_folder(experiment, tmp_path):
    shared = tmp_path / "phase" / "shared"
    log = MetricsLog(experiment, "S1", shared)
    assert log.log_epoch({"iteration": 10, "epoch": 1, "train_loss": 0.5}) is None
    copy = shared / "S1_metrics.csv"
    assert copy.read_text() == experiment.csv_path("S1").read_text()
    log.log_epoch({"iteration": 20, "epoch": 2, "train_loss": 0.4})
    log.truncate_after(10)
    assert copy.read_text() == experiment.csv_path("S1").read_text()
    assert len(table(copy)) == 1


def test_a_phase_shows_tiny_tables_until_it_has_its_own(experiment, tmp_path):
    phase = tmp_path / "outputs" / "p"
    row = {"iteration": 10, "epoch": 1}
    tiny = MetricsLog(experiment, "S1", phase / "tiny")
    for log in (tiny, MetricsLog(experiment, "S2", phase / "tiny"), tiny):
        log.log_epoch(row)
    assert [p.name for p in sorted(phase.glob("*_metrics.csv"))] == [
        "S1_metrics.csv",
        "S2_metrics.csv",
    ]
    assert len(table(phase / "S1_metrics.csv")) == 2
    whole = MetricsLog(experiment, "S1", phase)
    whole.log_epoch({**row, "val_mse": 0.5})
    tiny.log_epoch(row)
    (kept,) = phase.glob("*_metrics.csv")
    assert not kept.is_symlink()
    assert len(list(phase.glob("tiny/*_metrics.csv"))) == 2


def test_a_copy_that_fails_is_a_warning(experiment, tmp_path):
    (tmp_path / "file").write_text("x")
    log = MetricsLog(experiment, "S1", tmp_path / "file")
    warning = log.log_epoch({"iteration": 10, "epoch": 1})
    assert "cannot copy the metrics" in warning
    assert len(table(experiment.csv_path("S1"))) == 1


def test_truncation(experiment):
    log = MetricsLog(experiment, "S1")
    for iteration in range(1, 7):
        log.log({"iteration": iteration, "loss": 1 / iteration})
    for iteration in (2, 4, 6):
        log.log_epoch({"iteration": iteration, "epoch": iteration / 2})
    with open(experiment.metrics_path, "a") as file:
        file.write('{"iteration": 7, "lo')
    lines = experiment.metrics_path.read_bytes().splitlines(keepends=True)
    assert log.truncate_after(4) == 3
    assert experiment.metrics_path.read_bytes() == b"".join(lines[:4])
    assert [row["iteration"] for row in table(experiment.csv_path("S1"))] == ["2", "4"]
    log.log({"iteration": 5})
    log.log_epoch({"iteration": 6, "epoch": 3})
    assert len(list(read_rows(experiment.metrics_path))) == 5
    assert len(table(experiment.csv_path("S1"))) == 3
    assert log.truncate_after(100) == 0


def test_truncation_of_an_evaluation_that_will_be_done_again(experiment):
    log = MetricsLog(experiment, "S1")
    log.log({"kind": "train", "iteration": 5})
    log.log({"kind": "evaluation", "iteration": 5})
    log.log_epoch({"iteration": 5})
    log.truncate_after(5, evaluation=0)
    assert [row["kind"] for row in read_rows(experiment.metrics_path)] == ["train"]
    assert table(experiment.csv_path("S1")) == []


def test_truncation_of_nothing(experiment):
    assert MetricsLog(experiment, "S1").truncate_after(0) == 0
    assert not experiment.metrics_path.exists()
    assert not experiment.csv_path("S1").exists()


values = st.none() | st.floats() | st.integers(-(2**53), 2**53) | st.text(max_size=8)
rows = st.lists(
    st.tuples(
        st.integers(0, 50),
        st.dictionaries(
            st.sampled_from(["loss", "lr", "a,b", 'q"', "x\ny", "ü"]), values, max_size=4
        ),
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(rows=rows, at=st.integers(0, 50), junk=st.binary(max_size=20))
def test_any_rows_survive_a_round_trip_and_a_cut(tmp_path_factory, rows, at, junk):
    experiment = ExperimentDir(tmp_path_factory.mktemp("exp"))
    log = MetricsLog(experiment, "S1")
    with mock.patch("imgtool.files.os.fsync"):  # the disk's speed is not the question
        for iteration, row in rows:
            log.log({"iteration": iteration, "epoch": 0, **row})
            log.log_epoch({"iteration": iteration, "epoch": 0, **row})
        with open(experiment.metrics_path, "ab") as file:
            file.write(junk.replace(b"\n", b""))
        log.close()
        MetricsLog(experiment, "S1").truncate_after(at)
    kept = [(iteration, row) for iteration, row in rows if iteration <= at]
    back = list(read_rows(experiment.metrics_path))
    assert [row["iteration"] for row in back] == [iteration for iteration, _ in kept]
    for (_, row), found in zip(kept, back, strict=True):
        for key, value in row.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            assert found[key] == (value if finite else None)
    cells = table(experiment.csv_path("S1")) if rows else []
    assert [int(row["iteration"]) for row in cells] == [iteration for iteration, _ in kept]
    for (_, row), found in zip(kept, cells, strict=True):
        for key, value in row.items():
            assert found[one_line(key)] == ("" if value is None else one_line(str(value)))


def one_line(text):
    return re.sub("[\x00-\x1f\x7f]+", " ", text)


FULL = """
import resource, signal, sys
from imgtool.errors import ExperimentError
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.metrics import MetricsLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
log = MetricsLog(ExperimentDir(sys.argv[1]), "S1")
done = 0
try:
    while True:
        log.log({"iteration": done, "text": "x" * 100})
        done += 1
except ExperimentError as error:
    print(done, error)
"""


def test_a_disk_that_fills_up_in_the_middle_of_a_line_leaves_whole_lines(experiment):
    assert resource.RLIMIT_FSIZE
    answer = subprocess.run(
        [sys.executable, "-c", FULL, str(experiment.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    done, _, message = answer.stdout.partition(" ")
    assert "cannot write" in message
    lines = experiment.metrics_path.read_bytes().splitlines(keepends=True)
    assert len(lines) == int(done) > 3
    assert [json.loads(line)["iteration"] for line in lines] == list(range(int(done)))


def test_errors_name_the_file(tmp_path):
    log = MetricsLog(ExperimentDir(tmp_path / "nowhere"), "S1")
    with pytest.raises(ExperimentError, match=r"metrics\.jsonl"):
        log.log({"iteration": 1})
    with pytest.raises(ExperimentError, match=r"S1_metrics\.csv"):
        log.log_epoch({"iteration": 1})
    assert not os.path.exists(tmp_path / "nowhere")
