"""What went wrong, worded at the edge: two lines for people, a record for `--json`.

What is not the user's to mend is a fault of imgtool and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import re
from typing import Any

from commands._output import fail, say, wants_json
from imgtool.errors import ErrorKind, ExitCode, FileError, OutOfMemory, UsageError, UserError

LONGEST_SHOWN = 120
_LONG = re.compile(r"\S{300,}")  # a word, and no path that anybody has


class Report:
    """Words an error at the edge, for people and for `--json`."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self.root: Any = None

    def tell(self, error: Exception) -> int:
        """Say what went wrong; gives the exit code.

        Raises:
            Exception: `error` itself, where it is a fault of ours or --debug asks for it.
        """
        is_debug = bool(os.environ.get("IMGTOOL_DEBUG"))
        told = None if is_debug and not hasattr(error, "format_message") else _as_told(error)
        if told is not None:
            hint = told.hint or self._way()
            self._write(told.kind, str(told), hint, told.exit_code)
            return told.exit_code
        if hasattr(error, "format_message"):
            return self._tell_usage(error)
        if not is_debug:
            hint = "the traceback on stderr says where; please report it"
            self._write(ErrorKind.INTERNAL, f"{type(error).__name__}: {error}", hint, 1, loud=False)
        raise error

    def _tell_usage(self, error: Any) -> int:
        text = " ".join(error.format_message().split())
        code = int(getattr(error, "exit_code", ExitCode.USAGE))
        if type(error).__name__ == "NoArgsIsHelpError":
            say(error.format_message())
            return code
        # Typer appends its guess in one of two forms.
        what = text.partition(" (Possible options")[0].partition(" Did you mean")[0]
        what = what.replace(": Value error, ", ": ").rstrip(".")
        guesses = getattr(error, "possibilities", None) or re.findall(
            r"'([^']+)'", text.partition(" Did you mean")[2]
        )
        best = _closest(what, guesses)
        if best:
            hint = f"did you mean {best if best.startswith('-') else repr(best)}?"
        else:
            hint = self._option_meant(error) or self._way()
        self._write(ErrorKind.USAGE, what[:1].lower() + what[1:], hint, code)
        return code

    def _write(self, kind: str, text: str, hint: str, code: int, *, loud: bool = True) -> None:
        from imgtool.process.words import is_news

        # A file's name may have a line's end in it.
        text, hint = (
            _LONG.sub(_shortened, "\\n".join(words.splitlines())) for words in (text, hint)
        )
        if not is_news(text):
            return
        if loud:
            say(f"error: {text}")
            say(f"hint: {hint}")
        if wants_json(self._words):
            fail(kind, text, hint, code)

    def _option_meant(self, error: Any) -> str | None:
        """What the option whose value is wrong takes."""
        from commands._command import name_of

        command, path = self._command()
        param = getattr(error, "param", None)
        asked = getattr(error, "option_name", None)
        if param is None and asked is not None:
            found = [one for one in getattr(command, "params", ()) if asked in one.opts]
            param = found[0] if found else None
        if param is None or not getattr(param, "help", None):
            return None
        return f"{name_of(param)}: {param.help} See {path} --help"

    def _way(self) -> str:
        command, path = self._command()
        way = getattr(command, "way", None)
        hint: str = way(path) if way is not None else f"{path} --help"
        return hint

    def _command(self) -> tuple[Any, str]:
        """The command that the words name, as far as they name one: itself, `imgtool data check`."""
        command, path = self.root, ["imgtool"]
        for word in self._words:
            if word.startswith("-"):
                continue
            known = getattr(command, "commands", {})
            if word.replace("_", "-") not in known:
                break
            path.append(word.replace("_", "-"))
            command = known[path[-1]]
        return command, " ".join(path)


def _as_told(error: Exception) -> UserError | None:
    """An error that is not imgtool's fault in its own words; None for any other."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("memory does not suffice", hint="make it smaller, or free some")
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return UsageError("a word or name is not UTF-8", hint="rename it, or type it again")
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
        shown = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…"
        return FileError(
            f"{shown}: {error.strerror.lower()}", hint=_HINTS.get(error.errno or 0, "")
        )
    return None


def _shortened(word: re.Match[str]) -> str:
    return f"{word[0][:LONGEST_SHOWN]}…{word[0][-20:]}"


_HINTS = {
    errno.ENAMETOOLONG: "shorten it: a name has at most 255 bytes, a path 4,096",
    errno.ENOENT: "check the spelling",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EISDIR: "name a file, not a folder",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions and owner",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "write elsewhere: this file system is read-only",
    errno.ELOOP: "a symbolic link leads back to itself",
    errno.ESTALE: "the network file system has lost it; try again",
    errno.EIO: "the disk reports a fault; try another",
}


def _closest(what: str, guesses: list[str]) -> str | None:
    """Of Typer's guesses: what begins with the given word, else the most alike without dashes."""
    import difflib

    word = re.split(r"[ ']", what.rstrip("'."))[-1].lstrip("-")
    bare = {guess.lstrip("-"): guess for guess in guesses}
    longer = [name for name in bare if name.startswith(word)]
    close = longer or difflib.get_close_matches(word, bare, 1, 0.6)
    return bare[close[0]] if close else None
