"""What `loss.eq` does to a latent, seen by the measures of how hard it is to generate."""

import json

import pytest
import torch
from PIL import Image

from commands.main import main
from imgtool.nn.spectra import dct_basis, radius


def natural(folder, count, side=64):
    """Photographs' spectra without photographs: power f^-2, random phases, colours that belong
    together."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    r = radius(side, side)
    r[0, 0] = r[0, 1]
    basis = dct_basis(side)
    mix = torch.tensor([[1.0, 0.3, 0.1], [1.0, -0.1, -0.2], [1.0, -0.2, 0.3]]).double()
    for number in range(count):
        modes = torch.randn(3, side, side, generator=generator, dtype=torch.float64) / r
        maps = torch.einsum("ij,jhw->ihw", mix, basis.T @ modes @ basis)
        image = (127.5 + 50 * maps / maps.std()).clamp(0, 255).round().to(torch.uint8)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:03d}.png")


def trained(folder, photos, *sets):
    words = (
        *("train", "autoencoder", "--data-root", photos, "--heads", "rgb", "--crop", 64),
        *("--latent-channels", 8, "--downsampling-steps", 2, "--base-channels", 16),
        *("--norm", "none", "--batch-size", 8, "--val-fraction", 0.25, "--max-iter", 250),
        *("--lr", 2e-3, "--threads", 1, "--device", "cpu", "--quiet", "--exp-dir", folder),
        *(word for key in sets for word in ("--set", key)),
    )
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words)])
    assert not caught.value.code
    return json.loads((folder / "latents.json").read_text())


@pytest.mark.slow
def test_equivariance_makes_a_latent_smoother(tmp_path):
    natural(tmp_path / "photos", 48)
    plain = trained(tmp_path / "plain", tmp_path / "photos")
    eq = trained(tmp_path / "eq", tmp_path / "photos", "loss.eq=1")
    for name in ("equivariance_error", "high_frequency_share", "flow_floor"):
        gap = plain[name] - eq[name]
        noise = (plain[f"{name}_se"] ** 2 + eq[f"{name}_se"] ** 2) ** 0.5
        assert gap > 2 * noise, (name, plain[name], eq[name], noise)
