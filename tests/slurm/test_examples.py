"""examples/'s job files as a real Slurm takes and starts them; imgtool writes its words down."""

import subprocess
from pathlib import Path

import pytest

from imgtool.sweep.spec import read_spec
from tests.shell import ROOT, Shell

# This Slurm has other partitions, and is small.
SMALL = ["--partition=gpul40s", "--time=10", "--cpus-per-task=2", "--mem=500M"]


@pytest.mark.parametrize("study", ["codec_ablation", "genegan_queue", "phase_study"])
def test_a_job_file_of_the_examples(study: str, tmp_path: Path) -> None:
    shell = Shell(tmp_path, module="tests.examples.recorder")
    (shell.work / "examples").symlink_to(ROOT / "examples")
    shell.environment |= {"RECORDED": str(tmp_path / "recorded"), "TINY": "1"}
    done = subprocess.run(
        ["sbatch", "--wait", *SMALL, f"examples/{study}.slurm"],
        cwd=shell.work,
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    logs = [path.read_text() for path in shell.work.glob(f"{study}.*.out")]
    assert done.returncode == 0, (done.stderr, logs)
    assert len(logs) == (len(read_spec("genegan").configs) if study == "genegan_queue" else 1)
    calls = (tmp_path / "recorded").read_text()
    if study == "phase_study":
        assert calls.count('"--executor", "slurm", "--wait"') == 4
