"""Two processes with parts of a batch have what one process with the whole batch has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from imgtool.models.genegan.layers import BatchNorm, SwitchableNorm
from imgtool.models.hpcm.interscale import InterScale, new_at
from imgtool.models.hpcm.schema import Loss
from imgtool.nn.global_batch import mean_over_ranks, sum_over_ranks

CUTS = {"halves": (4, 4), "unequal": (5, 3)}
MODES = ("l2", "l1", "cosine", "bounded")

Results = dict[str, torch.Tensor]


def images(*shape: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random)


def part(x: torch.Tensor, rank: int | None, cut: tuple[int, ...]) -> torch.Tensor:
    """The images of one rank; all of them for None."""
    return x if rank is None else x.split(cut)[rank]


def gradients(loss: torch.Tensor, share: float, **of: torch.Tensor) -> Results:
    """Gradients of the loss of all, of which this process's is `share`. Those of parameters are
    still to be summed over processes, as DDP does.
    """
    found = torch.autograd.grad(share * loss, list(of.values()))
    return dict(zip(of, found, strict=True))


def normalised(rank: int | None, cut: tuple[int, ...], groups: int) -> Results:
    """Forward, gradients and running statistics of a batch norm after a step and an untracked one.

    The mean is far from 0, where a mean of squares would lose digits of the variance.
    """
    x = [part(10 + images(8, 6, 5, 5, seed=g), rank, cut) for g in range(groups)]
    goal = [part(images(8, 6, 5, 5, seed=10 + g), rank, cut) for g in range(groups)]
    together = torch.cat(x).contiguous(memory_format=torch.channels_last).requires_grad_()
    norm = SwitchableNorm(6, (32, 64), (32, 64)).norms["64"]
    assert isinstance(norm, BatchNorm)
    with torch.no_grad():
        norm.weight.copy_(1 + images(6, seed=20))
        norm.bias.copy_(images(6, seed=21))
    out = norm(together, True, groups)
    loss = (out - torch.cat(goal)).square().mean()
    found = gradients(loss, len(x[0]) / 8, input=together, weight=norm.weight, bias=norm.bias)
    norm(3 * together, False, groups)
    return {"out": out, **found, "mean": norm.running_mean, "var": norm.running_var}


def regularised(rank: int | None, cut: tuple[int, ...], mode: str) -> Results:
    """What phase 2 of hpcm says of latents, and the gradients of it."""
    torch.manual_seed(0)
    interscale = InterScale(16, Loss(phase2_mode=mode, phase2_limit=2.0))
    whole = [images(8, 16, 2 * scale, scale, seed=scale) for scale in (1, 2, 4)]
    latents = [
        part(z * new_at(i, z), rank, cut).requires_grad_() for i, z in enumerate(whole, start=1)
    ]
    regulariser, error, clipped = interscale(latents)
    weights = {"weight": interscale.predictors[0].weight, "bias": interscale.predictors[1].bias}
    finest = {"input": latents[1]}
    share = 1.0 if rank is None else 1 / len(cut)  # every process has the same value
    return {
        "regulariser": regulariser,
        "error": error,
        "clipped": clipped,
        **gradients(regulariser, share, **finest),
        **gradients(error, share, **weights),
    }


CASES: dict[str, Callable[[int | None, tuple[int, ...]], Results]] = {
    **{f"groups {g}": lambda rank, cut, g=g: normalised(rank, cut, g) for g in (1, 4)},
    **{mode: lambda rank, cut, mode=mode: regularised(rank, cut, mode) for mode in MODES},
}


def all_cases(rank: int | None, cut: tuple[int, ...]) -> dict[str, Results]:
    found = {name: case(rank, cut) for name, case in CASES.items()}
    return {name: {k: v.detach() for k, v in case.items()} for name, case in found.items()}


def in_a_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    found = {name: all_cases(rank, cut) for name, cut in CUTS.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Results]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    # forked, since importing torch anew costs seconds; a rank computes with one thread alone
    torch.multiprocessing.start_processes(
        in_a_process, (str(folder),), nprocs=2, start_method="fork"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("cut", list(CUTS))
@pytest.mark.parametrize("case", list(CASES))
def test_two_ranks_are_one_process(ranks, case, cut):
    whole = all_cases(None, CUTS[cut])[case]
    found = [rank[cut][case] for rank in ranks]
    for name, expected in whole.items():
        mine = [of_rank[name] for of_rank in found]
        match name:
            case "out" | "input":
                groups = max(1, len(expected) // 8)
                parts = zip(*(m.chunk(groups) for m in mine), strict=True)
                value = torch.cat([torch.cat(pair) for pair in parts])
            case "weight" | "bias":
                value = mine[0] + mine[1]
            case _:
                assert torch.equal(mine[0], mine[1]), name
                value = mine[0]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=2e-5)


def test_alone_nothing_is_summed():
    x = torch.randn(3)
    assert sum_over_ranks(x) is x
    assert torch.equal(mean_over_ranks(x, 4), x / 4)
