"""`reverie watermark`: read and write the invisible watermark of pictures."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from reverie.cli.options import Output
from reverie.cli.output import say

app = App(name="watermark", help="Read and write invisible watermarks.", help_format="plaintext")


@app.command
def read(file: Path, /) -> None:
    """Print the text of a picture's invisible watermark.

    Parameters
    ----------
    file
        A picture; one saved as JPEG since still tells.
    """
    from reverie.media import watermark

    say(watermark.read(file))


@app.command
def write(file: Path, /, *, output: Output, text: str = "reverie") -> None:
    """Write an invisible watermark into a copy of a picture, whose metadata is kept.

    Parameters
    ----------
    file
        A picture.
    output
        Where the copy goes (.png, .jpg, .webp).
    text
        What it says: up to 12 bytes in 128 x 128 pixels, 60 in 256 x 256 and more.
    """
    from reverie.jobs.outputs import check_writable
    from reverie.media import watermark
    from reverie.media.pictures import open_picture, save

    check_writable([output], [file])
    save(watermark.write(open_picture(file), text), output)
    say(str(output))
