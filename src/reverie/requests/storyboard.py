"""Storyboards: films written as texts, one a keyframe or several with `|`, or as a TOML or JSON file."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reverie.errors import ReverieError
from reverie.files import reason_of

Fields = dict[str, Any]

OPTIONS = ("seed", "image", "vary", "guidance", "strength", "negative", "easing")
"""What a keyframe's text may say after its prompt: `@seed 3`."""

FILES = ("audio", "init_video")
PICTURES = ("image", "vary")  # of a keyframe
LISTS_OF_FILES = ("loras", "embeddings", "folders")
LARGEST = 64 * 1024**2  # bytes of a storyboard, whose pictures may stand in it as data URLs

_TIME = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*s\s*:")
# "80s fashion" is a decade and no time.
_NO_COLON = re.compile(r"\s*(?!\d+0s)(\d+(?:\.\d*)?|\.\d+)\s?s\s+(?!:)(\S.*)", re.DOTALL)
_OPTION = re.compile(r"(?:^|(?<=\s))@([A-Za-z_]\w*)")


def parse(text: str) -> list[Fields]:
    """Read one text: `2s: an apple @seed 3`, or several keyframes, `a bear | an apple`, as the reference writes them.

    The time and all options may be left out; options hold for every keyframe of the text. A `|` in brackets is the
    prompt's own. Raises ReverieError for an unknown option, one given twice, and a time with several keyframes.
    """
    when = _TIME.match(text)
    if when is None and (time := _NO_COLON.match(text)) is not None:
        raise ReverieError(f"'{text}' begins with a time and has no colon after it; write '{time[1]}s: {time[2]}'")
    body = text[when.end() :] if when else text
    prompts, fields = _options(body)
    parts = [part.strip() for part in _split(prompts)]
    if when is not None:
        if len(parts) > 1:
            raise ReverieError(f"'{text}' has one time for {len(parts)} keyframes; write a text with a time for each")
        fields["time"] = float(when[1])
    return [{"prompt": part, **fields} for part in parts]


def _options(text: str) -> tuple[str, Fields]:
    """Take the options off a text's end."""
    first, *rest = _OPTION.split(text)
    fields: Fields = {}
    for name, value in zip(rest[::2], rest[1::2], strict=True):
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            hint = f"did you mean '@{near[0]}'? " if near else ""
            allowed = ", ".join(f"@{option}" for option in OPTIONS)
            raise ReverieError(f"unknown keyframe option '@{name}'; {hint}choose from {allowed}")
        if name in fields:
            raise ReverieError(f"'@{name}' is given twice in '{text.strip()}'; give it once")
        fields[name] = value.strip()
    return first, fields


def _split(text: str) -> Iterator[str]:
    """Cut a text at each `|` that stands outside of brackets and has no backslash before it."""
    depth, begin, index = 0, 0, 0
    while index < len(text):
        letter = text[index]
        if letter == "\\":
            index += 1
        elif letter in "([":
            depth += 1
        elif letter in ")]":
            depth = max(0, depth - 1)
        elif letter == "|" and depth == 0:
            yield text[begin:index]
            begin = index + 1
        index += 1
    yield text[begin:]


def read(path: str | Path) -> Fields:
    """Read a storyboard: the fields of an `Animation`, and its keyframes as a list of tables or of texts.

    `[[keyframe]]` or `keyframes`, in TOML (.toml) or JSON (.json). Files are named from the storyboard's own folder.
    Raises ReverieError for a file that cannot be read or is neither.
    """
    path = Path(path)
    fields = _load(path)
    if "keyframe" in fields:
        if "keyframes" in fields:
            raise ReverieError(f"'{path}' has both keyframe and keyframes; write one of them")
        fields["keyframes"] = fields.pop("keyframe")
    keyframes = fields.get("keyframes")
    if not isinstance(keyframes, list) or not keyframes:
        raise ReverieError(f"'{path}' holds no keyframes; write [[keyframe]] tables, or a list named keyframes")
    fields["keyframes"] = [one for given in keyframes for one in _keyframe(given, path)]
    for name in FILES:
        if isinstance(fields.get(name), str):
            fields[name] = _beside(path, fields[name])
    regions = fields.get("regions")
    for region in regions if isinstance(regions, list) else ():
        if isinstance(region, dict) and isinstance(mask := region.get("mask"), str) and not mask.startswith("data:"):
            region["mask"] = _beside(path, mask)
    for name in LISTS_OF_FILES:
        if isinstance(fields.get(name), list):
            fields[name] = [_beside(path, one) if isinstance(one, str) else one for one in fields[name]]
    return fields


def _keyframe(given: object, path: Path) -> list[Fields]:
    if isinstance(given, str):
        found = parse(given)
    elif isinstance(given, dict):
        found = [dict(given)]
    else:
        raise ReverieError(f"a keyframe in '{path}' is {given!r}; write a table or a text")
    for fields in found:
        for name in PICTURES:
            picture = fields.get(name)
            if isinstance(picture, str) and not picture.startswith("data:"):
                fields[name] = _beside(path, picture)
    return found


def _beside(path: Path, name: str) -> str:
    return str(path.parent / Path(name).expanduser())


def _load(path: Path) -> Fields:
    readers = {".toml": tomllib.loads, ".json": json.loads}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ReverieError(f"unknown storyboard '{path}'; write it as .toml or .json")
    if path.is_file() and path.stat().st_size > LARGEST:
        raise ReverieError(f"'{path}' is too large for a storyboard; it may have {LARGEST // 1024**2} MiB")
    try:
        found = reader(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReverieError(f"cannot read '{path}': {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ReverieError(f"'{path}' is not {path.suffix[1:].upper()}: {str(error) or 'nested too deep'}") from error
    if not isinstance(found, dict):
        raise ReverieError(f"'{path}' must hold a table, not a {type(found).__name__}")
    return found
