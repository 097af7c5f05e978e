"""`imgtool export`: what is refused, what is kept, and what is left when something fails."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from dataclasses import replace

import pytest
import torch

from commands.main import main
from imgtool.evaluation.export import diffusers, folder
from imgtool.evaluation.export.formats import FORMATS
from imgtool.experiment import checkpoint_file
from imgtool.experiment.checkpoint_file import CheckpointHeader
from imgtool.models.registry import FAMILIES, schema
from tests.evaluation.export.making import KL, records, write_checkpoint, write_photos


def run(*words):
    with pytest.raises(SystemExit) as left:
        main([*map(str, words)])
    return int(left.value.code or 0)


def tree(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoints kl and plain, and photos."""
    made = tmp_path_factory.mktemp("export")
    photos = f"data.root={write_photos(made / 'photos')}"
    write_checkpoint(made / "kl/checkpoints/iter_000007.safetensors", *KL, photos)
    write_checkpoint(made / "plain.safetensors", "model.heads=[rgb]", photos)
    return made


DIFFUSERS = ("--to", "diffusers", "--device", "cpu")


def test_every_format_of_a_family_is_one():
    exported = [name for family in FAMILIES for name in schema(family).exports]
    assert sorted(exported) == sorted(FORMATS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_names_its_formats(family, tmp_path, capsys):
    path = tmp_path / "iter_000001.safetensors"
    header = CheckpointHeader(1, 0.0, "x", family, "0", config={"family": family})
    checkpoint_file.write(path, {"model.x": torch.zeros(1)}, header)
    known = schema(family).exports
    for to in FORMATS.keys() - set(known):
        assert run("export", path, tmp_path / "new.safetensors", "--to", to) == 2
        error, hint = capsys.readouterr().err.splitlines()
        assert f"of the family {family}, which has no format" in error
        assert all(f"--to {name}" in hint for name in known)
    if len(known) > 1:
        assert run("export", path, tmp_path / "new") == 2
        error, hint = capsys.readouterr().err.splitlines()
        assert "which format?" in error
        assert hint == "hint: " + " or ".join(f"--to {name}" for name in known)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("words", "code", "said", "advice"),
    [
        (("CKPT", "new", "--to", "pickle"), 2, "--to 'pickle'", "codec, diffusers, onnx"),
        (("CKPT", "new", "--to", "onnx", "--per-channel"), 2, "--per-channel", "leave it out"),
        (("CKPT", "new", *DIFFUSERS, "--latents", "no.safetensors"), 4, "no.safetensors", ""),
        (("CKPT", "new", *DIFFUSERS, "--latents", "x", "--num-images", "3"), 2, "exclude", ""),
        (("CKPT", "new", *DIFFUSERS, "--data-root", "nowhere"), 4, "nowhere", "--latents"),
        (("CKPT", "plain.safetensors/x", *DIFFUSERS), 4, "cannot write", "disk"),
        (("CKPT", "plain.safetensors", *DIFFUSERS), 2, "is no folder", "another name"),
        (("CKPT", "kl", *DIFFUSERS), 2, "exists already", "--force"),
        (("CKPT", "kl/checkpoints", *DIFFUSERS, "--force"), 2, "lies among", "kl/diffusers"),
        (("CKPT", "kl/checkpoints/a/b", "--to", "onnx"), 2, "lies among", "kl/onnx"),
        (("plain.safetensors", "new", *DIFFUSERS), 2, "no architecture plain", "--to onnx"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    made, monkeypatch, capsys, words, code, said, advice
):
    monkeypatch.chdir(made)
    before = tree(made)
    source = "kl/checkpoints/iter_000007.safetensors"
    assert run("export", *(source if word == "CKPT" else word for word in words)) == code
    error, *hint = capsys.readouterr().err.splitlines()
    assert said in error
    assert len(hint) == 1
    assert advice in hint[0]
    assert tree(made) == before


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("model.bottleneck=vq",), "no bottleneck vq"),
        (("model.activation=leaky_relu",), "no activation leaky_relu"),
        (("model.heads=[segmentation]", "data.dataset=layouts"), "no heads without rgb"),
    ],
)
def test_a_model_that_diffusers_cannot_hold_is_refused(tmp_path, capsys, sets, said):
    path = write_checkpoint(tmp_path / "a.safetensors", *KL, *sets)
    assert run("export", path, tmp_path / "new", *DIFFUSERS) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert said in error
    assert "--to onnx" in hint
    assert not (tmp_path / "new").exists()


