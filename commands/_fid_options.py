"""The options of `imgtool eval-fid`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from commands._options import complete_presets

CkptOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CKPT",
        help="A checkpoint or an exp_dir (its best, or latest); repeatable; - reads them.",
    ),
]
RealOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR|NPZ", help="Real images (NPZ: arr_0, uint8), or their statistics."),
]
FakeOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR|NPZ", help="Made images (NPZ: arr_0, uint8), or their statistics."),
]
SweepOption = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC|DIR",
        help="Every experiment of a sweep; results go to fid.json in each exp_dir.",
        autocompletion=complete_presets,
    ),
]
AttributeOption = Annotated[
    str | None, typer.Option(help="Attribute of the faces; the checkpoint's own when unset.")
]
AttributeFileOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="Where the table of attributes lies now.")
]
DataRootOption = Annotated[
    str | None, typer.Option(metavar="DIR", help="Where the images lie now.")
]
ManifestOption = Annotated[
    str | None, typer.Option(metavar="CSV", help="Where the layouts lie now.")
]
ImgSizeOption = Annotated[
    int | None,
    typer.Option("--img-size", "--image-size", min=8, help="Size of the images that are compared."),
]
SplitOption = Annotated[
    Literal["train", "val", "test", "all"] | None,
    typer.Option(
        help="Part of the experiment's own data; of faces all when unset, of others the part that "
        "validated."
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Refuse images that were trained on, instead of warning.")
]
NumOption = Annotated[
    int | None,
    typer.Option("--n", min=2, help="Images of each side; 5000, or what there is, when unset."),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the draw of images.")]
BatchSizeOption = Annotated[
    int, typer.Option(min=1, help="Images that are read, or made, at a time: for speed.")
]
NumWorkersOption = Annotated[int, typer.Option(min=0, help="Processes that read images.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
FeaturesOption = Annotated[
    Literal["inception-fid", "inception-imagenet"],
    typer.Option(help="Network: the one of published FIDs, or torchvision's."),
]
ResizeOption = Annotated[
    Literal["clean", "pytorch-fid", "tf1"] | None,
    typer.Option(
        help="How images get to 299 px, with the scaling that goes with it; clean when unset."
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|random",
        help="Weights of the network; else $IMGTOOL_FID_WEIGHTS, caches, a download.",
    ),
]
DownloadOption = Annotated[
    bool, typer.Option("--download/--no-download", help="Fetch missing weights.")
]
AllowUnverifiedOption = Annotated[
    bool,
    typer.Option("--allow-unverified-weights", help="Take weights whose hash is another."),
]
CacheDirOption = Annotated[
    Path, typer.Option(metavar="DIR", help="Statistics of real images are kept there.")
]
CacheFakesOption = Annotated[
    bool, typer.Option("--cache-fakes", help="Keep statistics of --fake there as well.")
]
KidOption = Annotated[bool, typer.Option("--kid/--no-kid", help="Kernel distance as well.")]
OutOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the records there as well.")
]
PlotOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.png", help="Draw FID over the checkpoints' iterations."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be measured, and stop.")
]
