"""A page of search results: one HTML file that holds its pictures and needs nothing else."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from reverie.errors import ReverieError
from reverie.files import write_text
from reverie.media.decoding import to_rgb

if TYPE_CHECKING:
    from reverie.similarity.search import Results

SIDE = 224  # pixels of a thumbnail
# The page may show the pictures inside it and do nothing else, whatever a file's name says.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222;
       background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem } .note, figcaption { color: #666 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: 1rem }
figure { margin: 0 } figure img { width: 100%; height: auto; border-radius: 6px }
figcaption { font-size: .8rem; overflow-wrap: anywhere } figcaption b { color: #222 }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } figcaption b { color: #ddd } }
"""


def page(title: str, body: str) -> str:
    """Wrap HTML into a page of its own; `body` is HTML already, the title is text."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n"
        "</body></html>\n"
    )


def write_page(path: str | Path, text: str) -> None:
    """Write a page beside, then rename it. Raises ReverieError where that cannot be done."""
    write_text(Path(path), text)


def contact_sheet(results: Results) -> str:
    """Show what a search found."""
    head = results.index.header
    told = f"{len(results.hits)} of {len(results.index)} pictures in {head.source}, by {head.model}"
    return page(results.query, f'<p class="note">{escape(told)}</p>\n<main>\n{figures(results)}\n</main>')


def figures(results: Results) -> str:
    """Show each picture with its cosine and its name; of what cannot be read any more, only these."""
    return "\n".join(_figure(results, place) for place in range(len(results.hits)))


def thumbnail(picture: Image.Image) -> str:
    """Write a small picture as a data URI."""
    small = to_rgb(picture).copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _figure(results: Results, place: int) -> str:
    hit = results.hits[place]
    name = escape(hit.name)
    try:
        image = f'<img src="{thumbnail(results.index.picture(hit.entry))}" alt="{name}">'
    except ReverieError:
        image = "<p>(cannot be read any more)</p>"
    return f"<figure>{image}<figcaption><b>{hit.cosine:.3f}</b> {name}</figcaption></figure>"