def test_a_truncated_checkpoint_is_refused(made, tmp_path, capsys):
    path = tmp_path / "iter_000007.safetensors"
    data = (made / "kl/checkpoints/iter_000007.safetensors").read_bytes()
    for length in (len(data) // 2, 100, 0):
        path.write_bytes(data[:length])
        assert run("export", path, tmp_path / "new", *DIFFUSERS) == 4
        assert str(path) in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_dry_run_writes_nothing(made, tmp_path, capsys):
    assert run("export", made / "kl", tmp_path / "a/new", *DIFFUSERS, "--dry-run") == 0
    (record,) = records(capsys.readouterr().out)
    assert (record["kind"], record["to"], record["dry_run"]) == ("export", "diffusers", True)
    assert record["files"] == diffusers.FILES
    assert record["scaling_factor"] > 0
    assert not list(tmp_path.iterdir())


def test_force_replaces_our_files_and_no_others(made, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep/mine").write_text("mine")
    (out / "notes.txt").write_text("mine")
    (out / "config.json").write_text("old")
    os.symlink(out, tmp_path / "link")
    before = tree(out)
    assert run("export", made / "kl", out, *DIFFUSERS) == 2
    assert tree(out) == before
    assert run("export", made / "kl", tmp_path / "link", *DIFFUSERS, "--force") == 0
    after = tree(out)
    assert {str(name) for name in after} == {*diffusers.FILES, "notes.txt", "deep/mine"}
    assert (out / "notes.txt").read_text() == (out / "deep/mine").read_text() == "mine"
    assert json.loads((out / "config.json").read_text())["_class_name"] == "AutoencoderKL"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "out"]
    (out / "README.md").unlink()
    (out / "README.md").mkdir()
    capsys.readouterr()
    after = tree(out)
    assert run("export", made / "kl", out, *DIFFUSERS, "--force") == 4
    assert "cannot write" in capsys.readouterr().err
    assert tree(out) == after


def test_a_full_disk_leaves_what_was_there(made, tmp_path, capsys):
    (tmp_path / "config.json").write_text("old")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        code = run("export", made / "kl", tmp_path, *DIFFUSERS, "--force", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 4
    assert "cannot write" in capsys.readouterr().err
    assert tree(tmp_path).keys() == {(tmp_path / "config.json").relative_to(tmp_path)}


def test_files_that_are_not_the_checkpoint_s_are_not_kept(made, tmp_path, capsys, monkeypatch):
    """As after a fault of ours, or of a library."""
    save = diffusers.save_file

    def spoil(tensors, path, **more):
        name = "encoder.conv_in.bias"
        save({**tensors, name: tensors[name] + 1e-6}, path, **more)

    monkeypatch.setattr(diffusers, "save_file", spoil)
    assert run("export", made / "kl", tmp_path / "new", *DIFFUSERS) == 4
    assert "encoder.conv_in.bias is another" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(diffusers, "save_file", save)
    form = diffusers._form

    def wrong(opened):
        found = form(opened)
        weight = found.tensors["decoder.conv_in.weight"]
        return replace(found, tensors={**found.tensors, "decoder.conv_in.weight": weight * 1.01})

    monkeypatch.setattr(diffusers, "_form", wrong)
    assert run("export", made / "kl", tmp_path / "new", *DIFFUSERS) == 4
    assert "its image is" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert run("export", made / "plain.safetensors", tmp_path / "new", "--to", "onnx") == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert "onnxscript" in error
    assert "imgtool[onnx]" in hint
    assert not list(tmp_path.iterdir())


def test_without_diffusers_the_record_and_the_card_say_so(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert folder.optional("diffusers") is None
    assert run("export", made / "kl", tmp_path / "new", *DIFFUSERS) == 0
    (record,) = records(capsys.readouterr().out)
    assert record["checked_with"] is None
    assert "diffusers itself was not" in (tmp_path / "new/README.md").read_text()
