"""From a request for music to its files: clips played, written, and a film drawn to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reverie.errors import ReverieError, listen
from reverie.jobs.events import Event, Finished, Load, Note, Saved, Stopwatch, ignore, model_notes, seeds_text
from reverie.jobs.outputs import check_outputs, check_writable, numbered_paths
from reverie.media.pictures import FORMATS
from reverie.progress import Progress
from reverie.requests import records
from reverie.requests.music import Film, Music
from reverie.requests.references import MUSIC_NAME

if TYPE_CHECKING:
    from reverie.music.sections import Recording
    from reverie.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class MusicJob:
    """Play a request's clips into `outputs`, sounds or pictures of their spectrograms, and a film to the one clip.

    `model` plays, None is the bundled model of music; `drawn_by` is the model of a sound that is made again. The film
    goes to `film_output` and is what `film` says, drawn by its model. `metadata` says whether the files hold the
    request; `no_clobber` refuses files that are there.
    """

    request: Music
    outputs: tuple[Path, ...] = ()
    film: Film | None = None
    film_output: Path | None = None
    model: str | None = None
    drawn_by: str | None = None
    metadata: bool = True
    no_clobber: bool = False

    def check(self) -> None:
        """Raise ReverieError, before a model is loaded, for what cannot be written."""
        count = self.request.count
        for path in self.outputs:
            if path.suffix.lower() in FORMATS:
                check_writable(numbered_paths(path, count))
            else:
                from reverie.media import sound  # brings torch, which takes seconds

                sound.check_writable(path)
        every = [place for path in self.outputs for place in numbered_paths(path, count)]
        every += [] if self.film_output is None else [self.film_output]
        check_outputs(every, self.request, no_clobber=self.no_clobber)
        if self.film_output is not None and self.film is not None:
            from reverie.media import video

            video.check(self.film_output, self.film.fps, sound=True)
            if count > 1:
                raise ReverieError(f"one film goes to one clip, and count is {count}; leave out one of them")

    def run(self, load: Load, tell: Callable[[Event], None] = ignore) -> Iterator[Event]:
        """Play, and yield what happens; the last event is `Finished`."""
        from reverie.generate.conditioning import follow_recommended  # which brings torch

        self.check()
        watch = Stopwatch()
        with watch.measure("load"):
            system = load(self.model or MUSIC_NAME)
            yield from model_notes(system, self.drawn_by)
            painter = None if self.film is None else load(self.film.model)
        music = follow_recommended(system, self.request)
        self._check_texts(music, system.name)
        clips: list[Recording] = []
        files: list[Path] = []
        with watch.measure("draw"):
            warned: list[str] = []
            with listen(warned.append):
                steps = system.play(music)
            yield from map(Note, warned)
            for step in steps:
                yield from map(Note, step.notes)
                if step.clip is not None:
                    clips.append(step.clip)
                    with watch.measure("save"):
                        yield from self._write(step.clip, len(clips) - 1, files)
                yield Progress(step.done, step.total, step.unit)
        if painter is not None and self.film_output is not None:
            with watch.measure("film"):
                yield from self._draw_film(painter, clips[0], self.film_output)
            files.append(self.film_output)
        seconds = [clip.seconds for clip in clips]
        seeds, timings = [clip.request.seed for clip in clips], watch.summary()
        record = {"files": [str(path) for path in files], "seeds": seeds}
        record |= {"seconds": seconds, "rate": clips[0].rate, "channels": clips[0].channels}
        factor = sum(seconds) / max(watch.seconds["draw"], 1e-9)
        record |= {"timings": timings, "real_time_factor": round(factor, 3), "request": music.to_record()}
        summary = (
            f"{sum(seconds):.2f} s, {seeds_text(seeds)}; loaded in {timings['load']:.1f} s, "
            f"played in {timings['draw']:.1f} s ({factor:.2f} s of sound a second)"
        )
        yield Finished(record, summary)

    def _check_texts(self, music: Music, model: str) -> None:
        """Raise ReverieError, before anything is played, where a WAV file cannot hold the request."""
        from reverie.media import sound

        texts = records.texts(music, model) if self.metadata else {}
        for path in self.outputs:
            sound.check_texts(texts, path.suffix.lower())

    def _write(self, clip: Recording, index: int, files: list[Path]) -> Iterator[Event]:
        """Write a clip to each of the outputs, numbered where there are several clips."""
        for path in self.outputs:
            place = numbered_paths(path, self.request.count)[index]
            clip.save(place, metadata=self.metadata)
            files.append(place)
            yield Saved(place)

    def _draw_film(self, system: Pipeline, clip: Recording, path: Path) -> Iterator[Event]:
        """Draw the film to a clip and write it with its sound."""
        from reverie.generate.notes import with_sum
        from reverie.media import video

        film, changed = with_sum(system, (self.film or Film()).with_recommended(system.recommended.fields()))
        yield from map(Note, changed)
        texts = records.texts(clip.request, clip.model, film) if self.metadata else {}
        with video.recording(path, film.fps, texts=texts, sound=clip) as add:
            for frame in system.film(clip, film):
                yield from map(Note, frame.notes)
                add(frame.picture)
                yield Progress(frame.done, frame.total, frame.unit)
        yield Saved(path)
