import json
import subprocess

from imgtool import __version__
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


def test_a_resumed_run_is_appended(experiment):
    assert provenance.read(experiment) == []
    provenance.write(experiment, collect(argv=["first"]))
    provenance.write(experiment, collect(argv=["second"]))
    assert [start["argv"] for start in provenance.read(experiment)] == [["first"], ["second"]]
    experiment.provenance_path.write_text("{ half")
    provenance.write(experiment, collect(argv=["third"]))
    assert [start["argv"] for start in provenance.read(experiment)] == [["third"]]
