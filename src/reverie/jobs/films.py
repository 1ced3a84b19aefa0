"""From a request for a film to its files: frames drawn, kept against interruption, and encoded as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reverie.errors import listen
from reverie.jobs.events import (
    Event,
    Finished,
    Load,
    Note,
    Preview,
    Saved,
    Stopwatch,
    ignore,
    model_notes,
)
from reverie.jobs.outputs import check_outputs
from reverie.media import footage, video
from reverie.progress import Progress
from reverie.requests import records
from reverie.requests.films import Animation

if TYPE_CHECKING:
    from PIL import Image

    from reverie.animation.pacing import Distance
    from reverie.media.encoder import Waveform
    from reverie.pipeline import Pipeline

SEARCH_INTERVAL = 5.0  # seconds between two notes of the search for an even pace


@dataclass(frozen=True, kw_only=True)
class FilmJob:
    """Draw a film into all its `outputs` at once, with the frames that an earlier, interrupted run left.

    `model` draws, and `drawn_by` is the model of a film that is made again. Every `previews` frames a `Preview` comes
    (0: none). `metadata` says whether the files hold the request; `no_clobber` refuses files that are there.
    """

    request: Animation
    outputs: tuple[Path, ...]
    model: str | None = None
    drawn_by: str | None = None
    previews: int = 0
    metadata: bool = True
    no_clobber: bool = False

    def check(self) -> None:
        """Raise ReverieError, before a model is loaded, for what cannot be written or read."""
        for output in self.outputs:
            video.check(output, self.request.fps)
        check_outputs(self.outputs, self.request, no_clobber=self.no_clobber)
        if self.request.init_video is not None:
            footage.read(self.request.init_video.file())

    def run(self, load: Load, tell: Callable[[Event], None] = ignore) -> Iterator[Event]:
        """Draw, and yield what happens; the last event is `Finished`.

        `tell` gets the notes of the search for a perceptual pace, before the first frame comes.
        """
        from reverie.generate.conditioning import follow_recommended  # which brings torch

        self.check()
        heard = None
        if self.request.audio is not None:
            from reverie.media import sound  # brings soundfile

            heard = sound.read(self.request.audio.file())
            silent = [output for output in self.outputs if not video.holds_sound(output)]
            yield from (Note(f"'{it}' moves to the sound but cannot hold it; .mp4 and .webm can") for it in silent)
        watch = Stopwatch()
        with watch.measure("load"):
            system = load(self.model)
            yield from model_notes(system, self.drawn_by)
        with watch.measure("draw"):
            request = follow_recommended(system, self.request)
            kept, count, size = yield from self._draw(system, request, heard, tell)
        yield from map(Saved, self.outputs)
        record = {"files": [str(output) for output in self.outputs], "frames": count, "kept": kept}
        record |= {"fps": request.fps, "seconds": count / request.fps, "size": size, "seed": request.seed}
        timings = watch.summary()
        rate = count / max(timings["draw"], 1e-9)
        summary = (
            f"{count} frames, {count / request.fps:.1f} s, seed {request.seed}; "
            f"loaded in {timings['load']:.1f} s, drawn in {timings['draw']:.1f} s ({rate:.1f} frames a second)"
        )
        yield Finished(record | {"timings": timings, "request": request.to_record()}, summary)

    def _draw(
        self, system: Pipeline, request: Animation, heard: Waveform | None, tell: Callable[[Event], None]
    ) -> Generator[Event, None, tuple[int, int, tuple[int, int]]]:
        """Draw into all outputs; return how many frames were there before, how many there are, and their size."""
        from reverie.animation.draw import BATCH
        from reverie.animation.store import FrameStore, cache, key_of, prune

        texts = records.texts(request, system.name) if self.metadata else {}
        count, size = 0, (0, 0)
        warned: list[str] = []
        with ExitStack() as stack:
            with listen(warned.append):
                store = stack.enter_context(FrameStore(cache() / key_of(system, request, batch=BATCH)))
            yield from map(Note, warned)
            kept = len(store)
            if kept:
                yield Note(f"going on: {kept} pictures are there from an earlier run")
            add = [
                stack.enter_context(
                    video.recording(
                        output, request.fps, texts=texts, sound=heard if video.holds_sound(output) else None
                    )
                )
                for output in self.outputs
            ]
            distance = perceptual(system, tell) if request.pace == "perceptual" else None
            for frame in system.animate(request, distance=distance, store=store, heard=heard, batch=BATCH):
                yield from map(Note, frame.notes)
                for write in add:
                    write(frame.picture)
                count, size = frame.done, frame.picture.size
                if self.previews and frame.index % self.previews == 0:
                    yield Preview(frame.picture)
                yield Progress(frame.done, frame.total, frame.unit)
        prune(cache())
        return kept, count, size


def perceptual(system: Pipeline, tell: Callable[[Event], None]) -> Distance[Image.Image]:
    """Return how far apart the bundled CLIP sees pictures; `tell` hears every few seconds how many it looked at."""
    from reverie.animation.pacing import angle
    from reverie.similarity.embed import load_clip

    distance = angle(load_clip(device=system.device).embed_images)
    last: Image.Image | None = None
    seen, since = 0, time.monotonic()

    def between(a: Image.Image, b: Image.Image) -> float:
        nonlocal last, seen, since
        if b is not last:
            last, seen = b, seen + 1
        if time.monotonic() - since >= SEARCH_INTERVAL:
            since = time.monotonic()
            tell(Note(f"finding an even pace: {seen} pictures looked at"))
        return distance(a, b)

    return between
