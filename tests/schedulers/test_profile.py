"""What a site says of its jobs."""

import re

import pytest

from imgtool.config.schema import Cluster
from imgtool.errors import ConfigError
from imgtool.schedulers.profile import Profile, profile_path, read_profile
from tests.fake_lsf.plans import make_trial


def profile(tmp_path, text):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return read_profile(path)


def test_a_profile_stands_below_the_experiments_own_words(tmp_path):
    found = profile(tmp_path, "queue: hpc\nproject: p1\nmodules: [python3/3.11]\nwarn_min: 5\n")
    assert found.site.warn_min == 5
    resources = found.resources(make_trial(tmp_path, "S1").loaded)  # its preset names a queue
    assert (resources.queue, resources.account) == ("gpuv100", "p1")
    assert resources.modules == ("python3/3.11",)
    assert found.resources(make_trial(tmp_path, "S1", project="mine").loaded).account == "mine"


def test_memory_is_asked_for_as_the_site_counts_it(tmp_path):
    by_core = profile(tmp_path, "memory_means: core\n")
    by_job = profile(tmp_path, "memory_means: job\n")
    job = Cluster(memory="33GB", memory_per="job", num_cores=8)
    core = Cluster(memory="4GB", memory_per="core", num_cores=8)
    found = by_core.in_site_units(job)
    assert (found.memory, found.memory_per) == ("4224MB", "core")  # 8 of them are 33 GB
    found = by_job.in_site_units(core)
    assert (found.memory, found.memory_per) == ("32GB", "job")
    assert by_core.in_site_units(core) == core
    assert Profile().in_site_units(job) == job


def test_the_former_profile_is_read_where_there_is_no_other(tmp_path, monkeypatch):
    where = {"XDG_CONFIG_HOME": str(tmp_path)}
    former = tmp_path / "imgtool/lsf.yaml"
    former.parent.mkdir()
    former.write_text("queue: hpc\nproject: p1\n")
    assert profile_path(where) == former
    assert read_profile(former).cluster == {"queue": "hpc", "account": "p1"}
    (tmp_path / "imgtool/cluster.yaml").write_text("scheduler: lsf\n")
    assert profile_path(where) == tmp_path / "imgtool/cluster.yaml"
    assert read_profile(profile_path(where)).scheduler("cluster").name == "lsf"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("queue: hpc\nmodulez: [a]\n", ":2: unknown key modulez", "did you mean 'modules'?"),
        ("cluster:\n  queue: hpc\n", ":2: unknown key cluster.queue", "left margin"),
        ("warn_min: 0\n", ":1: site.warn_min is 0", None),
        ("margin: soon\n", "'soon' is not a duration", None),
        ("scheduler: pbs\n", "expected one of lsf", None),
        ("submit: pipe\n", "one of stdin, file", None),
        ("queue: [\n", "cluster.yaml:", None),
    ],
)
def test_a_wrong_profile(tmp_path, text, message, hint):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        profile(tmp_path, text)
    assert str(tmp_path / "cluster.yaml") in str(caught.value)
    assert hint is None or hint in caught.value.hint


def test_where_the_profile_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert profile_path({}) == tmp_path / ".config/imgtool/cluster.yaml"
    assert profile_path({"XDG_CONFIG_HOME": "relative"}) == profile_path({})
    assert str(profile_path({"XDG_CONFIG_HOME": "/x"})) == "/x/imgtool/cluster.yaml"
    assert profile(tmp_path, "# nothing\n") == Profile()
    assert read_profile(tmp_path / "none.yaml") == Profile()
