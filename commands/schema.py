"""imgtool schema: what a config may say, for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands._options import complete_families
from commands._output import document


def run(
    family: Annotated[
        str | None,
        typer.Argument(
            metavar="FAMILY",
            help="The keys of this family alone; else of each, as `family:` says.",
            autocompletion=complete_families,
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write it there instead of stdout."),
    ] = None,
) -> None:
    """Print the JSON Schema of a config, with which an editor completes and checks YAML.

    With a YAML language server (VS Code's YAML extension, coc-yaml, yaml-language-server in Emacs
    or Helix) name the file in a config's first line:

    \b
      # yaml-language-server: $schema=imgtool.schema.json

    or for a whole folder in the server's settings: "yaml.schemas": {"imgtool.schema.json":
    "experiments/**/*.yaml"}. What keys mean together is checked by `imgtool config check`.

    \b
    Example:
      imgtool schema -o imgtool.schema.json
      imgtool schema autoencoder > autoencoder.schema.json
    """
    import json

    from imgtool.config.json_schema import json_schema
    from imgtool.models.registry import FAMILIES, schema

    wanted = FAMILIES if family is None else [family]
    text = json.dumps(json_schema({name: schema(name) for name in wanted}), indent=1) + "\n"
    if out is None:
        document(text)
        return
    from commands._files import cannot_write
    from imgtool.files import write_text

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    except OSError as error:
        raise cannot_write(out, error) from error
