"""Integer probability tables: exact sums, near the distribution, safe to read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gennorm

from imgtool.errors import CheckpointError
from imgtool.models.hpcm.entropy import SCALE_TABLE
from imgtool.models.hpcm.network import HPCM
from imgtool.models.hpcm.tables import TOTAL, Tables, counts, to_counts
from imgtool.models.hpcm.variants import VARIANTS


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = HPCM(VARIANTS["HPCM_Tiny"])
    with torch.no_grad():
        made.scales_hyper.uniform_(0.5, 4)
        made.scales_hyper[0, 0] = -1.0  # the bound is part of the model
        made.scales_hyper[0, 1] = 1e6
    return made


def test_one_table_for_each_scale_and_channel(model):
    tables = Tables.of(model)
    assert tables.num_scales == 60
    assert len(tables.rows) == 60 + VARIANTS["HPCM_Tiny"].N
    for row in tables.rows:
        assert row.sum() == TOTAL
        assert row.min() >= 1
    # Symbols without the escape, as published: 3 at the smallest scale, 697 at the largest.
    assert (len(tables.rows[0]) - 1, len(tables.rows[59]) - 1) == (3, 697)
    assert np.array_equal(tables.rows[60], tables.rows[0])
    assert len(tables.rows[61]) < TOTAL


@pytest.mark.parametrize("scale", [SCALE_TABLE[0], 0.5, 1.0, 7.3, SCALE_TABLE[-1]])
def test_counts_are_near_the_distribution(scale):
    row = counts(scale)
    half = (len(row) - 2) // 2
    edges = np.arange(-half, half + 2) - 0.5
    inside = np.diff(gennorm.cdf(edges / scale, 1.5))
    wanted = np.append(inside, 2 * gennorm.sf(edges[-1] / scale, 1.5))
    assert wanted[-1] < 1.5e-6
    extra_bits = (wanted * np.log2(np.maximum(wanted, 1e-300) / (row / TOTAL))).sum()
    assert 0 <= extra_bits < 0.004
    assert np.abs(row[:half] - row[half + 1 : -1][::-1]).max() <= 1


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=3000).filter(lambda values: sum(values) > 0))
def test_any_probabilities_become_counts(values):
    wanted = np.array(values) / sum(values)
    found = to_counts(wanted)
    assert found.sum() == TOTAL
    assert found.min() >= 1
    order = np.argsort(wanted, kind="stable")
    assert np.diff(found[order]).min(initial=0) >= -1  # equal ones differ by what is left over


def test_they_are_stored_and_read(model):
    tables = Tables.of(model)
    again = Tables.from_tensors(tables.tensors(), num_channels=32)
    assert np.array_equal(again.half_widths, tables.half_widths)
    for ours, theirs in zip(tables.rows, again.rows, strict=True):
        assert np.array_equal(ours, theirs)


def spoil(name, change):
    def apply(tensors):
        tensors[name] = change(tensors[name].clone())

    return apply


def moved(lengths):
    lengths[0] += 1
    lengths[1] -= 1
    return lengths


def zero(flat):
    flat[1] += flat[0]
    flat[0] = 0
    return flat


def huge(lengths):
    lengths[0] = 2**31 - 2
    return lengths


@pytest.mark.parametrize(
    "apply",
    [
        lambda tensors: tensors.pop("counts"),
        spoil("lengths", moved),
        spoil("lengths", huge),
        spoil("lengths", lambda lengths: lengths[:-1]),
        spoil("lengths", lambda lengths: lengths.float()),
        spoil("lengths", lambda lengths: lengths[None]),
        spoil("counts", zero),
        spoil("counts", lambda flat: flat + 1),
        spoil("counts", lambda flat: flat[:-1]),
        spoil("counts", lambda flat: flat[:0]),
    ],
)
def test_what_is_no_table_is_refused(model, apply):
    tensors = dict(Tables.of(model).tensors())
    apply(tensors)
    with pytest.raises(CheckpointError, match="probability tables cannot be used"):
        Tables.from_tensors(tensors, num_channels=32)


def test_scales_that_are_not_finite_are_refused():
    model = HPCM(VARIANTS["HPCM_Tiny"])
    with torch.no_grad():
        model.scales_hyper[0, 3] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        Tables.of(model)
