import math

import torch

from imgtool.training.meters import Meter


def test_means_over_a_window_and_after_a_restore():
    meter = Meter(torch.device("cpu"))
    meter.add(("a", "b"), torch.tensor([1.0, 10.0]))
    other = Meter(torch.device("cpu"))
    other.restore(meter.tensors(lambda t: t))
    other.add(("a", "b"), torch.tensor([3.0, 20.0]))
    other.add(("c",), torch.tensor([7.0]))
    assert other.means(lambda t: t) == {"a": 2.0, "b": 15.0, "c": 7.0}
    assert meter.means(lambda t: t) == {"a": 1.0, "b": 10.0}
    other.clear()
    assert other.means(lambda t: t) == {}


def test_non_finite_values_do_not_spoil_the_mean():
    meter = Meter(torch.device("cpu"))
    for value in (1.0, float("nan"), 5.0, float("inf")):
        meter.add(("a",), torch.tensor([value]))
    assert meter.means(lambda t: t) == {"a": 3.0}
    only_bad = Meter(torch.device("cpu"))
    only_bad.add(("a",), torch.tensor([float("nan")]))
    assert math.isnan(only_bad.means(lambda t: t)["a"])


def test_means_weigh_all_processes():
    meter = Meter(torch.device("cpu"))
    meter.add(("a",), torch.tensor([2.0]))
    other = Meter(torch.device("cpu"))
    other.add(("a",), torch.tensor([4.0]))
    other.add(("a",), torch.tensor([6.0]))
    theirs = next(iter(other.tensors(lambda t: t).values()))
    assert meter.means(lambda t: t + theirs) == {"a": 4.0}


def test_a_restored_window_has_the_devices_own_precision():
    meter = Meter(torch.device("cpu"))
    meter.add(("a",), torch.tensor([2.0]))
    single = Meter(torch.device("cpu"))
    single._dtype = torch.float32  # as on mps, which refuses float64
    single.restore(meter.tensors(lambda t: t))
    assert {t.dtype for t in single.tensors(lambda t: t).values()} == {torch.float32}


def test_a_saved_window_is_of_all_processes_and_counts_once():
    first, second = Meter(torch.device("cpu")), Meter(torch.device("cpu"))
    first.add(("a",), torch.tensor([2.0]))
    second.add(("a",), torch.tensor([4.0]))
    theirs = next(iter(second.tensors(lambda t: t).values()))
    saved = first.tensors(lambda t: t + theirs)
    first.restore(saved)
    second.restore(saved, share=False)
    theirs = next(iter(second.tensors(lambda t: t).values()))
    assert first.means(lambda t: t + theirs) == {"a": 3.0}
