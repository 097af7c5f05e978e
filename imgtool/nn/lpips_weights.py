"""The trunk of LPIPS as torchvision publishes it. Torch-free, for those who ask before a run."""

from __future__ import annotations

from imgtool.published import Published

# torchvision says how the SHA-256 begins; the whole is what all say who have hashed the file.
VGG16 = Published(
    of="LPIPS (VGG16)",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    names=("vgg16-397923af.pth",),
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    num_bytes=553_433_881,
    variable="IMGTOOL_LPIPS_WEIGHTS",
)
SMALLEST = 16  # pixels of a side: four halvings
