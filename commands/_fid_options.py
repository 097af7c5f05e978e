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


def _complete_protocols(incomplete: str) -> list[str]:
    from imgtool.evaluation.fid.protocols import PROTOCOLS

    return [name for name in (*PROTOCOLS, "list") if name.startswith(incomplete)]


def _complete_metrics(incomplete: str) -> list[str]:
    from imgtool.evaluation.fid.options import METRICS

    done, comma, last = incomplete.rpartition(",")
    return [f"{done}{comma}{name}" for name in METRICS if name.startswith(last)]


# A field of imgtool.evaluation.fid.options.Options -> its option.
MEASURE: dict[str, Any] = {
    "protocol": Annotated[
        str | None,
        typer.Option(
            metavar="NAME|list",
            help="Features, resize, size, split and counts under one name; `list` shows them.",
            autocompletion=_complete_protocols,
        ),
    ],
    "metrics": Annotated[
        str,
        typer.Option(
            metavar="fid,kid,prdc",
            help="What is computed from the features; prdc: precision, recall, density, coverage.",
            autocompletion=_complete_metrics,
        ),
    ],
    "features": Annotated[
        Literal["inception-fid", "inception-imagenet", "dinov2"] | None,
        typer.Option(
            help="Network: inception-fid, that of published FIDs, when unset; torchvision's; or "
            "DINOv2's ViT-L/14, for FD-DINOv2."
        ),
    ],
    "resize": Annotated[
        Literal["clean", "pytorch-fid", "tf1", "edm2", "dgm-eval"] | None,
        typer.Option(
            help="How images get to the network's size, with the scaling that goes with it; "
            "clean when unset, edm2 of dinov2."
        ),
    ],
    "weights": Annotated[
        str | None,
        typer.Option(
            metavar="FILE|random",
            help="Weights of the network; else $IMGTOOL_FID_WEIGHTS or $IMGTOOL_DINOV2_WEIGHTS, "
            "caches, a download.",
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
            help="Part of the experiment's own data. When unset, of faces all, of a flow the part that it "
            "was trained on, of others the part that validated."
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
    "neighbours": Annotated[
        int | None,
        typer.Option(
            min=1, help="Of prdc: which neighbour a neighbourhood reaches to; 5 when unset."
        ),
    ],
    "device": DeviceOption,
}
PlotOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.png", help="Draw FID over the checkpoints' iterations."),
]
