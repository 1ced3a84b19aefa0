"""From a request for pictures to their files: drawn, ranked, finished, signed and written one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from PIL import Image

from reverie.errors import ReverieError
from reverie.jobs.events import Event, Finished, Load, Note, Preview, Saved, Stopwatch, ignore, model_notes, seeds_text
from reverie.jobs.outputs import check_outputs, check_writable, numbered_paths, numbering_note
from reverie.media.pictures import grid, save
from reverie.progress import Progress
from reverie.requests.adapter_files import extract
from reverie.requests.pictures import TextToImage
from reverie.requests.records import texts

if TYPE_CHECKING:
    from reverie.codecs.image import LinearPreview
    from reverie.generate.image import Show
    from reverie.media.provenance import Sign
    from reverie.pipeline import Pipeline
    from reverie.similarity.embed import Ranking


_FITTED: WeakKeyDictionary[object, LinearPreview] = WeakKeyDictionary()
"""The previews of autoencoders that are in memory: fitting one takes as long as drawing a few steps."""


@dataclass(frozen=True, kw_only=True)
class PictureJob:
    """Draw a request's pictures into files: `output`, numbered where there are several, or one contact sheet (`grid`).

    `model` draws, and `drawn_by` is the model of a picture that is made again. Every `previews` steps a `Preview` comes
    (0: none), decoded by a TAESD where one is given. `best_of` pictures are drawn and ranked by a CLIP. `explain`
    writes beside each picture which word drew what. `time_budget`, in seconds, chooses the settings. `safety` is a
    checker's folder, `watermark` a text, `c2pa` a folder with credentials. `metadata` says whether the files hold the
    request; `no_clobber` refuses files that are there.
    """

    request: TextToImage
    output: Path
    model: str | None = None
    drawn_by: str | None = None
    device: str = "auto"
    grid: bool = False
    previews: int = 0
    taesd: Path | None = None
    best_of: int | None = None
    clip: str | None = None
    explain: bool = False
    time_budget: float | None = None
    safety: Path | None = None
    watermark: str | None = None
    c2pa: Path | None = None
    metadata: bool = True
    no_clobber: bool = False

    @property
    def paths(self) -> list[Path]:
        """Return where the pictures go."""
        return [self.output] if self.grid else numbered_paths(self.output, self.request.count)

    def check(self) -> None:
        """Raise ReverieError, before a model is loaded, for options that go ill together and files that cannot be."""
        check_writable(self.paths)
        check_outputs(self.paths, self.request, no_clobber=self.no_clobber)
        if self.taesd is not None and not self.previews:
            raise ReverieError("`taesd` is about the preview; ask for one with `preview`", field="taesd")
        if self.watermark == "":
            raise ReverieError("`watermark` '' says nothing; give a text, or leave it out", field="watermark")
        if self.clip is not None and self.best_of is None:
            raise ReverieError("`clip` ranks pictures; say of how many with `best_of`", field="clip")
        if self.grid and (self.explain or self.best_of is not None):
            raise ReverieError("`grid` is one file of all; leave it out with `best_of` and `explain`", field="grid")
        for name in ("refiner", "tile_size", "regions"):
            if self.explain and getattr(self.request, name):
                raise ReverieError(f"`explain` does not go with `{name}`; leave out one of them", field="explain")
        if self.explain and not extract(self.request.prompt).text.strip():
            raise ReverieError("`explain` is about the words of a prompt; give some, or leave it out", field="explain")

    def run(self, load: Load, tell: Callable[[Event], None] = ignore) -> Iterator[Event]:
        """Draw, and yield what happens; the last event is `Finished`."""
        self.check()
        return _Drawing(self, load).run()


@dataclass
class _Drawing:
    """A job at work: what it has made by now."""

    job: PictureJob
    load: Load
    watch: Stopwatch = field(default_factory=Stopwatch)
    files: list[Path] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)
    drawn: list[TextToImage] = field(default_factory=list)

    def run(self) -> Iterator[Event]:
        from reverie.generate.explain import check_explained

        job = self.job
        self.sign = signing(job.c2pa)
        with self.watch.measure("load"):
            request = job.request
            asked, ranking = plan_ranking(request, job.best_of, job.clip, job.device)
            self.system = self.load(job.model)
            if job.explain:
                check_explained(self.system)
            yield from model_notes(self.system, job.drawn_by)
            self.finish = finishing(self.system, job.safety, job.watermark)
            if job.time_budget is not None:
                note, changes = settings_for(self.system, asked, job.time_budget)
                yield note
                request, asked = request.replace(**changes), asked.replace(**changes)
        with self.watch.measure("draw"):
            yield from self._draw(asked, ranking)
        if job.explain:
            with self.watch.measure("explain"):
                for request_, path in zip(self.drawn, job.paths, strict=True):
                    yield from self._explain(request_, path)
        request = settle(self.system, request)
        if job.grid:
            self.pictures = [sheet(self.pictures, request, self.system.name)]
            yield from self._write(self.pictures[0], job.output)
        seeds, timings = [one.seed for one in self.drawn], self.watch.summary()
        record = {
            "files": [str(path) for path in self.files],
            "seeds": seeds,
            "sizes": [picture.size for picture in self.pictures],
            "timings": timings,
            "request": request.to_record(),
        }
        took = f"loaded in {timings['load']:.1f} s, drawn in {timings['draw']:.1f} s"
        yield Finished(record, f"{seeds_text(seeds)}; {took}")

    def _draw(self, asked: TextToImage, ranking: Ranking | None) -> Iterator[Event]:
        """Draw, and keep each picture as it comes, or the best when all are drawn."""
        show = None if not self.job.previews else look(self.system, self.job.taesd)
        index = 0
        for step in self.system.stream(asked, preview=show):
            yield from map(Note, step.notes)
            if self.job.previews and step.index % self.job.previews == 0:
                yield Preview(grid(step.preview()))
            for picture in step.pictures:
                if ranking is not None:
                    ranking.add(picture)
                else:
                    yield from self._keep(asked.only(index), picture)
                index += 1
            yield Progress(step.done, step.total, step.unit)
        if ranking is not None:
            best = ranking.best()
            scores = ", ".join(f"{one.cosine:.3f}" for one in best)
            yield Note(f"likeness to the prompt, the best of {index}: {scores}")
            for one in best:
                yield from self._keep(asked.only(one.place), one.picture)

    def _keep(self, single: TextToImage, picture: Image.Image) -> Iterator[Event]:
        picture, held = self.finish(picture)
        if held:
            yield Note("a picture was held back by the safety checker; it is black")
        self.drawn.append(single)
        self.pictures.append(picture)
        if not self.job.grid:
            yield from self._write(picture, self.job.paths[len(self.pictures) - 1])

    def _write(self, picture: Image.Image, path: Path) -> Iterator[Event]:
        if not self.job.metadata:
            picture = picture.copy()
            picture.info.clear()
        with self.watch.measure("save"):
            save(picture, path, sign=self.sign)
        self.files.append(path)
        yield Saved(path)

    def _explain(self, single: TextToImage, path: Path) -> Iterator[Event]:
        """Write which word drew what in a request's picture, next to it."""
        beside = path.with_name(f"{path.stem}-explained.png")
        explained = self.system.explain(single)
        save(explained.sheet(), beside)
        if note := numbering_note(list(explained.maps)):
            yield Note(note)
        self.files.append(beside)
        yield Saved(beside)


