"""What `gpu.py` does in a process of its own: one group of checks of one family.

A group prints a line of JSON for each of its checks as soon as it is known. A check raises
`Wrong` where something is not as it should be, `Left` where the device has no such thing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Facts = dict[str, Any]
WARM_UP, MEASURED = 3, 10
# Of the first iteration's loss, against float32's, as a part of it.
TOLERANCES = {"tf32": 0.02, "layout": 0.01, "compile": 0.02, "bf16": 0.1, "fp16": 0.1}


class Wrong(Exception):
    """Something is not as it should be."""


class Left(Exception):
    """There is no such thing on this device, or of this family."""


@dataclass(frozen=True)
class Case:
    """One family on one device.

    Attributes:
        preset: what is trained.
        data: the setting that points to its images.
        folder: this group's own.
        quick: `--tiny` networks, a few iterations, nothing timed is worth anything.
    """

    family: str
    preset: str
    data: str
    device: str
    folder: Path
    quick: bool

    def settings(self, *more: str, tiny: bool) -> list[str]:
        """The `--set` words of a training that ends by itself and looks at nothing else."""
        from imgtool.models.registry import schema

        # The full networks, but what a loss does over a whole training within a few iterations.
        short = {k: v for k, v in schema(self.family).tiny.items() if k.startswith("loss.")}
        losses = [] if tiny else [f"{k}={json.dumps(v)}" for k, v in short.items()]
        return [
            *losses,
            *(self.data, f"data.cache_dir={self.folder.parent}/cache", "output.shared_dir=null"),
            f"train.device={self.device}",
            *("train.epochs=null", "train.patience=null", "train.max_time=null"),
            *(f"train.{what}_every=100000" for what in ("val", "save", "sample", "log")),
            *more,
        ]

    def load(self, *more: str, tiny: bool) -> Any:
        """The experiment, checked."""
        from imgtool.config.load import load
        from imgtool.models.registry import schema

        sets = self.settings(*more, tiny=tiny)
        return load(self.preset, family=None, schema_of=schema, sets=sets, tiny=tiny)


def make_data(root: Path, dataset: str, number: int, size: int) -> str:
    """Draw images of a kind of data set in a folder under `root`; the setting that names them."""
    from imgtool.data.synthetic.make import make_faces, make_layouts, make_photos

    folder = root / dataset
    if dataset in ("celeba", "labelled_faces"):
        made = make_faces(folder, 4 * number, seed=1) if not folder.exists() else None
        return f"data.root={made.path if made else folder}"
    if dataset == "layouts":
        if not folder.exists():
            make_layouts(folder, number, size=size, seed=1)
        return f"data.manifest={folder / 'layouts.csv'}"
    if dataset == "latents":
        if not folder.exists():
            make_latents(folder, number, size // 8)
        return f"data.root={folder}"
    if not folder.exists():
        make_photos(folder, number, size=size, seed=1)
    return f"data.root={folder}"


def make_latents(path: Path, number: int, side: int) -> None:
    """A latents file of noise, 4 x side x side; its autoencoder is nowhere."""
    import numpy as np

    from imgtool.data.latent_contents import AutoencoderFacts, Contents, DataFacts
    from imgtool.data.latent_writing import LatentsWriter, beginning, finish

    contents = Contents(
        names=tuple(map(str, range(number))),
        groups=tuple(map(str, range(number))),
        parts=np.array([at % 8 == 7 for at in range(number)], np.uint8),
        shape=(4, side, side),
        dtype="float32",
        autoencoder=AutoencoderFacts(
            path="/nowhere", hash="", name="none", family="autoencoder", downsampling=8,
            bottleneck=None,
        ),
        data=DataFacts(
            dataset="photos", root="/nowhere", manifest=None, image_size=None, crop=None,
            fingerprint="",
        ),
    )  # fmt: skip
    noise = np.random.default_rng(1).standard_normal((number, 4, side, side), np.float32)
    with beginning(path, contents), LatentsWriter(path, contents) as writer:
        writer.put(0, {"mean": noise})
        writer.close()
        finish(path, contents)


# --- the engine, as `imgtool train` runs it -------------------------------------------------


def train(case: Case, name: str, *sets: str, tiny: bool, stop_at: int | None = None) -> Facts:
    """Train, and say how fast, what the first loss was, and how much memory was used.

    Args:
        stop_at: the iteration after which a stop is asked for.
    """
    import torch

    from imgtool.experiment.layout import ExperimentDir
    from imgtool.process.stopping import StopRequest
    from imgtool.training.report import Progress, Silence
    from imgtool.training.run import train as run

    on_gpu = case.device.startswith("cuda")
    times: dict[int, float] = {}
    losses: list[dict[str, float]] = []

    class Clock(Silence):
        def progress(self, progress: Progress) -> None:
            if progress.logged:
                losses.append(dict(progress.losses))
            if progress.iteration not in times:
                if on_gpu:
                    torch.cuda.synchronize()
                times[progress.iteration] = time.perf_counter()
            if progress.iteration == stop_at:
                stop.ask("gpu.py")

    stop = StopRequest()
    loaded = case.load(*sets, tiny=tiny)
    directory = ExperimentDir(case.folder / name)
    directory.create()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    outcome = run(loaded, directory, stop=stop, reporter=Clock(), argv=["gpu.py"])
    first, last = min(WARM_UP, outcome.iteration - 1), outcome.iteration
    if outcome.state != ("completed" if stop_at is None else "stopped"):
        raise Wrong(f"ended as {outcome.state}: {outcome.reason}")
    loss = losses[0]["loss"] if losses else math.nan
    if not math.isfinite(loss):
        raise Wrong(f"the first loss is {loss}")
    images = loaded.experiment.train.batch_size
    sec = (times[last] - times[first]) / (last - first) if first in times else math.nan
    return {
        "loss": loss,
        "sec_per_iteration": sec,
        "images_per_sec": images / sec,
        "first_iteration_sec": times[1] - begin if 1 in times else None,
        "peak_memory_bytes": outcome.facts.get("peak_memory_bytes"),
    }


def timed(case: Case, name: str, *sets: str) -> Facts:
    """A training long enough to be timed; of the first loss, what float32 had is expected."""
    last = 3 if case.quick else WARM_UP + MEASURED
    found = train(case, name, *sets, f"train.max_iter={last}", tiny=case.quick)
    if name in TOLERANCES:
        kept = case.folder / "fp32.json"
        expected = json.loads(kept.read_text())["loss"] if kept.exists() else None
        if expected is not None:
            found["off"] = abs(found["loss"] - expected) / max(abs(expected), 1e-12)
            if found["off"] > TOLERANCES[name]:
                raise Wrong(f"the first loss is {found['loss']:.6g}, in float32 {expected:.6g}")
    else:
        (case.folder / f"{name}.json").write_text(json.dumps(found))
    return found


def fp32(case: Case) -> Facts:
    """float32, no TF32."""
    return timed(case, "fp32")


def tf32(case: Case) -> Facts:
    """float32 with TF32 in products and convolutions."""
    return timed(case, "tf32", "train.matmul_precision=high")


def bf16(case: Case) -> Facts:
    """bf16 where autocast likes it."""
    import torch

    from imgtool.training.device import doubt_precision

    doubt = doubt_precision("bf16-mixed", torch.device(case.device))
    if doubt:
        raise Left(doubt)
    return timed(case, "bf16", "train.precision=bf16-mixed")


def fp16(case: Case) -> Facts:
    """fp16 where autocast likes it, with a loss scaler."""
    if not case.device.startswith("cuda"):
        raise Left("fp16 and its scaler are for CUDA")
    return timed(case, "fp16", "train.precision=16-mixed")


def layout(case: Case) -> Facts:
    """float32 in the order that the family did not choose, to see whether it chose well."""
    import torch

    from imgtool.training.device import channels_last

    chosen = channels_last(case.load(tiny=case.quick).experiment, torch.device(case.device))
    found = timed(case, "layout", f"train.channels_last={json.dumps(not chosen)}")
    return {**found, "layout": "NCHW" if chosen else "NHWC"}


def compiled(case: Case) -> Facts:
    """The networks compiled; quick: traced alone, not made into kernels."""
    if not case.quick:
        return timed(case, "compile", "train.compile=true")
    eager, traced = Side(case, case.device), Side(case, case.device)
    if not traced.task.compile_targets():
        raise Left("nothing of this family is compiled")
    traced.task.compile(backend="eager")
    return compare(traced.losses(), eager.losses(), 1e-3)


# --- losses and gradients -------------------------------------------------------------------


class Side:
    """A tiny task with its first weights, on a device and in an order, and one batch."""

    def __init__(
        self, case: Case, device: str, *sets: str, nhwc: bool = True, tiny: bool = True
    ) -> None:
        import torch

        from imgtool.data.datasets import open_datasets
        from imgtool.data.loader import train_loader
        from imgtool.models.base import Noise
        from imgtool.models.registry import family
        from imgtool.training.batches import to_device
        from imgtool.training.device import set_matmul_precision

        set_matmul_precision("highest")
        experiment = case.load(*sets, tiny=tiny).experiment
        datasets = open_datasets(experiment.data)
        torch.manual_seed(experiment.train.seed)
        self.device = torch.device(device)
        self.task = family(experiment.family).build(experiment, datasets.info)
        self.task.modules.to(self.device).train()
        if nhwc:
            self.task.modules.to(memory_format=torch.channels_last)
        batches = train_loader(
            datasets.train,
            experiment.data,
            seed=experiment.train.seed,
            batch_size=experiment.train.batch_size,
            start_batch=0,
            rank=0,
            world_size=1,
            num_workers=0,
            pin_memory=False,
        )

        class Same(Noise):
            """The same numbers on every device."""

            def normal(self, like: Any, purpose: str) -> Any:
                return super().normal(like.cpu(), purpose).to(like.device)

            def uniform(self, like: Any, purpose: str) -> Any:
                return super().uniform(like.cpu(), purpose).to(like.device)

        batch = to_device(next(iter(batches)), self.device, channels_last=nhwc)
        self.batch = {**batch, "noise": Same(0, 0), "epoch": 0.0}

    def losses(self) -> Facts:
        """Of every update its loss and the norm of its gradient."""
        import torch

        found: Facts = {}
        for update in self.task.all_updates():
            parameters = [p for p in update.parameters() if p.requires_grad]
            loss = update(self.batch)["loss"]
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
            found |= {f"{update.name}.loss": loss.item(), f"{update.name}.gradient": norm.item()}
        return found


def compare(ours: Facts, theirs: Facts, tolerance: float) -> Facts:
    """The largest difference, as a part of the value (of 0.1 where that is smaller)."""
    off = {n: abs(ours[n] - theirs[n]) / max(abs(theirs[n]), 0.1) for n in theirs}
    worst = max(off, key=lambda name: off[name])
    if not off[worst] <= tolerance:
        raise Wrong(f"{worst} is {ours[worst]:.6g}, not {theirs[worst]:.6g}")
    return {"off": off[worst]}


def cpu(case: Case) -> Facts:
    """Losses and gradients in float32, NHWC, against those of the CPU in NCHW."""
    return compare(Side(case, case.device).losses(), Side(case, "cpu", nhwc=False).losses(), 1e-2)


def plain(case: Case) -> Facts:
    """Losses and the time of forward and backward, against the plain transcription's."""
    import torch

    name = f"tests.models.{case.family}.plain"
    if not (ROOT / (name.replace(".", "/") + ".py")).exists():
        raise Left("no transcription of this family")
    sys.path.insert(0, str(ROOT))
    side = Side(case, case.device, tiny=case.quick)
    theirs = importlib.import_module(name).Plain(side.task)

    def sec(loss_of: Callable[[], Any]) -> tuple[float, float]:
        times, value = [], math.nan
        for _ in range(2 if case.quick else 5):
            begin = time.perf_counter()
            loss = loss_of()
            loss.backward()
            value = loss.item()  # waits for the device
            if side.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        return min(times), value

    ours_sec = theirs_sec = 0.0
    losses: list[Facts] = [{}, {}]
    for update in side.task.all_updates():
        for number, loss_of in enumerate(
            (
                lambda update=update: update(side.batch)["loss"],
                lambda update=update: theirs.loss(update.name, side.batch),
            )
        ):
            took, losses[number][update.name] = sec(loss_of)
            ours_sec, theirs_sec = (
                (ours_sec + took, theirs_sec) if number == 0 else (ours_sec, theirs_sec + took)
            )
    found = compare(losses[0], losses[1], 1e-2)
    return {**found, "sec_per_iteration": ours_sec, "ratio": ours_sec / theirs_sec}


