"""Texts of settings in AUTOMATIC1111's form: the prompt, the negative prompt, and a last line of names and values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

NAME = re.compile(r"\s*([^\W\d][\w \-/.()]*?):[ \t]*")
QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
FIRST = re.compile(r"Steps: *\d+ *(,|$)")
# A text whose line breaks were lost.
FLAT = re.compile(
    r"([^\n]*?) *(Negative prompt: [^\n]*?)?(?<=\S) +(Steps: *\d+, *(?:Sampler|CFG scale|Size|Seed): [^\n]*)"
)
USUAL = {"Sampler", "CFG scale", "Seed", "Size", "Model", "Model hash"}
NEGATIVE = "Negative prompt:"
ENOUGH = 3  # settings that make a line one of settings, as AUTOMATIC1111 counts them


class Infotext(NamedTuple):
    """The three parts of a `parameters` text; None of a prompt where it has no settings."""

    prompt: str
    negative: str
    settings: dict[str, str]


def split(text: str) -> Infotext:
    """Cut the text into prompt, negative prompt and settings; each prompt may have several lines, or none."""
    lines = text.strip().splitlines()
    if (flat := FLAT.fullmatch(text.strip())) is not None:
        lines = [part for part in (flat[1], flat[2], flat[3]) if part]
    at = _settings_line(lines)
    settings = dict(_pairs("\n".join(lines[at:])))
    lines = [line.strip() for line in lines[:at]]
    start = next((index for index, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    away = lines[start:]
    if "SD.Next" in (settings.get("App"), settings.get("Backend")):  # the wildcards that the prompts were made from
        cut = next(
            (k for k, line in enumerate(away) if line.startswith(("Template:", "Negative template:"))), len(away)
        )
        away = away[:cut]
    negative = "\n".join(away).removeprefix(NEGATIVE)
    return Infotext("\n".join(lines[:start]).strip(), negative.strip(), settings)


def _settings_line(lines: list[str]) -> int:
    """Return the index of the line that the settings begin at."""
    for index in reversed(range(len(lines))):
        if FIRST.match(lines[index]):
            return index
    if lines:
        names = [name for name, _ in _pairs(lines[-1])]
        if len(names) >= ENOUGH and USUAL & set(names):
            return len(lines) - 1
    return len(lines)


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """Yield names and values; a value is quoted JSON, whatever balanced brackets hold, or all up to the next comma."""
    at = 0
    while at < len(line):
        if not (found := NAME.match(line, at)):
            at = _after_comma(line, at)
            continue
        start = found.end()
        if quoted := QUOTED.match(line, start):
            value, end = _unquote(quoted[0]), quoted.end()
        elif line[start : start + 1] in ("{", "[") and (closed := _closing(line, start)):
            value, end = line[start:closed], closed
        else:
            end = next((k for k in range(start, len(line)) if line[k] in ",\n"), len(line))
            value = line[start:end].strip()
        yield found[1], value
        at = _after_comma(line, end)


def _after_comma(line: str, at: int) -> int:
    return next((k + 1 for k in range(at, len(line)) if line[k] in ",\n"), len(line))


def _closing(text: str, start: int) -> int:
    """Return where the brackets that open at `start` are closed again, outside of strings; 0 where they are not."""
    depth, quoted, at = 0, False, start
    while at < len(text):
        mark = text[at]
        if quoted and mark == "\\":
            at += 1
        elif mark == '"':
            quoted = not quoted
        elif not quoted:
            depth += (mark in "{[") - (mark in "}]")
            if depth == 0:
                return at + 1
        at += 1
    return 0


def _unquote(value: str) -> str:
    try:
        return str(json.loads(value, strict=False))
    except ValueError:
        return value


def pair(text: object) -> tuple[int | None, int | None]:
    """Read WIDTHxHEIGHT, or return twice None."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*[x×]\s*(\d{1,6})\s*", str(text))
    return (int(match[1]), int(match[2])) if match else (None, None)
