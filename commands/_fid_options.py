"""The options of `imgtool eval-fid`, in four groups: what, of which data, how, and where to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from commands._options import (
    DataRootOption,
    DeviceOption,
    ManifestOption,
    complete_presets,
)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What is measured: one of three."""

    ckpt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CKPT",
            help="A checkpoint or an exp_dir (its best, or latest); repeatable; - reads them.",
        ),
    ] = None
    real: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|NPZ", help="Real images (NPZ: arr_0, uint8), or their statistics."
        ),
    ] = None
    fake: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|NPZ", help="Made images (NPZ: arr_0, uint8), or their statistics."
        ),
    ] = None
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC|DIR",
            help="Every experiment of a sweep; results go to fid.json in each exp_dir.",
            autocompletion=complete_presets,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Where:
    """Of which data, where the checkpoints' own lie elsewhere by now."""

    attribute: Annotated[
        str | None, typer.Option(help="Attribute of the faces; the checkpoint's own when unset.")
    ] = None
    attribute_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where the table of attributes lies now.")
    ] = None
    data_root: DataRootOption = None
    manifest: ManifestOption = None

    def given(self) -> dict[str, str | None]:
        """By the names of the config's keys."""
        return {
            "root": self.data_root,
            "manifest": self.manifest,
            "attribute": self.attribute,
            "attribute_file": self.attribute_file,
        }


# A field of imgtool.evaluation.fid.options.Options -> its option.
MEASURE: dict[str, Any] = {
    "features": Annotated[
        Literal["inception-fid", "inception-imagenet"],
        typer.Option(help="Network: the one of published FIDs, or torchvision's."),
    ],
    "resize": Annotated[
        Literal["clean", "pytorch-fid", "tf1"] | None,
        typer.Option(
            help="How images get to 299 px, with the scaling that goes with it; clean when unset."
        ),
    ],
    "weights": Annotated[
        str | None,
        typer.Option(
            metavar="FILE|random",
            help="Weights of the network; else $IMGTOOL_FID_WEIGHTS, caches, a download.",
        ),
    ],
    "download": Annotated[
        bool, typer.Option("--download/--no-download", help="Fetch missing weights.")
    ],
    "allow_unverified": Annotated[
        bool,
        typer.Option("--allow-unverified-weights", help="Take weights whose hash is another."),
    ],
    "cache_dir": Annotated[
        Path, typer.Option(metavar="DIR", help="Statistics of real images are kept there.")
    ],
    "cache_fakes": Annotated[
        bool, typer.Option("--cache-fakes", help="Keep statistics of --fake there as well.")
    ],
    "n": Annotated[
        int | None,
        typer.Option("--n", min=2, help="Images of each side; 5000, or what there is, when unset."),
    ],
    "seed": Annotated[int, typer.Option(min=0, help="Seed of the draw of images.")],
    "image_size": Annotated[
        int | None,
        typer.Option(
            "--img-size", "--image-size", min=8, help="Size of the images that are compared."
        ),
    ],
    "split": Annotated[
        Literal["train", "val", "test", "all"] | None,
        typer.Option(
            help="Part of the experiment's own data; of faces all when unset, of others the part that "
            "validated."
        ),
    ],
    "strict": Annotated[
        bool,
        typer.Option("--strict", help="Refuse images that were trained on, instead of warning."),
    ],
    "batch_size": Annotated[
        int, typer.Option(min=1, help="Images that are read, or made, at a time: for speed.")
    ],
    "num_workers": Annotated[int, typer.Option(min=0, help="Processes that read images.")],
    "kid": Annotated[bool, typer.Option("--kid/--no-kid", help="Kernel distance as well.")],
    "device": DeviceOption,
}
PlotOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.png", help="Draw FID over the checkpoints' iterations."),
]
