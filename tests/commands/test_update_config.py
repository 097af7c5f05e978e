"""imgtool update-config: records in, byte-exact edits out, exit codes."""

import io
import json
import os
import pty
import subprocess
import sys

import pytest

from commands.main import main
from imgtool.config.load import load, to_yaml
from imgtool.config.yaml_io import parse_document
from imgtool.models.registry import schema
from imgtool.sweep import manifest
from imgtool.sweep.jobs import write_config
from imgtool.sweep.plan import make_plan

V1 = b"# V1\r\nfamily: autoencoder\r\nmodel:\r\n  latent_channels: 16  # of 1.1\r\n  bottleneck: none\r\n"
V2 = b"family: autoencoder\nmodel: {latent_channels: 16, bottleneck: kl}\nloss:\n  kld: 1.0e-4\n"
DETERMINISTIC = {"model.latent_channels": 4, "model.bottleneck": "none", "loss.kld": None}
VARIATIONAL = {"model.latent_channels": 8, "model.bottleneck": "kl", "loss.kld": 3e-5}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMGTOOL_FORMAT", raising=False)
    (tmp_path / "V1.yaml").write_bytes(V1)
    (tmp_path / "V2.yaml").write_bytes(V2)
    return tmp_path


def winner(parameters=DETERMINISTIC, **fields):
    record = {"kind": "winner", "name": "S7", "rule": "efficiency", "phase": "p"}
    record |= {"decides": list(parameters), "parameters": {**parameters, "train.lr": 0.5}}
    return json.dumps({"schema": "imgtool/1", **record, **fields})