# --- stopping and going on ------------------------------------------------------------------


def resume(case: Case) -> Facts:
    """A training in two parts, bit for bit the one in one part, with --deterministic."""
    import torch

    from imgtool.experiment.checkpoint_file import read
    from imgtool.experiment.layout import ExperimentDir

    if case.device == "mps":
        raise Left("no promise on mps")
    sets = ["train.deterministic=true", "train.keep=0", "train.val_every=2", "data.num_workers=1"]
    for name, stop_at in (("straight", None), ("parts", 2), ("parts", None)):
        train(case, name, *sets, "train.max_iter=4", tiny=True, stop_at=stop_at)
    straight, parts = (
        read(ExperimentDir(case.folder / name).latest_path).tensors
        for name in ("straight", "parts")
    )
    if straight.keys() != parts.keys():
        raise Wrong("the two have other tensors")
    other = [name for name in straight if not torch.equal(straight[name], parts[name])]
    if other:
        raise Wrong(f"{len(other)} of {len(straight)} tensors differ, {other[0]} first")
    return {"num_tensors": len(straight)}


def command(case: Case, *words: str, may: tuple[int, ...] = (0,)) -> tuple[int, list[Facts]]:
    """Run imgtool; its exit code and records."""
    line = [sys.executable, "-m", "imgtool", *words]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    with open(case.folder / "commands.log", "a") as log:
        log.write(f"$ {' '.join(line)}\n{done.stdout}{done.stderr}\n")
    if done.returncode not in may:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-2:]
        raise Wrong(f"imgtool {words[0]} ended with {done.returncode}: {' '.join(last)}")
    return done.returncode, [json.loads(s) for s in done.stdout.splitlines() if s.startswith("{")]


