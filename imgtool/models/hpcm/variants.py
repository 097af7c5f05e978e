"""The sizes of the HPCM networks: the published three, and two smaller ones for CPUs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one network is made of.

    Attributes:
        name: as in `model.model_name`.
        widths: channels of the transforms at 1/2, 1/4 and 1/8 of the image's size.
        depths: residual blocks at each of them.
        M: channels of y; a multiple of 16.
        N: channels of z.
        hyper_depth: residual blocks between the two resamplings of h_a and h_s.
        coarse_depths: residual blocks of the parameter network of scales 1 and 2, before and
            after the adaptive factors.
        fine_depths: the same of scale 3.
        windows: sides of the attention windows at scales 1, 2 and 3; None for no attention.
        num_heads: of the attention; divides 2 M.
        s3_steps: coding steps of scale 3: 6, or 3 where they are merged in pairs.
    """

    name: str
    widths: tuple[int, int, int] = (96, 192, 384)
    depths: tuple[int, int, int] = (2, 2, 4)
    M: int = 320
    N: int = 256
    hyper_depth: int = 3
    coarse_depths: tuple[int, int] = (2, 1)
    fine_depths: tuple[int, int] = (3, 2)
    windows: tuple[int, int, int] | None = (4, 8, 8)
    num_heads: int = 32
    s3_steps: int = 6

    @property
    def num_steps(self) -> int:
        """Coding steps of y: two at scale 1, three at scale 2, and those of scale 3."""
        return 5 + self.s3_steps


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(name="HPCM_Base"),
        Variant(name="HPCM_Large", depths=(2, 2, 8), coarse_depths=(2, 2), fine_depths=(4, 3)),
        Variant(name="HPCM_PhiContext", windows=None),
        Variant(
            name="HPCM_Small",
            widths=(32, 64, 128),
            depths=(1, 1, 2),
            M=128,
            N=96,
            hyper_depth=1,
            coarse_depths=(1, 1),
            fine_depths=(2, 1),
            num_heads=8,
            s3_steps=3,
        ),
        Variant(
            name="HPCM_Tiny",
            widths=(12, 24, 64),
            depths=(1, 1, 1),
            M=48,
            N=32,
            hyper_depth=1,
            coarse_depths=(1, 1),
            fine_depths=(1, 1),
            num_heads=4,
            s3_steps=3,
        ),
    )
}
