"""Rendering: a file of requests drawn to webdataset shards by processes or machines, resumable, the same to the bit.

A shard 00000.tar holds 000000000.png (or .mp4, .mp3), .txt with the prompts and .json with the request, then 000000001
and so on, as `corpora.shards` lays them out; 00000_stats.json tells of it, and of the requests that failed.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reverie.errors import ReverieError
from reverie.files import PART, SHARD, lock_folder, reason_of, sha256_of, tar_writer, write_text
from reverie.jobs.events import Finished, Job
from reverie.jobs.films import FilmJob
from reverie.jobs.music import MusicJob
from reverie.jobs.pictures import PictureJob
from reverie.progress import Progress
from reverie.requests.base import MAX_SEED, RANDOM_SEED, SampledRequest
from reverie.requests.films import Animation
from reverie.requests.music import Music
from reverie.requests.pictures import TextToImage
from reverie.requests.records import KINDS
from reverie.requests.references import MUSIC_NAME, recorded_name, references
from reverie.similarity.curation.samples import Message, Spread, here

if TYPE_CHECKING:
    from reverie.pipeline import Pipeline

LARGEST_SHARD = 10_000  # four digits of a key
TEXTS = ("prompt", "negative")  # cells of a table that are never JSON


def read_requests(file: Path, seed: int = 0) -> list[SampledRequest]:
    """Read a request of any of `KINDS` from each line of JSON, or each row of a .csv with a column per field.

    Without a `kind` it is a picture. Request n, from 0, has the seed `seed` + n where it names none. Raises
    ReverieError with the number of the line that is no request, names a file that is missing, or asks for several.
    """
    requests: list[SampledRequest] = []
    for line, fields in _rows(file):
        try:
            requests.append(_request(fields, (seed + len(requests)) % (MAX_SEED + 1)))
        except ReverieError as error:
            raise ReverieError(f"'{file}', line {line}: {error}", field=error.field) from error
    if not requests:
        raise ReverieError(f'\'{file}\' holds no requests; give a line such as {{"prompt": "a bear"}} for each')
    return requests


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row with the number of the line on which it ends."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ReverieError(f"cannot read '{file}': {reason_of(error)}") from error
    if file.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        for row in reader:
            if None in row or None in row.values():
                raise ReverieError(f"'{file}', line {reader.line_num}: it has not as many cells as the head has")
            yield reader.line_num, {name: _cell(name, cell) for name, cell in row.items() if cell}
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ReverieError(f"'{file}', line {number}: it is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ReverieError(f'\'{file}\', line {number}: it is no JSON object, such as {{"prompt": "a bear"}}')
        yield number, fields


def _cell(name: str, cell: str) -> Any:
    """Read lists and objects in a cell, which a table has no other form for."""
    if name in TEXTS or not cell.startswith(("[", "{")):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def _request(fields: dict[str, Any], seed: int) -> SampledRequest:
    if fields.get("seed") in (None, RANDOM_SEED, str(RANDOM_SEED)):
        fields["seed"] = seed
    request = SampledRequest.of_kind({"kind": TextToImage.kind} | fields)
    _check_request(request)
    return request


def _check_request(request: SampledRequest) -> None:
    for name, reference in references(request):
        if not reference.is_here:
            raise reference.missing(name)
    if (count := getattr(request, "count", 1)) > 1:
        raise ReverieError(f"count {count} asks for several, and a sample is one; write a line for each", field="count")


@dataclass(frozen=True)
class Rendered(Progress):
    """How far rendering is, in requests; `failed` says what those of the latest shard that failed said, by number."""

    failed: dict[int, str] = field(default_factory=dict)


def render(
    requests: Iterable[SampledRequest],
    folder: Path,
    *,
    model: str | None = None,
    spread: Spread = here,
    shard_size: int = 100,
    **options: Any,
) -> Iterator[Rendered]:
    """Draw requests into the shards of a folder, and yield how far it is as each shard is finished.

    `model` draws all of them, None is the bundled one of their kind, loaded with `options` of `pipeline.load`. Shards
    are spread over processes or machines, each computing on one thread, so that all give the same bytes. A shard has
    its name once it is whole, and is then not drawn again. A request that fails is left out, and the next run draws its
    shard anew. Raises ReverieError for requests for several pictures, a model that is not there, bad numbers, and a
    folder that holds other shards.
    """
    asked = list(requests)
    if not 1 <= shard_size <= LARGEST_SHARD:
        raise ReverieError(f"`shard_size` {shard_size} is not possible; give 1 to {LARGEST_SHARD}")
    for request in asked:
        _check_request(request)
    folder = Path(folder).absolute()
    worker = ShardWorker(folder, model, tuple(sorted(options.items())))
    lines = [_line(request) for request in asked]
    shards = [
        json.dumps({"number": number, "start": start, "requests": lines[start : start + shard_size]})
        for number, start in enumerate(range(0, len(lines), shard_size))
    ]
    with lock_folder(folder):
        worker.check(shards)
        done = 0
        yield Rendered(0, len(lines), "requests")
        for message in spread(worker, shards):
            done += message["count"]
            yield Rendered(done, len(lines), "requests", {int(n): why for n, why in message["failed"].items()})


def _line(request: SampledRequest) -> dict[str, Any]:
    """Return what a request says, with its pictures' data; what it leaves open stays open, for the model to fill in."""
    given = request.model_dump(mode="json", exclude_unset=True)
    return {"kind": request.kind, "request": given | {"seed": request.seed}}


