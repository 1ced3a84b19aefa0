"""What commands share: options (numbers, sizes, the model, where the result goes), and lines that they write."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from reverie.errors import ReverieError, listen


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


def parse_time(text: str | None) -> float | None:
    """Read a time such as 30s, 2m or 1.5, in seconds. Raises ReverieError for anything else and for none at all."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min)?", text)
    seconds = float(match[1]) * (60 if (match[2] or "s")[0] == "m" else 1) if match else 0.0
    if not seconds:
        raise ReverieError(f"a time of '{text}' is not possible; write seconds or minutes, such as 30s or 2m")
    return seconds


Whole = Annotated[int, Parameter(converter=_whole)]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
Several = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]
Json = Annotated[bool, Parameter("--json", negative=(), show_default=False)]
Output = Annotated[Path, Parameter(("--output", "-o"))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Choose the model and how it computes."""

    model: str | None = None
    """Folder in diffusers' layout, single file, or owner/name on the hub; the bundled model if not given."""
    config: str | None = None
    """What a single file is, where it does not tell: sd15, sdxl, ...; an unknown name lists them all."""
    prediction: str | None = None
    """What the U-Net predicts, where its file does not say or says it wrongly: eps, v, v_zsnr, x0, edm, edm_v, flow."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    variant: str | None = None
    """Which files of a folder on the hub, such as fp16."""
    vae: str | None = None
    """Autoencoder to put in place of the model's: a folder or a file."""
    unet: str | None = None
    """U-Net to put in place of the model's: a file of one alone (also .gguf), or of a whole model."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU where there is one."""
    dtype: str | None = None
    """float32, float16 or bfloat16; if not given, what suits the device."""
    fast: Annotated[bool, Parameter(negative="--no-fast", show_default=False)] = True
    """Compute with packed weights on the CPU; --no-fast computes plainly, the same but for rounding."""
    int8: Flag = False
    """Round the U-Net's weights to 8 bits: a quarter of their memory, quicker, and a little another picture."""
    offload: str | None = None
    """For GPUs with little memory: networks (one on it at a time) or blocks (part by part, slower, least memory)."""
    compile: Flag = False
    """For GPUs, and many pictures of a size: compile the networks, for minutes once; what is compiled is kept."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Choose what is written into the files, and over which."""

    metadata: Annotated[bool, Parameter(negative="--no-metadata", show_default=False)] = True
    """Write the request into the files, for `reverie replay`; --no-metadata writes nothing about how they were made."""
    no_clobber: Flag = False
    """Refuse to write over files that are there."""


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
    preview: Path | None = None
    """Picture file that is written over every few steps, to watch the drawing."""
    taesd: Path | None = None
    """TAESD that decodes the preview; if not given, a quick look by colours alone."""
    safety: Path | None = None
    """Safety checker: its folder, or a model's in diffusers' layout; what it holds back is black."""
    watermark: str | None = None
    """Text to write into the pictures invisibly; `reverie watermark read` reads it back."""
    c2pa: Path | None = None
    """Folder with cert.pem and key.pem to sign the files with (the extra c2pa)."""


def say(line: str) -> None:
    """Write one line of a command's result to stdout."""
    print(line)


def tell_numbered(names: Sequence[str]) -> None:
    """Say on stderr which names a chart shows as numbers."""
    from reverie.jobs.outputs import numbering_note  # brings pydantic, which takes longer than a --help may

    if note := numbering_note(names):
        print(note, file=sys.stderr)


@contextmanager
def tell_warnings() -> Iterator[None]:
    """Say the library's warnings of the block on stderr, a line each, as they come; each of them once."""
    said: set[str] = set()

    def tell(line: str) -> None:
        if line not in said:
            said.add(line)
            print(line, file=sys.stderr)

    with listen(tell):
        yield
