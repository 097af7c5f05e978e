"""`imgtool edit`: move attributes from face to face with a trained GeneGAN."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands._files import cannot_write, refuse_what_exists, see_that_it_can_be_written
from commands._options import DeviceOption, ForceOption
from commands._output import Output, say
from imgtool.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from imgtool.evaluation.editing import Editor, Edits
    from imgtool.evaluation.photographs import Finder, Photograph

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
PASTED_COLUMNS = (*COLUMNS, "num_faces", "face", "enlarged")
PANEL = "Photographs that are not aligned"
SOFT = 1.5  # pixels of a photograph for one of a face, from which that is said


@dataclass(frozen=True)
class Own:
    """One's own photographs."""

    align: Annotated[
        bool,
        typer.Option(
            "--align",
            help="Find the face in each photograph, and bring it to where faces were in training.",
            rich_help_panel=PANEL,
        ),
    ] = False
    paste: Annotated[
        bool,
        typer.Option(
            "--paste",
            help="With --align, which it implies: put each new face back into its photograph, in "
            "files beside --out.",
            rich_help_panel=PANEL,
        ),
    ] = False
    keep_detail: Annotated[
        bool,
        typer.Option(
            "--keep-detail",
            help="With --paste: add what the edit changes to the photograph, which stays as sharp "
            "as it is, instead of the new face.",
            rich_help_panel=PANEL,
        ),
    ] = False
    face: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Which face of several in --input, counted from the left; the largest without it.",
            rich_help_panel=PANEL,
        ),
    ] = None
    target_face: Annotated[
        int | None,
        typer.Option(min=1, help="The same of the target, or of each.", rich_help_panel=PANEL),
    ] = None
    landmarks: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the faces are, instead of finding them: a table as CelebA's, by file name.",
            rich_help_panel=PANEL,
        ),
    ] = None
    align_as: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Faces as in training, in CelebA's layout, whose frame is taken; without it those "
            "of the checkpoint's own data, else CelebA's.",
            rich_help_panel=PANEL,
        ),
    ] = None

    def __post_init__(self) -> None:
        needing = ("face", "target_face", "landmarks", "align_as")
        given = [name for name in needing if getattr(self, name) is not None]
        if given and not self.aligns:
            raise UsageError(
                f"--{given[0].replace('_', '-')} is of photographs that are not aligned",
                hint="add --align, or --paste",
            )
        if self.keep_detail and not self.paste:
            raise UsageError("--keep-detail is of pasted faces", hint="add --paste")
        if self.landmarks is not None and (self.face or self.target_face):
            raise UsageError(
                "--landmarks says where the face is: there is no other to choose",
                hint="leave out --face and --target-face",
            )

    @property
    def aligns(self) -> bool:
        return self.align or self.paste


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
    own: Own,
    img_size: SizeOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Exchange the attribute of two faces: input, target, and both after the exchange.

    With --paste the photographs of both are written as well: OUT_input.png and OUT_target.png.

    \b
    Example:
      imgtool edit swap --ckpt out/EXP00 --input a.jpg --target b.jpg --out swap.png
      imgtool edit swap --ckpt out/EXP00 --input me.jpg --target b.jpg --out swap.png --paste
    """
    work = _Work(output, own, out, ("input", "target"), force=force)
    work.open(ckpt, device, img_size)
    first, second = work.read(input, own.face), work.read(target, own.target_face)
    work.finish(work.editor.swap(first.face, second.face), (first, second))


@app.command()
def interpolate(
    output: Output,
    ckpt: CkptOption,
    input: InputOption,
    target: TargetOption,
    out: OutOption,
    own: Own,
    steps: Annotated[int, typer.Option(min=2, max=64, help="Faces on the way.")] = 5,
    img_size: SizeOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Give a face the target's attribute in steps: input, the way there, target.

    With --paste the photograph is written with each face on the way: OUT_1.png ...

    \b
    Example:
      imgtool edit interpolate --ckpt out/EXP00 --input a.jpg --target b.jpg --steps 7 --out i.png
    """
    work = _Work(output, own, out, _numbers(steps), force=force)
    work.open(ckpt, device, img_size)
    first, second = work.read(input, own.face), work.read(target, own.target_face)
    work.finish(work.editor.interpolate(first.face, second.face, steps), [first] * steps)


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
    own: Own,
    rows: Annotated[int, typer.Option(min=2, max=32, help="Faces from top to bottom.")] = 5,
    columns: Annotated[int, typer.Option(min=2, max=32, help="Faces from left to right.")] = 5,
    img_size: SizeOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Give a face every mixture of four targets' attributes, one target at each corner.

    With --paste the photograph is written with each face, by row and column: OUT_1_1.png ...

    \b
    Example:
      imgtool edit matrix --ckpt out/EXP00 --input a.jpg --targets 1.jpg 2.jpg 3.jpg 4.jpg --out m.png
    """
    paths = [
        name
        for word in targets
        for name in ([word] if os.path.exists(word) else word.split(","))
        if name
    ]
    if len(paths) != 4:
        raise UsageError(
            f"--targets takes four faces, not {len(paths)}", hint="one for each corner"
        )
    names = [f"{row}_{column}" for row in _numbers(rows) for column in _numbers(columns)]
    work = _Work(output, own, out, names, force=force)
    work.open(ckpt, device, img_size)
    first = work.read(input, own.face)
    others = [work.read(path, own.target_face).face for path in paths]
    made = work.editor.matrix(first.face, others, rows, columns)
    work.finish(made, [first] * len(names))


def _numbers(count: int) -> list[str]:
    return [str(number + 1).zfill(len(str(count))) for number in range(count)]


@dataclass(frozen=True)
class _Subject:
    """A face as the network takes it, and the photograph that it is from, where it was found."""

    face: Tensor
    photograph: Photograph | None = None


class _Work:
    """What the three commands do alike: open, read, write.

    Args:
        names: of the faces that will be made, for files of photographs.
    """

    def __init__(
        self, output: Output, own: Own, out: Path, names: Iterable[str], *, force: bool
    ) -> None:
        self._output, self._own, self._out = output, own, out
        if out.suffix.lower() != ".png":
            raise UsageError(f"--out {out} is no PNG", hint="faces are kept without loss: NAME.png")
        self._files = [out.with_name(f"{out.stem}_{name}.png") for name in names if own.paste]
        for path in (out, *self._files):
            refuse_what_exists(path, force=force)
            see_that_it_can_be_written(path)
        self._finder: Finder | None = None
        self._aligned_as: str | None = None

    def open(self, ckpt: str, device: str, img_size: int | None) -> None:
        from imgtool.training.environment import prepare

        prepare(deterministic=False)
        if self._own.aligns and self._own.landmarks is None:
            from imgtool.data.detection import open_detector

            open_detector()
        from imgtool.evaluation.editing import open_editor

        self.editor: Editor = open_editor(ckpt, device=device, img_size=img_size)
        if self._own.aligns:
            from imgtool.evaluation.photographs import Finder, frame_for

            frame, self._aligned_as = frame_for(self._own.align_as, self.editor.data_root)
            self._finder = Finder(frame, self._own.landmarks)
            say(f"aligned as {self._aligned_as}")

    def read(self, path: str, number: int | None) -> _Subject:
        if self._finder is None:
            return _Subject(self.editor.read(path))
        found = self._finder.read(path, number)
        if found.num_faces > 1:
            rule = "the largest is taken, which is" if number is None else "taken is"
            said = f"{found.num_faces} faces; {rule} number {found.number} from the left"
            say(f"{path}: {said}")
        return _Subject(self.editor.face(found.face()), found)

    def finish(self, edits: Edits, subjects: Sequence[_Subject]) -> None:
        """Write the picture and, where asked for, the photographs with the new faces."""
        record: dict[str, Any] = {
            "path": self._out,
            "checkpoint": self.editor.path,
            "iteration": self.editor.iteration,
            "img_size": self.editor.size,
            **({} if self._aligned_as is None else {"aligned_as": self._aligned_as}),
        }
        _save(edits.picture, self._out)
        records = [record]
        for path, face, former, subject in zip(
            self._files, edits.made, edits.unedited, subjects, strict=False
        ):
            pasted = _paste(face, former if self._own.keep_detail else None, subject, path)
            records.append({**record, "path": path, **pasted})
        soft = max((one["enlarged"] for one in records[1:]), default=0)
        if soft > SOFT and not self._own.keep_detail:
            say(
                f"the face of {self.editor.size} pixels is enlarged {soft:.1f} times to fit its "
                "photograph, and looks soft; --keep-detail adds only what is changed"
            )
        columns = PASTED_COLUMNS if self._files else COLUMNS
        self._output.emit("picture", records, columns=columns)


def _paste(face: Tensor, former: Tensor | None, subject: _Subject, path: Path) -> dict[str, Any]:
    """Write a photograph with a new face; what is to be told of it."""
    import torch

    photograph = subject.photograph
    assert photograph is not None, "--paste aligns"
    unedited = None if former is None else former.permute(1, 2, 0).numpy()
    pixels, enlarged = photograph.with_face(face.permute(1, 2, 0).numpy(), unedited)
    _save(torch.from_numpy(pixels).permute(2, 0, 1), path)
    return {
        "photograph": Path(photograph.path),
        "num_faces": photograph.num_faces,
        "face": photograph.number,
        "enlarged": round(enlarged, 2),
    }


def _save(picture: Tensor, path: Path) -> None:
    from imgtool.training.validation import save_picture

    try:
        save_picture(picture, path)
    except OSError as error:
        raise cannot_write(path, error) from error
