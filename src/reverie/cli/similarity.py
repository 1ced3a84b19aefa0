"""`reverie similarity`: cosines between the CLIP embeddings of pictures and texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.cells import cell_len, set_cell_size

from reverie.cli.options import Flag, Json, Output, say, tell_numbered
from reverie.errors import ReverieError
from reverie.files import find_path

if TYPE_CHECKING:
    from reverie.similarity.embed import Clip

WIDEST = 32  # columns of a terminal that a name may take


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """Choose the CLIP and where it computes."""

    model: str | None = None
    """Folder, single file or name (ViT-B/32, or owner/name on the hub); the bundled CLIP if not given."""
    activation: str | None = None
    """gelu or quick_gelu: how a single file was trained, where it does not tell."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    device: str = "auto"
    """cpu, cuda or mps; auto takes a GPU where there is one."""
    dtype: str | None = None
    """float32, float16 or bfloat16; if not given, what suits the device."""

    def load(self) -> Clip:
        """Load it."""
        from reverie.similarity.embed import load_clip  # brings torch, which takes seconds

        return load_clip(
            self.model, device=self.device, dtype=self.dtype, activation=self.activation, revision=self.revision
        )


def similarity(
    *items: str,
    text: Annotated[list[str] | None, Parameter(negative=())] = None,
    clip: ClipOptions = ClipOptions(),
    as_json: Json = False,
    as_csv: Annotated[Flag, Parameter("--csv")] = False,
    output: Output | None = None,
) -> None:
    """Print the cosines of pictures with texts; where there are only pictures, or only texts, of each with each.

    Parameters
    ----------
    items
        Files of pictures and texts, in any order: what is a file, or is called as pictures are, is a picture.
    text
        A text, whatever files there are; several times.
    as_json
        Print one JSON object.
    as_csv
        Print comma-separated values.
    output
        Picture file to draw the matrix into as a heat map.
    """
    pictures, texts = split_items(items)
    texts += text or []
    if not pictures and not texts:
        raise ReverieError('nothing to compare; give pictures and texts, as in: reverie similarity *.png "a bear"')
    if as_json and as_csv:
        raise ReverieError("--json and --csv are two ways to print one matrix; leave one out")
    if output is not None:
        from reverie.jobs.outputs import check_writable

        check_writable([output])
    likeness = clip.load().similarity(pictures, texts)
    if output is not None:
        from reverie.media.pictures import save

        save(likeness.heat_map(), output)
        tell_numbered(likeness.rows)
        tell_numbered(likeness.columns if likeness.columns != likeness.rows else ())
    if as_json:
        say(json.dumps(likeness.record() | {"heat_map": str(output) if output else None}, ensure_ascii=False))
    elif as_csv:
        say(likeness.csv().rstrip("\n"))
    else:
        rows = shorten(likeness.rows) if pictures else likeness.rows
        columns = likeness.columns if texts else shorten(likeness.columns)
        cells = [[f"{value:.3f}" for value in row] for row in likeness.cosines.tolist()]
        say("\n".join(table(rows, columns, cells)))


def split_items(items: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Tell files of pictures from texts. Raises ReverieError for a folder, and for a picture that is not there."""
    from reverie.media.pictures import READABLE

    pictures, texts = [], []
    for item in items:
        path = find_path(item)
        if path is not None and path.is_file():
            pictures.append(path)
        elif path is not None:
            pattern = f"{item.rstrip('/')}/*.png"
            raise ReverieError(f"'{item}' is a folder; give its pictures, as in {pattern}, or --text for the word")
        elif Path(item).suffix.lower() in READABLE and " " not in item:
            raise ReverieError(f"no picture '{item}': there is no such file; if it is a text, give it with --text")
        else:
            texts.append(item)
    return pictures, texts


def shorten(files: Sequence[str]) -> list[str]:
    """Drop the folders of files where their names alone tell them apart; else the ends of their paths do."""
    names = [Path(file).name for file in files]
    if len(set(names)) == len(files):
        return names
    return [file if len(file) <= WIDEST else "…" + file[1 - WIDEST :] for file in files]


def table(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lay names and cells out in columns of a terminal; long names are cut, Chinese letters take two places."""
    rows, columns = ([_cut(name) for name in names] for names in (rows, columns))
    left = max((cell_len(name) for name in rows), default=0)
    widths = [max(cell_len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(columns)]
    lines = [[" " * left, *(_right(name, width) for name, width in zip(columns, widths, strict=True))]]
    for name, row in zip(rows, cells, strict=True):
        lines.append([set_cell_size(name, left), *(_right(c, width) for c, width in zip(row, widths, strict=True))])
    return ["  ".join(line) for line in lines]


def _cut(name: str) -> str:
    name = " ".join(name.split())
    return name if cell_len(name) <= WIDEST else set_cell_size(name, WIDEST - 1) + "…"


def _right(text: str, width: int) -> str:
    return " " * (width - cell_len(text)) + text
