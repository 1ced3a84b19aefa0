"""How many times as fast is each row? Draws bench.json as bars, with goals and noise; joins several and prints them.

A bar is the ratio of the medians, the line across its end the least and the largest ratio of a single round, the
triangle what is wanted at least. `python benchmarks/plot.py out/bench.json --image docs/images/performance.png`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from measure import Row
from report import markdown, read

WIDTH, LABEL, ROW, EDGE = 1080, 500, 34, 16  # pixels: of all, of the names, of a row's height, around
BAR, WHISKER, MARK = 18, 8, 7  # heights
LONGEST = 4.0  # times as fast at the right end; longer bars are cut and told
TEXT = 14
AHEAD, BEHIND, INK, FAINT, GOAL = "#3b7dd8", "#d87d3b", "#222222", "#dddddd", "#c01818"


def drawn(rows: Sequence[Row]) -> Image.Image:
    """Draw the rows that have a peer."""
    rows = [row for row in rows if row.gain is not None]
    image = Image.new("RGB", (WIDTH, ROW * (len(rows) + 2) + 2 * EDGE), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)
    top, bottom = EDGE, EDGE + ROW * len(rows)
    for times in range(int(LONGEST) + 1):
        pen.line((at(times), top, at(times), bottom), fill=INK if times == 1 else FAINT)
        pen.text((at(times), bottom + 4), f"{times}", fill=INK, font=font, anchor="ma")
    for number, row in enumerate(rows):
        bar(pen, row, EDGE + ROW * number + ROW // 2, font)
    told = "times as fast (as small) as the peer; thin line: least and largest round; triangle: goal"
    pen.text((WIDTH - EDGE, bottom + 26), told, fill=INK, font=font, anchor="ra")
    return image


def bar(pen: ImageDraw.ImageDraw, row: Row, y: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    """Draw a row around the height y."""
    gain, noise = row.gain or 0, row.noise
    pen.text((LABEL - 8, y), f"{row.name} / {row.peer}", fill=INK, font=font, anchor="rm")
    end = at(gain)
    pen.rectangle((at(0), y - BAR // 2, end, y + BAR // 2), fill=AHEAD if gain >= 1 else BEHIND)
    if noise is not None:
        low, high = map(at, noise)
        pen.line((low, y, high, y), fill=INK, width=2)
        for x in (low, high):
            pen.line((x, y - WHISKER // 2, x, y + WHISKER // 2), fill=INK, width=2)
        end = max(end, high)
    if row.goal is not None:
        x = at(row.goal)
        pen.polygon([(x - MARK, y + ROW // 2), (x + MARK, y + ROW // 2), (x, y + ROW // 2 - MARK - 3)], fill=GOAL)
    pen.text((end + 6, y), f"{gain:.2f}", fill=INK, font=font, anchor="lm")


def at(times: float) -> float:
    """Return where a ratio stands."""
    return LABEL + (WIDTH - LABEL - EDGE - 48) * min(times, LONGEST) / LONGEST


def joined(files: Sequence[Path]) -> tuple[list[Row], dict[str, str]]:
    """Join the rows of several runs; a later one replaces an earlier one of the same name and peer."""
    rows: dict[tuple[str, str], Row] = {}
    machine: dict[str, str] = {}
    for file in files:
        own, machine = read(file)
        rows.update({(row.name, row.peer): row for row in own})
    return list(rows.values()), machine


def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="bench.json of one run or several")
    parser.add_argument("--image", type=Path, required=True, help="file of the plot")
    options = parser.parse_args()
    rows, machine = joined(options.files)
    options.image.parent.mkdir(parents=True, exist_ok=True)
    drawn(rows).save(options.image, optimize=True)
    print(markdown(rows, machine))


if __name__ == "__main__":
    main()
