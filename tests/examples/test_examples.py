"""The studies of examples/ and their job files: every command in them, and whole with --tiny."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from imgtool.sweep.spec import read_spec
from tests.docs.pages import ROOT, commands_in
from tests.docs.understanding import program, understand
from tests.fake_lsf.cluster import Cluster
from tests.shell import Shell

EXAMPLES = ROOT / "examples"
STUDIES = sorted(path.stem for path in EXAMPLES.glob("*.sh"))
SCRIPTS = [f"{study}{ending}" for study in STUDIES for ending in (".sh", ".lsf", ".slurm")]
# How a scheduler starts an element of an array, as far as a script can see it.
STARTED = {
    ".sh": {},
    ".lsf": {"LSB_JOBID": "7", "LSB_JOBINDEX": "3"},
    ".slurm": {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"},
}
OWN_DATA = {"LAYOUTS": "l.csv", "CELEBA": "faces", "PHOTOS": "photos", "KODAK": "kodak"}


@pytest.fixture
def recording(tmp_path: Path) -> Shell:
    """A shell in which imgtool writes its words down, in a folder that has examples/."""
    return made(tmp_path, "tests.examples.recorder")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell in which imgtool works on little data."""
    return made(tmp_path, "tests.docs.small")


def made(folder: Path, module: str) -> Shell:
    shell = Shell(folder, module=module)
    (shell.work / "examples").symlink_to(EXAMPLES)
    shell.environment["RECORDED"] = str(folder / "recorded")
    ours = {
        *OWN_DATA,
        "EXECUTOR",
        "OUT",
        "TINY",
        *(name for env in STARTED.values() for name in env),
    }
    shell.environment = {k: v for k, v in shell.environment.items() if k not in ours}
    return shell


