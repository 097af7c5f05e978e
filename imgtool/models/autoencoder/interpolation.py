"""How an image changes along a straight line between the latents of two others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imgtool.models.autoencoder.network import Autoencoder
from imgtool.models.base import Batch
from imgtool.nn.images import to_pm1, to_uint8, to_unit
from imgtool.nn.lpips import Lpips, find_lpips, perceptual_size
from imgtool.nn.lpips_weights import SMALLEST
from imgtool.nn.quality import gradient_energy

EPSILON = 1e-4  # of the path, as in the paper
NUM_STEPS = 8  # of a strip, between its two ends
NUM_STRIPS = 3
AT_ONCE = 3  # images decoded: whole ones may be large
_SEED = 0  # of the places on the paths; the same for every model


class _End(NamedTuple):
    """An image's latent (1, C, h, w), and the gradient energies of the decoded and the original."""

    z: Tensor
    energies: list[float]


class Interpolations:
    """Pairs of images, the way between them, and what can be said of all.

    path_length       (1 / eps^2) d(G(t), G(t + eps)): Karras et al. 2019 (StyleGAN), section 3.1,
                      on the straight line between two latents as in W, d being LPIPS (VGG, 0.1),
                      t uniform on [0, 1]; None without LPIPS's weights. Lower is smoother
    midpoint_energy   gradient energy of the decoded middle over the mean of both decoded ends: 1
                      is as sharp, 0.5 is two pictures laid over one another
    end_energy        gradient energy of the decoded ends over their originals': below 1 is blur

    Energies are ratios of sums over pairs. Each has its standard error, X_se, over the pairs;
    pairs that share a scene are not independent (Aronow, Samii & Assenova 2015, equation 3).

    Args:
        network: in eval mode; called under no_grad.
        lpips: None measures no path_length.
    """

    def __init__(self, network: Autoencoder, lpips: Lpips | None) -> None:
        self.network, self.lpips = network, lpips
        self.scenes: list[list[int]] = []
        self.lengths: list[float] = []
        self.energies: list[list[float]] = []  # of the middle, of both ends, of both originals
        self.strips: list[Tensor] = []
        self._ends: dict[int, _End] = {}
        self._places = torch.Generator().manual_seed(_SEED)

    def add(self, pair: Batch) -> None:
        """Measure a pair: two images of equal size."""
        size = pair["image"].shape[-2:]
        ends = [self._end(pair["image"][row : row + 1], int(pair["index"][row])) for row in (0, 1)]

        def frames(places: Tensor) -> Tensor:
            weights = places.to(ends[0].z.device).view(-1, 1, 1, 1)
            ways = torch.split(ends[0].z.lerp(ends[1].z, weights), AT_ONCE)
            return torch.cat([self.network.decode(z, ("rgb",), size)["rgb"] for z in ways])

        middle = gradient_energy(to_unit(frames(torch.tensor([0.5])))).item()
        decoded, original = (sum(end.energies[k] for end in ends) for k in (0, 1))
        self.energies.append([middle, decoded, original])
        self.scenes.append(pair.get("scene", pair["index"]).tolist())
        if self.lpips is not None and min(size) >= SMALLEST:
            place = torch.rand(1, generator=self._places)
            near = perceptual_size(frames(torch.cat([place, place + EPSILON])))
            self.lengths.append(self.lpips(near[:1], near[1:]).item() / EPSILON**2)
        if len(self.strips) < NUM_STRIPS:
            strip = frames(torch.linspace(0, 1, NUM_STEPS + 1))
            self.strips.append(torch.cat(list(to_uint8(strip)), dim=2).cpu())

    def _end(self, image: Tensor, index: int) -> _End:
        """What is needed of an image, which may be in several pairs."""
        if index not in self._ends:
            x = to_pm1(image)
            latent = self.network.encode(x)
            z = (latent.z if latent.mu is None else latent.mu).float()
            decoded = self.network.decode(z, ("rgb",), x.shape[-2:])["rgb"]
            energies = [gradient_energy(to_unit(images)).item() for images in (decoded, x)]
            self._ends[index] = _End(z, energies)
        return self._ends[index]

    def document(self) -> dict[str, Any]:
        """num_pairs, and each measure with its standard error; None where there is none."""
        middle, ends, originals = torch.tensor(self.energies).double().view(-1, 3).unbind(1)
        lengths = torch.tensor(self.lengths).double()
        found: dict[str, Any] = {"num_pairs": len(self.scenes)}
        for name, above, below in (
            ("path_length", lengths, torch.ones_like(lengths)),
            ("midpoint_energy", middle, ends / 2),
            ("end_energy", ends, originals),
        ):
            found[name], found[f"{name}_se"] = _ratio(above, below, self.scenes)
        return found


def interpolate(network: Autoencoder, pairs: Iterable[Batch]) -> Interpolations | None:
    """Measure pairs of images; None for a network that decodes none.

    Raises:
        DataError: LPIPS's weights are named and cannot be read.
    """
    if "rgb" not in network.decoder.heads:
        return None
    device = next(network.parameters()).device
    found = Interpolations(network, find_lpips(device))
    with _exact(device):
        for pair in pairs:
            found.add(pair)
    return found


def _ratio(
    above: Tensor, below: Tensor, scenes: list[list[int]]
) -> tuple[float | None, float | None]:
    """The ratio of two sums over pairs, and its standard error (None with one pair)."""
    count = len(above)
    if count == 0 or not below.sum() > 0:
        return None, None
    ratio = above.sum() / below.sum()
    if count == 1:
        return ratio.item(), None
    rest = (above - ratio * below) / below.sum()
    number = {scene: k for k, scene in enumerate(sorted({s for pair in scenes for s in pair}))}
    part_of = torch.zeros(count, len(number), dtype=torch.float64)
    for row, pair in enumerate(scenes):
        part_of[row, [number[scene] for scene in pair]] = 1
    together = (part_of @ part_of.T > 0).double()
    # Of few scenes the sum says nothing: all pairs hang together, and the rests add up to 0.
    variance = torch.maximum(rest @ together @ rest, rest.square().sum())
    return ratio.item(), (variance * count / (count - 1)).sqrt().item()


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """float32 without autocast or TF32: their rounding is larger than a step of EPSILON."""
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32 = kept[1]
