"""Checks and times every family of the registry on one GPU, in less than six minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick
    python benchmarks/gpu.py --families hpcm --checks fp32 bf16 layout

For each family: losses and gradients against the CPU's and against the plain transcription
(tests/models/FAMILY/plain.py, where there is one), training in float32, TF32, bf16, fp16 with a
scaler, in the other memory layout and compiled, a resume bit for bit, a stop by run-timed that is
gone on with, and a picture through compress and decompress. Training is the engine's own, on the
family's first preset and data drawn on the spot; commands are the product's.

A record of kind `check` a line goes to stdout, a table to stderr. A check that fails, crashes or
finds no time left is a line of both; the exit code is then 1. `--quick` has tiny networks and
times nothing of worth: it shows that the script runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from _gpu_checks import GROUPS, ROOT, TIMED, make_data

Facts = dict[str, Any]
LIMIT_SEC, QUICK_LIMIT_SEC = 345.0, 1200.0
ALL_CHECKS = [name for group in GROUPS.values() for name in group]
AT_ONCE = 4
COLUMNS = {
    "sec_per_iteration": ("ms/iteration", 1e3, ".1f"),
    "images_per_sec": ("images/s", 1.0, ".1f"),
    "ratio": ("ours/plain", 1.0, ".2f"),
    "peak_memory_bytes": ("peak GB", 1e-9, ".2f"),
    "off": ("off by", 1.0, ".1e"),
    "encode_sec": ("encode s", 1.0, ".2f"),
    "decode_sec": ("decode s", 1.0, ".2f"),
    "check_sec": ("took s", 1.0, ".0f"),
}


class Script:
    """All groups of all families, their records and their words.

    Args:
        options: of the command line.
        folder: for everything that is written.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.records: list[Facts] = []
        self._begin, self._guard = time.monotonic(), threading.Lock()

    def run(self) -> None:
        """Every group: those that are timed one after another, the others side by side."""
        wanted = [(f, g) for g in GROUPS for f in self.options.families if self._checks(g)]
        families = {
            family: self._material(family) for family in dict.fromkeys(f for f, _ in wanted)
        }
        todo = [(*pair, families[pair[0]]) for pair in wanted]
        together = [one for one in todo if self.options.quick or one[1] not in TIMED]
        alone = [one for one in todo if one not in together]
        num_cores = len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(min(self.options.at_once, num_cores)) as pool:
            list(pool.map(lambda one: self._group(*one), together))
        for one in alone:
            self._group(*one)

    def _checks(self, group: str) -> list[str]:
        return [name for name in GROUPS[group] if name in self.options.checks]

    def _material(self, family: str) -> tuple[str, str] | str:
        """The family's first preset and the setting that names its data; else what is wrong."""
        try:
            preset, dataset = first_preset(family)
            number, size = (12, 128) if self.options.quick else (48, 512)
            return preset, make_data(self.folder, dataset, number, size)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def _group(self, family: str, group: str, material: tuple[str, str] | str) -> None:
        checks = self._checks(group)
        left = self.options.limit - (time.monotonic() - self._begin)
        common = {"family": family, "status": "failed"}
        if isinstance(material, str):
            for check in checks:
                self._note({**common, "check": check, "detail": material})
            return
        folder = self.folder / family / group
        words = [sys.executable, str(ROOT / "benchmarks/_gpu_checks.py"), *checks]
        words += ["--family", family, "--preset", material[0], "--data", material[1]]
        words += ["--device", self.options.device, "--folder", str(folder)]
        words += ["--quick"] if self.options.quick else []
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if self.options.quick:  # groups share the cores
            environment["OMP_NUM_THREADS"] = "1"
        reason, done = "no time was left", set()
        if left > 0:
            folder.mkdir(parents=True)
            with open(folder / "stderr", "wb") as errors:
                process = subprocess.Popen(
                    words, stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=ROOT
                )
                late = threading.Timer(left, process.kill)
                late.start()
                try:
                    for record in lines_of(process):
                        done.add(record["check"])
                        self._note(record)
                    code = process.wait()
                finally:
                    late.cancel()
            reason = f"the process ended with {code}: {last_line(folder / 'stderr')}"
            if time.monotonic() - self._begin > self.options.limit:
                reason = f"took longer than what was left of {self.options.limit:g} s"
        for check in checks:
            if check not in done:
                self._note({**common, "check": check, "detail": reason})

    def _note(self, record: Facts) -> None:
        rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in record.items()}
        whole = {"schema": "imgtool/1", "kind": "check", "device": self.options.device, **rounded}
        if self.options.quick:
            whole["quick"] = True
        with self._guard:
            self.records.append(whole)
            print(json.dumps(whole), flush=True)


