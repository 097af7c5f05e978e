"""Which kernel is taken: the quicker one, or what the user says."""

import pytest
import torch

from imgtool.errors import UsageError
from imgtool.nn import convolution, kernels
from imgtool.nn.kernels import KERNELS, VARIABLE, Choice

CPU = torch.device("cpu")
CHOICES = [value for value in vars(convolution).values() if isinstance(value, Choice)]


def make_choice(seconds, clock):
    def spend(duration):
        clock[0] += duration

    calls = {name: lambda t=t: spend(t) for name, t in zip(KERNELS, seconds, strict=True)}
    return Choice("x", preferred="convolution", before="product", make=lambda device: calls)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((2, 1), "product"), ((1, 2), "convolution"), ((1, 0.95), "convolution")],
)
def test_the_quicker_one_is_taken_and_the_preferred_of_equals(monkeypatch, seconds, expected):
    clock = [0.0]
    monkeypatch.setattr(kernels, "_now", lambda device: clock[0])
    monkeypatch.delenv(VARIABLE, raising=False)
    choice = make_choice(seconds, clock)
    assert choice.of(CPU) == expected
    spent = clock[0]
    assert choice.of(CPU) == expected
    assert clock[0] == spent  # timed once


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_what_is_timed_are_two_ways_to_the_same(choice, monkeypatch):
    def flat(found):
        return [found] if torch.is_tensor(found) else [x for x in found if x is not None]

    found = [flat(call()) for call in (choice._make(CPU)[kernel] for kernel in KERNELS)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.sum(), other.sum())
    monkeypatch.setattr(choice, "_chosen", {})
    assert choice.of(CPU) in KERNELS


def test_the_user_may_choose(monkeypatch):
    monkeypatch.setenv(VARIABLE, "product")
    assert make_choice((1, 2), [0.0]).of(CPU) == "product"


def test_a_mistyped_choice_is_named(monkeypatch):
    monkeypatch.setenv(VARIABLE, "conv")
    with pytest.raises(UsageError, match="no kernel 'conv'") as caught:
        make_choice((1, 2), [0.0]).of(CPU)
    assert VARIABLE in caught.value.hint
