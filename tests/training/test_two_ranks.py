"""Two ranks (gloo, on the CPU) train every family: equal, exact, and ended by one cause.

Two processes do all families one after the other; each test looks at what they left.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from imgtool.config.faces import FacesData, LabelledFacesData
from imgtool.config.latents import LatentsData
from imgtool.data.synthetic.make import make_faces, make_photos
from imgtool.experiment import checkpoint_file
from imgtool.experiment.layout import ExperimentDir
from imgtool.experiment.status import read_status
from imgtool.models import registry
from imgtool.nn.lpips_weights import VGG16
from tests.latents import make_latents
from tests.small import ALL_LOSSES, SMALL_FACES, SMOOTH_CRITICS
from tests.waiting import wait_until

CASES = {family: family for family in registry.FAMILIES}
CASES |= {"losses": "autoencoder", "frozen": "autoencoder", "critics": "genegan"}
FAMILIES = list(CASES)
WORKER = Path(__file__).with_name("rank_jobs.py")
COMMON = [
    *(
        "train.schedule=constant",
        "train.optimizer=sgd",
        "train.lr=0.02",
        "train.momentum=0",
        "train.weight_decay=0",
    ),
    *("train.threads=1", "train.device=cpu", "data.num_workers=0", "train.log_every=1"),
    *("train.sample_every=1000", "train.keep=0", "train.val_every=1000", "train.save_every=1000"),
]
# What a family needs so that its iterations are short, and all of its state moves.
OF_FAMILY = {
    "losses": [
        *ALL_LOSSES,
        *("model.bottleneck=kl", "model.heads=[rgb]", "data.crop=32", "data.image_size=32"),
    ],
    "frozen": [
        *("model.architecture=kl", "model.downsampling_steps=2", "train.freeze=encoder"),
        *("model.bottleneck=kl", "model.heads=[rgb]", "data.crop=32", "data.image_size=32"),
    ],
    "autoencoder": ["model.bottleneck=vq", "model.heads=[rgb]", "model.codebook_size=16"],
    # Faces are on 0..255, and gradients of a mean difference jump: small steps stay comparable.
    "genegan": [
        *("loss.critic_burst=2", "model.base_channels=8", "train.lr=0.0001"),
        *SMALL_FACES,
    ],
}
OF_FAMILY["critics"] = [*OF_FAMILY["genegan"], *SMOOTH_CRITICS]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder that all processes of the suite share, with the data."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two_ranks"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "data.lock"):
        if not (folder / "data").exists():
            make_faces(folder / "new/faces", 24, seed=3)
            make_photos(folder / "new/photos", 12, size=96, seed=0)
            make_latents(folder / "new/latents.safetensors", 12)
            (folder / "new").rename(folder / "data")
    return folder


@pytest.fixture
def data(shared):
    return shared / "data"


def sets_of(case, data, batch_size, *more):
    kind = registry.schema(CASES[case]).section_types()["data"]
    if issubclass(kind, LatentsData):  # the file says what validates
        given = [f"data.root={data / 'latents.safetensors'}"]
    else:
        root = data / ("faces" if issubclass(kind, FacesData | LabelledFacesData) else "photos")
        given = [f"data.root={root}", "data.val_fraction=0.2"]
    given.append(f"train.batch_size={batch_size}")
    return [*COMMON, *given, *OF_FAMILY.get(case, []), *more]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def two(shared):
    """The folder that two ranks leave, made by the first of the suite's processes that needs it."""
    folder = shared / "two"
    with FileLock(shared / "two.lock"):
        if not (folder / "codes.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            run_two_ranks(shared / "data", folder)
    return folder


def run_two_ranks(data, folder):
    """Of each case six iterations, the first three of them and a resume; a run that is asked to
    stop; one in which rank 1 fails.
    """
    jobs = []
    for family in FAMILIES:
        sets = sets_of(family, data, 1, "train.ema_decay=0.9")
        whole, parts = str(folder / f"{family}-whole"), str(folder / f"{family}-parts")
        for name, exp_dir, last, more in (
            ("three", parts, 3, ["train.save_every=1"]),
            ("whole", whole, 6, []),
            ("parts", parts, 6, []),
        ):
            limit = [f"train.max_iter={last}", *more]
            jobs.append(
                {
                    "name": f"{family}-{name}",
                    "family": CASES[family],
                    "exp_dir": exp_dir,
                    "sets": sets + limit,
                }
            )
    endless = {"family": FAMILIES[0], "sets": sets_of(FAMILIES[0], data, 1)}
    more = ["train.ema_decay=0.9", "train.max_iter=8"]
    again = {"family": FAMILIES[0], "sets": sets_of(FAMILIES[0], data, 1, *more), "refused": True}
    again["exp_dir"] = str(folder / f"{FAMILIES[0]}-parts")
    jobs.append({**again, "name": "config", "rank_sets": [[], ["train.val_every=3"]]})
    jobs.append({**again, "name": "weight", "other_weight": True})
    jobs.append({**endless, "name": "asked", "exp_dir": str(folder / "asked"), "mark_at": 3})
    jobs.append({**endless, "name": "failed", "exp_dir": str(folder / "failed"), "fails": [1, 3]})
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), VGG16.variable: "random"}
    words = [sys.executable, str(WORKER), str(path), str(free_port())]
    both = subprocess.Popen(words, env=environment, start_new_session=True)
    try:
        wait_until(lambda: (folder / "asked.1.there").exists() or both.poll() is not None, 240)
        assert both.poll() is None, "a rank ended"
        os.kill(json.loads((folder / "pids.json").read_text())[1], signal.SIGINT)
        assert both.wait(60) == 0
    finally:
        if both.poll() is None:
            os.killpg(both.pid, signal.SIGKILL)
            both.wait()


