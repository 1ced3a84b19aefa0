"""The loaded model that `reverie.load` returns, and what it can be asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Unpack

import torch
from PIL import Image

from reverie import system
from reverie.animation.draw import BATCH, Frame
from reverie.animation.draw import animate as draw_film
from reverie.animation.pacing import Distance, angle
from reverie.animation.store import Store
from reverie.checkpoints.save import FULL, Precision
from reverie.errors import RequestWarning, ReverieError, warn
from reverie.files import cache_folder
from reverie.generate import conditioning, image
from reverie.generate.conditioning import Encode, Encodings
from reverie.generate.explain import Explanation, explain
from reverie.generate.image import PictureStep, Show
from reverie.generate.modified import Modification
from reverie.media.encoder import Waveform
from reverie.music import draw as player
from reverie.music.draw import frames as film_frames
from reverie.music.sections import Recording
from reverie.requests.films import Animation
from reverie.requests.music import Film, Music
from reverie.requests.pictures import ImageToImage, PictureMethods, TextToImage
from reverie.runtime import is_packed
from reverie.runtime.compiled import is_compiled
from reverie.runtime.offload import offloader_of
from reverie.similarity.embed import Clip, Ranking, load_clip, rivals
from reverie.system import StableDiffusion

if TYPE_CHECKING:
    from reverie.requests.options import ImageToImageOptions, MusicOptions, PictureLike

Event = TypeVar("Event", PictureStep, player.MusicStep)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Pipeline(PictureMethods, StableDiffusion):
    """Draw pictures and films, or play music, with a model.

    Each method asks for one kind of request, whose fields are its options, and raises ReverieError for values out of
    range. Each picture's `.info` holds the request that makes it alone. `encode` encodes the prompts of pictures.
    """

    encode: Encode = conditioning.encode

    def draw(self, request: TextToImage) -> list[Image.Image]:
        """Draw the pictures that a request asks for, in order; warn of what of it is not honoured."""
        return [picture for progress in warn_of_notes(self.stream(request)) for picture in progress.pictures]

    def best(self, request: TextToImage, *, of: int, clip: Clip | None = None) -> list[Image.Image]:
        """Draw `of` pictures and return the `request.count` most like the prompt, the best first, with their scores.

        A CLIP ranks them: the bundled one where none is given. See `similarity.embed.Ranking`.
        """
        asked, ranking = rivals(request, of), Ranking(clip or load_clip(device=self.device), request)
        for step in warn_of_notes(self.stream(asked)):
            for picture in step.pictures:
                ranking.add(picture)
        return [one.picture for one in ranking.best()]

    def explain(self, request: TextToImage) -> Explanation:
        """Draw the first picture of a request and tell which word drew what. See `generate.explain.explain`."""
        return explain(self, request)

    def stream(self, request: TextToImage, preview: Show | None = None) -> Iterator[PictureStep]:
        """Draw and report every step, with previews; stop by closing the generator. See `generate.image.stream`.

        A refiner that the request names is loaded first.
        """
        refiner = None
        if request.refiner is not None:
            refiner = system.load(
                request.refiner.model,
                device=self.device,
                dtype=self.dtype,
                fast=is_packed(self.unet),
                offload=offloader_of(self.unet),
                compile=compile_cache(is_compiled(self.unet)),
            )
        return image.stream(self, request, refiner=refiner, preview=preview, encode=self.encode)

    def live(self, prompt: str = "", **options: Unpack[ImageToImageOptions]) -> Live:
        """Begin to draw one sketch after another; the options are the fields of `ImageToImage`, but for its `count`."""
        blank = Image.new("RGB", (8, 8))
        return Live(self.remember_prompts(), ImageToImage.of({"prompt": prompt, "init": blank, **options}))

    def remember_prompts(self) -> Pipeline:
        """Return this model with a memory for the last prompts' encodings: its weights may not change from now on."""
        return replace(self, encode=Encodings())

    def animate(
        self,
        animation: Animation,
        *,
        distance: Distance[Image.Image] | None = None,
        store: Store | None = None,
        heard: Waveform | None = None,
        batch: int = BATCH,
    ) -> Iterator[Frame]:
        """Draw a film and yield its frames in order; stop by closing the generator. See `animation.draw.animate`.

        A perceptual pace is by `distance`, or where that is not given by the bundled CLIP. `store` keeps frames over an
        interruption; `heard` is the film's sound, [-1, 1], read from its file where it is not given; `batch` frames are
        drawn at once.
        """
        if animation.pace == "perceptual" and distance is None:
            distance = angle(load_clip(device=self.device).embed_images)
        return draw_film(self, animation, distance=distance, store=store, heard=heard, batch=batch)

    def music(self, prompt: str = "", **options: Unpack[MusicOptions]) -> list[Recording]:
        """Play clips of music; the options are the fields of `Music`. They are sounds, which notebooks play."""
        progress = self.play(Music.of({"prompt": prompt, **options}))
        return [step.clip for step in warn_of_notes(progress) if step.clip is not None]

    def play(self, music: Music) -> Iterator[player.MusicStep]:
        """Play clips and report every step; stop by closing the generator. See `music.draw.stream`."""
        return player.stream(self, music)

    def film(self, recording: Recording, film: Film = Film()) -> Iterator[Frame]:
        """Draw the film to a recording, whose pictures move on its beat, and yield its frames.

        See `music.draw.animation`. This is the model of the pictures; what played the recording may be another.
        """
        return film_frames(self, recording, film)

    def save(self, path: str | Path, precision: Precision = FULL) -> None:
        """Write the model as a folder that reverie and diffusers load. See `checkpoints.save.save_folder`."""
        with Modification(self).active():
            super().save(path, precision)


