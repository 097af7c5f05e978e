"""`lsf:` and `project:` in configs of before are `cluster:` and `account:`."""

import pytest

from imgtool.config.edit import plan
from imgtool.config.identity import identity
from imgtool.config.load import load, read_resolved, read_stored, to_dict, to_yaml
from imgtool.errors import ConfigError
from imgtool.models.registry import schema

TEXT = "base: phase1_1/S1\nlsf:\n  queue: gpul40s  # the long one\n  project: p1\n"


def of(source, *sets):
    return load(str(source), family=None, schema_of=schema, sets=list(sets))


def test_an_older_config_means_the_same(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(TEXT)
    found = of(path, "lsf.walltime=9h")
    cluster = found.experiment.cluster
    assert (cluster.queue, cluster.account, cluster.walltime) == ("gpul40s", "p1", "9h")
    assert found.origins["cluster.queue"] == f"{path}:3"
    assert identity(found.experiment, "x") == identity(of("phase1_1/S1").experiment, "x")


def test_resolved_and_stored_configs_of_before_are_read(tmp_path):
    now = of("phase1_1/S1", "cluster.account=p1")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(now).replace("\ncluster:", "\nlsf:").replace("account:", "project:"))
    assert read_resolved(path, schema).experiment == now.experiment
    stored = to_dict(now.experiment)
    stored["lsf"] = stored.pop("cluster")
    assert read_stored(stored, path, schema).experiment == now.experiment


@pytest.mark.parametrize(
    "text", ["lsf: {queue: a}\ncluster: {queue: b}\n", "cluster: {project: a, account: b}\n"]
)
def test_a_value_under_both_names_is_refused(tmp_path, text):
    path = tmp_path / "both.yaml"
    path.write_text("base: phase1_1/S1\n" + text)
    with pytest.raises(ConfigError, match="are one"):
        of(path)


def test_an_edit_keeps_the_file_s_own_heading(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(TEXT)
    after = plan(path, {"cluster.queue": "hpc", "cluster.walltime": "9h"}, schema_of=schema).after
    text = after.decode()
    assert "lsf:\n  queue: hpc  # the long one\n" in text
    assert 'walltime: "9h"' in text
    assert "cluster" not in text
