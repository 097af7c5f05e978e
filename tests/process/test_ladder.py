"""The ladder by a made-up clock: no process, no waiting."""

import math
import signal

from hypothesis import given
from hypothesis import strategies as st

from imgtool.process.ladder import (
    AS_TERM,
    GIVE_UP_SEC,
    LEFTOVER_SEC,
    POLL_SEC,
    WATCHED,
    Ladder,
    Requests,
)
from imgtool.process.stopping import REPEAT_SEC

GRACE, KILL_AFTER = 20.0, 7.0
ORDER = [("leader", None), ("group", signal.SIGTERM), ("all", signal.SIGKILL)]


class World:
    """A command that dies of what `deadly` says, and a driver that looks at it by the clock.

    Args:
        dies_at: when it ends by itself.
        deadly: ends at a step to one of these.
        num_left: what outlives it; `left_dies_of` ends that.
    """

    def __init__(self, ladder, *, dies_at=math.inf, deadly=(), num_left=0, left_dies_of=()):
        self.ladder, self.dies_at, self.deadly = ladder, dies_at, deadly
        self.num_left, self.left_dies_of = num_left, left_dies_of
        self.now, self.steps = 0.0, []

    def run(self, until, requests=()):
        """Requests are (time, action) in order."""
        pending = list(requests)
        while self.now <= until and not self.ladder.is_over:
            while pending and pending[0][0] <= self.now:
                pending.pop(0)[1](self.now)
            if self.now >= self.dies_at:
                self.ladder.leader_ended(self.num_left, self.now)
            for step in self.ladder.advance(self.now):
                self.steps.append((self.now, step))
                if step.to in self.deadly:
                    self.dies_at = self.now
                if step.to == "left" and step.number in self.left_dies_of:
                    self.num_left = 0
            self.now += POLL_SEC
        return self

    def first(self, to):
        return next((at for at, step in self.steps if step.to == to), None)


requests = st.lists(
    st.tuples(st.floats(0, 60), st.sampled_from([*WATCHED, "ask", "insist"])), max_size=6
).map(lambda found: sorted(found, key=lambda one: one[0]))


def actions(ladder, found):
    def act(word):
        if word == "ask":
            return lambda now: ladder.ask("why", now)
        if word == "insist":
            return lambda now: ladder.insist(now)
        return lambda now: ladder.receive(word, now)

    return [(at, act(word)) for at, word in found]


@given(requests, st.none() | st.floats(0, 60), st.booleans())
def test_it_never_climbs_down_and_always_comes_to_an_end(found, deadline, insistent):
    ladder = Ladder(GRACE, KILL_AFTER, deadline=deadline, insistent=insistent)
    world = World(ladder).run(60 + GRACE + KILL_AFTER + GIVE_UP_SEC + 1, actions(ladder, found))
    was_asked = ladder.why is not None
    insisted = any(word == "insist" for _, word in found)
    if was_asked:
        assert ladder.is_over
        assert ladder.is_stuck  # nothing in this world kills it
        firsts = [world.first(to) for to, _ in ORDER]
        assert firsts == sorted(firsts)
        assert all(
            step.number == number
            for to, number in ORDER[1:]
            for _, step in world.steps
            if step.to == to
        )
        if not insisted and not insistent:
            assert firsts[1] - firsts[0] >= GRACE - 1e-6
            assert firsts[2] - firsts[1] >= KILL_AFTER - 1e-6
        assert all(step.again for at, step in world.steps if step.to == "all" and at > firsts[2])
    elif not insisted:
        assert world.steps == []
        assert not ladder.is_over


@given(requests, st.floats(0, 100), st.sampled_from([0, 3]), st.booleans())
def test_once_the_leader_is_gone_it_gets_nothing_more(found, dies_at, num_left, is_deaf):
    ladder = Ladder(GRACE, KILL_AFTER, deadline=30.0, insistent=True)
    deadly_to_left = () if is_deaf else (signal.SIGTERM, signal.SIGKILL)
    world = World(ladder, dies_at=dies_at, num_left=num_left, left_dies_of=deadly_to_left)
    world.run(dies_at + KILL_AFTER + GIVE_UP_SEC + 100, actions(ladder, found))
    assert ladder.is_over
    ended = min(world.dies_at, world.now)
    late = [step for at, step in world.steps if at >= ended + POLL_SEC]
    assert {step.to for step in late} <= {"left"}
    if num_left == 0 and not ladder.is_stuck:
        assert late == []
    assert ladder.is_stuck == (num_left > 0 and is_deaf) or dies_at > world.now


def test_what_outlives_the_leader_gets_time_to_save_after_a_stop_only():
    for is_asked, wait in ((True, KILL_AFTER), (False, LEFTOVER_SEC)):
        ladder = Ladder(GRACE, KILL_AFTER)
        world = World(ladder, dies_at=1.0, num_left=2, left_dies_of=(signal.SIGKILL,))
        asking = [(0.5, lambda now, ladder=ladder: ladder.ask("why", now))] if is_asked else []
        world.run(60, asking)
        left = [(at, step.number) for at, step in world.steps if step.to == "left"]
        assert [number for _, number in left] == [signal.SIGTERM, signal.SIGKILL]
        assert wait <= left[1][0] - left[0][0] <= wait + 2 * POLL_SEC
        assert not ladder.is_stuck


def test_a_leader_that_had_to_be_killed_leaves_nothing_that_is_asked_again():
    ladder = Ladder(GRACE, KILL_AFTER)
    ladder.ask("why", 0.0)
    world = World(ladder, deadly=("all",), num_left=1, left_dies_of=(signal.SIGKILL,)).run(60)
    assert [step.number for _, step in world.steps if step.to == "left"] == [signal.SIGKILL]


@given(st.sampled_from(WATCHED), st.lists(st.floats(0, REPEAT_SEC - 0.01), max_size=4))
def test_one_request_delivered_twice_is_one(number, times):
    ladder = Ladder(GRACE, KILL_AFTER, insistent=True)
    for now in sorted([0.0, *times]):
        ladder.receive(number, now)
    (step,) = ladder.advance(REPEAT_SEC)
    assert step.to == "leader"
    assert step.number == (signal.SIGTERM if number in AS_TERM else number)


def test_a_later_second_interrupt_climbs_only_where_someone_insists():
    for insistent in (True, False):
        ladder = Ladder(GRACE, KILL_AFTER, insistent=insistent)
        for now in (0.0, 3.0):
            ladder.receive(signal.SIGINT, now)
        steps = ladder.advance(3.0)
        assert [step.to for step in steps] == ["leader"] + ["group"] * insistent


def test_only_the_first_reason_counts():
    ladder = Ladder(GRACE, KILL_AFTER)
    ladder.ask("a", 0.0)
    ladder.ask("b", 1.0)
    assert (ladder.why, len(ladder.advance(1.0)), ladder.due) == ("a", 1, GRACE)


def test_what_we_have_sent_ourselves_is_repeated_within_two_seconds():
    requests = Requests()
    requests.sent(signal.SIGINT, 5.0)
    assert requests.judge(signal.SIGINT, 6.0) == "repeat"
    assert requests.judge(signal.SIGTERM, 6.0) == "first"
    assert requests.judge(signal.SIGINT, 7.5) == "again"
