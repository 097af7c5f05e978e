"""`eval edit`, all of it, against the editor's networks alone on the same pairs of faces.

Ours: all from opening judge and editor to the record: tables and images read, edits made and judged,
background, intervals. Baseline: splitter and joiner on batches that lie ready.

An editor and a judge trained for one iteration, drawn faces made on the spot; processes of their
own, in turn, each after one measurement of a batch that does not count. Processor time of the
process and its loaders; `--wall` takes the clock's, which needs a quiet machine.

    python benchmarks/edits.py --preset genegan/faces64 [--n 200] [--pairs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _pairs import report, run_pairs

BOUND = ">= 0.9"  # of the joiner's throughput
FACES = 1500
IMGTOOL = [sys.executable, "-m", "imgtool"]


def main() -> None:
    """Make faces, train both for an iteration, run the pairs, print one record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="genegan/faces64")
    parser.add_argument("--judge", default="attributes/tiny")
    parser.add_argument("--n", type=int, default=200, help="pairs of faces at most")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--side", choices=["ours", "joiner"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.side:
        print(json.dumps((_ours if options.side == "ours" else _joiner)(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        faces = f"{folder}/faces"
        _run("data", "make", "faces", faces, "--n", FACES, "--aligned", "--seed", 0)
        for family, preset in (("attributes", options.judge), ("genegan", options.preset)):
            words = (
                "--config",
                preset,
                "--data-root",
                faces,
                "--official-split",
                "--device",
                "cpu",
            )
            _run("train", family, *words, "--max-iter", 1, "--exp-dir", f"{folder}/{family}")

        def side(name: str) -> list[str]:
            words = ["--side", name, "--folder", folder, "--n", str(options.n)]
            words += ["--threads", str(options.threads), *(["--wall"] if options.wall else [])]
            return [sys.executable, __file__, *words]

        pairs = run_pairs(side("ours"), side("joiner"), options.pairs, rate=True)
    facts = {"preset": options.preset, "judge": options.judge, "wall": options.wall}
    report("edits", pairs, BOUND, threads=options.threads, **facts)


def _run(*words: object) -> None:
    done = subprocess.run([*IMGTOOL, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


def _ours(options: argparse.Namespace) -> dict[str, Any]:
    from imgtool.evaluation.edits.measure import Options, Panel

    def measure(n: int) -> dict[str, Any]:
        words = Options(n=n, device="cpu")
        return Panel(str(options.folder / "attributes"), words).measure(editor).record

    editor = str(options.folder / "genegan")
    measure(16)
    seconds, record = _timed(lambda: measure(options.n), options.wall)
    return {"rate": record["num_pairs"] / seconds, "num_pairs": record["num_pairs"]}


def _joiner(options: argparse.Namespace) -> dict[str, Any]:
    from imgtool.evaluation.edits.faces import to_judge
    from imgtool.evaluation.edits.judge import open_judge
    from imgtool.evaluation.edits.made import make, task_of
    from imgtool.evaluation.edits.measure import NUM_STEPS
    from imgtool.evaluation.restore import restore

    editor = restore(str(options.folder / "genegan"), device="cpu")
    judge = open_judge(str(options.folder / "attributes"), device="cpu")
    judged = to_judge(editor, judge, options.n)
    task, batches = task_of(editor), list(editor.batches(judged.part))
    make(task, batches[0], NUM_STEPS)
    seconds, _ = _timed(lambda: [make(task, batch, NUM_STEPS) for batch in batches], options.wall)
    return {"rate": judged.num_pairs / seconds}


def _timed(work: Callable[[], Any], wall: bool) -> tuple[float, Any]:
    begin = _clock(wall)
    found = work()
    return _clock(wall) - begin, found


def _clock(wall: bool) -> float:
    if wall:
        return time.perf_counter()
    taken = os.times()
    return taken.user + taken.system + taken.children_user + taken.children_system


if __name__ == "__main__":
    main()
