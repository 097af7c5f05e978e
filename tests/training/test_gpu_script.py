"""`benchmarks/gpu.py` runs from end to end where there is no GPU, so that the first one is not its
first run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from imgtool.models.registry import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--device", "cpu", "--quick"]


def run(*words: str) -> tuple[int, list[dict[str, object]], str]:
    done = subprocess.run([*SCRIPT, *words], capture_output=True, text=True)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.slow
def test_every_check_of_every_family_runs_on_a_cpu() -> None:
    code, records, words = run()
    failed = [record for record in records if record["status"] == "failed"]
    assert (code, failed) == (0, []), words
    done = [(record["family"], record["check"]) for record in records]
    checks = {check for _, check in done}
    assert sorted(done) == sorted((family, check) for family in FAMILIES for check in checks)
    assert {"cpu", "plain", "fp32", "tf32", "compile", "resume", "stop", "codec"} <= checks
    of = {(record["family"], record["check"]): record["status"] for record in records}
    assert of["hpcm", "codec"] == of["hpcm", "plain"] == of["genegan", "plain"] == "ok"
    assert {of[family, "fp16"] for family in FAMILIES} == {"skipped"}
    assert all(of[family, check] == "ok" for family in FAMILIES for check in ("resume", "stop"))


@pytest.mark.slow
def test_a_check_without_time_left_is_a_line_and_a_failure() -> None:
    code, records, words = run("--families", "hpcm", "--checks", "fp32", "tf32", "--limit", "0")
    assert code == 1
    assert [(record["check"], record["status"]) for record in records] == [
        ("fp32", "failed"),
        ("tf32", "failed"),
    ]
    assert "no time was left" in words
