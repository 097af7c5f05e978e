"""Two ranks of a group: each trains what a list of jobs says, one after the other.

python rank_jobs.py JOBS.json PORT; in JOBS.json's folder are left what a rank has found, as
JOB.RANK.json, its stderr, as rankRANK.log, and as pids.json and codes.json how they are called
and have ended. torch is imported once, before there are two.
"""

import hashlib
import json
import os
import sys
import traceback
from pathlib import Path

from imgtool.files import write_text
from imgtool.process.stopping import StopRequest
from imgtool.training.group import open_ranks
from imgtool.training.report import Silence

RANK = 0


class Watcher(Silence):
    """Says in a file that an iteration has been reached; fails at one, on one rank."""

    def __init__(self, job, folder):
        self.job, self.folder = job, folder

    def message(self, text):
        with open(self.folder / f"{self.job['name']}.{RANK}.txt", "a") as file:
            file.write(text + "\n")

    def progress(self, progress):
        from imgtool.errors import DataError

        if progress.iteration >= self.job.get("mark_at", 1 << 30):
            (self.folder / f"{self.job['name']}.{RANK}.there").touch()
        if [RANK, progress.iteration] == self.job.get("fails"):
            raise DataError("this file is bad", hint="take another one")


def digests(modules):
    return {
        name: hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in modules.state_dict().items()
    }


def train_job(job, folder, ranks, stop):
    from imgtool.config.load import load
    from imgtool.experiment.layout import ExperimentDir
    from imgtool.models.registry import schema
    from imgtool.training import loop, run

    found = {}
    plain = loop.Loop._finish

    def finish(self, *words):
        outcome = plain(self, *words)
        averages = self.run.stepper.averages
        found["digests"] = digests(self.run.stepper.task.modules)
        if averages is not None:
            pairs = zip(averages.names, averages.averages, strict=True)
            found["averages"] = {
                n: hashlib.sha256(t.numpy().tobytes()).hexdigest() for n, t in pairs
            }
        return outcome

    loop.Loop._finish = finish
    try:
        sets = [*job["sets"], *job.get("rank_sets", [[], []])[RANK]]
        loaded = load(None, family=job["family"], schema_of=schema, sets=sets, tiny=True)
        directory = ExperimentDir(job["exp_dir"])
        directory.create()
        outcome = run.train(
            loaded, directory, stop=stop, reporter=Watcher(job, folder), ranks=ranks
        )
        found |= {"state": outcome.state, "iteration": outcome.iteration}
    finally:
        loop.Loop._finish = plain
    (folder / f"{job['name']}.{RANK}.json").write_text(json.dumps(found))


def refuse_job(job, folder, ranks, stop):
    """The error of a training that cannot begin; the group is not told, and goes on."""
    from imgtool.errors import UserError
    from imgtool.experiment import checkpoint_file

    plain = checkpoint_file.read

    def read(*words, **more):
        loaded = plain(*words, **more)
        name = min(name for name in loaded.tensors if name.startswith("model."))
        loaded.tensors[name].view(-1)[0] += 1
        return loaded

    if RANK and job.get("other_weight"):
        checkpoint_file.read = read
    ranks.explain = lambda error: error
    try:
        train_job(job, folder, ranks, stop)
    except UserError as error:
        (folder / f"{job['name']}.{RANK}.json").write_text(json.dumps(str(error)))
    finally:
        checkpoint_file.read = plain
        del ranks.explain


def train_all(path):
    stop = StopRequest()
    stop.install()
    from imgtool.experiment.layout import ExperimentDir

    jobs = json.loads(Path(path).read_text())
    with open_ranks(ExperimentDir(jobs[-1]["exp_dir"]), stop) as ranks:
        for job in jobs:
            do = refuse_job if job.get("refused") else train_job
            do(job, Path(path).parent, ranks, stop)
            stop.reason = None


def be_rank(rank, path, port):
    """The exit code of a rank."""
    global RANK
    from imgtool.errors import UserError

    RANK = rank
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in {**ranks, **where}.items()})
    log = os.open(path.with_name(f"rank{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        train_all(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(path, port):
    import imgtool.training.assemble  # noqa: F401  what every rank would import

    pids = []
    for rank in (0, 1):
        pid = os.fork()
        if pid == 0:
            code = be_rank(rank, path, port)
            sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    write_text(path.with_name("pids.json"), json.dumps(pids))
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    write_text(path.with_name("codes.json"), json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
