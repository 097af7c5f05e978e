"""What one experiment is, and what becomes of its lost seeds."""

import json
import math

import pytest

from imgtool.config.load import load, to_yaml
from imgtool.errors import DataError, NoAnswer, UsageError
from imgtool.models import registry
from imgtool.selection.gather import DIFFUSABILITY, read_evidence
from imgtool.selection.metric import own_metric, with_own_metric
from imgtool.selection.rule_file import load_rule
from imgtool.selection.rules import select
from imgtool.selection.sources import find_sources
from imgtool.selection.table import read_table


@pytest.fixture
def trained(tmp_path):
    """trained('a', seed=1, mse=0.1) -> an exp_dir as `train` leaves it, less its checkpoints."""

    def build(
        folder, family="autoencoder", *sets, mse=0.1, state="completed", data="f", best="val_mse",
        rows=None,
    ):  # fmt: skip
        path = tmp_path / folder
        path.mkdir(parents=True)
        loaded = load(None, family=family, schema_of=registry.schema, sets=sets)
        (path / "config.yaml").write_text(to_yaml(loaded))
        status = {"state": state, "best": {"metric": best, "iteration": 2} if best else None}
        (path / "status.json").write_text(json.dumps(status))
        (path / "provenance.json").write_text(json.dumps({"starts": [{"data_fingerprint": data}]}))
        rows = rows or f"iteration,val_mse\n1,1\n2,{mse}\n"
        (path / f"{loaded.experiment.name}_metrics.csv").write_text(rows)
        return path

    return build


def groups(*paths, columns="imgtool"):
    """name -> seeds, as `best` sees them."""
    found = read_evidence(find_sources(map(str, paths)), load_rule("best"), columns)
    names = {}
    for one in found:
        names.setdefault(one.group, []).append(one.seed)
    return names


def test_configs_that_differ_in_the_seed_alone_are_one_experiment(trained):
    paths = [trained(f"s{seed}", "autoencoder", f"train.seed={seed}") for seed in (1, 2)]
    paths.append(trained("device", "autoencoder", "train.seed=3", "train.device=cpu"))
    assert groups(*paths) == {"autoencoder": [3, 1, 2]}


def test_seeds_of_a_ladder_begin_with_their_own(trained):
    def begun(seed, above):
        file = f"root/{above}/checkpoints/best.safetensors"
        return trained(f"{above}-{seed}", "hpcm", f"train.seed={seed}", f"model.init_ckpt={file}")

    paths = [begun(1, "tiny-0a1b2c3d"), begun(2, "tiny-4e5f6a7b"), begun(3, "other-4e5f6a7b")]
    found = read_evidence(find_sources(map(str, paths)), load_rule("best"), "imgtool")
    seeds = {}
    for one in found:
        seeds.setdefault(one.group, set()).add(one.seed)
    assert sorted(map(sorted, seeds.values())) == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["model.latent_channels=4"], ["model.latent_channels=8", "train.seed=1"]),
        (["train.max_iter=100"], ["train.max_iter=200", "train.seed=1"]),
        ([], []),  # the same seed twice is no repeat
    ],
)
def test_equal_names_are_told_apart_by_path(trained, first, second):
    paths = [trained("dif/a", "autoencoder", *first), trained("dif/b", "autoencoder", *second)]
    assert set(groups(*paths)) == {"autoencoder (a)", "autoencoder (b)"}


def test_other_data_is_another_experiment(trained):
    paths = [trained(f"d{s}", "autoencoder", f"train.seed={s}", data=f"of {s}") for s in (1, 2)]
    assert set(groups(*paths)) == {"autoencoder (d1)", "autoencoder (d2)"}


def test_bare_tables(tmp_path):
    text = "epoch,val_mse\n1,0.1\n"
    for name in ("a/metrics", "b/metrics", "c/metrics", "x_seed0", "x_seed1", "r_seed0/m"):
        path = tmp_path / f"{name}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "column.csv").write_text("seed,epoch,val_mse\n0,1,0.3\n0,2,0.1\n7,1,0.2\n")
    assert groups(*tmp_path.rglob("*.csv")) == {
        "a/metrics": [None], "b/metrics": [None], "c/metrics": [None],
        "x": [0, 1], "m": [0], "column": [0, 7],
    }  # fmt: skip
    found = read_evidence(find_sources([str(tmp_path / "column.csv")]), load_rule("best"))
    assert [one.metrics["val_mse"] for one in found] == [0.1, 0.2]
    assert [list(one.curves["val_mse"]) for one in found] == [[0.3, 0.1], [0.2]]


