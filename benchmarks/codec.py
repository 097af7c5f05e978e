"""HPCM's encoding and decoding of one image on the CPU against the published code's ways.

Both sides have the same untrained weights and the same image. The baseline's operations are
written down in tests/models/hpcm/transcription.py: full-grid masks, boolean gathers, an index
search by comparing with 59 entries, attention whose last result nobody uses, NCHW as it comes. It
has imgtool's entropy coder, which is quicker than the published one. `--tuned` gives it NHWC
weights and images, and an allocator that keeps freed memory, as ours has.

    encode          image to file; ours also runs g_s, for the checksum of the pixels: 1.24 times
                    the baseline's operations (bound: 1.15 of the tuned baseline's time)
    encode_less_g_s the same, less the time of g_s (bound: 0.95 of the tuned baseline's time)
    decode          file to pixels (bound: 0.9 of the tuned baseline's time)
    forward         encode against the published forward pass (likelihoods, g_s) and CompressAI's
                    rANS coder behind it, which is left out where
                    `pip install --no-deps compressai` was not done (no bound)

Ratios are ours / baseline of seconds. IMGTOOL_KERNELS=convolution or product says which kernel 1x1
convolutions of ours take, instead of a timing; each record names it. `cpu_sec` is processor time a
call, which says something on a busy machine too, with `--threads 1`. `--profile` says instead where
compressing and decompressing one image's file spend it, and the floor.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _codec import make_codec, make_image
from _codec_parts import profile_codec
from _pairs import report, run_pairs
from _rans import has_rans, rans_encode, rans_tables

BOUNDS = {"encode": "<= 1.15", "encode_less_g_s": "<= 0.95", "decode": "<= 0.9", "forward": None}
SIZES = {"768x512": (512, 768), "512x512": (512, 512)}


def main() -> None:
    """Run both sides in turn, or one of them when called for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(BOUNDS), default=list(BOUNDS))
    parser.add_argument("--model", default="HPCM_Base")
    parser.add_argument("--size", choices=list(SIZES), default="768x512")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=2, help="timed a process, after one untimed")
    parser.add_argument("--tuned", action="store_true", help="the baseline in NHWC, memory kept")
    parser.add_argument("--profile", action="store_true", help="where our time goes")
    parser.add_argument("--part", choices=list(BOUNDS), help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=["ours", "published"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(one_side(options)))
        return
    if options.profile:
        profile(options)
        return
    words = [sys.executable, __file__]
    for name in ("model", "size", "threads", "repeat"):
        words += [f"--{name}", str(getattr(options, name))]
    for part in options.parts:
        ours = [*words, "--part", part, "--side", "ours"]
        published = [*words, "--part", part, "--side", "published"]
        pairs = run_pairs(
            ours, [*published, *["--tuned"] * options.tuned], options.pairs, rate=True
        ).as_seconds()
        report(
            f"hpcm_{part}",
            pairs,
            BOUNDS[part] if options.tuned else None,
            model_name=options.model,
            size=options.size,
            num_threads=options.threads,
            tuned=options.tuned,
        )


def one_side(options: argparse.Namespace) -> dict[str, Any]:
    """Calls a second of the part and side that this process was started for."""
    if options.side == "ours" or options.tuned:
        from imgtool.training.environment import prepare

        prepare(deterministic=False)
    import torch

    torch.set_num_threads(options.threads)
    make = ours if options.side == "ours" else published
    with torch.no_grad():
        call, left_out, facts = make(options)
        call()
        begin, left_out[0], cpu = time.perf_counter(), 0.0, time.process_time()
        for _ in range(options.repeat):
            call()
        seconds = time.perf_counter() - begin - left_out[0]
        cpu = (time.process_time() - cpu) / options.repeat
    return {"rate": options.repeat / seconds, "cpu_sec": round(cpu, 3), **facts}


def profile(options: argparse.Namespace) -> None:
    """One record of compressing and one of decompressing: processor seconds of each part."""
    from imgtool.training.environment import prepare

    prepare(deterministic=True)
    import torch

    torch.set_num_threads(options.threads)
    height, width = SIZES[options.size]
    with tempfile.TemporaryDirectory() as folder:
        found = profile_codec(
            make_codec(options.model), make_image(height, width), Path(folder), options.repeat
        )
    for name, facts in found.items():
        record = {"schema": "imgtool/1", "kind": "benchmark", "name": f"hpcm_{name}_parts"}
        about = {"model_name": options.model, "size": options.size, "num_threads": options.threads}
        print(json.dumps({**record, **facts, **about, "load": round(os.getloadavg()[0], 2)}))


Side = tuple[Callable[[], object], list[float], dict[str, Any]]


def ours(options: argparse.Namespace) -> Side:
    """What is called, seconds that do not count, and facts."""
    from imgtool.nn.convolution import POINTWISE

    codec, image = make_codec(options.model), make_image(*SIZES[options.size])
    left_out = [0.0]
    facts = {"kernel": POINTWISE.of(codec.device)}
    if options.part == "decode":
        data = codec.encode(image).data
        return lambda: codec.decode(data), left_out, facts
    if options.part == "encode_less_g_s":
        time_g_s(codec, left_out)
    return lambda: codec.encode(image), left_out, facts


def time_g_s(codec: Any, spent: list[float]) -> None:
    """Have g_s note its time."""

    def begin(*_: object) -> None:
        spent[0] -= time.perf_counter()

    def end(*_: object) -> None:
        spent[0] += time.perf_counter()

    g_s = codec._model.g_s
    g_s.register_forward_pre_hook(begin)
    g_s.register_forward_hook(end)


def published(options: argparse.Namespace) -> Side:
    """The same of the transcription."""
    import torch

    codec = make_codec(options.model)
    peer = published_codec(codec)
    image = make_image(*SIZES[options.size])[None].float() / 255
    if options.tuned:
        layout = torch.channels_last
        image = image.to(memory_format=layout)
        four = {name: p.to(memory_format=layout) for name, p in peer.p.items() if p.ndim == 4}
        peer.p |= four
    if options.part == "decode":
        streams, size = peer.encode(image)
        return lambda: peer.decode(streams, size), [0.0], {}
    if options.part == "forward":
        facts: dict[str, Any] = {"rans": has_rans()}
        return lambda: facts.update(peer.measure(image)), [0.0], facts
    return lambda: peer.encode(image), [0.0], {}


def published_codec(codec: Any) -> Any:
    """The transcription with the two methods that its network needs to write and read files."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import numpy as np
    import torch

    from imgtool.evaluation.codec.coding import Decoder, Part
    from imgtool.models.hpcm.entropy import SCALE_TABLE
    from tests.models.hpcm import transcription as T

    alphabet, model = codec._alphabet, codec._model
    variant = model.variant
    chunks, table = (2, 4, 8), torch.tensor(SCALE_TABLE)

    def packed(full: Any, scale: int) -> Any:
        return torch.stack(full.chunk(chunks[scale - 1], dim=1)).sum(dim=0)

    def tables_of(scales: Any) -> Any:
        return T.search_by_broadcasting(scales, table).flatten().int().numpy().astype(np.uint8)

    def tables_of_z(rows: int, columns: int) -> Any:
        every = np.arange(len(table), len(alphabet.tables.rows), dtype=np.int16)
        return np.repeat(every, rows * columns)

    def integers(values: Any) -> Any:
        return values.contiguous().flatten().int().numpy()

    class Published(T.Reference):  # type: ignore[misc]
        def encode(self, x: Any) -> tuple[tuple[bytes, bytes], tuple[int, int]]:
            y = self.g_a(x)
            z = self.h_a(y)
            z_q = torch.round(z - self.p["means_hyper"])
            of_z = Part(tables_of_z(*z.shape[2:]), integers(z_q))
            self.written: list[tuple[Any, Any]] = []
            self.reader = None
            self.code(y, self.h_s(z_q + self.p["means_hyper"]))
            parts = [Part(tables_of(scales), integers(q)) for q, scales in self.written]
            return (alphabet.encode([of_z]), alphabet.encode(parts)), z.shape[2:]

        def measure(self, x: Any) -> dict[str, float]:
            """What evaluating an image takes: the forward pass, then CompressAI's coder."""
            self.written, self.reader = [], None
            self.forward(x)
            if not has_rans():
                return {}
            begin = time.process_time()
            parts = [Part(tables_of(scales), integers(q)) for q, scales in self.written]
            stream = rans_encode(parts, rans_tables(alphabet))
            return {
                "rans_cpu_sec": round(time.process_time() - begin, 4),
                "rans_bytes": len(stream),
            }

        def decode(self, streams: tuple[bytes, bytes], size: tuple[int, int]) -> Any:
            z_q = Decoder(alphabet, streams[0]).read(tables_of_z(*size))
            z_hat = torch.from_numpy(z_q).float().view(1, -1, *size) + self.p["means_hyper"]
            z_hat = z_hat.contiguous(memory_format=self.layout)
            self.reader = Decoder(alphabet, streams[1])
            coded = self.code(None, self.h_s(z_hat))
            return self.g_s(coded["y_hat"]).clamp(0, 1)

        @property
        def layout(self) -> Any:
            nhwc = self.p["g_s.up0.weight"].is_contiguous(memory_format=torch.channels_last)
            return torch.channels_last if nhwc else torch.contiguous_format

        def quantise(self, scale: int, rest: Any, scales: Any, mask: Any) -> Any:
            if self.reader is None:
                q = torch.round(rest)
                self.written.append((packed(q, scale), packed(scales, scale)))
                return q
            wanted = packed(scales, scale)
            q = torch.from_numpy(self.reader.read(tables_of(wanted))).float().view(wanted.shape)
            return q.repeat(1, chunks[scale - 1], 1, 1) * mask

    # NCHW, as the published code has it.
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return Published(
        T.weights_of(state),
        legacy=False,
        window_sides=variant.windows,
        heads=variant.num_heads,
        merged=6 // variant.s3_steps,
    )


if __name__ == "__main__":
    main()
