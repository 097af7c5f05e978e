"""Threads that a training takes of the cores it was given."""

from __future__ import annotations

import pytest

from imgtool.training import environment

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture(autouse=True)
def _sixteen_cores(monkeypatch) -> None:
    monkeypatch.setattr(environment, "cores", lambda: 16)
    for name in (*TORCHRUN, "OMP_NUM_THREADS", environment.SLOTS_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("value", "more", "expected"),
    [
        (None, {}, 14),
        ("3", {}, 3),
        ("1", {}, 1),
        ("4,2", {}, 4),
        ("", {}, 14),
        ("0", {}, 14),
        ("all", {}, 14),
        ("1", TORCHRUN, 14),  # torchrun's own
        ("3", TORCHRUN, 3),
        ("1", {**TORCHRUN, "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, 1),  # it sets none for one
    ],
)
def test_the_user_s_number_of_threads_is_obeyed(monkeypatch, value, more, expected):
    for name, text in {**more, **({} if value is None else {"OMP_NUM_THREADS": value})}.items():
        monkeypatch.setenv(name, text)
    assert environment.cpu_threads(1, 2) == expected


def test_local_ranks_and_trials_of_a_sweep_share_the_cores(monkeypatch):
    monkeypatch.setenv(environment.SLOTS_VARIABLE, "2")
    assert environment.shared_cores(2) == 4
    assert environment.cpu_threads(2, 1) == 3
    assert environment.cpu_threads(64, 1) == 1
