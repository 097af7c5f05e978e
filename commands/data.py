"""`imgtool data`: make, check, align and pack sets of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from commands._display import counting
from commands._options import DryRunOption, ForceOption
from commands._output import Output, say
from imgtool.errors import DataError, UsageError

if TYPE_CHECKING:
    from imgtool.data.align import Aligned
    from imgtool.data.synthetic.make import Made

app = typer.Typer(help="Make, check, align and pack sets of images.")
make_app = typer.Typer(help="Make procedural images, for tests and demos without real ones.")
app.add_typer(make_app, name="make", no_args_is_help=True)


# --- make ---------------------------------------------------------------------------------

OutArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="A new or empty folder, or one this command made.")
]
NumberOption = Annotated[int, typer.Option("--n", help="Number of images.")]
SizeOption = Annotated[int, typer.Option(help="Width and height in pixels, 64 or more.")]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same bytes.")]
WorkersOption = Annotated[int, typer.Option(help="Processes that make images.")]


@make_app.command("layouts")
def make_layouts(
    output: Output,
    out: OutArgument,
    n: NumberOption = 2000,
    size: SizeOption = 512,
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    dry_run: DryRunOption = False,
) -> None:
    """Make floor plans: PNG files and the manifest layouts.csv.

    \b
    Example:
      imgtool data make layouts out/layouts --n 200 --seed 1
    """
    from imgtool.data.synthetic import make

    with counting("making") as progress:
        made = make.make_layouts(
            out, n, size=size, seed=seed, workers=workers, progress=progress, dry_run=dry_run
        )
    _emit_made(output, made, seed, size)
    manifest = ("--manifest", out / "layouts.csv")
    output.suggest("train", "autoencoder", "--config", "phase1_1/S4", *manifest, "--tiny")


@make_app.command("photos")
def make_photos(
    output: Output,
    out: OutArgument,
    n: NumberOption = 2000,
    size: SizeOption = 512,
    seed: SeedOption = 0,
    image_format: Annotated[Literal["png", "jpg"], typer.Option(help="Kind of the files.")] = "png",
    workers: WorkersOption = 1,
    dry_run: DryRunOption = False,
) -> None:
    """Make pictures with the statistics of photographs: textures, shading, soft and sharp edges.

    \b
    Example:
      imgtool data make photos out/photos --n 500 --size 256 --image-format jpg
    """
    from imgtool.data.synthetic import make

    with counting("making") as progress:
        made = make.make_photos(
            out,
            n,
            size=size,
            seed=seed,
            image_format=image_format,
            workers=workers,
            progress=progress,
            dry_run=dry_run,
        )
    _emit_made(output, made, seed, size)
    output.suggest("train", "autoencoder", "--config", "photos/quick", "--data-root", out)


@make_app.command("faces")
def make_faces(
    output: Output,
    out: OutArgument,
    n: NumberOption = 4000,
    size: Annotated[
        int | None,
        typer.Option(help="Width and height in pixels, 64 or more; CelebA's 178x218 without it."),
    ] = None,
    aligned: Annotated[
        bool,
        typer.Option("--aligned", help="Heads are not turned, and all eyes are in one place."),
    ] = False,
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    dry_run: DryRunOption = False,
) -> None:
    """Make faces in CelebA's layout: JPEG files, and tables of attributes, landmarks and parts.

    Smiling, Eyeglasses and Bangs are drawn independently, each in half of the faces.

    \b
    Example:
      imgtool data make faces out/faces --n 4000 --seed 0
      imgtool data make faces out/aligned --n 4000 --aligned
      imgtool data make faces out/faces_256 --n 1000 --size 256
    """
    from imgtool.data.synthetic import make

    with counting("making") as progress:
        made = make.make_faces(
            out,
            n,
            size=size,
            is_aligned=aligned,
            seed=seed,
            workers=workers,
            progress=progress,
            dry_run=dry_run,
        )
    _emit_made(output, made, seed, size, aligned)
    output.suggest("train", "genegan", "--attribute", "Smiling", "--data-root", out)


def _emit_made(
    output: Output, made: Made, seed: int, size: int | None, aligned: bool | None = None
) -> None:
    record = {
        "path": made.path,
        "num_images": made.num_images,
        "num_bytes": made.num_bytes,
        "seed": seed,
        **({} if size is None else {"size_px": size}),
        **({} if aligned is None else {"aligned": aligned}),
        "elapsed_sec": round(made.elapsed_sec, 3),
        "dry_run": made.num_bytes is None,
    }
    output.emit("data", [record])


# --- align --------------------------------------------------------------------------------


@app.command("align")
def align(
    output: Output,
    root: Annotated[
        Path,
        typer.Argument(metavar="ROOT", help="A folder in CelebA's layout; of photographs."),
    ],
    out: OutArgument,
    detect: Annotated[
        bool, typer.Option("--detect", help="Find the faces: ROOT is any folder of photographs.")
    ] = False,
    face: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --detect: which of several is taken, counted from the left; the largest "
            "without it.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Width and height in pixels; 256 without it, and CelebA's 178x218 with --detect."
        ),
    ] = None,
    image_format: Annotated[Literal["jpg", "png"], typer.Option(help="Kind of the files.")] = "jpg",
    workers: Annotated[int, typer.Option(help="Processes that align images.")] = 1,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad", help="Leave out bad images, and faces that are none or missing."
        ),
    ] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Align faces by their five landmarks: OUT/align_5p, and the tables beside it.

    A similarity transform brings each face onto the mean face: that of the table of landmarks, or
    with --detect CelebA's, and without --size into CelebA's frame, OUT/img_align_celeba. Landmarks
    outside their picture, mirrored, coinciding or no face are errors, and so is a photograph
    without a face; --skip-bad names and leaves them out. Repeat the command to finish what was
    interrupted.

    \b
    Example:
      imgtool data align img_align_celeba out/aligned --size 256 --workers 4
      imgtool data align photographs out/people --detect --skip-bad
    """
    wanted: dict[str, Any] = {
        "image_format": image_format,
        "workers": workers,
        "skip_bad": skip_bad,
        "dry_run": dry_run,
    }
    with counting("aligning") as progress:
        if detect:
            from imgtool.data.align_photographs import align_photographs

            aligned = align_photographs(
                root, out, size=size, face=face, progress=progress, **wanted
            )
        else:
            if face is not None:
                raise UsageError(
                    "--face is of photographs in which faces are found", hint="add --detect"
                )
            from imgtool.data.align import align as align_faces

            size = 256 if size is None else size
            aligned = align_faces(root, out, size=size, progress=progress, **wanted)
    _emit_aligned(output, aligned, size, face, dry_run=dry_run)


