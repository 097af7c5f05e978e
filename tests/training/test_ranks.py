"""What a group of ranks says when its members differ or fail; real pairs are in test_two_ranks."""

import json
import threading
from datetime import timedelta

import pytest

from imgtool.errors import DataError, ExperimentError
from imgtool.experiment.layout import ExperimentDir
from imgtool.process.stopping import StopRequest
from imgtool.training.group import open_ranks
from imgtool.training.ranks import Failure, RankFailed, Ranks, err_path, forget_errors


class Told(Ranks):
    """Rank 0 of three, which is told what the others have."""

    size = 3

    def __init__(self, *others):
        self.others = others

    @staticmethod
    def hash_of(digests):
        heard = []
        alone = Ranks()
        alone.gather = lambda value: heard.append(value) or [value]
        alone.check_equal(digests, "anything")
        return heard[0]

    def gather(self, value):
        if isinstance(value, str):  # a hash of all
            return [value, *(Told.hash_of(other) for other in self.others)]
        return [value, *self.others]


def test_equal_ranks_pass():
    own = {"model.a": "1", "model.b": "2"}
    Told(own, own).check_equal(own, "parameters")
    Ranks().check_equal(own, "parameters")


def test_a_difference_names_both_ranks_and_the_tensor():
    own, other = {"model.a": "1", "model.b": "2"}, {"model.a": "1", "model.b": "3"}
    with pytest.raises(ExperimentError) as caught:
        Told(own, other).check_equal(own, "parameters")
    assert str(caught.value) == (
        "ranks 0 and 2 differ in parameters: model.b is 2 on rank 0 and 3 on rank 2 (1 of 2 differ)"
    )
    with pytest.raises(ExperimentError, match="model.b is 2 on rank 0 and None on rank 1"):
        Told({"model.a": "1"}, own).check_equal(own, "parameters")


def test_a_group_of_one_decides_alone():
    ranks = Ranks()
    assert ranks.is_first
    assert not ranks.distributed
    assert ranks.decide(lambda: {"path": "a"}) == {"path": "a"}
    assert ranks.gather(3) == [3]
    assert [ranks.ask(number) for number in (0, 2)] == [0, 2]
    error = DataError("bad")
    assert ranks.explain(error) is error


def test_a_follower_ends_with_the_first_causes_words_and_code():
    error = RankFailed(Failure(2, "DataError", "a.png is bad", "take another", 4))
    assert str(error) == "rank 2: a.png is bad"
    assert (error.hint, int(error.exit_code)) == ("take another", 4)


def test_errors_of_earlier_starts_are_forgotten(tmp_path):
    err_path(tmp_path, 3).write_text(json.dumps({}))
    (tmp_path / "other.err").write_text("")
    forget_errors(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other.err"]


@pytest.fixture
def launched(monkeypatch):
    """As rank 1 of two whose launcher is not there."""
    given = {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))


def test_ranks_that_cannot_meet_say_where(launched, monkeypatch, tmp_path):
    monkeypatch.setattr("imgtool.training.group.MEETING", timedelta(seconds=1))
    with (
        pytest.raises(ExperimentError, match="the ranks cannot meet at 127.0.0.1:1: "),
        open_ranks(ExperimentDir(tmp_path), StopRequest()),
    ):
        pass


def test_a_rank_whose_launcher_is_gone_hears_a_stop(launched, monkeypatch, tmp_path):
    monkeypatch.setattr("imgtool.training.group.MEETING", timedelta(seconds=1))
    monkeypatch.setattr("imgtool.training.group.PATIENCE_SEC", 0.0)
    stop = StopRequest()
    stop.ask("SIGINT")
    with (
        pytest.raises(ExperimentError, match="asked to stop"),
        open_ranks(ExperimentDir(tmp_path), stop),
    ):
        pass
    # torch's own thread must not come back while the interpreter ends.
    for thread in threading.enumerate():
        if thread.name == "rendezvous":
            thread.join()