@pytest.mark.parametrize(
    ("text", "columns", "told"),
    [
        ("epoch,val_mse,val_mse\n1,0.1,0.2\n", "imgtool", "two columns are called val_mse"),
        ("val_MSE_rgb,val_mse\n0.1,0.2\n", "imginav", "two columns are called val_mse"),
        ("epoch,val_mse\n1,-0.1\n2,0.1\n", "imgtool", "val_mse is -0.1, and cannot be negative"),
        ("val_mse,latent_dims\n0.1,-4\n", "imgtool", "latent_dims is -4"),
        ("seed,val_mse\nx,0.1\n", "imgtool", "a seed is no whole number, in row 1"),
    ],
)
def test_a_table_that_contradicts_itself(tmp_path, text, columns, told):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        groups(tmp_path / "a.csv", columns=columns)


def test_what_may_be_negative(tmp_path):
    (tmp_path / "a.csv").write_text("val_loss,val_psnr,kid,val_log_mse\n-1,-2,-0.1,-3\n")
    assert read_table(tmp_path / "a.csv", quality="val_loss").metrics["kid"] == -0.1


# --- lost seeds -----------------------------------------------------------------------------


def lossy(trained, kinds):
    """An experiment whose seeds ended so, the best as it seems, and a sound one."""
    rows = {
        "nan": "iteration,val_mse\n1,nan\n2,0.1\n",
        "gone": "iteration,other\n1,2\n",
        "torn": "\0",
    }
    good = [trained(f"good{s}", "autoencoder", f"train.seed={s}", mse=0.2) for s in (0, 1)]
    bad = [
        trained(
            f"bad{number}", "autoencoder", f"train.seed={number}", "model.latent_channels=8",
            mse=0.1, rows=rows.get(kind), state=kind if kind not in rows else "completed",
        )
        for number, kind in enumerate(kinds)
    ]  # fmt: skip
    return [*good, *bad]


def chosen(paths, *sets):
    rule = load_rule("best", sets)
    return select(read_evidence(find_sources(map(str, paths)), rule), rule)


@pytest.mark.parametrize(
    ("kinds", "sets", "told"),
    [
        (["completed", "diverged", "diverged"], [], "2 of 3 diverged"),
        (["completed", "completed", "failed"], [], "1 of 3 failed"),
        (["completed", "running"], [], "1 of 2 unfinished"),
        (["completed", "gone"], [], "1 of 2 without val_mse"),
        (["completed", "nan"], ["nan=reject"], "1 of 2 with nan"),
        (["diverged", "diverged"], [], "2 of 2 diverged"),
        (["completed", "torn"], [], "1 of 2 unreadable"),
    ],
)
def test_an_experiment_that_lost_seeds_does_not_win(trained, kinds, sets, told):
    found = chosen(lossy(trained, kinds), *sets)
    assert found.winner.candidate.metrics["val_mse"] == 0.2
    (lost,) = (v for v in found.verdicts if v.candidate.lost)
    assert (lost.is_eligible, lost.candidate.loss_told) == (False, told)
    assert told in lost.reason
    assert "accepts none" in lost.reason


def test_a_rule_may_accept_lost_seeds_and_says_so(trained):
    paths = lossy(trained, ["completed", "diverged", "diverged"])
    found = chosen(paths, "lost_seeds=2")
    assert found.winner.candidate.metrics["val_mse"] == 0.1
    assert found.reason.endswith("2 of 3 diverged")
    assert chosen(paths, "lost_seeds=1").winner.candidate.metrics["val_mse"] == 0.2


def test_a_nan_in_one_seed_is_told(trained):
    from imgtool.selection.rules import warnings

    rule = load_rule("best", ["metric=val_mse"])
    found = chosen(lossy(trained, ["completed", "nan"]))
    assert any("nan or infinite" in line for line in warnings(found, rule))


# --- the family's own metric ------------------------------------------------------------------


