"""Which options do commands share? Strict numbers, sizes in pixels, the model and where the result goes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from reverie.errors import ReverieError


def _whole(kind: Any, tokens: Sequence[Token]) -> int:
    text = tokens[0].value
    if not re.fullmatch(r"[+-]?\d+", text):  # cyclopts rounds 2.5 to 2 and says nothing
        raise ValueError(f"'{text}' is not a whole number")
    return int(text)


def parse_size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT. Raises ReverieError for anything else."""
    match = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if match is None:
        raise ReverieError(f"size '{text}' is not possible; write WIDTHxHEIGHT in pixels, such as 128x128")
    return int(match[1]), int(match[2])


Whole = Annotated[int, Parameter(converter=_whole)]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
Json = Annotated[bool, Parameter("--json", negative=(), show_default=False)]
Output = Annotated[Path, Parameter(("--output", "-o"))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Choose the model and how it computes."""

    model: str | None = None
    """Folder of a model in diffusers' layout; the bundled model if not given."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU where there is one."""
    dtype: str | None = None
    """float32, float16 or bfloat16; if not given, what suits the device."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """Choose where the pictures go and how they are told of."""

    output: Output | None = None
    """Picture file (.png, .jpg, .webp), numbered where --count is above 1; named after the prompt if not given."""
    grid: Flag = False
    """Lay all pictures out in one file."""
    as_json: Json = False
    """Print one JSON object with files, seeds, sizes and timings."""