def _emit_aligned(
    output: Output, aligned: Aligned, size: int | None, face: int | None, *, dry_run: bool
) -> None:
    for bad in aligned.bad:
        say(f"left out: {bad.name}: {bad.reason}")
    which = "the largest" if face is None else f"number {face} from the left"
    counts = [f"{name}: {count}" for name, count in aligned.several.items()]
    for names, what in (
        (counts, f"more than one face, of which {which} was taken"),
        (aligned.missing, "listed and missing"),
        (aligned.without_landmarks, "warning: with attributes and without landmarks"),
        (aligned.without_part, "warning: with attributes and in no part"),
    ):
        if names:
            say(_some_line(names, what))
    record = {
        "path": aligned.path,
        "num_images": aligned.num_images,
        "num_missing_images": len(aligned.missing),
        "num_bad_files": len(aligned.bad),
        "num_without_landmarks": len(aligned.without_landmarks),
        "num_without_part": len(aligned.without_part),
        "num_with_several_faces": len(aligned.several),
        **({} if size is None else {"size_px": size}),
        "elapsed_sec": round(aligned.elapsed_sec, 3),
        "dry_run": dry_run,
        "bad_files": [{"name": bad.name, "reason": bad.reason} for bad in aligned.bad],
    }
    # A table is for people, who have just read the names.
    output.emit("data", [record], columns=[key for key in record if key != "bad_files"])


