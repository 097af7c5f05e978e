"""What all commands share: output in every mode, errors as records, missing options, help."""

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

import commands
import imgtool
from commands import _program
from commands._command import NUM_EXAMPLES, Command, name_of
from commands._output import Output, wants_json
from commands.main import main
from imgtool.errors import ErrorKind, UserError
from tests.commands.test_main import PROGRAM, all_commands

RECORDS = [
    {"path": Path("a/b"), "name": "eins", "loss": float("nan"), "size_px": 64, "ok": True},
    {"path": Path("c"), "name": "zwei", "loss": 0.123456, "size_px": 1, "ok": None},
]


def run(*words):
    with pytest.raises(SystemExit) as left:
        main([*map(str, words)])
    return left.value.code


def built(words):
    """The command that `words` name, as Typer has it."""
    found = typer.main.get_command(_program.build_app(_program.discover(), list(words)))
    for word in words:
        found = found.commands[word]
    return found


@pytest.mark.parametrize("num_records", [0, 1, 2])
@pytest.mark.parametrize("mode", ["table", "json", "paths"])
def test_records_in_every_mode(mode, num_records, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = RECORDS[:num_records]
    Output(mode).emit("thing", records, columns=("name", "loss", "ok"))
    lines = capsys.readouterr().out.splitlines()
    if mode == "paths":
        assert lines == [str(tmp_path / record["path"]) for record in records]
    elif mode == "json":
        rows = [json.loads(line) for line in lines]
        assert [(row["schema"], row["kind"]) for row in rows] == [("imgtool/1", "thing")] * len(
            rows
        )
        assert [row["loss"] for row in rows] == [None, 0.123456][:num_records]
    else:
        text = "\n".join(lines)
        assert [record["name"] in text for record in records] == [True] * num_records
        assert ("yes" in text, "0.1235" in text) == (num_records > 0, num_records > 1)
        assert "size_px" not in text


@pytest.mark.parametrize(
    ("options", "variable", "mode"),
    [
        ({}, None, "json"),  # no terminal
        ({}, "paths", "paths"),
        ({"mode": "table"}, "paths", "table"),
        ({"mode": "auto"}, "paths", "json"),
        ({"as_json": True}, "paths", "json"),
        ({"quiet": True}, "json", "paths"),
    ],
)
def test_the_nearer_word_on_the_format_counts(options, variable, mode, monkeypatch, capsys):
    monkeypatch.delenv("IMGTOOL_FORMAT", raising=False)
    if variable is not None:
        monkeypatch.setenv("IMGTOOL_FORMAT", variable)
    output = Output(**options)
    assert (output.mode, output.is_asked) == (mode, bool(options) and options != {"mode": "auto"})


def user_errors():
    for package in (imgtool, commands):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    pending, found = [UserError], []
    while pending:
        found.append(pending.pop())
        pending += found[-1].__subclasses__()
    return found


def test_every_error_has_a_kind_of_the_closed_set():
    errors = user_errors()
    assert len(errors) > 12
    assert all(isinstance(error.kind, ErrorKind) for error in errors)
    unused = set(ErrorKind) - {error.kind for error in errors} - {ErrorKind.INTERNAL}
    assert not unused


@pytest.mark.parametrize(
    ("words", "kind", "code"),
    [
        (["prune", "--keep", "two"], "usage", 2),
        (["compress"], "usage", 2),
        (["config", "show", "nowhere.yaml"], "config", 2),
        (["config", "show", "x" * 300], "config", 2),
        (["prune", "nowhere"], "experiment", 2),
        (["data", "check", "nowhere"], "data", 4),
        (["export", "nowhere", "a.safetensors"], "checkpoint", 4),
        (["status", "nowhere"], "no_answer", 1),
        (["run-timed", "--duration", "1s", "--", "no-such-program"], "not_found", 127),
    ],
)
def test_an_error_is_the_last_record_when_json_is_asked_for(
    words, kind, code, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMGTOOL_FORMAT", raising=False)
    assert run(*words) == code
    without = capsys.readouterr()
    assert without.out == ""
    at = words.index("--") if "--" in words else len(words)
    for form in (["--json"], ["--format", "json"], ["--format=json"]):
        wanted = [*words[:at], *form, *words[at:]]
        if words[:2] == ["config", "show"]:
            monkeypatch.setenv("IMGTOOL_FORMAT", "json")
            wanted = words
        assert run(*wanted) == code
        said = capsys.readouterr()
        record = json.loads(said.out.splitlines()[-1])
        error, hint = said.err.splitlines()[-2:]
        assert (record["schema"], record["kind"], record["error"]) == ("imgtool/1", "error", kind)
        assert (f"error: {record['message']}", f"hint: {record['hint']}") == (error, hint)
        assert record["exit_code"] == code


def test_words_of_another_command_ask_for_nothing(monkeypatch):
    monkeypatch.delenv("IMGTOOL_FORMAT", raising=False)
    assert not wants_json(["run-timed", "--", "imgtool", "train", "--json"])
    assert not wants_json(["status", "--format", "table"])
    monkeypatch.setenv("IMGTOOL_FORMAT", "json")
    assert wants_json(["status"])
    assert not wants_json(["status", "--quiet"])


def test_a_fault_of_ours_keeps_its_traceback_and_is_a_record_too(monkeypatch, capsys):
    def fail(*args):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("imgtool.config.presets.names", fail)
    with pytest.raises(ZeroDivisionError):
        main(["presets", "list", "--json"])
    assert json.loads(capsys.readouterr().out)["error"] == "internal"


def test_an_error_down_the_pipe_is_named_by_the_next_command(capsys, monkeypatch):
    import io

    record = {"kind": "error", "error": "data", "message": "no such folder", "exit_code": 4}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(record) + "\n"))
    assert run("prune", "-") == 1
    assert "the command before this one failed: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_help_opens_with_examples_and_what_is_missing_is_named_together(words, capsys):
    command = built(words)
    assert isinstance(command, Command)
    examples = command.examples()[:NUM_EXAMPLES]
    assert run(*words, "--help") == 0
    text = capsys.readouterr().out
    opening = text.split("Example:\n")[0]
    assert len(opening.splitlines()) <= 6, opening
    assert [line.strip() for line in text.split("Example:\n")[1].splitlines()[: len(examples)]] == (
        examples
    )
    assert examples[0].split(" | ")[-1].startswith(f"imgtool {' '.join(words)}")
    required = [param for param in command.params if param.required]
    if not required:
        return
    assert run(*words) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: missing: {', '.join(map(name_of, required))}"
    assert hint.startswith("hint: such as ")
    assert f"imgtool {' '.join(words)} " in hint


