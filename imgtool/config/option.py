"""A documented field of the schema, and the types that many have."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

from imgtool.config.bounds import Ge, Gt, Lt

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Lt(1)]

_NOT_GIVEN = object()
STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


def option(
    default: Any,
    doc: str,
    *,
    run: bool = False,
    before: Any = _NOT_GIVEN,
    flag: str | None = None,
    aliases: tuple[str, ...] = (),
) -> Any:
    """A documented field.

    Args:
        default: its value when nobody sets it.
        doc: one line for `--help` and the resolved config.
        run: True when changing it leaves the experiment the same experiment.
        before: the value that behaves as programs did before there was this choice. Every new
            field gives it: stored configs that lack the field have this value, and hashes leave
            it out. An identity field that becomes a run field gives its former default, which
            holds its position in hashes; one that was added with a `before` gives none then.
        flag: its option of `imgtool train`, without dashes; the field's name by default.
        aliases: further spellings of the flag.
    """
    metadata = {"doc": doc, "run": run, "flag": flag, "aliases": aliases}
    if before is not _NOT_GIVEN:
        metadata["before"] = before
    return field(default=default, metadata=metadata)
