import io
import json

import pytest

from commands.main import main

CONFIG = """family: autoencoder
name: {name}
phase: phase1_1_latent_shape_sweep
model: {{latent_channels: {channels}, bottleneck: {bottleneck}}}
"""


@pytest.fixture(autouse=True)
def default_format(monkeypatch):
    monkeypatch.delenv("IMGTOOL_FORMAT", raising=False)


@pytest.fixture
def select(capsys, monkeypatch):
    """select('DIR', '--rule', 'best') -> exit code, records, stderr."""

    def run(*words, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as caught:
            main(["select-winner", *map(str, words)])
        out, err = capsys.readouterr()
        records = [json.loads(line) if line[:1] == "{" else line for line in out.splitlines()]
        return int(caught.value.code), records, err

    return run


@pytest.fixture
def experiment(tmp_path):
    def build(name, mse, dims, *, channels=4, bottleneck="none", state="completed", **more):
        folder = tmp_path / "experiments" / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "best.safetensors").write_bytes(b"x")
        facts = {"latent_dims": dims, "latent_shape": [channels, 8, dims // 8 // channels]}
        facts |= {"images_per_sec": 12.5, "peak_memory_bytes": 1000}
        status = {"state": state, "facts": facts, "best": {"metric": "val_mse", "iteration": 2}}
        status |= more
        (folder / "status.json").write_text(json.dumps(status))
        text = CONFIG.format(name=name, channels=channels, bottleneck=bottleneck)
        (folder / "config.yaml").write_text(text)
        table = f"iteration,epoch,val_mse,val_psnr\n1,1,{mse * 2},20\n2,2,{mse},30.5\n"
        (folder / f"{name}_metrics.csv").write_text(table)
        return folder

    return build


@pytest.fixture
def phase(tmp_path, experiment):
    """A sweep's shared folder with S1 to S4; S4 has not begun."""
    folders = [experiment("S1", 0.011, 256), experiment("S2", 0.010, 1024, channels=16)]
    folders += [experiment("S3", 0.001, 64, state="diverged"), tmp_path / "experiments" / "S4"]
    shared = tmp_path / "outputs"
    shared.mkdir()
    trials = [{"name": f.name, "exp_dir": str(f), "overrides": {}, "source": "x"} for f in folders]
    trials[1]["also"] = ["S2_again"]
    content = {"schema": "imgtool-sweep/1", "name": "phase1_1", "trials": trials}
    content |= {"phase": "phase1_1_latent_shape_sweep", "shared_dir": str(shared)}
    content |= {"decides": ["model.latent_channels", "loss.kld"]}
    (shared / "sweep.json").write_text(json.dumps(content))
    return shared


def test_who_was_dropped_is_shown_with_its_rung_and_value(experiment, select):
    facts = {"rung": "1ep", "metric": "val_mse", "value": 0.0021, "place": 3, "of": 3}
    reason = "dropped at rung 1ep: val_mse 0.0021, place 3 of 3"
    # Its value of that time is the best of all; it would have been chosen.
    folders = [experiment("S1", 0.011, 64), experiment("S2", 0.02, 64)]
    folders += [experiment("S3", 0.0021, 64, state="dropped", reason=reason, dropped=facts)]
    code, (winner, *ranking), _ = select(*folders, "--rule", "best")
    assert (code, winner["name"], winner["dropped"]) == (0, "S1", {"S3": facts})
    assert [(r["name"], r["state"], r["reason"]) for r in ranking[2:]] == [
        ("S3", "dropped", reason)
    ]
    assert (ranking[2]["dropped"], ranking[0]["dropped"]) == (facts, None)
    assert "unfinished" not in json.dumps(ranking)


def test_shared_folder_of_a_sweep(phase, select):
    code, (winner, *ranking), err = select(phase)
    assert code == 0
    assert "rule: efficiency" in err
    assert (winner["kind"], winner["name"], winner["rule"]) == ("winner", "S1", "efficiency")
    assert winner["parameters"] == {"model.latent_channels": 4, "loss.kld": None}
    assert winner["decides"] == ["model.latent_channels", "loss.kld"]
    assert winner["checkpoint_path"].endswith("S1/checkpoints/best.safetensors")
    assert winner["latent_shape"] == [4, 8, 8]
    assert (winner["images_per_sec"], winner["peak_memory_bytes"]) == (12.5, 1000)
    assert winner["mse_per_dim"] == pytest.approx(0.011 / 256)
    assert winner["criteria"] == {"mse": False, "psnr": True, "stability": None, "size": True}
    assert [(r["rank"], r["name"]) for r in ranking] == [
        (1, "S1"), (2, "S2"), (None, "S3"), (None, "S4"),
    ]  # fmt: skip
    assert [r["also"] for r in ranking] == [[], ["S2_again"], [], []]
    assert "diverged" in ranking[2]["reason"]
    assert "pending" in ranking[3]["reason"]


def test_records_on_stdin(phase, tmp_path, select):
    common = {"schema": "imgtool/1", "kind": "experiment", "phase": "phase1_1_latent_shape_sweep"}
    lines = [
        {**common, "path": str(tmp_path / "experiments" / name), "name": name, "state": state,
         "also": [f"{name}_again"], "decides": ["model.latent_channels"]}
        for name, state in (("S1", "out_of_memory"), ("S2", "completed"))
    ]  # fmt: skip
    lines.append({"schema": "imgtool/1", "kind": "winner", "path": "/nowhere"})
    code, (winner, *ranking), _ = select(stdin="\n".join(map(json.dumps, lines)))
    assert code == 0
    assert (winner["name"], winner["also"]) == ("S2", ["S2_again"])
    assert winner["parameters"] == {"model.latent_channels": 16}
    assert [r["name"] for r in ranking] == ["S2", "S1"]


def test_without_decides_the_keys_that_differ(experiment, select):
    folders = [experiment("x", 0.1, 64), experiment("y", 0.2, 64, channels=8)]
    for folder in folders:
        text = (folder / "config.yaml").read_text().replace("phase1_1_latent_shape_sweep", "mine")
        (folder / "config.yaml").write_text(text)
    _, (winner, *_), err = select(folders[0].parent)
    assert winner["parameters"] == {"model.latent_channels": 4}
    assert "rule: best" in err


def test_a_variational_winner_keeps_its_weight(experiment, select):
    folder = experiment("V2", 0.1, 64, bottleneck="kl")
    _, (winner, *_), _ = select(folder, "--rule", "best")
    shipped = ["model.latent_channels", "model.downsampling_steps", "model.base_channels"]
    assert list(winner["parameters"]) == shipped


def test_plain_tables(tmp_path, select):
    (tmp_path / "a.csv").write_text("val_psnr,latent_dims\n31,512\n32,512\n")
    (tmp_path / "b.csv").write_text("val_psnr,latent_dims\n33,4096\n")
    code, (winner, *_), err = select(tmp_path / "a.csv", tmp_path / "b.csv")
    assert (code, winner["name"], winner["exp_dir"]) == (0, "a", None)
    assert winner["path"] == str(tmp_path / "a.csv")
    assert winner["parameters"] == {}
    assert "derived" in err


def test_imginav_columns(tmp_path, select):
    (tmp_path / "a_metrics.csv").write_text("epoch,val_loss,val_MSE_rgb\n1,0.2,0.04\n")
    _, (winner, *_), _ = select(tmp_path, "--columns", "imginav")
    assert winner["metrics"]["val_mse"] == pytest.approx(0.01)


def test_nothing_passes(phase, select):
    code, ranking, err = select(phase, "--set", "threshold=1e-9")
    assert code == 1
    assert all(record["kind"] == "ranking" for record in ranking)
    assert "closest is S2" in err


def test_one_bad_file_is_told_and_all_bad_is_an_error(tmp_path, select):
    (tmp_path / "a_metrics.csv").write_text("val_mse\n0.1\n")
    (tmp_path / "b_metrics.csv").write_bytes(b"\0\1")
    code, records, err = select(tmp_path)
    assert code == 0
    assert "warning: b" in err
    assert records[-1]["state"] == "unreadable"
    (tmp_path / "a_metrics.csv").write_text("")
    assert select(tmp_path)[0] == 4
    assert select(tmp_path / "nothing")[0] == 4


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("epoch,val_MSE_rgb,latent_dims\n1,0.04,50\n", "--columns imginav"),
        ("epoch,loss\n1,0.04\n", "no table has a column val_mse; there are: loss"),
        ("epoch,val_mse\n1,0.04\n", "no table has a column latent_dims"),
    ],
)
def test_what_a_table_lacks_is_named(tmp_path, select, text, hint):
    (tmp_path / "a.csv").write_text(text)
    code, _, err = select(tmp_path / "a.csv", "--rule", "efficiency")
    assert code == 1
    assert hint in err.splitlines()[-1]


