"""What a sweep trains first: which trials those are, who waits for them, and what follows reads."""

import json
import subprocess

import pytest

from imgtool.config import presets
from imgtool.config.fields import keys_of
from imgtool.errors import UserError
from imgtool.models.registry import schema
from imgtool.process.shell import in_turn, words
from imgtool.selection.sources import find_sources
from imgtool.sweep import jobs, manifest
from imgtool.sweep.choose import choose
from imgtool.sweep.descent import Descent, missing
from imgtool.sweep.inputs import lacking
from imgtool.sweep.over import read_preparation
from imgtool.sweep.plan import make_plan
from imgtool.sweep.spec import read_spec
from imgtool.sweep.state import read_state
from tests.sweep.test_over import trained

SPEC = """\
sweep: s
experiments: [a.yaml, b.yaml]
root: out
first:
  vq: {config: vq.yaml, exp_dir: vq}
  judge: {config: attributes/tiny, exp_dir: "my judge"}
then: ["imgtool status {root}", "imgtool eval edit --sweep {root} --judge {judge}"]
"""
READS = "model: {init_vqvae_ckpt: vq/checkpoints/latest.safetensors}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, more in (("a", ""), ("b", READS), ("vq", "model: {vqvae: true}\n")):
        text = f"family: genegan\nphase: p\noutput: {{shared_dir: all}}\n{more}"
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "s.yaml").write_text(SPEC)
    return tmp_path


def plan(**options):
    return make_plan("s.yaml", schema_of=schema, **options)


def by_name(found):
    return {trial.name: trial for trial in found.trials}


def test_what_is_read_is_a_trial_before_those_that_read_it(folder):
    found = plan(sets=["data.root=faces", "model.base_channels=16", "data.attribute=Bangs"])
    assert [trial.is_first for trial in found.trials] == [True, True, False, False]
    assert found.phase == "p"
    vq, judge, a, b = found.trials
    assert (vq.name, vq.directory.path, vq.family) == ("vq", folder / "vq", "genegan")
    assert (judge.name, judge.family) == ("judge", "attributes")
    # The words of all trials reach it as far as its family knows them.
    assert vq.loaded.experiment.model.base_channels == 16
    assert {t.loaded.experiment.data.root for t in found.trials} == {"faces"}
    assert vq.loaded.experiment.output.shared_dir is None
    assert a.preparation is None
    assert b.preparation.file == folder / "vq/checkpoints/latest.safetensors"
    assert b.preparation.by == vq.directory.path
    assert not any("vq" in lack.text for lack in lacking(found.trials))
    assert found.then[1].endswith(f"--sweep {folder}/out --judge '{folder}/my judge'")


def test_what_nobody_reads_is_not_trained(folder):
    assert set(by_name(plan(only=["a"]))) == {"judge", "a"}
    assert set(by_name(plan(only=["b"], then="true"))) == {"vq", "b"}
    assert "vq" not in by_name(plan(sets=["model.init_vqvae_ckpt=x"]))


def test_what_is_given_takes_its_place(folder):
    for name in ("seen", "other"):
        trained(folder / name)
    found = plan(given=["judge=seen", "vq=other"])
    a, b = found.trials
    assert (a.name, b.preparation) == ("a", None)
    assert b.loaded.experiment.model.init_vqvae_ckpt == str(folder / "other")
    assert b.name.startswith("b-")  # which makes it another experiment
    assert found.then[1].endswith(f"--judge {folder}/seen")
    for given, problem in (("judge", "NAME=CKPT"), ("jury=seen", "'jury'"), ("vq=no", "no check")):
        with pytest.raises(UserError, match=problem):
            plan(given=[given])


def test_tiny_ones_lie_apart(folder):
    found = by_name(plan(tiny=True))
    assert found["vq"].directory.path == folder / "vq/tiny"
    assert found["b"].preparation.file == folder / "vq/tiny/checkpoints/latest.safetensors"
    assert found["b"].preparation.by == folder / "vq/tiny"


def test_what_is_wrong_is_said(folder):
    for line, problem in (
        ("first: [a]", "expected names"),
        ("first: {judge: a.yaml}", "needs config and exp_dir"),
        ("first: {root: {config: a.yaml, exp_dir: x}}", "is no name"),
        ("first: {x: {config: a.yaml, exp_dir: ''}}", "expected a text"),
        ("first: {x: {config: no.yaml, exp_dir: x}}", "no file or preset"),
    ):
        (folder / "s.yaml").write_text(f"experiments: [a.yaml]\n{line}\n")
        with pytest.raises(UserError, match=problem) as caught:
            plan()
        assert "s.yaml:2" in str(caught.value)
    (folder / "s.yaml").write_text(SPEC + "halving: {rungs: [1, 2], keep: 1/2, metric: val_psnr}\n")
    with pytest.raises(UserError, match="trained first"):
        plan()
    (folder / "a.yaml").write_text("family: genegan\nname: judge\n")
    (folder / "s.yaml").write_text(SPEC)
    with pytest.raises(UserError, match="judge is what is trained first, and a trial"):
        plan()


def test_no_winner_is_chosen_among_them(folder):
    found = plan()
    manifest.write(found)
    assert [run.name for run in find_sources([str(found.root)]).runs] == ["a", "b"]


def state(directory, word):
    (directory.path / "status.json").write_text(json.dumps({"state": word}))


def test_who_reads_it_starts_once_it_is_trained_whole(folder):
    found = by_name(plan())
    vq, reader = found["vq"], found["b"]
    assert (reader.above.path, reader.step, vq.step) == (vq.directory.path, 1, 0)
    jobs.write_config(reader)
    assert read_preparation(reader.directory) == reader.preparation
    trained(vq.directory.path)
    for word, given in (("stopped", False), ("completed", True)):
        state(vq.directory, word)
        assert (missing(reader) is None) == given
    state(vq.directory, "failed")
    left = choose(plan()).left
    assert left["b"] == "it begins with the weights of vq, which has failed"


def test_a_pool_keeps_who_reads_it_until_it_has_ended(folder):
    found = by_name(plan(tiny=True))  # whose directory has another name
    vq, reader, down = found["vq"], found["b"], Descent()
    assert down.begin([reader, vq]) == [vq]
    assert (down.more(), down.given_up()) == ([], [])
    trained(vq.directory.path)
    state(vq.directory, "completed")
    down.ended(vq, read_state(vq.directory))
    assert (down.more(), down.given_up()) == ([reader], [])


@pytest.mark.parametrize(("codes", "code"), [("0", 0), ("00", 0), ("30", 3), ("053", 3)])
def test_commands_in_turn_all_run(codes, code, tmp_path):
    lines = [f"echo {one} >> seen; (exit {one})  # said" for one in codes]
    answer = subprocess.run(words(in_turn(lines)), cwd=tmp_path, check=False)
    assert answer.returncode == code
    assert (tmp_path / "seen").read_text().split() == list(codes)


@pytest.mark.parametrize("name", [n for n in presets.sweeps() if read_spec(n).first])
def test_shipped_sweeps_read_what_they_train_first(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = make_plan(name, schema_of=schema, sets=["data.root=x"])
    firsts = {trial.name for trial in found.trials if trial.is_first}
    assert firsts == {one.name for one in read_spec(name).first}
    assert "{" not in "".join(found.then)
    for trial in found.trials:
        if trial.preparation is not None:
            assert trial.preparation.by.name
            reads = [key for key in keys_of(schema(trial.family)).values() if key.reads]
            assert any(
                getattr(getattr(trial.loaded.experiment, key.section), key.name) for key in reads
            )
