"""Options from a schema through Typer, lists of values, and what --help may import."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from commands import _options
from imgtool.models.registry import FAMILIES, schema

WIDE = {"token_normalize_func": lambda word: word.replace("_", "-"), "max_content_width": 300}
LISTS = ["--heads", "--betas", "--data-list"]


@pytest.fixture
def program() -> Any:
    """Runs a small program with one command a family; gives what reached its function."""
    seen: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def train(
        explicit_flags: dict[str, Any],
        config: _options.ConfigOption = None,
        sets: _options.SetOption = None,
        tiny: _options.TinyOption = False,
    ) -> None:
        """Train it.

        More words.
        """
        seen.append((explicit_flags, {"config": config, "sets": sets, "tiny": tiny}))

    app = typer.Typer(rich_markup_mode=None)
    app.callback()(lambda: None)
    for family in FAMILIES:
        command = _options.with_schema_flags(train, schema(family))
        app.command(family, context_settings=WIDE)(command)

    def run(*args: str) -> tuple[dict[str, Any], dict[str, Any]]:
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 0, result.output
        return seen[-1]

    run.app = app  # type: ignore[attr-defined]
    return run


def test_only_what_was_given_arrives(program: Any) -> None:
    own = {"config": None, "sets": None, "tiny": False}
    assert program("autoencoder") == ({}, own)
    flags, own = program(
        *("autoencoder", "--lr", "1", "--data_root=null", "--no-compile", "--tensorboard"),
        *("--heads", "rgb,segmentation", "--config", "a", "--set", "x=1", "--set", "y=2", "--tiny"),
    )
    assert flags == {
        "train.lr": "1",
        "data.root": "null",
        "train.compile": False,
        "output.tensorboard": True,
        "model.heads": "rgb,segmentation",
    }
    assert own == {"config": "a", "sets": ["x=1", "y=2"], "tiny": True}


def test_aliases_set_the_same_key(program: Any) -> None:
    assert program("autoencoder", "--learning-rate", "1e-3", "--max_iterations", "5")[0] == {
        "train.lr": "1e-3",
        "train.max_iter": "5",
    }


def test_help_shows_types_choices_and_defaults(program: Any) -> None:
    text = CliRunner().invoke(program.app, ["autoencoder", "--help"]).output
    assert "More words." in text
    assert "--lr, --learning-rate FLOAT" in text
    assert "Learning rate at its highest. [default: 0.0001]" in " ".join(text.split())
    assert "--dataset photos|layouts" in text
    assert "--compile / --no-compile" in text


def test_an_unknown_option_has_a_guess(program: Any) -> None:
    result = CliRunner().invoke(program.app, ["autoencoder", "--batchsize", "3"])
    assert result.exit_code == 2
    assert "--batch-size" in result.output


@pytest.mark.parametrize(
    ("words", "position", "expected"),
    [
        ("x autoencoder --optimizer ad", 3, {"adamw", "adam"}),
        ("x autoencoder --heads rgb,s", 3, {"rgb,segmentation"}),
        ("x autoencoder --bet", 2, {"--betas"}),
        ("x auto", 1, {"autoencoder"}),
    ],
)
def test_the_shell_completes_options_and_values(
    program: Any, words: str, position: int, expected: set[str]
) -> None:
    environment = {"_X_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(position)}
    result = CliRunner().invoke(program.app, [], prog_name="x", env=environment)
    assert set(result.output.split()) == expected


@pytest.mark.parametrize(
    ("args", "folded"),
    [
        (["--heads", "rgb", "segmentation", "--lr", "1"], ["--heads", "rgb,segmentation", "--lr", "1"]),
        (["--heads=rgb", "segmentation"], ["--heads=rgb,segmentation"]),
        (["--data_list", "a", "b"], ["--data_list", "a,b"]),
        (["--betas", "0.5,", "0.9"], ["--betas", "0.5,0.9"]),
        (["--heads", "rgb", "--", "a", "--heads", "b", "c"], ["--heads", "rgb", "--", "a", "--heads", "b", "c"]),
        (["--heads", "--lr", "1"], ["--heads", "--lr", "1"]),
        (["--lr", "1", "2"], ["--lr", "1", "2"]),
        (["x", "--heads"], ["x", "--heads"]),
        (["--heads", "a", "b", "-c", "d", "e"], ["--heads", "a,b", "-c", "d", "e"]),
    ],
)  # fmt: skip
def test_several_values_become_one(args: list[str], folded: list[str]) -> None:
    assert _options.fold_list_arguments(args, LISTS) == folded


@given(st.lists(st.sampled_from(["--heads", "--heads=a", "--lr", "--", "-x", "a", "b,c", "="])))
def test_folding_keeps_every_word_in_order_and_is_done_once(args: list[str]) -> None:
    folded = _options.fold_list_arguments(args, LISTS)
    assert _options.fold_list_arguments(folded, LISTS) == folded
    assert ",".join(folded).split(",") == ",".join(args).split(",")


def test_list_flags_are_those_of_the_schema() -> None:
    assert _options.list_flags(schema("autoencoder")) == [
        *("--heads", "--betas"),
        *("--modules", "--setup"),
    ]


def test_commands_load_nothing_heavy() -> None:
    code = (
        "import sys, typer\n"
        "from commands import _options, config, presets\n"
        "app = typer.Typer(rich_markup_mode=None)\n"
        "app.add_typer(config.app, name='config')\n"
        "app.add_typer(presets.app, name='presets')\n"
        "app(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'PIL', 'pydantic', 'ruamel', 'rich', 'imgtool.config.schema'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from imgtool.config.flags import fields_of\n"
        "from imgtool.models.registry import schema\n"
        "_options.complete_presets(''), fields_of(schema('autoencoder'))\n"
        "heavy -= {'imgtool.config.schema'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
