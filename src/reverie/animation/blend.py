"""Interpolation of two prompts' conditionings; keyframes that are pictures, resized and inverted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest

import torch.nn.functional as F
from PIL import Image, ImageOps

from reverie.codecs.image import ImageCodec
from reverie.diffusion.inversion import INVERTERS, Inverted, invert
from reverie.diffusion.step import Sigmas
from reverie.errors import ReverieError, choose
from reverie.generate.conditioning import Guide, Prompts
from reverie.generate.sample import Bind, guided_denoiser
from reverie.media.pictures import to_rgb
from reverie.requests.pictures import TextToImage
from reverie.system import Conditioning, StableDiffusion

Mix = Callable[[Conditioning, Conditioning, float], Conditioning]
"""(a, b, w) -> the fraction w of the way from a to b: `Conditioning.slerp` or `Conditioning.lerp`."""

MIXES: dict[str, Mix] = {"slerp": Conditioning.slerp, "linear": Conditioning.lerp}


def between(a: Prompts, b: Prompts, w: float, mix: Mix) -> Prompts:
    """Go the fraction `w` of the way from prompts `a` to `b`: their conditionings by `mix`, lerp or slerp.

    A part, as AND joins them, that one of them lacks has the weight 0 there; where the words change over the steps they
    do in the blend; of encodings of two lengths the shorter repeats its last token.
    """
    if a is b:
        return a
    pairs = zip_longest(a.positive, b.positive)
    positive = (_guide(x or replace(y, weight=0.0), y or replace(x, weight=0.0), w, mix) for x, y in pairs)
    return Prompts(tuple(positive), _guide(a.negative, b.negative, w, mix))


def _guide(a: Guide, b: Guide, w: float, mix: Mix) -> Guide:
    ends = sorted({until for until, _ in (*a.stages, *b.stages)})
    stages = tuple((until, mix(*_alike(a.at(until), b.at(until)), w)) for until in ends)
    return Guide(a.weight + w * (b.weight - a.weight), stages)


def _alike(a: Conditioning, b: Conditioning) -> tuple[Conditioning, Conditioning]:
    longest = max(a.tokens.shape[1], b.tokens.shape[1])

    def pad_tokens(one: Conditioning) -> Conditioning:
        missing = longest - one.tokens.shape[1]
        return replace(one, tokens=F.pad(one.tokens, (0, 0, 0, missing), mode="replicate")) if missing else one

    return pad_tokens(a), pad_tokens(b)


def stack_prompts(rows: Sequence[Prompts]) -> Prompts:
    """Put prompts of one structure, blends of the same two, into one: a row of a batch for each."""
    positive = tuple(_stack_guides(guides) for guides in zip(*(row.positive for row in rows), strict=True))
    return Prompts(positive, _stack_guides([row.negative for row in rows]))


def _stack_guides(guides: Sequence[Guide]) -> Guide:
    stages = []
    for column in zip(*(guide.stages for guide in guides), strict=True):
        first, *others = (conditioning for _, conditioning in column)
        stages.append((column[0][0], first.cat(*others)))
    return Guide(guides[0].weight, tuple(stages))


def weights(prompts: Prompts) -> tuple[float, ...]:
    """Return how strongly each part of a prompt guides."""
    return tuple(guide.weight for guide in prompts.positive)


Size = tuple[int, int]

_LANCZOS = Image.Resampling.LANCZOS


def crop(picture: Image.Image, size: Size) -> Image.Image:
    """Fill the size and cut off what lies beyond it, on both sides alike."""
    return ImageOps.fit(picture, size, _LANCZOS)


def pad(picture: Image.Image, size: Size) -> Image.Image:
    """Show all of the picture, in the middle of black."""
    return ImageOps.pad(picture, size, _LANCZOS, color="black")


def stretch(picture: Image.Image, size: Size) -> Image.Image:
    """Bring width and height to the size, each by itself."""
    return picture.resize(size, _LANCZOS)


FITS: dict[str, Callable[[Image.Image, Size], Image.Image]] = {"crop": crop, "pad": pad, "stretch": stretch}


def fit_picture(picture: Image.Image, size: Size, fit: str | None) -> Image.Image:
    """Bring a picture to a size in pixels, transparent parts on white.

    Raises ReverieError for one of another size where no fit, a name of FITS, is given.
    """
    picture = to_rgb(picture)
    if picture.size == size:
        return picture
    if fit is None:
        given, film = (f"{width}x{height}" for width, height in (picture.size, size))
        raise ReverieError(f"a picture has {given} pixels and the film {film}; choose a fit: {', '.join(FITS)}")
    return FITS[fit](picture, size)


def invert_picture(
    system: StableDiffusion,
    codec: ImageCodec,
    request: TextToImage,
    prompts: Prompts,
    sigmas: Sigmas,
    picture: Image.Image,
    inversion: str = "edict",
    *,
    bind: Bind | None = None,
) -> Inverted:
    """Find the noise at sigmas[0] from which a picture is drawn, by a name of INVERTERS.

    `INVERTERS[inversion].down` draws it, from `x` and `past`, with the same request, prompts, levels and bind; a film
    between two pictures goes `between` what is found for them. The picture has the size of the film. Levels that begin
    below the schedule's highest leave more of the picture in the noise: films through them fade rather than change.

    One picture at a time, so that it does not depend on its batch. Raises ReverieError for an unknown inversion, and
    for a picture that is not of whole latents.
    """
    inverter = choose("inversion", inversion, INVERTERS)
    denoise = guided_denoiser(system, request, prompts, sigmas, 1, bind)
    return invert(denoise, codec.encode([picture]), sigmas, inverter)
