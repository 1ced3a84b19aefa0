"""How does a frozen request refuse bad input? In one line: what was given, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from reverie.errors import ReverieError


class Frozen(BaseModel):
    """Hold checked values that do not change. Raises ReverieError, in one line, for any value out of range."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    part: ClassVar[str] = ""
    """What a complaint names before the field, for a part of a request."""

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ReverieError(one_line(error, type(self))) from None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Check fields of any type that can be turned into the right one, such as paths into pictures."""
        return cls(**fields)

    def replace(self, **changes: object) -> Self:
        """Return a copy with some fields changed, checked again."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


def one_line(error: ValidationError, request: type[Frozen]) -> str:
    """Say the first of pydantic's complaints in one line: what was given, what is allowed, and how many more."""
    first, *others = error.errors()
    more = f" (and {len(others)} more)" if others else ""
    return _complaint(first, request) + more


def _complaint(error: ErrorDetails, request: type[Frozen]) -> str:
    if error["type"] == "value_error":  # one of our own checks, which says it all
        return str(error["ctx"]["error"])
    name, given = str(error["loc"][0]), error["input"]
    if error["type"] == "missing":
        return f"{request.part}{name} is missing; {request.__name__} needs it"
    if error["type"] == "extra_forbidden":
        return _unknown(f"{request.part}option", name, list(request.model_fields))
    if error["type"] == "literal_error":
        return _unknown(request.part + name, given, get_args(request.model_fields[name].annotation))
    message = error["msg"].removeprefix("Input ").removeprefix("should ")
    return f"{request.part}{name} {given!r} is not possible; it should {message}"


def _unknown(what: str, given: object, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(given), allowed, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {what} {given!r}; {hint}choose from {', '.join(allowed)}"