def plan_ranking(
    request: TextToImage, of: int | None, clip: str | None, device: str
) -> tuple[TextToImage, Ranking | None]:
    """Return the request for all that is drawn, and what ranks it where only the best are kept."""
    if of is None:
        return request, None
    from reverie.similarity.embed import Ranking, load_clip, rivals

    return rivals(request, of), Ranking(load_clip(clip, device=device), request)


def settings_for(system: Pipeline, request: TextToImage, within: float) -> tuple[Note, dict[str, object]]:
    """Choose the settings that draw a request within a time, in seconds, and say which, and why."""
    from reverie.generate.budget import machine_profile, plan

    planned = plan(machine_profile(system, request), request, within)
    profile, settings = planned.profile, ", ".join(f"{name} {value}" for name, value in planned.changes.items())
    note = Note(
        f"for {within:g} s: {settings}: about {planned.seconds:.1f} s (a step takes {profile.step:.2g} s, "
        f"one on cached levels {profile.reused:.2g} s, decoding {profile.rest:.2g} s)"
    )
    return note, planned.changes


def look(system: Pipeline, taesd: Path | None) -> Show:
    """Choose how previews are decoded: by a TAESD, where one is given or is the model's, else by colours alone."""
    from reverie.checkpoints.load import load_tiny
    from reverie.codecs.image import TinyPreview, fit_preview
    from reverie.models.autoencoder import TinyAutoencoder

    if taesd is None and isinstance(system.autoencoder, TinyAutoencoder):
        return system.codec.pictures
    if taesd is None:
        if (fitted := _FITTED.get(system.autoencoder)) is None:
            fitted = _FITTED[system.autoencoder] = fit_preview(system.codec)
        return fitted.pictures
    tiny = load_tiny(taesd, device=system.device, dtype=system.dtype)
    channels, own = tiny.config.latent_channels, system.autoencoder.config.latent_channels
    if tiny.decoder is None or channels != own:
        found = "holds no decoder" if tiny.decoder is None else f"decodes latents of {channels} channels"
        raise ReverieError(
            f"'{taesd}' {found}, and the latents of '{system.name}' have {own}",
            field="taesd",
            hint="give a TAESD of the model's family",
        )
    return TinyPreview(tiny, system.device, system.dtype).pictures


def finishing(
    system: Pipeline, safety: Path | None, watermark: str | None
) -> Callable[[Image.Image], tuple[Image.Image, bool]]:
    """Return what becomes of each picture before it is written, and whether the safety checker held it back."""
    from reverie.checkpoints.load import load_safety
    from reverie.codecs.clip_images import screen_pictures
    from reverie.media.provenance import write_watermark

    checker = None if safety is None else load_safety(safety, device=system.device)

    def finish(picture: Image.Image) -> tuple[Image.Image, bool]:
        held = False
        if checker is not None:
            (picture,), (held,) = screen_pictures(checker, [picture])
        return (picture if watermark is None else write_watermark(picture, watermark)), held

    return finish


def signing(c2pa: Path | None) -> Sign | None:
    """Return what signs files, tried already; None where nothing does."""
    if c2pa is None:
        return None
    from reverie.media import provenance

    return provenance.signer(c2pa)


def sheet(pictures: list[Image.Image], request: TextToImage, model: str) -> Image.Image:
    """Lay pictures out on one sheet that carries the request for all of them, which is settled."""
    laid_out = grid(pictures)
    laid_out.info.update(texts(request, model))
    return laid_out


def settle(system: Pipeline, request: TextToImage) -> TextToImage:
    """Return a request as its pictures record it: filled in, and with the sums of its models."""
    from reverie.generate.image import fill_in
    from reverie.generate.notes import with_sums

    return with_sums(system, fill_in(system, request))[0]
