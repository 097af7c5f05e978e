"""Trained HPCM codecs as coders whose rate and distortion can be measured."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from imgtool.errors import DataError
from imgtool.evaluation.codec.codec import Codec, Facts
from imgtool.evaluation.codec.exact import exact_arithmetic
from imgtool.evaluation.codec.export import open_codec, read
from imgtool.evaluation.codec.header import read_header
from imgtool.evaluation.codec.memory import Room
from imgtool.evaluation.rate_distortion.measure import Coded
from imgtool.experiment.layout import best_of
from imgtool.models.hpcm.network import HPCM
from imgtool.training.device import resolve_device


class Trained:
    """What both ways of measuring have in common.

    Attributes:
        title: name of the network.
        label: the same with lambda.
        facts: path, lambda, iteration.
        description: how the rate is found.
    """

    description = ""

    def __init__(self, facts: Facts) -> None:
        self.title = facts.model_name
        self.label = f"{facts.model_name} {facts.lmbda:g}"
        self.facts: dict[str, Any] = {
            "path": facts.path,
            "lmbda": facts.lmbda,
            "distortion": facts.distortion,
            "iteration": facts.iteration,
            "model_hash": facts.model_hash,
        }

    def __call__(self, image: Tensor) -> Coded:
        """Encode and decode uint8 (3, H, W)."""
        raise NotImplementedError


class Streams(Trained):
    """Encodes to a file in memory and decodes it again; the whole file counts, header included."""

    description = "bytes of real streams"

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec.facts)
        self._codec = codec
        # What torch does once only, at its first call, is not the first image's time.
        codec.decode(codec.encode(torch.zeros(3, 64, 64, dtype=torch.uint8)).data)

    def __call__(self, image: Tensor) -> Coded:
        """As in Trained.

        Raises:
            DataError: decoding gives other pixels than encoding promised.
        """
        begin = time.perf_counter()
        encoded = self._codec.encode(image)
        between = time.perf_counter()
        decoded = self._codec.decode(encoded.data, max_pixels=None)
        end = time.perf_counter()
        if not torch.equal(decoded, encoded.reconstruction):
            raise DataError(
                "a stream did not decode to what was encoded",
                hint="please report this, with your torch and processor or GPU",
            )
        return Coded(
            bits=8.0 * len(encoded.data),
            decoded=decoded,
            num_bytes=len(encoded.data),
            encode_sec=between - begin,
            decode_sec=end - between,
        )


class Estimate(Trained):
    """One pass through the network; bits are those of the likelihoods, without any coding."""

    description = "bits estimated by likelihoods"

    def __init__(self, model: HPCM, facts: Facts, device: torch.device) -> None:
        super().__init__(facts)
        self._model, self._device = model, device
        self._room = Room(model.variant, device)

    def __call__(self, image: Tensor) -> Coded:
        """As in Trained."""
        self._room.make(*image.shape[1:])
        with exact_arithmetic(self._device, 0):
            found = self._model(image[None].to(self._device).float().div_(255))
            likelihoods = (found.likelihood_y, found.likelihood_z)
            bits = -sum(p.double().log2().sum().item() for p in likelihoods)
            decoded = (found.x_hat[0] * 255).round_().clamp_(0, 255).to("cpu", torch.uint8)
        return Coded(bits=bits, decoded=decoded)


def lambdas_of(source: str) -> list[float | None]:
    """Those of a file of several; of a checkpoint None, which is the one that it has.

    Raises:
        CheckpointError: there is none, or its header is damaged.
    """
    header = read_header(best_of(source))
    return [None] if header is None else [point.lmbda for point in header.points]


def open_coder(
    source: str, *, real_bytes: bool, device: str, lmbda: float | None = None
) -> Trained:
    """Open an export, a checkpoint or an exp_dir (its best checkpoint) of hpcm.

    Args:
        lmbda: of an export that has several, the one that is meant.

    Raises:
        CheckpointError: there is none, or it is damaged.
        UsageError: it is of another family, or has no such lambda, or several.
    """
    if real_bytes:
        return Streams(open_codec(source, device=device, lmbda=lmbda))
    on = resolve_device(device)
    export = read(source, lmbda)
    return Estimate(export.network().to(on), export.facts(), on)
