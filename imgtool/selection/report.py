"""A selection as a page with figures, for people."""

from __future__ import annotations

from pathlib import Path

from imgtool.errors import UsageError
from imgtool.files import write_bytes, write_text
from imgtool.selection import edits, pictures
from imgtool.selection.markup import Shown
from imgtool.selection.page import Page
from imgtool.selection.plots import figures
from imgtool.selection.records import Selection
from imgtool.selection.style import Style

TITLES = {
    "quality": "Quality against size",
    "generation": "Reconstruction against generation against size",
    "curves": "Curves",
    "relative": "Relative to the best",
    "convergence": "Convergence and stability",
    "efficiency": "Cost",
    "reconstructions": "Reconstructions",
    "interpolations": "Interpolations",
    "latents": "Latents",
    "edits": "Success against preservation",
    "faces": "The same faces, edited",
    "fid": "FID",
}
ORDER = (
    "quality",
    "generation",
    "edits",
    "faces",
    "fid",
    "reconstructions",
    "curves",
    "relative",
    "convergence",
    "efficiency",
    "interpolations",
    "latents",
)
PHOTOGRAPHS = ("faces", "reconstructions", "interpolations")


def write_report(selection: Selection, folder: Path) -> Path:
    """Write index.html, which holds everything, and its figures as PNGs beside it.

    What is missing (pictures, curves, latents.json) is left out. Other files of the folder stay.

    Returns:
        the page's path.

    Raises:
        UsageError: the folder cannot be written to.
    """
    style = Style(selection)
    with style.drawing():
        made = {stem: (caption, data) for stem, caption, data in figures(selection, style)}
        for stem, caption, data in (
            (
                "reconstructions",
                "The same validation images in every experiment, in the order of the ranking.",
                pictures.reconstructions(selection, style),
            ),
            (
                "interpolations",
                "Equal steps between the latents of two validation images, decoded.",
                pictures.interpolations(selection, style),
            ),
            ("faces", edits.caption_of_faces(selection), edits.faces(selection, style)),
            ("latents", "Statistics of latents.json.", pictures.latent_figure(selection, style)),
        ):
            if data is not None:
                made[stem] = (caption, data)
    shown = [
        Shown(title=TITLES[stem], caption=caption, data=data, is_drawn=stem not in PHOTOGRAPHS)
        for stem in ORDER
        if stem in made
        for caption, data in [made[stem]]
    ]
    latents = {
        v.candidate.name: found
        for v in selection.verdicts
        if (found := pictures.latents_of(v)) is not None
    }
    tested = pictures.tested_of(selection.winner) if selection.winner else None
    text = Page(selection, style, folder).render(shown, latents, tested)
    page = folder / "index.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stem, (_, data) in made.items():
            write_bytes(folder / f"{stem}.png", data)
        # A name may have bytes that are no text.
        write_text(page, text.encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot write the report to {folder}: {error.strerror or error}",
            hint="give another folder to --report",
        ) from error
    return page
