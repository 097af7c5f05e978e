"""Rules of the layout that no linter of ours checks."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imported(path):
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def public_commands():
    files = sorted((ROOT / "commands").glob("*.py"))
    return [f for f in files if not f.stem.startswith("_") and f.stem != "main"]


@pytest.mark.parametrize("path", public_commands(), ids=lambda path: path.stem)
def test_commands_never_import_each_other(path):
    others = {f"commands.{other.stem}" for other in public_commands()}
    assert not others & imported(path)


def test_families_never_import_each_other():
    folders = [p for p in (ROOT / "imgtool/models").iterdir() if (p / "schema.py").exists()]
    assert folders
    for folder in folders:
        others = tuple(f"imgtool.models.{other.name}" for other in folders if other != folder)
        for path in folder.rglob("*.py"):
            assert not [name for name in imported(path) if name.startswith(others)], path


def test_only_one_file_prints():
    for path in [*(ROOT / "commands").rglob("*.py"), *(ROOT / "imgtool").rglob("*.py")]:
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [f for f in calls if isinstance(f, ast.Name) and f.id == "print"]
        assert not prints or path.name == "_output.py", path


def test_no_file_names_a_package_registry():
    lock = (ROOT / "requirements.lock").read_text()
    assert "http" not in "".join(line for line in lock.splitlines() if "://" in line)
    assert "--index-url" not in lock
    assert not (ROOT / "uv.lock").exists()


HEAVY = {"torch", "numpy", "PIL", "pandas", "pydantic", "psutil"}


def test_the_room_of_processes_needs_nothing_heavy_to_be_imported():
    names = [p.stem for p in (ROOT / "imgtool/process").glob("*.py") if p.stem != "__init__"]
    lines = "".join(f"import imgtool.process.{name}\n" for name in names)
    text = f"import sys\n{lines}print(sorted({HEAVY!r} & sys.modules.keys()))"
    answer = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert answer.stdout == "[]\n", answer.stdout + answer.stderr


def test_no_private_name_of_torch_is_used():
    """Where there is no public way, its reason stands beside it, and this test names the line."""
    private = re.compile(
        r"\btorch(\.\w+)*\._[a-z]|scaler\._|\._compiled_call|\._new_shared|\._cdata"
    )
    known = {"found = torch._int_mm(torch.cat(_split(x, ACTIVATION_BASE)), self._both.t())"}
    for path in (ROOT / "imgtool").rglob("*.py"):
        lines = path.read_text().splitlines()
        found = [line for line in lines if private.search(line) and line.strip() not in known]
        assert not found, (path, found)


def test_files_stay_short_enough_to_read():
    for folder in ("imgtool", "commands"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path