def test_a_codec_is_ranked_by_its_rate_distortion_loss(trained):
    """By val_mse the worst of them would win."""
    for name, delta, loss, mse in (("a", "false", 2.4, 0.003), ("b", "true", 2.5, 0.001)):
        rows = f"iteration,val_mse,val_rd_loss\n1,1,9\n2,{mse},{loss}\n"
        trained(name, "hpcm", f"loss.spectral_reg={delta}", rows=rows, best="val_rd_loss")
    rule = load_rule("best")
    folder = trained("c", "hpcm", "loss.delta=0.3", best=None).parent  # has not been validated
    found = read_evidence(find_sources([str(folder)]), rule)
    assert own_metric(found) == "val_rd_loss"
    assert select(found, rule).winner.candidate.metrics["val_rd_loss"] == 2.4


def test_lambdas_are_not_compared_by_what_they_weigh(trained):
    rows = "iteration,val_rd_loss\n1,2\n2,1\n"
    paths = [
        trained(f"l{x}", "hpcm", f"loss.lmbda={x}", rows=rows, best="val_rd_loss")
        for x in (0.01, 0.02)
    ]
    rule = load_rule("best")
    with pytest.raises(UsageError, match=r"at lambda 0\.01 and at 0\.02") as caught:
        with_own_metric(rule, read_evidence(find_sources(map(str, paths)), rule))
    assert "bd-rate" in caught.value.hint


@pytest.mark.parametrize("name", list(registry.FAMILIES))
def test_every_family_has_a_metric_or_wants_a_rule(trained, name):
    path = trained("x", name, best=None)
    found = read_evidence(find_sources([str(path)]), load_rule("best"))
    schema = registry.schema(name)
    if schema.has_best:
        assert own_metric(found) == schema.monitor
    else:
        with pytest.raises(NoAnswer, match="wants a rule") as caught:
            own_metric(found)
        assert "--rule fid" in caught.value.hint
        assert "eval-fid --sweep" in caught.value.hint


def test_the_readmes_ablation_of_hpcm(tmp_path):
    """Its means, deviations, and differences seed by seed, of three seeds each."""
    table = {
        "baseline": (2.433, 0.044, 1.0), "phase1": (2.429, 0.022, 0.989),
        "phase2": (2.489, 0.027, 0.939), "both": (2.512, 0.033, 0.94),
    }  # fmt: skip
    along = [-1.0, 0.0, 1.0]  # what a seed does to all of them
    across = [1 / math.sqrt(3), -2 / math.sqrt(3), 1 / math.sqrt(3)]
    for number, (name, (mean, std, share)) in enumerate(table.items()):
        rest = (-1) ** number * math.sqrt(1 - share**2)
        values = [mean + std * (share * a + rest * b) for a, b in zip(along, across, strict=True)]
        # val_mse falls where bits are spent: it would choose the worst.
        rows = [f"{s},{v},{0.003 - 0.0001 * number}" for s, v in enumerate(values)]
        text = "\n".join(["seed,val_rd_loss,val_mse", *rows])
        (tmp_path / f"{name}.csv").write_text(text + "\n")
    rule = load_rule("best")
    found = select(read_evidence(find_sources([str(tmp_path)]), rule), rule)
    assert found.quality == "val_rd_loss"
    assert found.winner.candidate.name == "phase1"
    assert list(found.ties) == ["baseline"]
    assert "baseline differs by no more than the noise: a tie" in found.reason
    assert "phase2 and both are worse" in found.reason


@pytest.mark.parametrize("metric", DIFFUSABILITY)
def test_a_rule_may_choose_by_how_hard_a_latent_is_to_generate(trained, metric):
    """Of latents.json, with its own error; lower is better."""
    names = {4: 0.5, 8: 0.25, 16: 0.75}
    for channels, value in names.items():
        path = trained(
            f"c{channels}", "autoencoder", f"model.latent_channels={channels}", f"name=c{channels}"
        )
        said = {metric: value, f"{metric}_se": 0.01, f"{metric}_sampled": 1 - value}
        (path / "latents.json").write_text(json.dumps(said))
    paths = [path.parent / f"c{channels}" for channels in names]
    found = chosen(paths, f"metric={metric}")
    assert [v.candidate.name for v in found.verdicts] == ["c8", "c4", "c16"]
    assert found.certainty.source == "measurement"
    found = chosen(paths, f"metric={metric}_sampled", "mode=max")
    assert found.winner.candidate.name == "c8"
