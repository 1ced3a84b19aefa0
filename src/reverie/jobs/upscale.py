"""From a request to enlarge a picture to the file of the larger one, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from reverie.errors import ReverieError
from reverie.jobs.events import Event, Finished, Load, Saved, Stopwatch, ignore
from reverie.jobs.outputs import check_outputs, check_writable
from reverie.media.pictures import REQUEST, open_picture, save
from reverie.progress import Progress
from reverie.requests.base import Frozen
from reverie.requests.records import read_record, with_upscaler
from reverie.requests.references import Picture, find_model, write_model

LARGEST_SCALE = 16

Side = Annotated[int, Field(ge=1, le=65536)]
UpscalerFile = Annotated[str, AfterValidator(partial(find_model, what="upscaler")), PlainSerializer(write_model)]


class Upscale(Frozen):
    """Ask for a picture to be enlarged by the file of a learned upscaler: `scale` times, or to `width` and `height`.

    Where none is given, as the upscaler makes it. What is larger than was asked for is brought there by Lanczos.
    """

    kind: ClassVar[str] = "upscale"

    picture: Picture
    upscaler: UpscalerFile
    scale: float | None = Field(default=None, gt=0, le=LARGEST_SCALE)
    width: Side | None = None
    height: Side | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.width is None) != (self.height is None) or (self.width is not None and self.scale is not None):
            raise ReverieError("an enlargement takes both width and height, or a scale, or neither", field="scale")
        return self

    def size(self, own: int) -> tuple[int, int]:
        """Return width and height of the result of an upscaler that makes a picture `own` times larger."""
        if self.width is not None and self.height is not None:
            return self.width, self.height
        width, height = self.picture.image().size
        factor = self.scale or own
        return max(1, round(width * factor)), max(1, round(height * factor))


@dataclass(frozen=True, kw_only=True)
class UpscaleJob:
    """Enlarge a picture into a file, which keeps the metadata. `no_clobber` refuses a file that is there."""

    request: Upscale
    output: Path
    device: str = "auto"
    no_clobber: bool = False
    model: str | None = None

    def check(self) -> None:
        """Raise ReverieError for a file that cannot be."""
        if not self.request.picture.is_here:
            raise self.request.picture.missing("picture")
        check_writable([self.output])
        check_outputs([self.output], self.request, no_clobber=self.no_clobber)

    def run(self, load: Load | None = None, tell: Callable[[Event], None] = ignore) -> Iterator[Event]:
        """Enlarge, and yield what happens; the last event is `Finished`."""
        from reverie.checkpoints.single import load_upscaler  # these bring torch, which takes seconds
        from reverie.codecs.image import enlarge_to
        from reverie.runtime import pack
        from reverie.runtime.transform import pick_device

        self.check()
        watch = Stopwatch()
        with watch.measure("load"):
            network = pack(load_upscaler(self.request.upscaler, device=pick_device(self.device)))
        picture = open_picture(self.request.picture.data or b"")  # which `check` saw
        with watch.measure("enlarge"):
            for step in enlarge_to(network, picture, self.request.size(network.scale)):
                picture = step.picture or picture
                yield Progress(step.done, step.total, step.unit)
        if isinstance(text := picture.info.get(REQUEST), str):
            picture.info[REQUEST] = with_upscaler(text, self.request.upscaler)
        save(picture, self.output)
        yield Saved(self.output)
        record = {"files": [str(self.output)], "sizes": [picture.size], "timings": watch.summary()}
        with suppress(ReverieError):  # a photo says nothing
            record["request"] = read_record(picture).request.to_record()
        yield Finished(record, f"{picture.width}x{picture.height}, in {sum(watch.summary().values()):.1f} s")
