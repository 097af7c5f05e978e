"""Two real ranks on a CPU below our launcher; each start costs seconds, so there are few."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.process import agent, torchrun
from imgtool.process.words import Word, is_news, is_saving, read_words, saving, verdict
from tests.waiting import wait_until

PROGRAM = [sys.executable, "-m", "imgtool"]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prctl")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def train(photos, exp_dir):
    return [
        *("torchrun", "--nproc-per-node", "2", "train", "autoencoder", "--data-root", photos),
        *("--heads", "rgb", "--crop", 32, "--latent-channels", 4, "--downsampling-steps", 2),
        *("--base-channels", 16, "--batch-size", 2, "--device", "cpu", "--threads", 1),
        *("--num-workers", 0, "--log-every", 1, "--exp-dir", exp_dir),
    ]


@pytest.fixture
def start():
    """start(*words) -> the process; nothing of it outlives the test."""
    started, below = [], set()

    def begin(*words):
        process = subprocess.Popen(
            list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            below |= set(psutil.Process(process.pid).children(recursive=True))
        process.kill()
    for one in below:
        if one.is_running():
            one.kill()
    for process in started:
        process.communicate()


def iteration(exp_dir):
    path = Path(exp_dir) / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def ranks_of(process):
    """rank -> its process."""
    found = {}
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            words, env = one.cmdline(), one.environ()
        except psutil.Error:
            continue
        if "train" in words and "RANK" in env and "imgtool.process.agent" not in words:
            found[int(env["RANK"])] = one
    return found


def is_gone(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE or not process.is_running()
    except psutil.NoSuchProcess:
        return True


@linux
@pytest.mark.slow
def test_run_timed_stops_both_which_save(photos, tmp_path, start):
    timed = ["run-timed", "--exp-dir", tmp_path, "--duration", "1h", "--json", "--"]
    process = start(*PROGRAM, *timed, *PROGRAM, *train(photos, tmp_path))
    wait_until(lambda: iteration(tmp_path) > 1)
    ranks = ranks_of(process)
    assert sorted(ranks) == [0, 1]
    for _ in range(2):  # LSF delivers one request twice
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    record = json.loads(out)
    assert (record["child_code"], record["num_leftover_processes"]) == (0, 0)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "stopped"
    assert all(is_gone(one) for one in ranks.values())


@linux
@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_and_one_that_waits_for_it_is_ended(photos, tmp_path, start):
    program = "import sys; from imgtool.process import torchrun; torchrun.OTHERS_SEC = 0.5; "
    program += "sys.exit(torchrun.run(sys.argv[4:], 2, say=lambda text: print(text)))"
    process = start(sys.executable, "-c", program, *train(photos, tmp_path))
    wait_until(lambda: iteration(tmp_path) > 1)
    ranks = ranks_of(process)
    ranks[0].suspend()
    ranks[1].kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    lines = out.splitlines()
    assert "rank 1 was killed by SIGKILL; the machine may be out of memory" in lines
    assert "rank 0 was ended before it could say how it stands" in lines
    assert "ChildFailedError" not in err
    assert is_gone(ranks[0])


@linux
def test_an_error_of_the_ranks_keeps_its_own_code(tmp_path, start):
    more = ["--monitor", "val_mse", "--no-such-option"]  # torchrun has two --monitor...s
    process = start(*PROGRAM, *train(tmp_path, tmp_path / "a"), *more)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert err.count("no such option") == 1
    assert len(err.splitlines()) == 2, err


@linux
@pytest.mark.slow
def test_ranks_whose_launcher_is_killed_save_and_leave_nothing(photos, tmp_path, start):
    timed = ["run-timed", "--exp-dir", tmp_path, "--duration", "1h", "--grace", "2m", "--"]
    process = start(*PROGRAM, *timed, *PROGRAM, *train(photos, tmp_path))
    wait_until(lambda: iteration(tmp_path) > 1)
    ranks = ranks_of(process)
    (launcher,) = psutil.Process(process.pid).children()
    launcher.kill()
    process.communicate(timeout=120)
    assert all(is_gone(one) for one in ranks.values())
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "stopped"


words = st.dictionaries(
    st.integers(0, 3), st.builds(Word, st.sampled_from([0, 1, 2, 3, 4, 130]), st.floats(0, 9))
)


@given(words, st.dictionaries(st.integers(0, 3), st.sampled_from([-9, -11, 1])))
def test_the_code_of_all_ranks(found, failures):
    code, lines = verdict(found, failures, 4)
    silent = set(range(4)) - set(found)
    assert (code == 0) == (not silent and all(word.code == 0 for word in found.values()))
    assert len(lines) == len(silent)
    if silent & set(failures):
        assert code == 1
    elif any(word.code for word in found.values()):
        assert code in [word.code for word in found.values() if word.code]


def test_the_first_to_fail_decides_and_who_was_killed_is_named():
    assert verdict({0: Word(1, 5.0), 1: Word(3, 4.0)}, {}, 2) == (3, [])
    code, (line,) = verdict({0: Word(1, 5.0)}, {1: -9}, 2)
    assert (code, line) == (1, "rank 1 was killed by SIGKILL; the machine may be out of memory")
    code, (line,) = verdict({0: Word(3, 5.0)}, {0: 3}, 2)
    assert code == 3
    assert "before it could say" in line


def test_an_error_is_news_once_whichever_rank_has_it(tmp_path):
    first, second = ({"IMGTOOL_RANKS_DIR": str(tmp_path), "RANK": str(n)} for n in (0, 1))
    assert is_news("a.png is bad", second)
    assert not is_news("rank 1: a.png is bad", first)
    assert is_news("rank 1: b.png is bad", first)
    assert all(is_news("alone", {}) for _ in range(2))


def test_a_rank_that_saves_says_so_while_it_does(tmp_path):
    with saving({"IMGTOOL_RANKS_DIR": str(tmp_path), "RANK": "1"}), saving({}):
        assert [is_saving(tmp_path, rank) for rank in (0, 1)] == [False, True]
    assert not is_saving(tmp_path, 1)


def test_the_agent_leaves_ranks_the_time_to_save_when_one_has_failed(monkeypatch):
    from torch.distributed.elastic.multiprocessing.api import PContext

    given = []
    monkeypatch.setattr(PContext, "close", lambda self, number, timeout: given.append(timeout))
    agent._be_patient()
    PContext.close(None)
    PContext.close(None, signal.SIGTERM, 1000)
    assert given == [torchrun.SAVE_SEC, 1000]


ENDINGS = {
    "pass": 0,
    "sys.exit()": 0,
    "sys.exit(3)": 3,
    "sys.exit('no')": 1,
    "raise ValueError": 1,
    "raise KeyboardInterrupt": 130,
}


def test_every_way_to_end_leaves_its_code(tmp_path):
    for rank, ending in enumerate(ENDINGS):
        program = (
            "import signal, sys\nfrom imgtool.process.stopping import SIGNALS, StopRequest\n"
            "from imgtool.process.words import speaking\nwith speaking():\n"
            "    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= set(SIGNALS)\n"
            "    stop = StopRequest()\n    import os; os.kill(os.getpid(), signal.SIGTERM)\n"
            "    assert not stop.wanted\n    stop.install()\n"
            f"    assert stop.reason == 'SIGTERM'\n    {ending}\n"
        )
        env = {**os.environ, "RANK": str(rank), "IMGTOOL_RANKS_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", program], env=env, stderr=subprocess.DEVNULL)
    found = read_words(tmp_path, len(ENDINGS))
    assert [found[rank].code for rank in range(len(ENDINGS))] == list(ENDINGS.values())
