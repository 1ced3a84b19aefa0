"""Submissions: what clients ask for, checked against the limits, and the job that does it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field

from reverie.errors import ReverieError
from reverie.jobs.batches import BatchJob
from reverie.jobs.events import Job
from reverie.jobs.films import FilmJob
from reverie.jobs.music import MusicJob
from reverie.jobs.pictures import PictureJob
from reverie.jobs.questions import QUESTIONS, AnswerJob, Question
from reverie.jobs.upscale import Upscale, UpscaleJob
from reverie.requests import adapter_files
from reverie.requests.base import RANDOM_SEED, Frozen, SampledRequest, random_seed
from reverie.requests.films import Animation
from reverie.requests.music import Film, Music
from reverie.requests.pictures import ImageToImage, Outpaint, TextToImage
from reverie.requests.records import KINDS
from reverie.requests.references import Resolver, references, resolving
from reverie.requests.templates import PromptStyle, Wildcards, add_styles, draw_prompts, read_styles
from reverie.server.settings import Limits, Settings
from reverie.server.shelf import Shelf

FORMATS = {
    "pictures": ("png", "jpg", "webp"),
    "films": ("mp4", "webm", "gif", "webp", "png"),
    "music": ("wav", "mp3", "flac", "ogg", "png"),
}
PICTURES_ALONE = ("best_of", "explain", "grid", "time_budget", "watermark")
USUAL_SIDE = 512  # pixels of a picture whose size the model decides
USUAL_SCALE = 4  # of an upscaler, which tells its own once it is loaded
SECONDS = 2.0  # between two keyframes, where a film says nothing
Asked = SampledRequest | Upscale | Question
ASKED: dict[str, type[Asked]] = {**KINDS, Upscale.kind: Upscale, **QUESTIONS}


def fields_schema(asked: type[Asked]) -> dict[str, Any]:
    """Return the JSON schema of a request's fields, as clients fill them in: with names in the place of files."""
    schema = asked.model_json_schema()
    properties = json.loads(re.sub(r'"\$ref": "[^"]*"', '"type": "string"', json.dumps(schema["properties"])))
    return {"properties": properties, "required": schema.get("required", [])}


def _alone(kind: Any) -> BeforeValidator:
    """Return what takes one thing of a kind for a list of it."""

    def put_into_list(given: object) -> object:
        return [given] if isinstance(given, str | Mapping | Frozen) else given

    return BeforeValidator(put_into_list, json_schema_input_type=kind | tuple[kind, ...])


class Options(Frozen):
    """How a job finishes its files, and whether they are kept. See `jobs.pictures.PictureJob`."""

    part = "option "

    formats: Annotated[tuple[str, ...], _alone(str)] = Field(
        default=(), max_length=5, description="suffixes of the files, such as png"
    )
    previews: int = Field(default=4, ge=0, le=100, description="steps, or frames, between two previews; 0: none")
    best_of: int | None = Field(default=None, ge=2, description="draw so many and keep the best by CLIP")
    explain: bool = Field(default=False, description="draw beside each picture which word drew what")
    grid: bool = Field(default=False, description="one file of all pictures")
    time_budget: float | None = Field(default=None, gt=0, description="seconds that choose the settings")
    watermark: str | None = Field(default=None, description="invisible text")
    keep: bool = Field(default=True, description="false: not stored, and forgotten an hour after it ended")


