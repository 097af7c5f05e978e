"""What every test may rely on."""

import errno
import os
import signal

import pytest
from hypothesis import settings

# A script that runs the suite in the background (`make test &`, nohup) hands SIGINT or SIGHUP
# down as ignored: the tests' children could not stop, and wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Processes of the suite share the cores: torch in each takes one, and waits without spinning,
# and so it does in trainings that they start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test is timed: on a busy machine a call may take a hundred times as long.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(params=["symbolic link", "hard link", "pointer file"])
def link_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a link is on each kind of file system, which this one then seems to be."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if request.param != "symbolic link":
        monkeypatch.setattr(os, "symlink", refuse)
    if request.param == "pointer file":
        monkeypatch.setattr(os, "link", refuse)
    return str(request.param)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regen", action="store_true", help="write pinned values (tests/golden) anew, on purpose"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("regen") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--regen writes one file: leave -n out")
