"""Single optimizer steps: which batch they see, what a bad one does, what is measured."""

import copy
import socket
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from imgtool.config.schema import Train
from imgtool.models.base import Task, Update
from imgtool.process.stopping import StopRequest
from imgtool.training.batches import Batches
from imgtool.training.device import Precision
from imgtool.training.group import Group
from imgtool.training.ranks import Ranks
from imgtool.training.step import Stepper
from imgtool.training.throughput import Throughput

CPU = torch.device("cpu")


class Pretend(Ranks):
    """Rank 0 of two; `other` is what the other one adds to a sum."""

    size = 2

    def __init__(self, other=0.0):
        self.other = other

    def sum(self, tensor):
        return tensor.add_(torch.as_tensor(self.other))


class Linear(Update):
    """Its loss is the output for the batch, plus what the test adds."""

    def __init__(self, name, *, fresh_batch=True):
        super().__init__()
        self.name, self.fresh_batch = name, fresh_batch
        self.layer = nn.Linear(3, 1)
        self.added = 0.0
        self.seen, self.epochs = [], []

    def forward(self, batch):
        self.seen.append(int(batch["index"][0]))
        self.epochs.append(batch["epoch"])
        x = batch["image"].float().mean(dim=(2, 3)) / 255
        return {"loss": self.layer(x).float().mean() + self.added}


class TwoUpdates(Task):
    def __init__(self):
        torch.manual_seed(0)
        self.first, self.second = Linear("first"), Linear("second", fresh_batch=False)
        self.modules = nn.ModuleDict({"first": self.first, "second": self.second})

    def all_updates(self):
        return (self.first, self.second)

    def evaluator(self):
        raise NotImplementedError

    def sample(self, batch):
        raise NotImplementedError

    def facts(self):
        return {}


def loader(start):
    number = start
    while True:
        generator = torch.Generator().manual_seed(number)
        image = torch.randint(0, 256, (2, 3, 4, 4), generator=generator, dtype=torch.uint8)
        yield {"image": image, "index": torch.tensor([number] * 2)}
        number += 1


def make(ranks=None, precision=None, **train):
    chosen = Train(**{"optimizer": "sgd", "lr": 0.1, "device": "cpu", **train})
    task = TwoUpdates()
    return stepper_of(task, chosen, ranks or Ranks(), precision or Precision(CPU))


def stepper_of(task, train, ranks, precision):
    batches = Batches(
        loader, CPU, Throughput(), accumulate=train.accumulate, world_size=ranks.size, held=True
    )
    return Stepper(ranks, task, train, batches, precision)


