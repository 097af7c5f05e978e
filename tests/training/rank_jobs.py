"""One rank of a group: trains what a list of jobs says, one after the other, in one process.

python rank_jobs.py JOBS.json, with torchrun's variables set; what it found is left in
JOBS.json's folder as JOB.RANK.json.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

from imgtool.process.stopping import StopRequest
from imgtool.training.group import open_ranks
from imgtool.training.report import Silence

RANK = int(os.environ.get("RANK", 0))


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


def main(path):
    stop = StopRequest()
    stop.install()
    from imgtool.experiment.layout import ExperimentDir

    jobs = json.loads(Path(path).read_text())
    with open_ranks(ExperimentDir(jobs[-1]["exp_dir"]), stop) as ranks:
        for job in jobs:
            do = refuse_job if job.get("refused") else train_job
            do(job, Path(path).parent, ranks, stop)
            stop.reason = None


if __name__ == "__main__":
    from imgtool.errors import UserError

    try:
        main(sys.argv[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(int(error.exit_code))
