import json
import subprocess

import pytest

from imgtool import __version__
from imgtool.errors import UsageError
from imgtool.experiment import provenance


def collect(**changes):
    facts = {"argv": ["imgtool", "train"], "seed": 42, "data_fingerprint": "f00", "identity": "abc"}
    return provenance.collect(**{**facts, **changes})


def test_what_is_recorded(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    record = collect(job={"executor": "lsf", "job_id": 123, "index": 0})
    assert record["argv"] == ["imgtool", "train"]
    assert (record["seed"], record["data_fingerprint"], record["identity"]) == (42, "f00", "abc")
    assert record["imgtool"] == __version__
    assert record["packages"]["numpy"]
    assert record["job"] == {"executor": "lsf", "job_id": 123, "index": 0}
    assert record["cwd"] == str(tmp_path)
    assert record["git"] is None
    json.dumps(record, allow_nan=False)


def test_git(monkeypatch, tmp_path):
    def git(*words):
        author = ["-c", "user.name=n", "-c", "user.email=e@x"]
        subprocess.run(["git", "-C", tmp_path, *author, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "x")
    monkeypatch.chdir(tmp_path)
    clean = collect()["git"]
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert collect()["git"] == {"commit": clean["commit"], "dirty": True}


def test_without_git(monkeypatch):
    monkeypatch.setattr(provenance.shutil, "which", lambda name: None)
    assert collect()["git"] is None


def test_other_code_than_that_of_the_submission(monkeypatch, experiment):
    assert provenance.check_code(experiment) is None  # nobody submitted it
    now = provenance.code()
    assert (now["imgtool"], len(now["sha256"])) == (__version__, 16)
    experiment.create()
    for strict in (False, True):
        provenance.note_submission(experiment, strict=strict)
        assert provenance.check_code(experiment) is None
    provenance.note_submission(experiment, strict=False)
    later = {**now, "sha256": "0", "commit": "f" * 40, "dirty": True}
    monkeypatch.setattr(provenance, "code", lambda: later)
    said = provenance.check_code(experiment)
    assert said.startswith("the code has changed since the submission: imgtool")
    assert said.endswith(f"imgtool {__version__} at ffffffff with changes now")
    monkeypatch.setattr(provenance, "code", lambda: now)
    provenance.note_submission(experiment, strict=True)
    monkeypatch.setattr(provenance, "code", lambda: later)
    with pytest.raises(UsageError, match="the code has changed"):
        provenance.check_code(experiment)
    experiment.submitted_path.write_text("{ half")
    assert provenance.check_code(experiment) is None


def test_the_code_s_hash_is_that_of_its_files(monkeypatch, tmp_path):
    for name in ("imgtool/__init__.py", "imgtool/a.py", "commands/b.py", "imgtool/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(provenance.imgtool, "__file__", str(tmp_path / "imgtool/__init__.py"))
    code = provenance.code.__wrapped__
    first = code()
    assert (first["commit"], first["dirty"]) == (None, None)
    (tmp_path / "imgtool/notes.txt").write_text("2")
    assert code() == first
    (tmp_path / "commands/b.py").write_text("2")
    assert code()["sha256"] != first["sha256"]


def test_a_resumed_run_is_appended(experiment):
    assert provenance.read(experiment) == []
    provenance.write(experiment, collect(argv=["first"]))
    provenance.write(experiment, collect(argv=["second"]))
    assert [start["argv"] for start in provenance.read(experiment)] == [["first"], ["second"]]
    experiment.provenance_path.write_text("{ half")
    provenance.write(experiment, collect(argv=["third"]))
    assert [start["argv"] for start in provenance.read(experiment)] == [["third"]]
