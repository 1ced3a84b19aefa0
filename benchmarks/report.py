"""How is a measurement shown? As a markdown table for people and as JSON for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from measure import Row

HEAD = ("", "reverie min", "median", "peer min", "median", "times as fast", "in a round", "goal", "")


def cells(row: Row) -> list[str]:
    """Write one row's cells."""
    numbers = [*extremes(row.ours, row.unit), *extremes(row.theirs, row.unit)]
    gain = "" if row.gain is None else f"{row.gain:.2f}"
    noise = "" if row.noise is None else "{:.2f} to {:.2f}".format(*row.noise)
    goal = "" if row.goal is None else f"{row.goal:.2f}"
    remarks = [f"peer: {row.peer}" if row.theirs else "", row.note]
    return [row.name, *numbers, gain, noise, goal, "; ".join(filter(None, remarks))]


def extremes(values: Sequence[float], unit: str) -> list[str]:
    """Write the least and the median of some values."""
    return [amount(min(values), unit), amount(statistics.median(values), unit)] if values else ["", ""]


def amount(value: float, unit: str) -> str:
    """Write a value with three digits or more and its unit, a short time in milliseconds."""
    if unit == "s" and value < 1:
        value, unit = 1000 * value, "ms"
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:#.3g} {unit}"


def markdown(rows: Sequence[Row], machine: Mapping[str, str]) -> str:
    """Write the table, with the machine below it."""
    lines = [HEAD, ["---"] + ["---:"] * 7 + ["---"], *map(cells, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    described = ", ".join(f"{name} {value}" for name, value in machine.items())
    return f"{table}\n\nTimes as fast (as small): the peer's median over reverie's. {described}.\n"


def write(rows: Sequence[Row], machine: Mapping[str, str], folder: Path) -> tuple[Path, Path]:
    """Write bench.md and bench.json into a folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table, data = folder / "bench.md", folder / "bench.json"
    table.write_text(markdown(rows, machine), encoding="utf-8")
    records = [asdict(row) | {"gain": row.gain, "noise": row.noise, "goal": row.goal} for row in rows]
    data.write_text(json.dumps({"machine": dict(machine), "rows": records}, indent=1) + "\n", encoding="utf-8")
    return table, data


def read(data: Path) -> tuple[list[Row], dict[str, str]]:
    """Read a bench.json again."""
    told = json.loads(data.read_text(encoding="utf-8"))
    names = [one.name for one in fields(Row)]
    return [Row(**{name: record[name] for name in names}) for record in told["rows"]], told["machine"]
