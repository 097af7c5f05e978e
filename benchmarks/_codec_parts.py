"""Where compressing and decompressing the file of one image spend processor time, and the floor.

The floor is the arithmetic of the networks' convolutions at the best rate of a core, all in seconds
of processor time. Their bytes, each once, are said beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _profile import best_rates

NETWORKS = ("g_a", "h_a", "h_s", "context", "g_s")


class Clock:
    """Processor time by part; time within a part within another counts for the inner one."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._inner: list[float] = []

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Have the calls of owner.name count for `part`."""
        function: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            begin = time.process_time()
            self._inner.append(0.0)
            try:
                return function(*args, **options)
            finally:
                spent = time.process_time() - begin
                self.spent[part] = self.spent.get(part, 0.0) + spent - self._inner.pop()
                if self._inner:
                    self._inner[-1] += spent

        setattr(owner, name, watched)


def profile_codec(codec: Any, image: Any, folder: Path, repeat: int) -> dict[str, dict[str, Any]]:
    """The quickest of `repeat` runs of compressing and of decompressing, after one of each."""
    from PIL import Image

    from imgtool.evaluation.codec import batch, coding
    from imgtool.evaluation.codec.plan import Job

    source = folder / "source.png"
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(source)
    there, back = Job(source, folder / "a.hpcm"), Job(folder / "a.hpcm", folder / "a.png")
    clock, flops = Clock(), Flops(codec._model)
    for name in NETWORKS:
        clock.watch(getattr(codec._model, name), "forward", name)
    clock.watch(coding.Alphabet, "encode", "entropy coding")
    clock.watch(coding.Alphabet, "bits", "estimate of the bits")
    clock.watch(coding.Decoder, "read", "entropy decoding")
    clock.watch(batch, "decode", "reading the image")
    clock.watch(Image.Image, "save", "writing the PNG")
    found = {}
    peak = max(best_rates(time.process_time).values())
    for name, work in (
        ("compress", lambda: batch.compress(codec, there, verify=False)()),
        ("decompress", lambda: batch.decompress(codec, back, max_pixels=1 << 28)()),
    ):
        with flops:
            work()
        runs = [_run(clock, work) for _ in range(repeat)]
        parts = min(runs, key=lambda run: sum(run.values()))
        total = sum(parts.values())
        found[name] = {
            "cpu_sec": round(total, 3),
            "gflop": round(flops.operations / 1e9, 1),
            "gbyte": round(flops.bytes / 1e9, 2),
            "peak_gflops": round(peak / 1e9),
            "floor_sec": round(flops.operations / peak, 3),
            "parts": {
                part: round(spent, 4) for part, spent in sorted(parts.items(), key=lambda p: -p[1])
            },
        }
    return found


def _run(clock: Clock, work: Callable[[], object]) -> dict[str, float]:
    clock.spent.clear()
    begin = time.process_time()
    work()
    total = time.process_time() - begin
    return {**clock.spent, "everything else": total - sum(clock.spent.values())}


class Flops:
    """Counts what the convolutions of a model do, in a `with` block.

    Attributes:
        operations: two for each multiplication with its addition.
        bytes: of inputs, weights and outputs, each once.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._hooks = model, list[Any]()
        self.operations = self.bytes = 0

    def __enter__(self) -> None:
        from torch import nn

        self.operations = self.bytes = 0
        kinds = (nn.Conv2d, nn.ConvTranspose2d)
        layers = [module for module in self._model.modules() if isinstance(module, kinds)]
        self._hooks = [layer.register_forward_hook(self._see) for layer in layers]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _see(self, layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        from torch import nn

        (x,) = inputs
        # A weight meets each place of the output, or of a transposed convolution's input.
        places = x if isinstance(layer, nn.ConvTranspose2d) else output
        count = places.shape[0] * places.shape[2] * places.shape[3]
        self.operations += 2 * layer.weight.numel() * count
        self.bytes += 4 * (x.numel() + layer.weight.numel() + output.numel())
