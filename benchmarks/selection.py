"""select-winner on 1,000 tables of 500 rows, against reading each with pandas.read_csv.

    python benchmarks/selection.py [--tables 1000] [--rows 500] [--pairs 5]

Ours: a fresh process finds the tables of a folder, reads them, groups them and applies the rule
`efficiency`. Baseline: a fresh process reads every file with `pandas.read_csv` in a loop, and
decides nothing. Both count from after their imports; sides in turn, median of the pairs' ratios.
`ours_sec` is to stay under 2.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _pairs import report, run_pairs

COLUMNS = "iteration,epoch,train_loss,val_loss,val_mse,val_psnr,val_ms_ssim,latent_dims,elapsed_sec"
BOUND_SEC = 2.0


def main() -> None:
    """Make the tables, run the pairs, print one JSON record each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--side", choices=["ours", "pandas"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        seconds = _ours(args.folder) if args.side == "ours" else _pandas(args.folder)
        print(json.dumps({"rate": 1 / seconds}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make(folder, args.tables, args.rows)
        words = [sys.executable, __file__, "--folder", name, "--side"]
        pairs = run_pairs([*words, "ours"], [*words, "pandas"], args.pairs, rate=True)
        facts = {"tables": args.tables, "rows": args.rows}
        report("select_winner", pairs, **facts)
        seconds = statistics.median(1 / rate for rate in pairs.ours)
        record = {"schema": "imgtool/1", "kind": "benchmark", "name": "select_winner_sec"}
        bound = {"bound": f"<= {BOUND_SEC:g}", "within_bound": seconds <= BOUND_SEC}
        print(json.dumps({**record, "ours_sec": round(seconds, 3), **bound, **facts}))


def _make(folder: Path, tables: int, rows: int) -> None:
    draw = random.Random(0)
    for number in range(tables):
        dims = 2 ** draw.randint(9, 16)
        lines = [COLUMNS]
        for row in range(1, rows + 1):
            mse = (1 + 0.05 * draw.random()) * (1 / dims + 0.0005 + 0.01 / row)
            cells = [row * 100, row, mse * 5, mse * 6, mse, -10 * math.log10(mse), draw.random()]
            lines.append(",".join(map(str, [*cells, dims, row * 1.5])))
        (folder / f"E{number}_metrics.csv").write_text("\n".join(lines) + "\n")


def _ours(folder: Path) -> float:
    from imgtool.selection.gather import read_evidence
    from imgtool.selection.rule_file import load_rule
    from imgtool.selection.rules import select
    from imgtool.selection.sources import find_sources

    start = time.perf_counter()
    rule = load_rule("efficiency")
    select(read_evidence(find_sources([str(folder)]), rule), rule)
    return time.perf_counter() - start


def _pandas(folder: Path) -> float:
    import pandas

    start = time.perf_counter()
    for path in folder.iterdir():
        pandas.read_csv(path)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