def left(two, job, rank):
    return json.loads((two / f"{job}.{rank}.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_hold_equal_parameters_buffers_and_averages(two, family):
    first, second = left(two, f"{family}-whole", 0), left(two, f"{family}-whole", 1)
    assert (first["state"], first["iteration"]) == ("completed", 6)
    assert first["digests"]
    assert first == second


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_resume_where_they_stopped(two, family):
    whole = checkpoint_file.read(two / f"{family}-whole/checkpoints/iter_000006.safetensors")
    parts = checkpoint_file.read(two / f"{family}-parts/checkpoints/iter_000006.safetensors")
    assert whole.tensors.keys() == parts.tensors.keys()
    different = [n for n, t in whole.tensors.items() if not torch.equal(t, parts.tensors[n])]
    assert not different, different[:5]
    assert left(two, f"{family}-parts", 0)["digests"] == left(two, f"{family}-parts", 1)["digests"]


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_of_half_the_batch_are_one_process_of_the_whole(
    two, data, tmp_path, family, monkeypatch
):
    monkeypatch.setenv(VGG16.variable, "random")
    from imgtool.config.load import load
    from imgtool.process.stopping import StopRequest
    from imgtool.training.report import Silence
    from imgtool.training.run import train

    sets = sets_of(family, data, 2, "train.max_iter=3", "train.ema_decay=0.9")
    loaded = load(None, family=CASES[family], schema_of=registry.schema, sets=sets, tiny=True)
    directory = ExperimentDir(tmp_path / "one")
    directory.create()
    train(loaded, directory, stop=StopRequest(), reporter=Silence())
    one = checkpoint_file.read(directory.checkpoint_path(3))
    both = checkpoint_file.read(two / f"{family}-parts/checkpoints/iter_000003.safetensors")
    start = checkpoint_file.read(two / f"{family}-parts/checkpoints/iter_000001.safetensors")
    moved = [
        (t.double() - start.tensors[f"model.{n}"].double()).abs().max()
        for n, t in one.part("model").items()
    ]
    assert max(moved) > 1e-3  # a hundred times what is tolerated
    for part in ("model", "ema"):
        expected, found = one.part(part), both.part(part)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


REFUSALS = {
    "config": "ranks 0 and 1 differ in their config: train.val_every is ",
    "weight": "ranks 0 and 1 differ in parameters, buffers or optimizer state: model.",
}


@pytest.mark.parametrize("job", REFUSALS)
def test_two_ranks_that_differ_do_not_begin(two, job):
    first, second = left(two, job, 0), left(two, job, 1)
    assert first == second
    assert first.startswith(REFUSALS[job])
    assert "on rank 0 and " in first


def test_two_ranks_stop_at_the_same_iteration_when_one_is_asked(two):
    first, second = left(two, "asked", 0), left(two, "asked", 1)
    assert first["state"] == "stopped"
    assert first["iteration"] == second["iteration"] >= 3
    assert first["digests"] == second["digests"]
    status = read_status(ExperimentDir(two / "asked"))
    assert status["state"] == "stopped"
    assert len(list((two / "asked/checkpoints").glob("iter_*"))) == 1


def test_two_ranks_end_with_the_first_cause_when_one_fails(two):
    assert json.loads((two / "codes.json").read_text()) == [4, 4]
    status = read_status(ExperimentDir(two / "failed"))
    assert status["state"] == "failed"
    assert status["reason"] == "rank 1: this file is bad"
    said = json.loads((two / "failed/rank_1.err").read_text())
    assert (said["rank"], said["kind"], said["exit_code"]) == (1, "DataError", 4)
    assert not (two / "failed/rank_0.err").exists()
    assert "rank 1: this file is bad" in (two / "failed/train.log").read_text()
    assert "error: rank 1: this file is bad" in (two / "rank0.log").read_text()