class Submission(Frozen):
    """What a client asks for: the same JSON as a file's metadata, and how it is finished."""

    model_config = ConfigDict(defer_build=False)  # FastAPI warns of deferred schemas

    kind: str = Field(json_schema_extra={"enum": [*ASKED]})
    request: dict[str, Any] = Field(default={}, description="the fields of the request")
    model: str | None = Field(default=None, description="a name of /api/models; the default if not given")
    style: Annotated[tuple[str | PromptStyle, ...], _alone(str | PromptStyle)] = Field(
        default=(), max_length=100, description="pictures: styles that go with the prompts, or names of the server's"
    )
    dynamic: bool = Field(
        default=False, description="pictures: the prompts are templates, drawn for each by its seed: {a|b}, __animals__"
    )
    film: dict[str, Any] | None = Field(default=None, description="music: the film to the clip")
    options: Options = Field(default=Options(), description="how the job finishes its files")
    attached: dict[str, Any] | None = Field(default=None, description="what a protocol keeps with its jobs")

    def fill(self, settings: Settings) -> Submission:
        """Return it with nothing left open: its model and seed named, its content shelved. Raises ReverieError."""
        if self.kind not in ASKED:
            raise ReverieError(f"unknown kind '{self.kind}'; choose from {', '.join(ASKED)}", field="kind")
        try:
            request = Shelf(settings).replace_content(self.request, self.options.keep)
        except RecursionError:
            raise ReverieError("the request is nested too deep", field="request") from None
        if self.kind in KINDS and request.get("seed") in (None, RANDOM_SEED):
            request["seed"] = random_seed()
        if self.style:
            request |= self._add_styles(request, settings.styles)
        own = {"text_to_image": "pictures", "animation": "films", "music": "music"}
        formats = self.options.formats or FORMATS[own.get(self.kind, "pictures")][:1]
        options = self.options.replace(formats=formats)
        model = settings.model_for(self.kind, self.model)
        return self.replace(request=request, model=model, style=(), options=options)

    def _add_styles(self, request: Mapping[str, Any], file: Path | None) -> dict[str, str]:
        """Return the prompts with the styles."""
        if "prompt" not in ASKED[self.kind].model_fields:
            raise ReverieError("`style` goes with a prompt; leave it out", field="style")
        prompt, negative = (request.get(name, "") for name in ("prompt", "negative"))
        if not isinstance(prompt, str) or not isinstance(negative, str):
            raise ReverieError("styles go with prompts, which are texts", field="style")
        return add_styles(self.style, {} if file is None else read_styles(file), prompt, negative)

    def read(self, settings: Settings) -> Asked:
        """Return the request, its files found as the settings allow. Raises ReverieError."""
        resolver = settings.resolver()
        with resolving(resolver):
            request = ASKED[self.kind].of(self.request)
            for field, reference in references(request):
                if not reference.is_here:
                    raise reference.missing(field)
            if isinstance(request, SampledRequest) and not self.dynamic:
                _check_loras(request, resolver)
        check_limits(request, self.options, settings.limits)
        return request

    def drawings(self, request: TextToImage, settings: Settings) -> tuple[TextToImage, ...]:
        """Return a request for each picture where the prompts are templates, else the request. Raises ReverieError."""
        if not self.dynamic:
            return (request,)
        drawn = draw_prompts(request, Wildcards(settings.wildcards))
        for one in drawn:
            _check_loras(one, settings.resolver())
        return drawn

    def job(self, name: str, settings: Settings) -> Job:
        """Return the job that does it, into files of a name. Raises ReverieError for what is not allowed."""
        request, options = self.read(settings), self.options
        outputs = tuple(settings.outputs / f"{name}.{suffix}" for suffix in options.formats)
        self._check_fit(request)
        if isinstance(request, Question):
            return AnswerJob(request=request, index=settings.index)
        if isinstance(request, Animation):
            self._check_formats("films")
            job = FilmJob(request=request, outputs=outputs, model=self.model, previews=options.previews)
            job.check()
            return job
        if isinstance(request, Music):
            self._check_formats("music")
            if self.film is None:
                return MusicJob(request=request, outputs=outputs, model=self.model)
            with resolving(settings.resolver()):
                film, output = Film.of(self.film), settings.outputs / f"{name}-film.mp4"
            return MusicJob(request=request, outputs=outputs, film=film, film_output=output, model=self.model)
        self._check_formats("pictures")
        if len(outputs) > 1:
            raise ReverieError(f"a picture is one file; choose one of {', '.join(options.formats)}", field="formats")
        if isinstance(request, Upscale):
            return UpscaleJob(request=request, output=outputs[0], device=settings.device)
        assert isinstance(request, TextToImage)
        finishing = options.model_dump(exclude={"formats", "keep"}) | {"model": self.model}
        requests = self.drawings(request, settings)
        if len(requests) == 1:
            pictures: Job = PictureJob(request=requests[0], output=outputs[0], **finishing)
        else:
            pictures = BatchJob.of(requests, outputs[0], finishing)
        pictures.check()
        return pictures

    def _check_fit(self, request: Asked) -> None:
        """Raise ReverieError for what goes with requests of another kind."""
        if not isinstance(request, TextToImage):
            asked = {"dynamic": self.dynamic, **{name: getattr(self.options, name) for name in PICTURES_ALONE}}
            for name in filter(asked.get, asked):
                raise ReverieError(f"`{name}` is for pictures; leave it out", field=name)
        if self.film is not None and not isinstance(request, Music):
            raise ReverieError("`film` is for music; leave it out", field="film")

    def _check_formats(self, of: str) -> None:
        for suffix in self.options.formats:
            if suffix not in FORMATS[of]:
                raise ReverieError(f"unknown format '{suffix}'; choose from {', '.join(FORMATS[of])}", field="formats")