def test_a_sweep_file_is_no_table(tmp_path, select):
    (tmp_path / "s.yaml").write_text("sweep: s\nexperiments: [phase1_1/S5]\n")
    code, _, err = select(tmp_path / "s.yaml")
    assert code == 4
    assert "imgtool sweep s.yaml |" in err


@pytest.mark.parametrize(
    "words", [["--rule", "bets"], ["--set", "threshhold=1"], ["--columns", "x"], []]
)
def test_usage(phase, select, words):
    code, _, err = select(*([phase, *words] if words else []))
    assert code == 2
    assert "hint:" in err


def test_table_and_paths(phase, tmp_path, select):
    _, lines, _ = select(phase, "--format", "table")
    assert lines[0].split() == ["winner", "S1"]
    assert lines[1].startswith("why")
    assert any("the winner" in line for line in lines)
    assert any(line.startswith("checkpoint") for line in lines)
    assert select(phase, "--quiet")[1] == [str(tmp_path / "experiments" / "S1")]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_what_a_terminal_shows_fits_it(width, phase, select, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    _, lines, _ = select(phase, "--format", "table", "--rule", "best")
    assert max(map(len, lines)) <= width
    words, table, reasons = "\n".join(lines).split("\n\n" if "" in lines else " \n")[:3]
    assert words.split()[0] == "winner"
    assert "val_mse" in table.splitlines()[0]
    assert "the winner" in reasons


def test_a_chain_ends_with_the_winner_s_name_and_path(phase, select):
    _, (winner, *_), err = select(phase)
    assert err.splitlines()[-1].startswith(f"winner: {winner['name']}: {winner['path']}")


def test_seeds_are_taken_together_and_the_record_says_how_sure(tmp_path, select):
    for name, middle in (("a", 0.100), ("b", 0.101), ("c", 0.200)):
        rows = "".join(f"{s},{middle * (1 + 0.02 * ((s + ord(name)) % 3))}\n" for s in range(3))
        (tmp_path / f"{name}.csv").write_text("seed,val_mse\n" + rows)
    code, (winner, *ranking), err = select(*tmp_path.glob("*.csv"))
    assert code == 0
    assert (winner["name"], winner["ties"], winner["num_seeds"]) == ("a", ["b"], 3)
    noise = winner["noise"]
    assert (noise["source"], noise["is_log"], noise["is_equal"]) == ("repeats", True, True)
    assert 0.01 < noise["std"] < 0.03
    assert noise["dof"] > 3
    assert winner["rivals"] == ["b"]
    assert sum(winner["shares"].values()) == pytest.approx(1)
    assert winner["num_resamples"] == 1000
    assert ranking[1]["share"] == winner["shares"]["b"]
    low, high = ranking[2]["interval"]
    assert low < 0.2 < high
    assert "from seed to seed val_mse varies" in err
    _, lines, _ = select(*tmp_path.glob("*.csv"), "--format", "table")
    assert any("chosen" in line for line in lines)


def test_lost_seeds_stand_in_table_record_and_reason(experiment, select):
    for seed, state in ((0, "completed"), (1, "diverged"), (2, "diverged")):
        folder = experiment(f"x-{seed}", 0.01, 64, state=state)
        with open(folder / "config.yaml", "a") as file:
            file.write(f"train: {{seed: {seed}}}\n")
    folder = experiment("y", 0.1, 64, channels=8).parent
    _, (winner, *ranking), _ = select(folder, "--rule", "best")
    assert winner["name"] == "y"
    assert ranking[1]["lost_seeds"] == {"diverged": 2}
    assert ranking[1]["reason"].startswith("2 of 3 diverged")
    _, lines, _ = select(folder, "--rule", "best", "--format", "table")
    assert "2 of 3 diverged" in " ".join(" ".join(lines).split())
    _, (winner, *_), err = select(folder, "--rule", "best", "--set", "lost_seeds=2")
    assert winner["lost_seeds"] == {"diverged": 2}
    assert winner["reason"].endswith("2 of 3 diverged")
    assert "2 of 3 diverged" in err


def test_a_gan_wants_a_rule(tmp_path, select):
    (tmp_path / "config.yaml").write_text("family: genegan\n")
    (tmp_path / "status.json").write_text('{"state": "completed"}')
    (tmp_path / "g_metrics.csv").write_text("iteration,val_cycle,val_mse\n1,0.1,0.2\n")
    code, records, err = select(tmp_path)
    assert (code, records) == (1, [])
    assert "wants a rule" in err
    assert "eval-fid --sweep" in err.splitlines()[-1]
    assert select(tmp_path, "--rule", "best", "--set", "metric=val_cycle")[0] == 0