def test_an_interruption_of_any_moment_is_silent():
    """From the program's first line on; of what Python does before it no program hears."""
    program = (
        "import sys; sys.argv = ['imgtool', 'presets', 'list']\n"
        "class Teller:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'commands._program': print(flush=True)\n"
        "from commands.main import main\n"
        "sys.meta_path.insert(0, Teller()); main()"
    )
    for delay_sec in (0, 0.02, 0.05, 0.1, 0.2, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "\n"
        time.sleep(delay_sec)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert said == "", delay_sec
        assert process.returncode in (0, 130, -signal.SIGINT)


def test_a_name_that_is_no_text_is_printed_as_it_is(tmp_path):
    name = os.fsdecode(b"\xff\xfe.png")
    (tmp_path / "checkpoints").mkdir()
    line = [*PROGRAM, "prune", os.fsdecode(bytes(tmp_path / "checkpoints")), "--quiet"]
    folder = tmp_path / name
    folder.mkdir()
    (tmp_path / "checkpoints").rename(folder / "checkpoints")
    line[-2] = str(folder)
    answer = subprocess.run(line, capture_output=True, timeout=60)
    assert answer.stdout == os.fsencode(folder / "checkpoints") + b"\n", answer.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_full_disk_costs_no_second_traceback():
    line = f"{sys.executable} -m imgtool prune nowhere --json > /dev/full"
    answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 2
