"""Both ways of multiplying give the same integers, up to the largest there are."""

from __future__ import annotations

import pytest
import torch

from imgtool.evaluation.codec.integer import products
from imgtool.evaluation.codec.integer.arithmetic import (
    ACTIVATION_MAX,
    WEIGHT_MAX,
    Bound,
    settle,
    whole_weights,
)
from imgtool.evaluation.codec.integer.products import CHOSEN, Limbs, Matrix, _split


@pytest.mark.parametrize(
    ("largest", "base", "low", "high"),
    [(ACTIVATION_MAX, 256, 128, 127), (WEIGHT_MAX, 128, 64, 63)],
)
def test_two_limbs_hold_every_number_and_no_more(largest, base, low, high):
    numbers = torch.arange(-largest, largest + 1, dtype=torch.float64)
    high_limbs, low_limbs = (limb.int() for limb in _split(numbers, base))
    assert torch.equal(high_limbs * base + low_limbs, numbers.int())
    for limb in (high_limbs, low_limbs):
        assert -low <= limb.min() <= limb.max() <= high
    beyond = torch.tensor([largest + 1.0], dtype=torch.float64)
    assert int((beyond + base // 2) // base) > high


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 17, 5), (40, 33, 70)])
def test_limbs_are_exact(sizes):
    rows, inputs, outputs = sizes
    source = torch.Generator().manual_seed(0)
    whole = torch.randint(-WEIGHT_MAX, WEIGHT_MAX + 1, (outputs, inputs), generator=source)
    x = torch.randint(-ACTIVATION_MAX, ACTIVATION_MAX + 1, (rows, inputs), generator=source)
    wanted = torch.einsum("ni,oi->no", x, whole)  # int64
    limbs = Limbs(whole.double())
    assert torch.equal(limbs(x.double()).long(), wanted)
    assert limbs.is_right()
    shift = torch.full((outputs,), 2.0**-9, dtype=torch.float64)
    matrix, bias = Matrix(whole.double(), shift), torch.ones(outputs, dtype=torch.float64)
    with CHOSEN.using("limbs"):
        by_limbs = matrix(x.double(), bias)
        assert CHOSEN.way(x.device) == "limbs"
    with CHOSEN.using("float64"):
        assert torch.equal(by_limbs, matrix(x.double(), bias))


def test_wrong_products_are_noticed(monkeypatch):
    """As of a processor whose sums of pairs saturate."""
    whole = torch.full((4, 6), float(WEIGHT_MAX), dtype=torch.float64)
    right = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: right(a, b).clamp_max_(2**15 - 1))
    assert not Limbs(whole).is_right()
    matrix, zero = Matrix(whole, torch.ones(4).double()), torch.zeros(4).double()
    x = torch.full((2, 6), float(ACTIVATION_MAX), dtype=torch.float64)
    with CHOSEN.using("limbs"):
        assert torch.equal(matrix(x, zero), x @ whole.t())
        assert CHOSEN.way(x.device) == "float64"  # from now on, for all


def test_limbs_are_taken_only_where_they_are_the_quicker_ones(monkeypatch):
    for seconds, way in (((1.0, 2.0), "limbs"), ((1.0, 1.0), "float64")):
        left = list(seconds)
        monkeypatch.setattr(products, "_seconds", lambda call, left=left: left.pop(0))
        assert products._quicker() == way
    monkeypatch.setattr(Limbs, "is_right", lambda self: False)
    monkeypatch.setattr(products, "_seconds", lambda call, left=[1.0, 2.0]: left.pop(0))
    assert products._quicker() == "float64"


def test_rounding_is_to_even_and_saturates():
    x = torch.tensor([0.5, 1.5, -0.5, -2.5, 2.500001, 1e9, -1e9], dtype=torch.float64)
    found = settle(x.clone()).tolist()
    assert found == [0, 2, 0, -2, 3, ACTIVATION_MAX, -ACTIVATION_MAX]


def test_weights_take_all_the_room_that_there_is():
    weight = torch.tensor([[1.0, -0.3], [0.0, 0.0], [3e-9, 0]], dtype=torch.float64)
    bias = torch.tensor([0.25, 0.5, 0], dtype=torch.float64)
    target = torch.tensor([8, 8, 8])
    whole, whole_bias, g = whole_weights(weight, bias, target)
    assert g.tolist() == [12, 32, 32]  # 2^13 is more than 8127; at most 24 below the output
    assert whole[0].tolist() == [4096, round(-0.3 * 4096)]
    assert whole_bias.tolist() == [1024, 2**31, 0]
    assert (whole.abs() <= WEIGHT_MAX).all()


def test_the_bound_counts_bits_between_the_finest_and_the_largest():
    bound = Bound()
    bound.see(torch.tensor([2.0**20]).double(), torch.tensor([-10]))
    assert bound.bits == 30
    bound.see(torch.tensor([2.0**20]).double(), torch.tensor([-10]), spare_bits=22)
    assert bound.bits == 52
    with pytest.raises(Exception, match="float64 holds 53"):
        bound.see(torch.tensor([2.0**20]).double(), torch.tensor([-10]), spare_bits=23)
