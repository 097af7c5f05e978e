"""Sizes that are small enough for trainings of which a test makes many."""

from collections.abc import Iterable
from typing import Any

import yaml

# Of GeneGAN's three sizes, which --tiny makes 32, 64 and 96, and of its blocks, which are 4: a
# quarter of the arithmetic, and as many sizes and blocks.
SMALL_FACES = (
    *("data.image_sizes=[16,32,48]", "data.image_size=48"),
    *("model.obj_block_size=2", "model.bg_block_size=2"),
)

# Every loss of the autoencoder that is off by default, cheap enough for a few steps: the
# discriminator is one of 2 halvings, and counts at once.
ALL_LOSSES = (
    *("loss.lpips=0.1", "loss.gan=0.1", "loss.eq=1", "loss.gradient=0.5"),
    *("loss.gan_start=2", "loss.gan_warmup=1", "loss.gan_layers=2", "loss.gan_width=8"),
    "loss.gan_lr=0.0005",
)

# Critics of the GeneGAN with a second derivative, buffers of their own and random places.
SMOOTH_CRITICS = (
    *("model.critic_norm=none", "model.critic_spectral_norm=true", "model.upsampling=resize"),
    *("loss.critic_penalty=gp", "loss.critic_penalty_every=2"),
)


def keys_and_values(sets: Iterable[str]) -> dict[str, Any]:
    """What `--set` of each would set."""
    return {key: yaml.safe_load(value) for key, _, value in (each.partition("=") for each in sets)}
