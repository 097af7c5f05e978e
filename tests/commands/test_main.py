"""The program as a whole: discovery, help, errors, exit codes, start-up, completions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import commands
import imgtool
from commands import _completion
from commands._program import discover, run

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "imgtool"]
HEAVY = {"torch", "torchvision", "numpy", "scipy", "pandas", "PIL", "safetensors", "pydantic"}


def imgtool_run(*words, **options):
    return subprocess.run(
        [*PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=60, **options
    )


def all_commands():
    """Every command's words, groups opened."""
    found = []
    for name, module in discover().items():
        if hasattr(module, "fill"):
            module.fill(())
        if not hasattr(module, "app"):
            found.append((name,))
            continue
        pending = [((name,), module.app)]
        while pending:
            words, group = pending.pop()
            found += [
                (*words, (c.name or c.callback.__name__).replace("_", "-"))
                for c in group.registered_commands
            ]
            pending += [((*words, g.name), g.typer_instance) for g in group.registered_groups]
    return sorted(found)


def test_both_packages_lie_side_by_side():
    assert Path(commands.__file__).parents[1] == Path(imgtool.__file__).parents[1]


def test_the_command_line_loads_nothing_heavy():
    program = (
        "import sys, commands._program as m; m.build_app(m.discover(), list(m.discover())); "
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stderr


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_every_command_has_help_with_an_example_and_a_place_in_the_docs(words, capsys):
    assert run([*words, "--help"]) == 0
    help_text = capsys.readouterr().out
    assert f"imgtool {' '.join(words)}" in help_text.split("Options:")[0].split("\n\n", 1)[1]
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert f"imgtool {' '.join(words)}" in pages


def test_help_and_version():
    answer = imgtool_run("--help")
    assert answer.returncode == 0
    for name in discover():
        assert name in answer.stdout
    assert imgtool_run("--version").stdout == f"imgtool {imgtool.__version__}\n"
    assert imgtool_run().returncode == 2


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["trian"], "error: no such command 'trian'", "hint: did you mean 'train'?"),
        (["prune", "--kep", "2"], "error: no such option: --kep", "hint: did you mean --keep?"),
        (
            ["prune", "--keep", "two"],
            "error: invalid value for '--keep'",
            "hint: --keep N: Newest checkpoints to keep",
        ),
        (["config", "show", "nowhere.yaml"], "error: ", "hint: "),
        (["presets", "show", "phase1_1/S55"], "error: ", "hint: did you mean"),
        (["presets", "show", "photos"], "error: no preset", "hint: photos is a group"),
        (
            ["train", "autoencoder", "--max", "3"],
            "error: no such option: --max",
            "hint: did you mean --max-",
        ),
        (
            ["train", "autoencoder", "--heads"],
            "error: option '--heads' requires",
            "hint: --heads rgb|segmentation",
        ),
        (
            ["data", "check", "x", "--dataset", "y"],
            "error: invalid value for '--dataset': 'y' is",
            "hint: --dataset",
        ),
    ],
)
def test_a_mistake_gets_one_line_and_a_hint_and_exit_code_2(words, error, hint):
    answer = imgtool_run(*words)
    lines = answer.stderr.splitlines()
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert len(lines) == 2, answer.stderr
    assert lines[0].startswith(error)
    assert lines[1].startswith(hint)


