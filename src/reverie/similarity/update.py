"""Updates of an index: what is new or changed is embedded, what is gone is forgotten."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from reverie.codecs.clip_images import Picture
from reverie.errors import ReverieError
from reverie.files import lock_folder, reason_of
from reverie.progress import Progress
from reverie.similarity.index import (
    HEADER,
    Index,
    IndexEntry,
    IndexHeader,
    IndexWriter,
    PicturePlace,
    Skipped,
    base_of,
    compact,
    find_places,
    journal_file,
    open_index,
    read_place,
    vectors_file,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Embedder(Protocol):
    """What an index needs of a CLIP."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def width(self) -> int: ...
    def levels(self, pictures: Sequence[Picture]) -> UInt8[Tensor, "n 3 h w"]: ...
    def embed_levels(self, levels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]: ...


@dataclass(frozen=True)
class IndexUpdate(Progress):
    """How far an update is; `added` counts new and changed pictures, `kept` what needed no work."""

    added: int
    kept: int
    gone: int
    skipped: tuple[Skipped, ...] = field(repr=False, default=())
    """What could not be read in this run."""


def update(
    folder: str | Path, source: str | Path, clip: Embedder, *, batch: int = 32, workers: int = 2
) -> Iterator[IndexUpdate]:
    """Bring an index up to date with a folder of pictures or shards, made where there is none yet.

    Embeds what is new or changed, `batch` at a time while `workers` threads decode what follows; forgets what is gone;
    lists what cannot be read, which is tried again when its file changes. Each event's pictures are on disk. Raises
    ReverieError where the index is of another model or source, or another process is writing it.
    """
    folder, source = Path(folder), Path(source)
    if batch < 1 or workers < 1:
        raise ReverieError(f"a batch of {batch} with {workers} workers makes no index; both should be 1 or more")
    places, damaged = find_places(source)
    _begin(folder, source, clip)
    with lock_folder(folder):
        index = _begin(folder, source, clip)  # again: another process may have added to it before the lock was ours
        wanted = [place for place in places if (known := index.entries.get(place.name)) is None or known.place != place]
        gone = _missing_names(index, places, damaged)
        writer = IndexWriter(folder, index.header)
        writer.forget(gone)
        progress = IndexUpdate(0, len(wanted), "pictures", 0, len(places) - len(wanted), len(gone), tuple(damaged))
        yield progress
        for entries, rows in _embed(clip, base_of(source), wanted, batch, workers):
            writer.add(entries, [rows])
            progress = replace(
                progress,
                done=progress.done + len(entries),
                added=progress.added + len(rows),
                skipped=progress.skipped + tuple(Skipped(it.place.name, it.reason) for it in entries if it.reason),
            )
            yield progress
        compact(open_index(folder))


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int
) -> Iterator[tuple[Item, Result]]:
    """Call a function in threads, `ahead` items before they are asked for, and give the results in order."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(folder: Path, source: Path, clip: Embedder) -> Index:
    """Open the index that is to grow, or begin one. Raises ReverieError where it is another's."""
    where = str(source.resolve())
    if not (folder / HEADER).exists():
        header = IndexHeader(model=clip.name, identity=clip.identity, width=clip.width, source=where)
        begun = {vectors_file(folder, header), journal_file(folder, header)}  # by a command that was stopped at once
        if folder.exists() and (not folder.is_dir() or set(folder.glob("[!.]*")) - begun):
            raise ReverieError(f"'{folder}' is there and no index; give a new or empty folder with `output`")
        return Index(folder, header, {}, np.zeros((0, clip.width), np.float32))
    index = open_index(folder)
    if index.header.identity != clip.identity:
        raise ReverieError(
            f"the index '{folder}' is of the model '{index.header.model}', not of '{clip.name}' with these weights; "
            "give that `model`, or another folder with `output`"
        )
    if index.header.source != where and Path(index.header.source).exists():
        raise ReverieError(f"the index '{folder}' is of '{index.header.source}'; give another folder with `output`")
    return replace(index, header=replace(index.header, source=where))  # the collection was moved


def _missing_names(index: Index, places: Sequence[PicturePlace], damaged: Sequence[Skipped]) -> list[str]:
    """Name the pictures that are no more; what lay in a shard that cannot be read now may be so for a moment only."""
    there = {place.name for place in places}
    hidden = tuple(f"{shard.name}/" for shard in damaged)
    return [name for name in index.entries if name not in there and not name.startswith(hidden)]


def _embed(
    clip: Embedder, base: Path, places: Sequence[PicturePlace], batch: int, workers: int
) -> Iterator[tuple[list[IndexEntry], Float[np.ndarray, "n d"]]]:
    """Embed pictures, a batch at a time; a row for each that could be read."""
    entries: list[IndexEntry] = []
    levels: list[Tensor] = []
    found = prefetch(partial(_levels, clip, base), places, workers, 2 * batch)
    for number, (place, decoded) in enumerate(found, start=1):
        if isinstance(decoded, str):
            entries.append(IndexEntry(place, reason=decoded))
        else:
            entries.append(IndexEntry(place))
            levels.append(decoded)
        if len(levels) == batch or number == len(places) or len(entries) >= 4 * batch:
            yield entries, clip.embed_levels(torch.cat(levels)).numpy() if levels else np.zeros((0, clip.width))
            entries, levels = [], []


def _levels(clip: Embedder, base: Path, place: PicturePlace) -> UInt8[Tensor, "1 3 h w"] | str:
    """Decode one picture, or say why that cannot be done."""
    try:
        return clip.levels([read_place(base, place)])
    except Exception as error:  # one picture of a strange shape should not end a job of millions
        return reason_of(error)