def training(case: Case, directory: Path, *sets: str) -> list[str]:
    """The words of a training command."""
    words = ["train", case.family, "--config", case.preset, "--tiny", "--exp-dir", str(directory)]
    for setting in case.settings(*sets, tiny=True):
        words += ["--set", setting]
    return words


def stop(case: Case) -> Facts:
    """Stopped by run-timed, gone on with by the same command."""
    directory = case.folder / "stop"
    own = [sys.executable, "-m", "imgtool", *training(case, directory, "train.max_iter=1000000")]
    begin = time.perf_counter()
    reached = 0
    for turn in range(1, 4):  # a busy machine may need a minute to begin
        limit = f"{(8 if case.quick else 20) * turn}s"
        command(case, "run-timed", "--duration", limit, "--keep", "2", "--", *own)
        found = json.loads((directory / "status.json").read_text())
        if found["state"] != "stopped":
            raise Wrong(f"run-timed left it {found['state']}: {found.get('reason')}")
        if found["iteration"] < reached:
            raise Wrong(f"iteration {found['iteration']} after {reached}")
        reached = found["iteration"]
        if reached:
            break
    command(case, *training(case, directory, f"train.max_iter={reached + 2}"))
    found = json.loads((directory / "status.json").read_text())
    if (found["state"], found["iteration"]) != ("completed", reached + 2):
        raise Wrong(f"{found['state']} at {found['iteration']} instead of {reached + 2}")
    return {"iteration": reached, "elapsed_sec": time.perf_counter() - begin}