def test_underscores_are_dashes(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    dashes = imgtool_run("prune", "--ckpt-dir", tmp_path / "checkpoints", "--dry-run", "--json")
    seeds = imgtool_run("prune", "--ckpt_dir", tmp_path / "checkpoints", "--dry_run", "--json")
    assert dashes.returncode == seeds.returncode == 0
    assert dashes.stdout == seeds.stdout


def test_debug_shows_the_traceback():
    assert "Traceback" in imgtool_run("--debug", "config", "show", "nowhere.yaml").stderr


def test_a_reader_that_leaves_is_no_error():
    pipe = f"{sys.executable} -m imgtool presets list --json | head -n 1; exit ${{PIPESTATUS[0]}}"
    answer = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0
    assert answer.stderr == ""
    assert json.loads(answer.stdout)["kind"] == "preset"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(closed):
    line = f"{sys.executable} -m imgtool presets list {closed}"
    answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0
    assert answer.stderr == ""


@pytest.mark.parametrize("mode", ["json", "table"])
def test_a_full_disk_behind_stdout_is_one_error(mode):
    line = f"{sys.executable} -m imgtool presets list --format {mode} > /dev/full"
    answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    error, hint = answer.stderr.splitlines()
    assert answer.returncode == 4
    assert error.startswith("error: cannot write to stdout")
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(
    "words",
    [
        ["prune", ""],
        ["run-timed", "--exp-dir", "", "--duration", "1s", "--", "true"],
        ["run-timed", "--", "true"],
        ["train", "autoencoder", "--exp-dir", ""],
        ["train", "autoencoder", "--seed", "-1"],
        ["config", "check", "-"],
        ["presets", "list", "--json", "--quiet"],
    ],
    ids=" ".join,
)
def test_every_refusal_is_two_lines(words, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = imgtool_run(*words, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL)
    error, hint = answer.stderr.splitlines()
    assert answer.returncode == 2
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert not list(tmp_path.iterdir())


def test_a_narrow_terminal_shortens_no_label():
    environment = {**os.environ, "COLUMNS": "40"}
    program = (
        "from commands._output import Output; "
        "Output('table').emit('x', [{'a_label_that_is_rather_long': 'value ' * 20}])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert "a_label_that_is_rather_long" in answer.stdout
    assert max(map(len, answer.stdout.splitlines())) <= 40


def test_format_from_the_environment_and_from_options():
    paths = imgtool_run("presets", "list", env={**os.environ, "IMGTOOL_FORMAT": "paths"})
    assert paths.stdout.splitlines()[0].endswith(".yaml")
    wrong = imgtool_run("presets", "list", env={**os.environ, "IMGTOOL_FORMAT": "xml"})
    assert wrong.returncode == 2
    assert "IMGTOOL_FORMAT" in wrong.stderr
    assert imgtool_run("presets", "list", "--json", "--quiet").returncode == 2


@pytest.mark.parametrize("shell", _completion.FILES)
def test_the_checked_in_completions_are_what_the_program_writes(shell):
    kept = ROOT / "completions" / _completion.FILES[shell]
    assert kept.read_text() == _completion.script(shell), "run `make completions`"


def complete(line, tmp_path):
    """What bash offers at the end of `line`, with the real script."""
    link = tmp_path / "imgtool"
    if not link.exists():
        link.write_text(
            f'#!/bin/sh\nexec {sys.executable} -c "from commands.main import main; main()" "$@"\n'
        )
        link.chmod(0o755)
    words = line.split(" ")
    program = (
        f"source {ROOT}/completions/imgtool.bash; COMP_WORDS=({' '.join(repr(w) for w in words)}); "
        f"COMP_CWORD={len(words) - 1}; _imgtool_completion imgtool; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    answer = subprocess.run(
        ["bash", "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        env={**os.environ, "PATH": path},
    )
    return answer.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("imgtool tr", "train"),
        ("imgtool train auto", "autoencoder"),
        ("imgtool train autoencoder --latent", "--latent-channels"),
        ("imgtool train autoencoder --bottleneck ", "vq"),
        ("imgtool train autoencoder --config phase1_1/S1", "phase1_1/S12"),
        ("imgtool presets show phase1_1/S", "phase1_1/S5"),
        ("imgtool run-timed --dur", "--duration"),
    ],
)
def test_tab_in_bash(line, offered, tmp_path):
    assert offered in complete(line, tmp_path)


def test_zsh_and_fish_scripts_speak_typers_protocol():
    zsh = (ROOT / "completions/_imgtool").read_text()
    assert zsh.startswith("#compdef imgtool\n")
    assert "funcstack[1]" in zsh
    answer = imgtool_run(
        env={
            **os.environ,
            "_IMGTOOL_COMPLETE": "complete_fish",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            "_TYPER_COMPLETE_ARGS": "imgtool tr",
        }
    )
    assert "train" in answer.stdout
