import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.errors import DataError
from imgtool.selection.table import read_table


@pytest.fixture
def write(tmp_path):
    def build(text):
        path = tmp_path / "a_metrics.csv"
        path.write_text(text)
        return path

    return build


def test_best_row(write):
    table = read_table(write("iteration,epoch,val_mse,other\n1,1,0.4,7\n2,2,0.1,8\n3,3,0.2,9\n"))
    assert table.metrics["val_mse"] == 0.1
    assert table.metrics["other"] == 8
    assert (table.metrics["best_iteration"], table.metrics["best_epoch"]) == (2, 2)
    assert list(table.curves["val_mse"]) == [0.4, 0.1, 0.2]
    assert (list(table.epochs), list(table.iterations)) == ([1, 2, 3], [1, 2, 3])


def test_the_row_that_the_experiment_calls_best(write):
    path = write("iteration,val_mse\n1,0.4\n2,0.1\n3,0.2\n")
    assert read_table(path, best_iteration=3).metrics["val_mse"] == 0.2


def test_psnr_alone_and_mse_alone_give_each_other(write):
    table = read_table(write("epoch,val_psnr\n1,10\n2,20\n"))
    assert table.metrics["val_mse"] == pytest.approx(0.01)
    assert table.derived == ("val_mse",)
    assert list(table.curves["val_mse"]) == pytest.approx([0.1, 0.01])
    table = read_table(write("epoch,val_mse\n1,0.1\n2,0.001\n"))
    assert table.metrics["val_psnr"] == pytest.approx(30)
    assert list(table.curves["val_psnr"]) == pytest.approx([10, 30])


def test_imginav_columns_are_on_minus_one_to_one(write):
    path = write("epoch,train_loss,val_loss,val_MSE_rgb\n1,1,1,0.08\n2,1,1,0.04\n")
    table = read_table(path, columns="imginav")
    assert table.metrics["val_mse"] == pytest.approx(0.01)
    assert table.metrics["val_psnr"] == pytest.approx(20)


def test_nan_and_inf_and_empty_cells(write):
    table = read_table(write("epoch,val_mse\n1,nan\n2,0.3\n3,\n4,inf\n5,0.4\n"))
    assert table.metrics["val_mse"] == 0.3
    assert table.num_nonfinite == 2
    assert math.isnan(table.curves["val_mse"][2])


def test_short_rows_quotes_crlf_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeff"epoch",val_mse,"x, y"\r\n1,0.5\r\n2,"0.25",3\r\n'.encode())
    assert read_table(path).metrics["val_mse"] == 0.25


def test_convergence_stability_and_spikes(write):
    # From 1.0 to 0.1: 90 % of 0.9 is there at 0.19. 0.4 is over 1.5 times 0.18.
    values = [1.0, 0.5, 0.18, 0.4, 0.1, 0.1, 0.1]
    text = "".join(f"{10 * i},{value}\n" for i, value in enumerate(values))
    metrics = read_table(write("epoch,val_mse\n" + text)).metrics
    assert metrics["convergence_epochs"] == 20
    assert metrics["num_spikes"] == 1
    assert metrics["stability"] > 0.5
    calm = read_table(write("val_mse\n1\n0.5\n0.25\n0.125\n")).metrics
    assert calm["stability"] == pytest.approx(0)
    assert calm["convergence_epochs"] == 4


@pytest.mark.parametrize("text", ["", "\n", "epoch,val_mse\n", "a\0b\n1\n"])
def test_no_table(write, text):
    with pytest.raises(DataError):
        read_table(write(text))


def test_a_file_of_records_is_for_standard_input(tmp_path):
    path = tmp_path / "sweep.json"
    path.write_text('{"schema": "imgtool/1", "kind": "experiment", "name": "a"}\n' * 2)
    with pytest.raises(DataError, match="holds records, which come by standard input"):
        read_table(path)


@given(st.lists(st.floats(0, 1e6) | st.just(math.nan), min_size=1, max_size=20))
def test_best_is_the_lowest_finite(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("t") / "x.csv"
    path.write_text("val_mse\n" + "".join(f"{value}\n" for value in values))
    finite = [value for value in values if math.isfinite(value)]
    assert read_table(path).metrics.get("val_mse") == (min(finite) if finite else None)
