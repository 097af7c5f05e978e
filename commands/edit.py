"""`imgtool edit`: move attributes from face to face with a trained GeneGAN."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands._files import refuse_what_exists
from commands._options import DeviceOption, ForceOption
from commands._output import Output
from imgtool.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from imgtool.evaluation.editing import Editor

app = typer.Typer(help="Move an attribute from face to face with a trained GeneGAN.")

CkptOption = Annotated[
    str, typer.Option("--ckpt", metavar="CKPT", help="A checkpoint, or an exp_dir: its latest.")
]
InputOption = Annotated[str, typer.Option("--input", metavar="IMG", help="The face to edit.")]
TargetOption = Annotated[
    str, typer.Option("--target", metavar="IMG", help="The face whose attribute is taken.")
]
OutOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture, a PNG.")]
SizeOption = Annotated[
    int | None,
    typer.Option("--img-size", help="Pixels of the side; the checkpoint's own when unset."),
]
COLUMNS = ("path", "iteration", "img_size")


@app.callback()
def _group() -> None:
    pass


_group.__doc__ = "Move an attribute from face to face with a trained GeneGAN."


@app.command()
def swap(
    output: Output,
    ckpt: CkptOption,
    input: InputOption,
    target: TargetOption,
    out: OutOption,
    img_size: SizeOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Exchange the attribute of two faces: input, target, and both after the exchange.

    \b
    Example:
      imgtool edit swap --ckpt out/EXP00 --input a.jpg --target b.jpg --out swap.png
    """
    editor = _open(ckpt, out, device, img_size, force=force)
    _finish(output, editor, editor.swap(editor.read(input), editor.read(target)), out)


@app.command()
def interpolate(
    output: Output,
    ckpt: CkptOption,
    input: InputOption,
    target: TargetOption,
    out: OutOption,
    steps: Annotated[int, typer.Option(min=2, max=64, help="Faces on the way.")] = 5,
    img_size: SizeOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Give a face the target's attribute in steps: input, the way there, target.

    \b
    Example:
      imgtool edit interpolate --ckpt out/EXP00 --input a.jpg --target b.jpg --steps 7 --out i.png
    """
    editor = _open(ckpt, out, device, img_size, force=force)
    made = editor.interpolate(editor.read(input), editor.read(target), steps)
    _finish(output, editor, made, out)


@app.command()
def matrix(
    output: Output,
    ckpt: CkptOption,
    input: InputOption,
    targets: Annotated[
        list[str],
        typer.Option(
            "--targets",
            "--target",
            metavar="IMG IMG IMG IMG",
            help="Four faces, the corners: top left, top right, bottom left, bottom right.",
        ),
    ],
    out: OutOption,
    rows: Annotated[int, typer.Option(min=2, max=32, help="Faces from top to bottom.")] = 5,
    columns: Annotated[int, typer.Option(min=2, max=32, help="Faces from left to right.")] = 5,
    img_size: SizeOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Give a face every mixture of four targets' attributes, one target at each corner.

    \b
    Example:
      imgtool edit matrix --ckpt out/EXP00 --input a.jpg --targets 1.jpg 2.jpg 3.jpg 4.jpg --out m.png
    """
    names = [name for words in targets for name in words.split(",") if name]
    if len(names) != 4:
        raise UsageError(
            f"--targets takes four faces, not {len(names)}", hint="one for each corner"
        )
    editor = _open(ckpt, out, device, img_size, force=force)
    faces = [editor.read(name) for name in names]
    _finish(output, editor, editor.matrix(editor.read(input), faces, rows, columns), out)


def _open(ckpt: str, out: Path, device: str, img_size: int | None, *, force: bool) -> Editor:
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out} is no PNG", hint="faces are kept without loss: NAME.png")
    refuse_what_exists(out, force=force)
    from imgtool.training.environment import prepare

    prepare(deterministic=False)
    from imgtool.evaluation.editing import open_editor

    return open_editor(ckpt, device=device, img_size=img_size)


def _finish(output: Output, editor: Editor, picture: Tensor, out: Path) -> None:
    from imgtool.training.validation import save_picture

    try:
        save_picture(picture, out)
    except OSError as error:
        raise DataError(
            f"cannot write {out}: {error.strerror or error}", hint="check the disk and permissions"
        ) from error
    record = {
        "path": out,
        "checkpoint": editor.path,
        "iteration": editor.iteration,
        "img_size": editor.size,
    }
    output.emit("picture", [record], columns=COLUMNS)