@pytest.fixture
def run(monkeypatch):
    def call(*args, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as caught:
            main(["update-config", *map(str, args)])
        return int(caught.value.code or 0)

    return call


def untouched(folder):
    return (folder / "V1.yaml").read_bytes() == V1 and (folder / "V2.yaml").read_bytes() == V2


def test_the_decided_keys_and_nothing_else(folder, run, capsys):
    ranking = json.dumps({"kind": "ranking", "name": "S8", "parameters": {}})
    assert run("V1.yaml", "V2.yaml", stdin=f"{winner()}\n{ranking}\n") == 0
    assert (folder / "V1.yaml").read_bytes() == V1.replace(b"16", b"4")
    assert (folder / "V2.yaml").read_bytes() == (
        b"family: autoencoder\nmodel: {latent_channels: 4, bottleneck: none}\n"
    )
    said = capsys.readouterr()
    assert "-  latent_channels: 16  # of 1.1" in said.out
    assert "2 of 2 files changed" in said.err
    assert run("V1.yaml", "V2.yaml", stdin=winner()) == 0  # once is enough
    assert capsys.readouterr().out == ""


def test_a_vae_brings_its_weight(folder, run):
    assert run("V1.yaml", stdin=winner(VARIATIONAL)) == 0
    after = V1.replace(b"16", b"8").replace(b"none", b"kl")
    assert (folder / "V1.yaml").read_bytes() == after + b"\r\nloss:\r\n  kld: 3.0e-05\r\n"


def test_a_decision_is_written_down_where_it_is_the_default(folder, run):
    vae = {**VARIATIONAL, "loss.kld": 1e-4}
    assert run("V1.yaml", stdin=winner(vae)) == 0
    text = (folder / "V1.yaml").read_bytes()
    assert text.endswith(b"\r\nloss:\r\n  kld: 0.0001\r\n")
    assert run("V1.yaml", "--check", stdin=winner(vae)) == 0  # idempotent


OVERRIDDEN = {"model.latent_channels": "--tiny"}


def test_what_was_overridden_is_not_carried_over(folder, run, capsys):
    assert run("V1.yaml", stdin=winner(VARIATIONAL, overridden=OVERRIDDEN)) == 0
    text = (folder / "V1.yaml").read_bytes()
    assert text.startswith(V1.replace(b"none", b"kl"))
    assert "model.latent_channels is left as it is: --tiny set it" in capsys.readouterr().err
    assert (
        run("V1.yaml", "--keys", "model.latent_channels", stdin=winner(overridden=OVERRIDDEN)) == 2
    )
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert "--tiny set model.latent_channels: nothing was chosen" in error
    assert "--set model.latent_channels=4 writes" in hint
    assert (folder / "V1.yaml").read_bytes() == text
    everything = winner({"model.latent_channels": 4}, overridden=OVERRIDDEN)
    assert run("V2.yaml", stdin=everything) == 1
    assert "nothing was chosen" in capsys.readouterr().err
    (folder / "w.json").write_text(everything)
    assert run("V2.yaml", "--from", "w.json", "--set", "loss.kld=0.5") == 0
    assert (folder / "V2.yaml").read_bytes() == V2.replace(b"1.0e-4", b"0.5")


def planned(spec, **options):
    """The trials of a sweep with configs as their trainings leave them, and made-up tables."""
    found = make_plan(str(spec), schema_of=schema, **options)
    for number, trial in enumerate(found.trials):
        write_config(trial)
        where = trial.directory
        flags = {"output.exp_dir": str(where.path)}
        loaded = load(str(trial.config_path), family=None, schema_of=schema, flags=flags)
        where.config_path.write_text(to_yaml(loaded))
        table = f"iteration,epoch,val_mse\n1,1,0.5\n2,2,{0.1 + number}\n"
        where.csv_path(trial.name).write_text(table)
        facts = {"latent_dims": 64}
        where.status_path.write_text(json.dumps({"state": "completed", "facts": facts}))
    manifest.write(found)
    return found.root


def test_from_the_sweep_to_the_next_phase(folder, run, capsys):
    (folder / "a.yaml").write_text("family: autoencoder\nphase: p\nmodel: {base_channels: 32}\n")
    (folder / "s.yaml").write_text(
        "base: a.yaml\nmatrix: {model.latent_channels: [8, 4]}\nset: {loss.cls: 0.5}\n"
        "decides: [model.latent_channels, model.base_channels, loss.l1, loss.cls, loss.seg]\n"
    )
    root = planned(
        "s.yaml", tiny=True, sets=["loss.l1=2", "train.seed=7"], grid_words=["loss.seg=0.5,0.25"]
    )
    with pytest.raises(SystemExit):
        main(["select-winner", str(root), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = next(row for row in rows if row["kind"] == "winner")
    assert found["overridden"] == {"model.base_channels": "--tiny", "loss.l1": "--set"}
    assert run("V1.yaml", stdin=json.dumps(found)) == 0
    assert "base_channels is left as it is" in capsys.readouterr().err
    values = parse_document((folder / "V1.yaml").read_text(), "V1.yaml")
    assert {key: entry.value for key, entry in values.items() if key != "family"} == {
        "model.latent_channels": 8, "model.bottleneck": "none", "loss.cls": 0.5, "loss.seg": 0.5,
    }  # fmt: skip


def test_what_a_set_tells_apart_is_a_choice(folder, capsys):
    (folder / "a.yaml").write_text("family: autoencoder\nphase: p\n")
    for value in (2, 3):
        root = planned("a.yaml", sets=[f"loss.l1={value}", "loss.seg=0.5"])
    with pytest.raises(SystemExit):
        main(["select-winner", str(root), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (found,) = (row for row in rows if row["kind"] == "winner")
    assert found["decides"] == ["loss.l1"]
    assert found["overridden"] == {}


def test_words_as_other_commands_take_them(folder, run):
    words = ("--set", "model={latent_channels: 2}", "--set", "model.variational=true")
    assert run("V1.yaml", *words) == 0
    assert (folder / "V1.yaml").read_bytes() == V1.replace(b"16", b"2").replace(b"none", b"kl")
    listed = f"[{winner()}, {json.dumps({'kind': 'ranking'})}]"
    assert run("V2.yaml", "--provenance", stdin=listed) == 0
    assert b"latent_channels: 4" in (folder / "V2.yaml").read_bytes()


def test_check_and_dry_run_write_nothing(folder, run):
    assert run("V1.yaml", "--check", stdin=winner()) == 1
    assert run("V1.yaml", "--dry-run", stdin=winner()) == 0
    assert untouched(folder)
    assert run("V1.yaml", "--check", "--set", "model.latent_channels=16") == 0


def test_records(folder, run, capsys):
    assert run("V1.yaml", "--json", "--set", "model.latent_channels=2") == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row["kind"] == "edit"
    assert (row["key"], row["old"], row["new"]) == ("model.latent_channels", 16, 2)
    assert row["is_written"] is True
    assert run("V1.yaml", "V2.yaml", "--quiet", "--set", "model.latent_channels=2") == 0
    assert capsys.readouterr().out.split() == [str(folder / "V2.yaml")]


def test_chosen_keys_and_a_file(folder, run):
    (folder / "w.json").write_text(winner())
    assert run("V1.yaml", "--from", "w.json", "--keys", "train.lr", "--provenance") == 0
    text = (folder / "V1.yaml").read_bytes()
    assert text.startswith(V1)
    assert b"train:\r\n  lr: 0.5\r\n" in text
    assert text.endswith(b"# imgtool update-config: S7 (rule efficiency, phase p)\r\n")


@pytest.mark.parametrize(
    ("args", "stdin", "code", "words"),
    [
        (["V1.yaml"], "", 1, "stdin is empty"),
        (["V1.yaml"], "\n \n", 1, "stdin is empty"),
        (["V1.yaml"], "no record\n", 2, "not a JSON record"),
        (["V1.yaml"], '{"kind": "ranking"}\n', 1, "no winner's record"),
        (["V1.yaml"], f"{winner()}\n{winner()}\n", 2, "2 winners"),
        (["V1.yaml"], winner(decides=[]), 2, "does not say which keys"),
        (["V1.yaml"], winner(decides=5), 2, "does not say which keys"),
        (["V1.yaml", "--set", "base=x"], "", 2, "base can only be chosen in a file"),
        (["V1.yaml", "--set", "=3"], "", 2, "is not key=value"),
        (["V1.yaml", "--keys", ","], winner(), 2, "--keys names no key"),
        (["V1.yaml", "read_only.yaml"], winner(), 2, "read_only.yaml is read-only"),
        (["V1.yaml", "pipe.yaml"], winner(), 2, "not a regular file"),
        (["V1.yaml"], winner(decides=["model.x"]), 2, "no parameter model.x"),
        (["V1.yaml"], winner(family="genegan"), 2, "autoencoder family"),
        (["V1.yaml", "--keys", "loss.mse"], winner(), 2, "no parameter loss.mse"),
        (["V1.yaml", "--set", "model.latent_chanels=3"], "", 2, "no key model.latent_chanels"),
        (["V1.yaml", "--set", "model.latent_channels=0"], "", 2, "latent_channels"),
        (["V1.yaml", "missing.yaml"], winner(), 2, "missing.yaml"),
        (["V1.yaml", "phase1_2/V1"], winner(), 2, "ships with imgtool"),
        (["V1.yaml", "sweep.yaml"], winner(), 2, "is a sweep"),
        (["V1.yaml", "--from", "none.json"], "", 2, "none.json"),
    ],
)
def test_what_is_wrong_changes_nothing(folder, run, capsys, args, stdin, code, words):
    (folder / "sweep.yaml").write_text("sweep: x\nexperiments: [V1.yaml]\n")
    (folder / "read_only.yaml").write_bytes(V1)
    (folder / "read_only.yaml").chmod(0o444)
    os.mkfifo(folder / "pipe.yaml")
    assert run(*args, stdin=stdin) == code
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert words in error
    assert hint.startswith("hint: ")
    assert untouched(folder)


def test_a_terminal_is_not_waited_for(folder):
    ours, theirs = pty.openpty()
    answer = subprocess.run(
        [sys.executable, "-m", "imgtool", "update-config", "V1.yaml"],
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=30,
    )
    os.close(ours)
    os.close(theirs)
    assert answer.returncode == 2
    assert "stdin is a terminal" in answer.stderr
    assert untouched(folder)
