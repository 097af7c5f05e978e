"""Experiments side by side: configs, metrics with their noise, curves."""

import json
import random

import pytest
from PIL import Image

from commands._braille import HEIGHT, chart
from commands.main import main
from imgtool.errors import DataError, UsageError
from imgtool.selection.compare import compare


def table(path, values, last=None, more=""):
    """A CSV whose best row is not its last."""
    rows = [f"{i},{i},{value},{value * 2}{more}" for i, value in enumerate(values, 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    head = "iteration,epoch,val_mse,train_loss" + (",latent_dims" if more else "")
    path.write_text("\n".join([head, *rows]) + "\n")
    return str(path)


def experiment(folder, name, values, *sets, seed=0):
    exp = folder / name
    table(exp / f"{name}_metrics.csv", values)
    lines = "".join(f"{line}\n" for line in sets)
    config = f"family: autoencoder\nname: {name}\n{lines}train: {{seed: {seed}, lr: 0.1}}\n"
    (exp / "config.yaml").write_text(config)
    (exp / "status.json").write_text(json.dumps({"state": "completed"}))
    return str(exp)


def by_metric(sides, name, metric, at="best"):
    return next(
        one for one in sides.differences() if (one.name, one.metric, one.at) == (name, metric, at)
    )


def test_the_best_and_the_last_row_against_the_first(tmp_path):
    a = table(tmp_path / "a.csv", [0.4, 0.1, 0.2])
    b = table(tmp_path / "b.csv", [0.4, 0.05, 0.3])
    sides, notes = compare([b, a])  # in the order that was given
    assert [side.name for side in sides.sides] == ["b", "a"]
    assert not notes
    best, last = by_metric(sides, "a", "val_mse"), by_metric(sides, "a", "val_mse", "last")
    assert (best.value, best.reference_value, best.is_better) == (0.1, 0.05, False)
    assert (last.value, last.reference_value, last.is_better) == (0.2, 0.3, True)
    assert best.difference == pytest.approx(0.05)
    assert best.percent == pytest.approx(100)
    assert best.interval is None  # nothing was repeated
    assert by_metric(sides, "a", "val_psnr", "last").difference == pytest.approx(1.7609, abs=1e-4)


def test_seeds_tell_the_noise(tmp_path):
    """Of 200 pairs that are equal, some 5 % differ; intervals hold what is true."""
    random.seed(0)
    covered = different = 0
    for trial in range(200):
        words = [
            table(tmp_path / f"{trial}/{name}_seed{seed}.csv", [0.5, 0.1 * random.gauss(1, 0.02)])
            for name in "ab"
            for seed in range(3)
        ]
        sides, _ = compare(words)
        assert [side.seeds for side in sides.sides] == [[0, 1, 2]] * 2
        found = by_metric(sides, "b", "val_mse")
        low, high = found.interval
        assert low < found.percent < high
        covered += low <= 0 <= high
        different += found.p < 0.05
    assert covered + different == 200
    assert 2 <= different <= 20


def test_what_differs_in_configs(tmp_path):
    a = experiment(tmp_path, "a", [0.2, 0.1], "model: {base_channels: 16}")
    b = experiment(
        tmp_path,
        "b",
        [0.2, 0.1],
        "model: {base_channels: 32}",
        "output: {exp_dir: elsewhere, num_samples: 3}",
    )
    sides, _ = compare([a, b])
    found = {one.key: (list(one.values), one.is_identity) for one in sides.key_differences()}
    assert found["model.base_channels"] == ([16, 32], True)
    assert found.keys() == {"model.base_channels", "output.num_samples"}
    assert not found["output.num_samples"][1]
    assert list(found)[0] == "model.base_channels"


def test_runs_that_differ_in_their_seed_alone(tmp_path):
    words = [
        experiment(tmp_path, f"e{seed}", [0.2, 0.1 + seed / 100], seed=seed) for seed in (0, 1)
    ]
    sides, _ = compare(words)  # there is nothing else to compare
    assert [side.name for side in sides.sides] == ["e0", "e1"]
    assert [one.key for one in sides.key_differences()] == ["train.seed"]
    words.append(experiment(tmp_path, "f", [0.2, 0.3], "model: {base_channels: 16}"))
    assert len(compare(words)[0].sides) == 2
    assert len(compare(words, apart=True)[0].sides) == 3


def test_what_cannot_be_compared(tmp_path):
    a = experiment(tmp_path, "a", [0.2, 0.1])
    with pytest.raises(UsageError):
        compare([a])
    with pytest.raises(UsageError):
        compare([a, a])
    with pytest.raises(DataError):
        compare([a, str(tmp_path / "nowhere")])
    (tmp_path / "broken.csv").write_text("\0\0")
    with pytest.raises(DataError):
        compare([a, str(tmp_path / "broken.csv")])
    (tmp_path / "a/config.yaml").write_text("{")
    b = experiment(tmp_path, "b", [0.2, 0.1])
    sides, notes = compare([a, b])
    assert "config cannot be read" in notes[0]
    assert sides.key_differences() == []


@pytest.fixture
def words(tmp_path):
    return [
        table(tmp_path / f"{name}.csv", [0.4, value, value * 1.1], more=",64")
        for name, value in (("$\\alpha_{$", 0.1), ("日本語", 0.05), ("c" * 120, 0.2))
    ]


def answer(words):
    with pytest.raises(SystemExit) as left:
        main(["compare", *words])
    return left.value.code


def test_records(words, capsys, tmp_path):
    plot = tmp_path / "new/curves.png"
    assert answer([*words, "--json", "--plot", str(plot)]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["kind"] for one in records[:3]] == ["compared"] * 3
    assert records[0]["last"]["val_mse"] == pytest.approx(0.11)
    assert {one["name"] for one in records[3:]} == {"日本語", "c" * 120}
    with Image.open(plot) as picture:
        picture.verify()
    assert answer([*words, "--quiet"]) == 0
    assert capsys.readouterr().out.split() == [str(word) for word in words]


@pytest.mark.parametrize("width", ["80", "140"])
def test_a_terminal_s_width_is_kept(words, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    assert answer([*words, "--format", "table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= int(width)
    text = "\n".join(lines)
    for told in (
        "best row",
        "last row",
        "B - A",
        "C - A",
        "nothing is known of the noise",
        "val_mse",
    ):
        assert told in text
    assert text.count("│") == 2 * HEIGHT


@pytest.mark.parametrize(
    ("more", "code"),
    [(["--metric", "val_nix"], 2), (["--plot", "x.pdf"], 2), (["--columns", "imginaw"], 2)],
)
def test_mistakes(words, capsys, more, code):
    assert answer([*words, *more]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert "hint:" in told.err


def test_a_chart_s_ends():
    curves = [("A", [(0, 1.0), (10, 100.0)]), ("B", [(0, 100.0), (10, 1.0)]), ("C", [(5, 10.0)])]
    lines = [str(line) for line in chart("loss", curves, 60, log=True)]
    assert lines[0] == "loss (logarithmic)"
    assert lines[1].lstrip().startswith("100 │")
    assert lines[1].endswith("A")
    assert lines[HEIGHT].endswith("B")
    assert max(map(len, lines)) <= 60
