"""Bounds of numbers in a schema, as pydantic reads them.

`annotated_types` has the same, but importing it costs every command and every TAB 15 ms.
"""

from __future__ import annotations

from typing import Any


class Bound:
    """A limit of a number, for use in Annotated."""

    key = ""  # pydantic's name for it
    words = ""

    def __init__(self, value: float) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value})"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {**handler(source), self.key: self.value}


class Ge(Bound):
    """Greater than or equal."""

    key, words = "ge", "of at least"


class Gt(Bound):
    """Greater than."""

    key, words = "gt", "above"


class Le(Bound):
    """Less than or equal."""

    key, words = "le", "of at most"


class Lt(Bound):
    """Less than."""

    key, words = "lt", "below"
