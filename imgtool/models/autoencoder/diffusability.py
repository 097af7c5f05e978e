"""How hard a latent may be to generate: cheap measures that ask no generator.

They are proxies. Each is of latents standardised channel by channel, with its standard error
X_se by the jackknife over scenes (groups of them where there are more than 64). Those of a
variational latent are of its means; X_sampled is of samples, exactly: nothing is drawn.

spectrum_slope          of log power on log frequency up to Nyquist: white noise 0, photographs
                        about -2
high_frequency_share    of the power, without frequency 0, above half the Nyquist frequency;
                        _quarter and _three_quarters above those parts of it. White noise: 0.80,
                        0.95, 0.56 on a large grid
spectrum_kl             KL divergence, nats, from the pictures' own spectrum at the latent's size
flow_floor              least mean squared error of a rectified flow on Gaussian data of the same
                        power by mode and channel, t uniform: white noise pi / 2, lower is easier;
                        _logit_normal for such times, white noise 1.741
equivariance_error      |tau E(x) - E(tau x)|^2 / |E(tau x)|^2 over three scalings and three
                        rotations tau, of the first NUM_CHANGED images; of the means alone
picture_…               the same of the pictures, averaged over f x f pixels to the latent's size
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from imgtool.models.autoencoder.bottleneck import Latent
from imgtool.models.autoencoder.equivariance_error import Equivariance
from imgtool.models.autoencoder.network import Autoencoder
from imgtool.nn.images import pad_to_multiple
from imgtool.nn.spectra import Times, mode_floors, ring_frequencies, zigzag
from imgtool.nn.spectral_sums import (
    Groups,
    SpectralSums,
    Spectrum,
    divergence,
    jackknife,
    of_rings,
    share_above,
    slope,
    spectrum,
    weighed,
)

NUM_CHANGED = 32  # each costs four encodings more
CUTS = {"": 0.5, "_quarter": 0.25, "_three_quarters": 0.75}
FLOORS: dict[str, Times] = {"": "uniform", "_logit_normal": "logit_normal"}


class Diffusability:
    """Adds images and their latents up.

    Args:
        network: in eval mode; called under no_grad.
    """

    def __init__(self, network: Autoencoder) -> None:
        self.network = network
        self.latents, self.pictures = SpectralSums(), SpectralSums()
        self.equivariance = Equivariance()
        self.groups = Groups()
        self.is_variational = False

    def add(self, x: Tensor, latent: Latent, scenes: Iterable[int]) -> None:
        """Images (B, 3, H, W) on [-1, 1], their latents, and the scene of each."""
        mean = latent.z if latent.mu is None else latent.mu
        variance = None if latent.logvar is None else latent.logvar.exp()
        self.is_variational = variance is not None
        groups = self.groups.of(list(scenes))
        unit = self.network.unit
        x = pad_to_multiple(x, unit)
        self.latents.add(mean, variance, groups)
        self.pictures.add(F.avg_pool2d(x, unit), None, groups)
        few = min(len(x), NUM_CHANGED - len(self.equivariance))
        if few > 0:
            self.equivariance.add(self._means, x[:few], mean[:few], unit, groups[:few])

    def _means(self, x: Tensor) -> Tensor:
        latent = self.network.encode(x)
        return latent.z if latent.mu is None else latent.mu

    def document(self) -> dict[str, Any]:
        """Every measure with its error; None for what has no value, such as of a constant latent.

        Beside them lists: `spectrum_frequencies`, the rings' centres in cycles a latent position
        (0.5 is Nyquist); `spectrum_power`, the mean power a mode over the channels, `_per_channel`
        and `picture_spectrum_power`; `spectrum_slope_per_channel` and
        `high_frequency_share_per_channel`; `block_profile`, mean |D| of 8 x 8 blocks over that of
        their first coefficient, in zigzag order. Empty where nothing was added.
        """
        if not len(self.groups):
            return {}
        values, errors = jackknife(self._measures(), len(self.groups))
        document: dict[str, Any] = {"spectrum_frequencies": ring_frequencies()}
        for name, value in values.items():
            document[name] = _plain(value)
            if "_per_channel" not in name:
                document[f"{name}_se"] = _plain(errors[name])
        return document

    def _measures(self) -> Callable[[Tensor], dict[str, Tensor]]:
        """Every measure of the groups' weights."""
        (latents, radii), (pictures, _) = self.latents.by_group(), self.pictures.by_group()

        def measure(weights: Tensor) -> dict[str, Tensor]:
            beside = spectrum(weighed(pictures, weights), radii)
            summed = weighed(latents, weights)
            means = spectrum(summed, radii)
            found = _of_latents(means, beside)
            found["equivariance_error"] = self.equivariance.error(
                means.mean, means.variance, weights
            )
            if self.is_variational:
                of_samples = _of_latents(spectrum(summed, radii, sampled=True), beside)
                found |= {f"{name}_sampled": value for name, value in of_samples.items()}
            found |= {f"picture_{name}": value for name, value in _of_any(beside).items()}
            return found

        return measure


def _of_any(found: Spectrum) -> dict[str, Tensor]:
    """What is said of latents and of pictures."""
    power = found.power.nanmean(0)
    profile = (found.profile / found.variance.sqrt()[:, None]).nanmean(0)[zigzag()]
    return {
        "spectrum_slope": slope(found, power),
        **{f"high_frequency_share{end}": share_above(found, power, r) for end, r in CUTS.items()},
        "spectrum_power": of_rings(found, power),
        "block_profile": profile / profile[0],
    }


def _of_latents(found: Spectrum, pictures: Spectrum) -> dict[str, Tensor]:
    """What is said of latents alone."""
    own = _of_any(found)
    of_pictures = of_rings(pictures, pictures.power.nanmean(0))
    floors = {}
    for end, times in FLOORS.items():
        of_modes = (mode_floors(found.power, times=times) * found.modes).sum(1)
        of_level = mode_floors(found.level, times=times) * found.images
        each = (of_modes + of_level) / (found.modes.sum() + found.images)
        floors[f"flow_floor{end}"] = each.nanmean()
    return {
        **own,
        "spectrum_kl": divergence(of_pictures, own["spectrum_power"]),
        **floors,
        "spectrum_power_per_channel": of_rings(found, found.power),
        "spectrum_slope_per_channel": slope(found, found.power),
        "high_frequency_share_per_channel": share_above(found, found.power, CUTS[""]),
    }


def _plain(value: Tensor) -> Any:
    """A number or lists of numbers; None where one is not finite."""
    if value.ndim:
        return [_plain(part) for part in value] if not value.isnan().all() else None
    return value.item() if value.isfinite() else None