@pytest.fixture
def group(monkeypatch):
    """This process as a group that a launcher has started, of one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in where.items():
        monkeypatch.setenv(name, str(value))
    group = Group(Path("nowhere"), StopRequest())
    group.join(CPU)
    yield group
    group.close()


def counts(stepper):
    now, longest = stepper.bad.read()
    return now, longest, stepper.bad.total


def iterate(stepper, count=1):
    for number in range(1, count + 1):
        stepper.step(stepper.task.first, 1.0)
        stepper.step(stepper.task.second, 1.0, fresh=False)
        stepper.end_iteration(number)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_update_without_batches_of_its_own_sees_those_of_the_one_before(accumulate):
    stepper = make(accumulate=accumulate)
    iterate(stepper, 3)
    assert stepper.task.first.seen == list(range(3 * accumulate))
    assert stepper.task.second.seen == stepper.task.first.seen
    assert stepper.batches.drawn == 3 * accumulate


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_iterations_updates_are_told_where_it_began(accumulate):
    stepper = make(accumulate=accumulate)
    stepper.batches.per_epoch = 4
    iterate(stepper, 3)
    begun = [i * accumulate / 4 for i in range(3) for _ in range(accumulate)]
    assert stepper.task.first.epochs == begun
    assert stepper.task.second.epochs == begun


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_in_pieces_is_the_batch(accumulate):
    class Pieces(Linear):
        def pieces(self, batch):
            return [{**batch, "image": row[None]} for row in batch["image"]]

        def forward(self, batch):
            self.rows.append((len(batch["image"]), batch["noise"].part))
            return {"loss": super().forward(batch)["loss"] / 2}

    plain, cut = make(accumulate=accumulate), make(accumulate=accumulate)
    first = cut.task.first
    first.__class__, first.rows = Pieces, []
    for stepper in (plain, cut):
        stepper.step(stepper.task.first, 1.0)
    assert first.rows == [(1, micro) for micro in range(accumulate) for _ in range(2)]
    torch.testing.assert_close(cut.task.modules.state_dict(), plain.task.modules.state_dict())
    means = [stepper.meter.means(stepper.ranks.sum) for stepper in (cut, plain)]
    torch.testing.assert_close(*means)


def test_a_piece_that_is_not_finite_spoils_the_whole_step():
    class Spoilt(Linear):
        def pieces(self, batch):
            return [{**batch, "added": torch.tensor(added)} for added in (0.0, torch.inf, 0.0)]

        def forward(self, batch):
            return {"loss": super().forward(batch)["loss"] + batch["added"]}

    stepper = make()
    stepper.task.first.__class__ = Spoilt
    before = copy.deepcopy(stepper.task.modules.state_dict())
    stepper.step(stepper.task.first, 1.0)
    torch.testing.assert_close(stepper.task.modules.state_dict(), before, rtol=0, atol=0)
    assert counts(stepper) == (1, 1, 1)


def test_sets_of_parameters_are_clipped_each_by_itself():
    class Two(Linear):
        def __init__(self, name):
            super().__init__(name)
            self.other = nn.Linear(3, 1)

        def parameter_sets(self):
            return {"main": list(self.layer.parameters()), "other": list(self.other.parameters())}

        def forward(self, batch):
            x = batch["image"].float().mean(dim=(2, 3)) / 255
            return {"loss": self.layer(x).mean() + self.added * self.other(x).mean()}

    def moved(added):
        stepper = make(clip_norm=0.1)
        update = stepper.task.first = Two("first")
        update.added = added
        stepper = stepper_of(stepper.task, stepper.train, Ranks(), Precision(CPU))
        before = [p.detach().clone() for p in update.layer.parameters()]
        stepper.step(update, 1.0)
        pairs = zip(before, update.layer.parameters(), strict=True)
        return torch.cat([(new - old).flatten() for old, new in pairs]).detach()

    torch.testing.assert_close(moved(0.0), moved(1e6))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_going_on_between_two_updates_sees_the_same_batches(accumulate):
    straight = make(accumulate=accumulate)
    iterate(straight, 2)
    straight.step(straight.task.first, 1.0)
    resumed = make(accumulate=accumulate)
    resumed.task.modules.load_state_dict(straight.task.modules.state_dict())
    resumed.batches.drawn, resumed.steps = straight.batches.drawn, straight.steps
    straight.step(straight.task.second, 1.0, fresh=False)
    resumed.step(resumed.task.second, 1.0, fresh=False)
    assert resumed.task.second.seen == straight.task.second.seen[-accumulate:]
    assert resumed.batches.drawn == straight.batches.drawn
    assert torch.equal(resumed.task.second.layer.weight, straight.task.second.layer.weight)
    iterate(straight)
    iterate(resumed)
    assert resumed.task.first.seen == straight.task.first.seen[-accumulate:]


def test_weights_are_averaged_once_an_iteration():
    stepper = make(ema_decay=0.5)
    start = stepper.task.first.layer.weight.detach().clone()
    iterate(stepper)
    after = stepper.task.first.layer.weight.detach()
    averages = dict(zip(stepper.averages.names, stepper.averages.averages, strict=True))
    decay = stepper.averages.decay_at(1)
    assert decay == 2 / 11
    expected = decay * start + (1 - decay) * after
    torch.testing.assert_close(averages["first.layer.weight"], expected)


def test_pauses_are_left_out_of_the_throughput():
    throughput = Throughput()
    throughput.note_batch(100, 0.0)
    with throughput.pausing():
        time.sleep(0.2)
        during = throughput.rates().images_per_sec
    assert during > 1000
    assert throughput.rates().images_per_sec > 1000


def scaled():
    return Precision(CPU, torch.float16, torch.amp.GradScaler("cpu", init_scale=4.0))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_under_a_scaler_a_lost_loss_is_skipped_though_its_gradients_are_finite(optimizer):
    stepper = make(precision=scaled(), optimizer=optimizer)
    update = stepper.task.first
    stepper.step(update, 1.0)
    before = update.layer.weight.detach().clone()
    update.added = float("inf")
    stepper.step(update, 1.0)
    assert torch.equal(update.layer.weight, before)
    assert counts(stepper) == (1, 1, 1)
    assert stepper.scaler.get_scale() == 2.0
    update.added = 0.0
    stepper.step(update, 1.0)
    assert not torch.equal(update.layer.weight, before)
    assert counts(stepper) == (0, 1, 1)


def test_under_a_scaler_overflow_is_skipped_but_not_counted(monkeypatch):
    stepper = make(precision=scaled())
    update = stepper.task.first
    before = update.layer.weight.detach().clone()
    hook = update.layer.weight.register_hook(lambda gradient: gradient * float("inf"))
    stepper.step(update, 1.0)
    hook.remove()
    assert torch.equal(update.layer.weight, before)
    assert counts(stepper) == (0, 0, 0)
    assert stepper.scaler.get_scale() == 2.0


@pytest.mark.parametrize("with_scaler", [False, True])
def test_a_loss_lost_on_another_rank_is_masked_and_counted_here(with_scaler):
    """Ranks that count differently save at different times, and wait for each other for ever."""
    stepper = make(Pretend([1.0, 0.0]), scaled() if with_scaler else None)
    before = stepper.task.first.layer.weight.detach().clone()
    stepper.step(stepper.task.first, 1.0)
    assert torch.equal(stepper.task.first.layer.weight, before)
    assert counts(stepper) == (1, 1, 1)


def test_a_step_of_several_ranks_has_no_barrier(group, monkeypatch):
    """With NCCL the host waits for the GPU in one."""

    def barrier(*args, **options):
        raise AssertionError("a barrier")

    monkeypatch.setattr(torch.distributed, "barrier", barrier)
    stepper = make(group)
    iterate(stepper)
    assert counts(stepper) == (0, 0, 0)


def test_the_first_question_is_answered_at_once_and_later_ones_one_call_later(group):
    assert [group.ask(number) for number in (2, 0, 1, 0)] == [2, 2, 0, 1]
    group.forget_wishes()
    assert group.ask(0) == 0


def test_a_bound_on_bad_steps_is_seen_without_reading_all_counters():
    stepper = make()
    update = stepper.task.first
    update.added = float("nan")
    for _ in range(3):
        stepper.step(update, 1.0)
    assert stepper.bad.longest() == 3
    update.added = 0.0
    stepper.step(update, 1.0)
    assert stepper.bad.longest() == 3
    assert counts(stepper) == (0, 3, 3)


def test_each_update_has_a_gradient_norm_of_its_own():
    stepper = make()
    iterate(stepper)
    means = stepper.meter.means(lambda tensor: tensor)
    assert {"grad_norm/first", "grad_norm/second"} <= means.keys()