def codec(case: Case) -> Facts:
    """Export, compress and decompress a picture; what comes back is what the encoder saw."""
    from imgtool.data.synthetic.make import make_photos

    directory, export = case.folder / "stop", case.folder / "codec.safetensors"
    if not (directory / "checkpoints/latest.safetensors").exists():  # of `stop`
        command(case, *training(case, directory, "train.max_iter=2"))
    code, _ = command(case, "export", str(directory), str(export), may=(0, 2))
    if code:
        raise Left("nothing of this family is exported")
    size = 128 if case.quick else 768
    picture = Path(make_photos(case.folder / "pictures", 1, size=size, seed=3).path)
    picture = next(picture.glob("*.png"))
    ckpt = ("--ckpt", str(export), "--device", case.device, "--json")
    stream, back = case.folder / "picture.hpcm", case.folder / "picture.png"
    _, encoded = command(case, "compress", str(picture), *ckpt, "-o", str(stream), "--verify")
    _, decoded = command(case, "decompress", str(stream), *ckpt, "-o", str(back))
    if not back.exists():
        raise Wrong("no picture came back")
    return {
        "encode_sec": encoded[0].get("encode_sec"),
        "decode_sec": decoded[0].get("decode_sec"),
        "bpp": encoded[0].get("bpp"),
    }


# Those of a group share a process. The first groups want the device to themselves.
GROUPS: dict[str, dict[str, Callable[[Case], Facts]]] = {
    "arithmetic": {
        "cpu": cpu,
        "plain": plain,
        "fp32": fp32,
        "tf32": tf32,
        "bf16": bf16,
        "fp16": fp16,
        "layout": layout,
    },
    "compile": {"compile": compiled},
    "resume": {"resume": resume},
    "commands": {"stop": stop, "codec": codec},
}
TIMED = ("arithmetic", "compile")


def run_group(case: Case, checks: list[str]) -> Iterator[Facts]:
    """Do the checks in turn; one that fails leaves the others alone."""
    known = {name: check for group in GROUPS.values() for name, check in group.items()}
    for name in checks:
        found: Facts = {"family": case.family, "check": name}
        begin = time.perf_counter()
        try:
            found |= {"status": "ok", **known[name](case)}
        except Left as left:
            found |= {"status": "skipped", "detail": str(left)}
        except Wrong as wrong:
            found |= {"status": "failed", "detail": str(wrong)}
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split())[:200]
            found |= {"status": "failed", "detail": f"{type(error).__name__}: {text}"}
        yield {**found, "check_sec": time.perf_counter() - begin}


def main() -> None:
    """One group in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for word in ("--family", "--preset", "--data", "--device", "--folder"):
        parser.add_argument(word, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("checks", nargs="+")
    options = parser.parse_args()
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    from imgtool.training.environment import prepare

    prepare(deterministic="resume" in options.checks)
    case = Case(options.family, options.preset, options.data, options.device, folder, options.quick)
    for record in run_group(case, options.checks):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