def _some_line(names: list[str], what: str) -> str:
    more = " ..." if len(names) > 5 else ""
    return f"{what}: {len(names)} ({', '.join(names[:5])}{more})"


# --- check and pack -----------------------------------------------------------------------

KindOption = Annotated[
    Literal["photos", "layouts"] | None,
    typer.Option("--dataset", help="Kind of data; found out from the path when left out."),
]


@app.command("check")
def check(
    output: Output,
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A folder, a manifest, a packed or a latents file."),
    ],
    dataset: KindOption = None,
) -> None:
    """Decode every image; report counts, sizes, bad files, duplicates and class balance.

    A folder that holds layouts.csv is checked as layouts; one with CelebA's table of attributes
    is also compared with it. Of a latents file all values are read and held against its
    fingerprint. Exit code 4 when a file is bad.

    \b
    Example:
      imgtool data check out/layouts/layouts.csv --json
    """
    from imgtool.data import check as checking

    with counting("checking") as progress:
        record = checking.check(path, dataset, progress)
    for bad in record["bad_files"]:
        line = f" (line {bad['line']})" if bad["line"] else ""
        say(f"bad: {bad['name']}{line}: {bad['reason']}")
    for key, what in (
        ("missing_images", "listed and missing"),
        ("unlisted_images", "warning: there and without attributes"),
        ("without_part", "warning: with attributes and in no part"),
        ("without_landmarks", "warning: with attributes and without landmarks"),
    ):
        if record.get(key):
            say(_some_line(record[key], what))
    # A table is for people, who have just read the names.
    lists = (
        "bad_files", "duplicates", "missing_images", "unlisted_images", "without_part",
        "without_landmarks", "attribute_counts", "channel_mean", "channel_std",
    )  # fmt: skip
    columns = [key for key in record if key not in lists]
    output.emit("data", [record], columns=columns)
    if record["num_bad_files"]:
        count = record["num_bad_files"]
        raise DataError(
            f"{path}: {count} bad file{'s' if count > 1 else ''}",
            hint="mend or remove what is named above; --skip-bad of train and pack leaves it out",
        )


@app.command("pack")
def pack(
    output: Output,
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder or a manifest.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
    dataset: KindOption = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Resize first: pixels of the shorter side.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad files out.")] = False,
    max_unmatched: Annotated[
        float,
        typer.Option(min=0, max=1, help="Largest part of a layout without a palette colour."),
    ] = 0.05,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Decode all images into one file, from which training reads without decoding.

    \b
    Example:
      imgtool data pack out/layouts/layouts.csv out/layouts.safetensors --image-size 256
    """
    if out.suffix != ".safetensors":
        raise UsageError(
            f"{out}: a packed file is named .safetensors",
            hint=f"write {out}.safetensors",
        )
    if os.path.exists(out) and not force and not dry_run:
        raise UsageError(f"{out} exists", hint="--force replaces it")
    from imgtool.data.check import open_source
    from imgtool.data.packing import pack as write_packed
    from imgtool.data.packing import packed_bytes

    images = open_source(source, dataset, skip_bad=skip_bad, max_unmatched=max_unmatched)
    for name in images.bad_files:
        say(f"left out: {name}")
    if dry_run:
        num_bytes = packed_bytes(images, image_size)
    else:
        with counting("packing") as progress:
            num_bytes = write_packed(images, out, image_size, progress)
    record = {
        "path": out,
        "num_images": len(images),
        "num_bad_files": len(images.bad_files),
        "num_bytes": num_bytes,
        "dry_run": dry_run,
    }
    output.emit("data", [record])
