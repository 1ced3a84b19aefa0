"""Folders of pictures as people train from them: kohya's repeats, buckets by shape, masks, and what has no partner."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from reverie.data.captioned import PICTURES, Captioned, is_walked, open_captioned
from reverie.data.remote import Unreachable
from reverie.errors import RequestWarning, ReverieError, warn
from reverie.train.examples import AS_WRITTEN, PLAIN, Augmentation, Pictures, Size, Wording

REPEATED = re.compile(r"(\d+)_(.+)")  # kohya's: 10_sks dog holds pictures that come ten times, told by "sks dog"
NAMED = 3  # files that a note names


@dataclass(frozen=True)
class Subset:
    """Hold pictures that come `repeats` times in each pass."""

    name: str
    found: Captioned
    repeats: int = 1


def open_parts(path: str | Path, caption: str) -> list[Subset]:
    """Open a collection; folders named as kohya's, where all pictures lie in such, are parts of their own.

    The rest of such a folder's name is the caption of pictures that have none. Raises ReverieError as `open_captioned`.
    """
    folders = _find_repeated(Path(path))
    if not folders:
        return [Subset("", open_captioned(path, caption))]
    return [
        Subset(folder.name, open_captioned(folder, caption or words), int(count))
        for folder, (count, words) in folders.items()
    ]


def _find_repeated(path: Path) -> Mapping[Path, tuple[str, str]]:
    """Return the folders named as kohya's with what their names say; none where pictures lie elsewhere too."""
    if not is_walked(path):
        return {}
    named = {}
    for child in sorted(path.iterdir()):
        if child.is_dir() and (match := REPEATED.fullmatch(child.name)) and int(match[1]):
            named[child] = (match[1], match[2])
        elif child.is_dir() or _is_picture(child):
            return {}
    return named


def _is_picture(file: Path) -> bool:
    return file.suffix.lower().removeprefix(".") in PICTURES


def bucket_sizes(size: int, step: int) -> list[Size]:
    """Return the sizes, multiples of `step` in pixels, with sides of half to twice `size` and no more than its area.

    Source: kohya-ss/sd-scripts, library/model_util.py, make_bucket_resolutions.
    """
    sides = range(size // 2 // step * step or step, 2 * size + 1, step)
    wide = {(width, min(2 * size, size * size // width // step * step)) for width in sides}
    sizes = {(size, size)} | wide | {(height, width) for width, height in wide}
    return sorted(found for found in sizes if min(found) >= min(sides))


def nearest(sizes: Sequence[Size], picture: Size) -> Size:
    """Return the size whose ratio of sides is nearest to a picture's; of equal ones the largest."""
    ratio = picture[0] / picture[1]
    return min(sizes, key=lambda size: (abs(size[0] / size[1] - ratio), -size[0] * size[1]))


def open_pictures(
    path: str,
    caption: str,
    size: int,
    step: int = 0,
    augmentation: Augmentation = PLAIN,
    wording: Wording = AS_WRITTEN,
    masks: str = "",
) -> dict[str, Pictures]:
    """Open a collection as rows of pictures of one size, by names for their files; squares where `step` is 0."""
    rows: dict[str, Pictures] = {}
    damaged: list[str] = []
    varied = (augmentation, wording, find_named(masks, "masks"))
    for part in open_parts(path, caption):
        members: dict[Size, list[int]] = {}
        sizes = bucket_sizes(size, step) if step else [(size, size)]
        for number in range(len(part.found)):
            try:
                chosen = nearest(sizes, part.found.size(number)) if step else sizes[0]
            except Unreachable:
                raise
            except ReverieError as error:
                damaged.append(str(error))
            else:
                members.setdefault(chosen, []).append(number)
        for (width, height), numbers in sorted(members.items()):
            name = "-".join(filter(None, (part.name, f"{width}x{height}" if step else "")))
            rows[name] = Pictures(part.found, (width, height), tuple(numbers), *varied, part.repeats)
    if damaged:
        some = "; ".join(damaged[:NAMED]) + ("; ..." if len(damaged) > NAMED else "")
        said = f"{len(damaged)} pictures cannot be read, and are left out: {some}"
        if not rows:
            raise ReverieError(said)
        warn(said, RequestWarning, stacklevel=2)
    return rows


def hold_out(rows: Mapping[str, Pictures], share: float, seed: int) -> tuple[dict[str, Pictures], dict[str, Pictures]]:
    """Divide rows into pictures that are learned from and a share of them, drawn by `seed`, that is not.

    The latter are seen as they are, once each, and told as written. Raises ReverieError where none would be left.
    """
    places = [(name, number) for name, pictures in rows.items() for number in pictures.members]
    count = max(1, round(share * len(places)))
    if count >= len(places):
        raise ReverieError(f"held_out = {share} in [data] leaves nothing of {len(places)} pictures to learn from")
    drawn = {places[place] for place in np.random.default_rng((seed, 11)).permutation(len(places))[:count].tolist()}
    learned, held = {}, {}
    for name, pictures in rows.items():
        apart = tuple(number for number in pictures.members if (name, number) in drawn)
        rest = tuple(number for number in pictures.members if (name, number) not in drawn)
        if rest:
            learned[name] = replace(pictures, members=rest)
        if apart:
            held[name] = replace(pictures, members=apart, augmentation=PLAIN, wording=AS_WRITTEN, repeats=1)
    return learned, held


def find_named(folder: str, what: str) -> Mapping[str, Path]:
    """Return the masks or hints of a folder by the names of the pictures that they belong to, without suffixes."""
    if not folder:
        return {}
    found = {file.stem: file for file in Path(folder).rglob("*") if _is_picture(file)}
    if not found:
        raise ReverieError(f"no {what} in {folder}; give a folder of pictures named as those that they belong to")
    return found


def notes(path: str, caption: str) -> Iterator[str]:
    """Say which pictures of a folder have no caption and are left out, and which captions have no picture."""
    folder = Path(path)
    if not is_walked(folder):
        return
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    pictures = {file.with_suffix("") for file in files if _is_picture(file)}
    captions = {file.with_suffix("") for file in files if file.suffix == ".txt"}
    if (bare := sorted(pictures - captions)) and not caption and not _find_repeated(folder):
        yield f"{len(bare)} pictures without a caption are left out: {_some(bare)}; write NAME.txt, or give caption"
    if lost := sorted(captions - pictures):
        yield f"{len(lost)} captions without a picture: {_some(lost)}"


def _some(names: Sequence[Path]) -> str:
    return ", ".join(map(str, names[:NAMED])) + (", ..." if len(names) > NAMED else "")
