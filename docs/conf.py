"""How `make docs` builds the site; the pages are plain Markdown and read well without it."""

from pathlib import Path

project = "imgtool"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "imgtool"
html_show_copyright = False
smartquotes = False  # options keep their two dashes
myst_heading_anchors = 3  # links name headings as they do on code hosts

# The order of the pages on the left.
PAGES = [
    *("install", "train", "run-timed", "clusters", "choosing", "fid", "faces", "codec"),
    *("latents", "export", "flow", "data"),
    *("configs", "scripts", "measurements", "design", "reference/index"),
]


def contents(names: list[str]) -> str:
    """A table of contents for the side of the page alone."""
    return "\n".join(["", "```{toctree}", ":hidden:", "", *names, "```", ""])


def add_contents(app: object, name: str, source: list[str]) -> None:
    """Give the two index pages their contents here, so that the files stay plain Markdown."""
    if name == "index":
        source[0] += contents(PAGES)
    if name == "reference/index":
        folder = Path(__file__).parent / "reference"
        source[0] += contents(
            sorted(path.stem for path in folder.glob("*.md") if path.stem != "index")
        )


def setup(app: object) -> None:
    app.connect("source-read", add_contents)  # type: ignore[attr-defined]