def _check_loras(request: SampledRequest, resolver: Resolver) -> None:
    """Raise ReverieError, now and without telling of folders, where a prompt names a LoRA that is not there."""
    for prompt in request.prompts:
        for tag in adapter_files.extract(prompt).loras:
            resolver("lora", tag.name)


class _Demand(NamedTuple):
    """How much of something is asked for, and how much may be."""

    field: str
    asked: float
    most: float
    unit: str


def check_limits(request: Asked, options: Options, limits: Limits) -> None:
    """Raise ReverieError where a request asks for more than the server gives."""
    for field, asked, most, unit in _demands(request, options, limits):
        if asked > most:
            raise ReverieError(f"{field} asks for {asked:,.10g} {unit}; this server allows {most:,.10g}", field=field)


def _demands(request: Asked, options: Options, limits: Limits) -> Iterator[_Demand]:
    if isinstance(request, Upscale):  # the first pass makes a picture several times larger, whatever is asked for
        for size in (request.picture.size or (0, 0), request.size(USUAL_SCALE)):
            yield _Demand("picture", math.prod(size), limits.pixels, "pixels")
    if not isinstance(request, SampledRequest):
        return
    yield _Demand("steps", request.steps, limits.steps, "steps")
    if isinstance(request, Animation):
        times = [keyframe.time or 0.0 for keyframe in request.keyframes]
        seconds = request.seconds or max(times) or SECONDS * (len(times) - 1)
        frames = (request.frames or seconds * request.fps) * (2 if request.ping_pong else 1)
        yield _Demand("frames", frames, limits.frames, "frames")
        yield _Demand("keyframes", len(request.keyframes), limits.count, "keyframes")
        yield _Demand("width", (request.width or 0) * (request.height or 0), limits.pixels, "pixels")
    elif isinstance(request, Music):
        yield _Demand("count", request.count, limits.count, "clips")
        clips = request.count * (request.walk or 1)
        yield _Demand("seconds", clips * (request.seconds or 0.0), limits.sound, "seconds")
        yield _Demand("walk", request.walk or 0, limits.count, "clips")
    elif isinstance(request, TextToImage):
        yield _Demand("count", max(request.count, options.best_of or 0), limits.count, "pictures")
        width, height = _size(request)
        yield _Demand("width", width * height, limits.pixels, "pixels")
        width, height = width or USUAL_SIDE, height or USUAL_SIDE
        yield _Demand("tile_size", _tiles(request.tile_size, width, height), limits.tiles, "tiles")
        if hires := request.hires:
            wide, high = hires.size(width, height, 8)
            yield _Demand("hires", wide * high, limits.pixels, "pixels")
            yield _Demand("hires", hires.steps or 0, limits.steps, "steps")
            yield _Demand("tile_size", _tiles(request.tile_size, wide, high), limits.tiles, "tiles")


def _tiles(side: int | None, *lengths: int) -> int:
    """Return how many tiles `diffusion.windows.Tiles` lays over a picture, half over one another."""
    return math.prod(1 + math.ceil(max(0.0, 2 * (length - side) / side)) for length in lengths) if side else 1


def _size(request: TextToImage) -> tuple[int, int]:
    """Return width and height in pixels, 0 where the model decides."""
    own = request.init.size if isinstance(request, ImageToImage | Outpaint) else None
    width, height = own or (0, 0)
    if isinstance(request, Outpaint):
        return width + request.left + request.right, height + request.top + request.bottom
    return request.width or width, request.height or height