def recorded(shell: Shell) -> list[list[str]]:
    path = Path(shell.environment["RECORDED"])
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_study_has_a_script_and_two_job_files() -> None:
    assert STUDIES == ["codec_ablation", "genegan_queue", "phase_study"]
    for name in SCRIPTS:
        answer = subprocess.run(["bash", "-n", EXAMPLES / name], capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        assert os.access(EXAMPLES / name, os.X_OK) == name.endswith(".sh")


@pytest.mark.parametrize("name", SCRIPTS)
def test_its_commands_are_understood(name: str, recording: Shell) -> None:
    context = program()
    for environment, options in ((OWN_DATA, ""), ({}, "--tiny")):
        before = len(recorded(recording))
        given = {**environment, **STARTED[Path(name).suffix]}
        words = " ".join(f"{key}={value}" for key, value in given.items())
        answer = recording(f"{words} bash examples/{name} {options}")
        assert answer.returncode == 0, answer.stderr
        calls = recorded(recording)[before:]
        assert calls
        for call in calls:
            if "--then" in call:
                calls += commands_in(call[call.index("--then") + 1])
            understand(context, call)
        trained = [call for call in calls if call[0] in ("sweep", "train")]
        assert trained
        assert all(("--tiny" in call) == bool(options) for call in trained)
        assert all("make" not in call for call in calls) or not environment


def test_an_element_of_the_queue_trains_its_own(recording: Shell) -> None:
    configs = []
    for number in range(1, 18):
        recording(f"TINY=1 LSB_JOBINDEX={number} bash examples/genegan_queue.lsf")
        configs.append(
            [call[call.index("--config") + 1] for call in recorded(recording) if call[0] == "train"]
        )
        Path(recording.environment["RECORDED"]).unlink()
    assert [names[-1] for names in configs] == [*read_spec("genegan").configs]
    assert ["genegan/vqvae", "genegan/exp06b"] in configs


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fake LSF reads /proc")
def test_a_strict_lsf_takes_the_job_files(
    recording: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path / "lsf", monkeypatch)
    environment = {**recording.environment, "TINY": "1"}
    environment |= {name: os.environ[name] for name in os.environ if name.startswith("FAKE_LSF")}
    environment["PATH"] = f"{os.environ['PATH'].split(os.pathsep)[0]}:{environment['PATH']}"
    try:
        for study in STUDIES:
            with open(EXAMPLES / f"{study}.lsf") as file:
                done = subprocess.run(
                    ["bsub"],
                    stdin=file,
                    env=environment,
                    cwd=recording.work,
                    capture_output=True,
                    text=True,
                )
            assert done.returncode == 0, done.stderr
        cluster.wait(
            lambda: all(
                element["stat"] in ("DONE", "EXIT")
                for job in cluster.jobs.values()
                for element in job["elements"].values()
            ),
            seconds=120,
        )
        ends = {job["name"]: set(cluster.stats(key).values()) for key, job in cluster.jobs.items()}
        logs = "".join(path.read_text() for path in recording.work.glob("*.out"))
        assert ends == {study: {"DONE"} for study in STUDIES}, logs
        assert len(list(recording.work.glob("genegan_queue.*.out"))) == 17
    finally:
        cluster.close()
    phases = [call for call in recorded(recording) if call[:1] == ["sweep"] and "--wait" in call]
    assert [shlex.join(call).count("--executor lsf") for call in phases] == [1] * 4


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_the_study_runs(study: str, tmp_path: Path) -> None:
    # Two iterations make no rate-distortion curve: the codec's ablation is as small as --tiny.
    shell = made(tmp_path, "imgtool" if study == "codec_ablation" else "tests.docs.small")
    answer = shell(f"examples/{study}.sh --tiny", timeout=3600)
    assert answer.returncode == 0, answer.stderr[-4000:]
    out = shell.work / "out" / study
    left = {
        "phase_study": ["phase1_final.winner.json", "report/phase1_1/index.html"],
        "genegan_queue": ["queue/exp06b/fid_128_n5000.json", "report/index.html"],
        "codec_ablation": ["bd_rates.jsonl", "curves.png"],
    }
    for name in left[study]:
        assert (out / name).stat().st_size > 0, name


# A study as a job: the shortest of the three, for nothing else is new to it.
@pytest.mark.slow
@pytest.mark.parametrize("ending", [".lsf", ".slurm"])
def test_a_job_file_runs_here(ending: str, shell: Shell) -> None:
    words = " ".join(f"{key}={value}" for key, value in STARTED[ending].items())
    answer = shell(f"TINY=1 {words} bash examples/genegan_queue{ending}")
    assert answer.returncode == 0, answer.stderr[-4000:]
    assert (shell.work / "out/genegan_queue/queue/exp02/fid_128_n5000.json").is_file()


@pytest.mark.parametrize("name", ["apptainer.def", "Dockerfile"])
def test_an_image_is_built_by_the_two_commands_of_the_readme(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    for command in ("make demo", "make test"):
        assert command in text
        assert f"{command}  " in (ROOT / "README.md").read_text()
    if name == "apptainer.def":
        copied = re.findall(r"^    (\S+) /opt/imgtool/(\S+)$", text, re.MULTILINE)
        assert copied
        assert all(ours == theirs and (ROOT / ours).exists() for ours, theirs in copied)
        kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
        top = {line.split("/")[0] for line in kept.stdout.splitlines() if line[0] != "."}
        assert top <= {ours for ours, _ in copied}


def test_the_hashes_of_the_page_are_those_that_are_checked() -> None:
    from imgtool.evaluation.fid.weights import PUBLISHED
    from imgtool.nn.lpips_weights import VGG16

    text = (ROOT / "docs/clusters.md").read_text()
    stated = dict(re.findall(r"^([0-9a-f]{64}) +(\S+\.pth)$", text, re.MULTILINE))
    stated = {name: digest for digest, name in stated.items()}
    every = [*PUBLISHED.values(), VGG16]
    assert stated == {published.names[0]: published.sha256 for published in every}


def test_the_page_names_the_studies() -> None:
    text = (ROOT / "docs/clusters.md").read_text()
    for study in STUDIES:
        assert f"`{study}.sh`" in text