def lines_of(process: subprocess.Popen[bytes]) -> Iterator[Facts]:
    """The records of a group's process; what libraries print is passed over."""
    assert process.stdout is not None
    for line in process.stdout:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"family", "check", "status"} <= record.keys():
            yield record


def last_line(path: Path) -> str:
    """What a process said last."""
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "nothing was said"


def first_preset(family: str) -> tuple[str, str]:
    """The first preset of a family that needs no other's weights, and its kind of data set."""
    from imgtool.config import presets
    from imgtool.config.load import load
    from imgtool.models.registry import schema

    for name in presets.names():
        experiment = load(name, family=None, schema_of=schema).experiment
        needs = getattr(experiment.model, "init_vqvae_ckpt", None)
        if experiment.family == family and needs is None:
            return name, experiment.data.dataset
    raise LookupError(f"{family} has no preset")


def show(records: Sequence[Facts], device: str) -> None:
    """One table, on stderr."""
    from rich.console import Console
    from rich.table import Table

    used = [name for name in COLUMNS if any(name in record for record in records)]
    table = Table(title=f"imgtool on {device}", title_justify="left")
    for heading in ("family", "check", "result"):
        table.add_column(heading)
    for name in used:
        table.add_column(COLUMNS[name][0], justify="right")
    table.add_column("detail", overflow="fold")
    rank = {name: number for number, name in enumerate(ALL_CHECKS)}
    for record in sorted(records, key=lambda r: (r["family"], rank[r["check"]])):
        colour = {"ok": "green", "failed": "red"}.get(record["status"], "dim")
        cells = [record["family"], record["check"], f"[{colour}]{record['status']}[/]"]
        for name in used:
            _, factor, form = COLUMNS[name]
            value = record.get(name)
            cells.append("" if value is None else format(value * factor, form))
        table.add_row(*cells, record.get("detail") or record.get("layout") or "")
    Console(stderr=True, width=None if sys.stderr.isatty() else 140).print(table)


def name_of(device: str) -> str:
    """The GPU's name, or the processor's, asked of a process of its own."""
    ask = "import torch; print(torch.cuda.get_device_name())"
    if device.startswith("cuda"):
        done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
        return done.stdout.strip() or "no CUDA device"
    from _pairs import processor

    return processor()


def main() -> int:
    """Run what is asked for; 1 where something failed."""
    from imgtool.models.registry import FAMILIES

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, mps or cpu")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that it runs")
    parser.add_argument("--families", nargs="+", choices=[*FAMILIES], default=[*FAMILIES])
    parser.add_argument("--checks", nargs="+", choices=ALL_CHECKS, default=ALL_CHECKS)
    parser.add_argument("--limit", type=float, help="seconds, in all; 345 when unset")
    parser.add_argument(
        "--at-once",
        type=int,
        default=AT_ONCE,
        help="processes of what is not timed; 1 where the GPU takes one process at a time",
    )
    parser.add_argument("--keep", type=Path, help="a new folder for what is written on the way")
    options = parser.parse_args()
    if options.limit is None:  # a quick run is not timed, on a machine that may be busy
        options.limit = QUICK_LIMIT_SEC if options.quick else LIMIT_SEC
    run = partial(_run, options)
    if options.keep is not None:
        options.keep.mkdir(parents=True)
        return run(options.keep.absolute())
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return run(Path(folder))


def _run(options: argparse.Namespace, folder: Path) -> int:
    script = Script(options, folder)
    script.run()
    show(script.records, f"{options.device}: {name_of(options.device)}")
    return int(any(record["status"] == "failed" for record in script.records))


if __name__ == "__main__":
    sys.exit(main())