class Live:
    """Draw one sketch after another by the same request, whose seed is fixed and whose other fields may change.

    Each picture is, to the bit, what `image_to_image` makes of its sketch. Kept are the encodings of prompts, and the
    last picture, which is given again where nothing changed. Raises ReverieError for a `count` of several pictures.
    """

    def __init__(self, pipeline: Pipeline, request: ImageToImage) -> None:
        self._pipeline, self._request = pipeline, request
        self._drawn: tuple[ImageToImage, Image.Image] | None = None
        self.change()

    def change(self, prompt: str | None = None, **options: Unpack[ImageToImageOptions]) -> None:
        """Draw from now on what another prompt says, or with other options, such as a `strength`; the rest stay."""
        request = self._request.replace(prompt=self._request.prompt if prompt is None else prompt, **options)
        if request.count != 1:
            raise ReverieError(f"a live picture is one; leave out a count of {request.count}", field="count")
        self._request = request

    def draw(self, sketch: PictureLike) -> Image.Image:
        """Draw a sketch anew; warn of what of the request is not honoured."""
        request = self._request.replace(init=sketch)
        if self._drawn is None or self._drawn[0] != request:
            (picture,) = self._pipeline.draw(request)
            self._drawn = request, picture
        return self._drawn[1].copy()


def warn_of_notes(events: Iterator[Event]) -> Iterator[Event]:
    """Pass events on, and warn of what they note."""
    for event in events:
        for note in event.notes:
            warn(note, RequestWarning, stacklevel=4)
        yield event


def load(
    path: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    config: str | None = None,
    prediction: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
    unet: str | Path | None = None,
    fast: bool = True,
    int8: bool = False,
    offload: str | None = None,
    compile: bool = False,
) -> Pipeline:
    """Load a model to draw with: the bundled one where no path is given, else a folder, a file or a name on the hub.

    `device` "auto" takes a GPU where there is one. `dtype` None is float16 on CUDA and float32 elsewhere, whatever the
    files hold. `config` says what a single file is (sd15, sdxl, ...) and `prediction` what its U-Net predicts (eps, v,
    ...), where the file does not tell or tells it wrongly; `revision` and `variant` ("fp16") choose among what the hub
    has. `vae` and `unet` are put in place of the model's; `fast` packs weights for the CPU; `int8` rounds the U-Net's;
    `offload`, "networks" or "blocks", is for GPUs with little memory; `compile` lets torch compile U-Net and decoder
    for the GPU at the first step of a size, which takes minutes once. See `system.load`. Raises ReverieError where
    there is no model or it is damaged.
    """
    loaded = system.load(
        path,
        device=device,
        dtype=dtype,
        config=config,
        prediction=prediction,
        revision=revision,
        variant=variant,
        vae=vae,
        unet=unet,
        fast=fast,
        int8=int8,
        offload=offload,
        compile=compile_cache(compile),
    )
    return Pipeline(**vars(loaded))


def compile_cache(compile: bool) -> Path | None:
    """Return the folder for what is compiled; None where nothing is to be."""
    return cache_folder() / "compiled" if compile else None
