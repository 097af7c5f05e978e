"""Training on latents: who decodes them, and which latents it goes on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from imgtool.errors import CheckpointError, ExperimentError
from imgtool.evaluation.restore import restore
from imgtool.training.decoder import Decoder
from imgtool.training.opening import best_of, read_trained
from imgtool.training.weights import weights_hash
from tests.latents import make_latents

SETS = (
    *("train.max_iter=4", "train.log_every=1", "train.val_every=2", "train.save_every=2"),
    *("train.sample_every=4", "train.device=cpu", "train.threads=1", "train.batch_size=4"),
    *("output.num_samples=4", "data.num_workers=0"),
)


@pytest.fixture
def autoencoder(run: Any, tmp_path: Path) -> Path:
    """Trained for an iteration: 4 channels, 4 pixels a latent pixel."""
    run(tmp_path / "ae", "train.max_iter=1")
    return tmp_path / "ae"


def hash_of(path: Path) -> str:
    return weights_hash(read_trained(best_of(str(path))).without_data().modules)


def latents_of(autoencoder: Path, out: Path, **given: Any) -> Path:
    facts = {"path": str(autoencoder), "hash": hash_of(autoencoder), "downsampling": 4}
    return make_latents(out, autoencoder={**facts, **given})


def test_samples_are_decoded_by_the_autoencoder_that_is_named(
    run: Any, autoencoder: Path, tmp_path: Path
) -> None:
    path = latents_of(autoencoder, tmp_path / "l")
    sets = [*SETS, f"data.root={path}"]
    trained = run(tmp_path / "flow", *sets, "model.condition=mask", preset="flow/tiny")
    assert trained.outcome.state == "completed"
    assert not [line for line in trained.messages if "autoencoder" in line]
    with Image.open(tmp_path / "flow/samples/iter_000004_samples.png") as picture:
        assert picture.size == (3 * 48 + 4, 4 * 32 + 6)  # decoded, mask, sample
    found = restore(str(tmp_path / "flow"), device="cpu")
    batch = next(found.batches())
    made = found.task.fakes(batch)["sample"].images
    own = read_trained(best_of(str(autoencoder))).without_data()
    with torch.no_grad():
        expected = own.decode(found.task.generate(batch))  # type: ignore[attr-defined]
    assert torch.equal(made, expected)  # type: ignore[arg-type]


def test_training_goes_on_without_its_autoencoder_and_says_so(run: Any, tmp_path: Path) -> None:
    path = make_latents(tmp_path / "l", autoencoder={"path": str(tmp_path / "gone")})
    trained = run(tmp_path / "flow", *SETS, f"data.root={path}", preset="flow/tiny")
    assert trained.outcome.state == "completed"
    (warning,) = [line for line in trained.messages if "is not there" in line]
    assert f"{tmp_path / 'gone'}, the autoencoder of the latents" in warning
    assert not list((tmp_path / "flow/samples").iterdir())
    found = restore(str(tmp_path / "flow"), device="cpu")
    with pytest.raises(CheckpointError, match="the autoencoder of the latents is not there"):
        found.task.fakes(next(found.batches()))


def test_another_autoencoder_is_refused_before_anything_is_written(
    run: Any, autoencoder: Path, tmp_path: Path
) -> None:
    path = latents_of(autoencoder, tmp_path / "l", hash="ab" * 16)
    with pytest.raises(CheckpointError, match="is not the autoencoder that made the latents"):
        run(tmp_path / "flow", *SETS, f"data.root={path}", preset="flow/tiny")
    assert not (tmp_path / "flow/config.yaml").exists()


def test_an_autoencoder_that_was_moved_is_named_anew(
    run: Any, autoencoder: Path, tmp_path: Path
) -> None:
    path = latents_of(autoencoder, tmp_path / "l", path="/nowhere")
    sets = [*SETS, f"data.root={path}", f"data.autoencoder_ckpt={autoencoder}"]
    trained = run(tmp_path / "flow", *sets, preset="flow/tiny")
    assert not [line for line in trained.messages if "autoencoder" in line]
    assert list((tmp_path / "flow/samples").iterdir())


def test_latents_of_another_file_are_no_resume(run: Any, tmp_path: Path) -> None:
    first = make_latents(tmp_path / "a", seed=0)
    second = make_latents(tmp_path / "b", seed=1)
    run(tmp_path / "flow", *SETS, f"data.root={first}", preset="flow/tiny")
    with pytest.raises(ExperimentError, match="the data's files have changed"):
        run(tmp_path / "flow", *SETS, f"data.root={second}", "train.max_iter=6",
            preset="flow/tiny")  # fmt: skip


def test_a_resumed_run_is_one_that_was_never_stopped(run: Any, tmp_path: Path) -> None:
    path = make_latents(tmp_path / "l")
    sets = [*SETS, f"data.root={path}", "model.condition=label", "train.max_iter=6"]
    whole = run(tmp_path / "whole", *sets, preset="flow/tiny")
    run(tmp_path / "parts", *sets, preset="flow/tiny", stop_at=3)
    parts = run(tmp_path / "parts", *sets, "data.num_workers=2", preset="flow/tiny")
    assert parts.outcome.state == "completed"
    ours, theirs = whole.tensors(), parts.tensors()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_decoder_opens_nothing_before_it_is_asked(tmp_path: Path) -> None:
    from imgtool.config.latents import LatentsData
    from imgtool.data.datasets import open_datasets

    path = make_latents(tmp_path / "l", autoencoder={"path": str(tmp_path)})
    info = open_datasets(LatentsData(root=str(path))).info.latents
    assert info is not None
    decoder = Decoder(info, torch.device("cpu"))
    assert not decoder.is_gone
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        decoder(torch.zeros(1, 4, 2, 2))