@dataclass(frozen=True)
class ShardWorker:
    """Draw a shard: call it with its number, its first request's, and its requests. It goes to other processes."""

    folder: Path
    model: str | None
    options: tuple[tuple[str, Any], ...]

    def __call__(self, shard: str) -> Message:
        """Draw what is not drawn yet; return how many requests there were, and what those that failed said."""
        asked = json.loads(shard)
        path, key = self._path(asked["number"]), self._sum(shard)
        stats = _stats(path)
        if stats.get("sum") != key or stats["failed"] or not path.is_file():
            stats = self._draw(asked, path, key)
        return {"count": stats["count"], "failed": stats["failed"]}

    def check(self, shards: list[str]) -> None:
        """Raise ReverieError where the folder holds shards that are not of these requests, or that others follow."""
        own = {self._path(number): self._sum(shard) for number, shard in enumerate(shards)}
        for path in sorted(self.folder.glob(f"*{SHARD}")):
            if path not in own or _stats(path).get("sum") != own[path]:
                raise ReverieError(
                    f"'{self.folder}' holds shards of other requests, or of another model ({path.name}); "
                    "give another folder with `output`"
                )

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05}{SHARD}"

    def _sum(self, shard: str) -> str:
        return sha256_of([shard, self.model or "", repr(self.options)])

    def _draw(self, asked: dict[str, Any], path: Path, key: str) -> Message:
        """Write a shard; its statistics come first, so that no shard is without them.

        One of which nothing was drawn is not written: readers of webdataset take an empty one for damaged.
        """
        from reverie.runtime import one_thread  # brings torch, which takes seconds

        failed = dict[str, str]()
        for line in asked["requests"]:  # without its model no request of the shard can be drawn
            _load(self.model or (MUSIC_NAME if line["kind"] == Music.kind else None), self.options)
        path.unlink(missing_ok=True)  # one that lacks what failed would pass for whole beside the new statistics
        with (
            tempfile.TemporaryDirectory(dir=self.folder, prefix=".", suffix=PART) as scratch,
            tar_writer(path) as add,
            one_thread(),
        ):
            for place, line in enumerate(asked["requests"]):
                try:
                    members = self._members(f"{asked['number']:05}{place:04}", line, Path(scratch))
                except Exception as error:  # told, and the rest goes on
                    failed[str(asked["start"] + place)] = _why(error)
                    continue
                for name, content in members:
                    add(name, content)
            count = len(asked["requests"])
            stats = {"count": count, "successes": count - len(failed), "failed": failed, "sum": key}
            write_text(_stats_path(path), json.dumps(stats, indent=1, ensure_ascii=False))
        if not stats["successes"]:
            path.unlink()
        return stats

    def _members(self, key: str, line: dict[str, Any], scratch: Path) -> list[tuple[str, bytes]]:
        request = KINDS[line["kind"]].of(line["request"])
        job, output = _job(request, scratch / key, self.model)
        record: dict[str, Any] = {}
        for event in job.run(lambda name: _load(name, self.options)):
            if isinstance(event, Finished):
                record = event.record
        content = output.read_bytes()
        output.unlink()
        model = self.model and recorded_name(self.model)  # no folder of this machine
        sample = {"key": key, "kind": request.kind, "model": model, "request": record["request"]}
        return [
            (output.name, content),
            (f"{key}.txt", "\n".join(request.prompts).encode()),
            (f"{key}.json", json.dumps(sample, ensure_ascii=False).encode()),
        ]


def _job(request: SampledRequest, base: Path, model: str | None) -> tuple[Job, Path]:
    if isinstance(request, Animation):
        output = base.with_suffix(".mp4")
        return FilmJob(request=request, outputs=(output,), model=model), output
    if isinstance(request, Music):
        output = base.with_suffix(".mp3")
        return MusicJob(request=request, outputs=(output,), model=model), output
    assert isinstance(request, TextToImage)
    output = base.with_suffix(".png")
    return PictureJob(request=request, output=output, model=model), output


@lru_cache(maxsize=3)  # pictures, music, and the picture model of a film
def _load(name: str | None, options: tuple[tuple[str, Any], ...]) -> Pipeline:
    from reverie.pipeline import load  # brings torch, which takes seconds

    return load(name, **dict(options))


def _stats_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}_stats.json")


def _stats(path: Path) -> dict[str, Any]:
    try:
        stats = json.loads(_stats_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stats if isinstance(stats, dict) else {}


def _why(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ReverieError) else f"{type(error).__name__}: {text}"
