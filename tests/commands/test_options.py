"""Options from a schema through Typer, lists of values, and what --help may import."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from commands import _options
from commands._command import Command, spread
from commands._fields import with_options
from imgtool.models.registry import FAMILIES, schema

WIDE = {"token_normalize_func": lambda word: word.replace("_", "-"), "max_content_width": 300}


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
        command = with_options(train, schema(family))
        app.command(family, cls=Command, context_settings=WIDE)(command)

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
    ("given", "expected"),
    [
        ("rd --ckpt a b --data d", "rd --ckpt a --ckpt b --data d"),
        ("rd --ckpt=a b,c --data d", "rd --ckpt=a --ckpt b,c --data d"),
        ("rd --ckpt a --ckpt b c", "rd --ckpt a --ckpt b --ckpt c"),
        ("rd --data d --ckpt - b", "rd --data d --ckpt - --ckpt b"),
        ("rd --ckpt a -- b", "rd --ckpt a -- b"),
        ("rd --real-bytes --ckpt", "rd --real-bytes --ckpt"),
        ("--data_list a b", "--data_list a --data_list b"),
    ],
)
def test_several_values_after_one_option(given: str, expected: str) -> None:
    assert spread(given.split(), ["--ckpt", "--data-list"]) == expected.split()


@given(st.lists(st.sampled_from(["--heads", "--heads=a", "--lr", "--", "-x", "a", "b,c", "="])))
def test_spreading_keeps_every_word_in_order_and_is_done_once(args: list[str]) -> None:
    once = spread(args, ["--heads"])
    assert spread(once, ["--heads"]) == once
    assert [word for word in once if word != "--heads"] == [
        word for word in args if word != "--heads"
    ]


def test_a_list_of_the_schema_takes_its_values_in_every_way(program: Any) -> None:
    for words in (["rgb", "segmentation"], ["rgb,", "segmentation"], ["rgb,segmentation"]):
        assert program("autoencoder", "--heads", *words, "--lr", "1")[0] == {
            "model.heads": "rgb,segmentation",
            "train.lr": "1",
        }


def test_a_list_of_the_schema_that_is_given_again_says_it_anew(program: Any) -> None:
    words = ("--heads", "rgb", "--lr", "1", "--heads=rgb", "segmentation")
    assert program("autoencoder", *words)[0]["model.heads"] == "rgb,segmentation"


def test_what_could_be_an_argument_is_never_a_value() -> None:
    def command(
        files: Annotated[list[str], typer.Argument()],
        sets: Annotated[list[str] | None, typer.Option("--set")] = None,
    ) -> None:
        seen.append((files, sets))

    seen: list[Any] = []
    app = typer.Typer(rich_markup_mode=None)
    app.command(cls=Command)(command)
    assert CliRunner().invoke(app, ["--set", "a=1", "file"]).exit_code == 0
    assert seen == [(["file"], ["a=1"])]


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
