"""The starting point of a drawing: noise of its seed, a picture's latents, also enlarged, and what CLIP sees of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from reverie.adapters.ip_adapter import varies
from reverie.checkpoints.single import load_upscaler
from reverie.codecs.clip_images import Preprocessing, floor_margin
from reverie.codecs.image import ImageCodec, enlarge, to_tensor, unscale_latents
from reverie.diffusion.noise import SOURCES, Draw, Noise, Source, slerp
from reverie.errors import ReverieError
from reverie.media import masks
from reverie.media.pictures import to_rgb
from reverie.models.k_unet import KUNet
from reverie.requests.pictures import Fill, ImageToImage, Inpaint, Outpaint, TextToImage
from reverie.requests.references import Picture
from reverie.runtime import is_packed, pack
from reverie.system import StableDiffusion

Shape = tuple[int, int, int]


class Varied(Noise):
    """Draw as `Noise` does, but for the first draw, which is given."""

    def __init__(
        self, seeds: Sequence[int], first: Float[Tensor, "b c h w"], device: torch.device | str, source: Source
    ) -> None:
        super().__init__(seeds, first.shape[1:], device, source)
        self._first = first.to(self.device)


def starting_noise(
    singles: Sequence[TextToImage],
    shape: Shape,
    factor: int,
    device: torch.device | str = "cpu",
    before: Shape | None = None,
) -> Noise:
    """Give the noise of requests for one picture each, drawn together; `factor` is how many pixels a latent spans.

    `before` is the shape of what is drawn from each seed before it.
    """
    seeds, source = [single.seed for single in singles], partial(_draw_after, SOURCES[singles[0].rng], before)
    if singles[0].variation is None:
        return Noise(seeds, shape, device, source)
    return Varied(seeds, torch.stack([_vary(single, shape, factor, source) for single in singles]), device, source)


def _draw_after(source: Source, before: Shape | None, seed: int) -> Draw:
    draw = source(seed)
    if before is not None:
        draw(before)
    return draw


def _vary(single: TextToImage, shape: Shape, factor: int, draw: Source) -> Float[Tensor, "c h w"]:
    """Draw as AUTOMATIC1111 does (modules/rng.py), whose slerp turns each column of the noise on its own."""
    variation = single.variation
    if variation is None:
        return draw(single.seed)(shape)
    channels, height, width = shape
    small = (channels, (variation.height or 0) // factor or height, (variation.width or 0) // factor or width)
    noise = draw(single.seed)(small)
    if variation.strength:
        columns, others = (one.transpose(1, 2).flatten(0, 1) for one in (noise, draw(variation.seed)(small)))
        turned = slerp(columns, others, variation.strength)
        noise = turned.unflatten(0, (channels, small[2])).transpose(1, 2)
    if small == shape:
        return noise
    whole = draw(single.seed)(shape)
    rows, columns_ = _overlap(height, small[1]), _overlap(width, small[2])
    whole[:, rows[0], columns_[0]] = noise[:, rows[1], columns_[1]]
    return whole


def _overlap(whole: int, part: int) -> tuple[slice, slice]:
    """Return what a centred part covers of the whole, and which of the part that is."""
    length = min(whole, part)
    outer, inner = (whole - part) // 2 if whole > part else 0, (part - whole) // 2 if part > whole else 0
    return slice(outer, outer + length), slice(inner, inner + length)


SIDES = 8  # what sides of requests are multiples of
REACH = 3  # times mask_blur: how far a Gaussian of that deviation is felt
INPAINTING_CHANNELS = 9  # of a U-Net that also takes a mask and the latents of what it leaves
DEPTH_CHANNELS = 5  # of one that also takes a depth map (SD 2 depth)
EDITING_CHANNELS = 8  # of one that also takes the latents of the picture that it edits (InstructPix2Pix)
Finish = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, eq=False)
class Canvas:
    """Hold what a drawing starts from; tensors are of one sample.

    `known` are the clean latents of the picture, `start` those that are noised to begin with: None begins with noise
    alone. `mask` is 1 where latents are drawn, None draws all. `extra` are the further channels of a U-Net that
    inpaints, and so holds what is known by itself, or that edits.
    `finish` makes the final picture of a drawn one.
    """

    start: Float[Tensor, "1 c h w"] | None = None
    known: Float[Tensor, "1 c h w"] | None = None
    mask: Float[Tensor, "1 1 h w"] | None = None
    extra: Float[Tensor, "1 e h w"] | None = None
    fill: Fill = "original"
    finish: Finish = lambda picture: picture

    def begin(self, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"] | None:
        """Return the clean latents that each sample of a batch starts from, or None for noise alone."""
        if self.start is None:
            return None
        start = self.start.expand_as(noise)
        if self.mask is None or self.fill not in FILLED:
            return start
        return torch.where(self.mask > 0, FILLED[self.fill](noise), start)


FILLED: dict[str, Callable[[Tensor], Tensor]] = {"noise": lambda noise: noise, "nothing": torch.zeros_like}
"""The fills that are latents, made from the noise of a drawing."""


def size_of(system: StableDiffusion, request: TextToImage) -> tuple[int, int]:
    """Return the width and height that a request is drawn at; raise ReverieError where they do not fit the model."""
    width, height = _natural_size(system, request)
    width, height = request.width or width, request.height or height
    system.codec.latent_shape(width, height)
    return width, height


def _natural_size(system: StableDiffusion, request: TextToImage) -> tuple[int, int]:
    factor = system.codec.factor
    match request:
        case Outpaint():
            width, height = request.init.image().size
            width, height = width + request.left + request.right, height + request.top + request.bottom
        case Inpaint(only_masked=True):
            return system.size, system.size
        case ImageToImage():
            width, height = request.init.image().size
            if enlarges(system):
                width, height, factor = width * factor, height * factor, SIDES
            if doubles(system):
                width, height = 2 * width, 2 * height
        case TextToImage(depth=Picture() as depth):
            width, height = depth.image().size
        case _:
            return system.size, system.size
    return _whole_sides(width, height, factor)


def _whole_sides(width: int, height: int, factor: int) -> tuple[int, int]:
    """Return multiples of `factor` next to two sides, of the ratio that is nearest to theirs; of several, the nearest.

    diffusers rounds each side down by itself, and AUTOMATIC1111 takes the size of the form.
    """
    below, above = (max(1, width // factor), max(1, height // factor)), (-(-width // factor), -(-height // factor))
    pairs = [(w * factor, h * factor) for w, h in product(*zip(below, above, strict=True))]

    def strays(pair: tuple[int, int]) -> tuple[float, int]:
        ratio = pair[0] * height / (pair[1] * width)
        return abs(math.log(ratio)), abs(pair[0] - width) + abs(pair[1] - height)

    return min(pairs, key=strays)


def prepare(system: StableDiffusion, codec: ImageCodec, request: TextToImage) -> Canvas:
    """Make the canvas of a request whose size is filled in."""
    size = (request.width or system.size, request.height or system.size)
    if isinstance(request, Inpaint | Outpaint) and (takes_depth(system) or enlarges(system) or doubles(system)):
        does = "draws whole pictures by a depth map" if takes_depth(system) else "enlarges whole pictures"
        raise ReverieError(f"{system.name} {does}; leave out the mask, what is outside and what is transparent")
    match request:
        case Outpaint() if edits(system):
            raise ReverieError(f"{system.name} edits pictures, and continues none; give another model")
        case Outpaint():
            picture = masks.extend(request.init.image(), request.left, request.right, request.top, request.bottom)
            picture = resize(picture, size)
            mask = masks.transparency(picture)
            edge = masks.feather(mask, REACH * request.mask_blur)
            paint = _Paint(
                masks.fill_from_surroundings(picture, mask), mask, edge, _of_filled(request.fill), request.strength
            )
            return _mask_canvas(system, codec, paint)
        case Inpaint():
            return _inpaint(system, codec, request, size)
        case ImageToImage():
            start = codec.encode([resize(request.init.image(), size)]) if request.strength < 1 else None
            return Canvas(start, extra=further_channels(system, codec, request))
        case _:
            return Canvas(extra=further_channels(system, codec, request))


@dataclass(frozen=True, eq=False)
class _Paint:
    """Hold an RGB picture, its mask (white is painted), the mask that blends the result, and what to start from."""

    picture: Image.Image
    mask: Image.Image
    edge: Image.Image
    fill: Fill
    strength: float


def _inpaint(system: StableDiffusion, codec: ImageCodec, request: Inpaint, size: tuple[int, int]) -> Canvas:
    """Prepare the whole picture, or the box around its mask alone.

    Without a mask what is transparent is painted: its colours are those of the nearest opaque pixels, and what is
    opaque stays to the bit, as alpha itself is the soft edge.
    """
    picture, fill = request.init.image(), request.fill
    if request.mask is None:
        mask = edge = masks.transparency(picture)
        picture, fill = masks.fill_from_surroundings(picture, mask), _of_filled(fill)
    else:
        picture, mask = to_rgb(picture), masks.from_picture(request.mask.image())
        edge = masks.soft(mask, request.mask_blur)
    if mask.size != picture.size:
        raise ReverieError(
            f"the mask has {mask.width}x{mask.height} pixels and the picture {picture.width}x"
            f"{picture.height}; give them the same size"
        )
    box = masks.surroundings(mask, request.padding, *size)
    if not request.only_masked:
        if mask.size != size:
            picture, mask, edge = resize(picture, size), mask.resize(size), edge.resize(size)
        return _mask_canvas(system, codec, _Paint(picture, mask, edge, fill, request.strength))
    crop, cut = resize(picture.crop(box), size), mask.crop(box).resize(size)
    canvas = _mask_canvas(system, codec, _Paint(crop, cut, cut, fill, request.strength))
    return replace(canvas, finish=partial(_paste_box, picture, edge, box))


def _of_filled(fill: Fill) -> Fill:
    """Return the fill of a picture into whose mask the surroundings have flowed already."""
    return "original" if fill == "surroundings" else fill


def _mask_canvas(system: StableDiffusion, codec: ImageCodec, paint: _Paint) -> Canvas:
    """Prepare a picture of the drawing's size under its mask."""
    picture, mask = paint.picture, paint.mask
    opened = torch.from_numpy(_open(mask))[None, None].to(system.device)
    known = codec.encode([picture])
    start = codec.encode([masks.fill_from_surroundings(picture, mask)]) if paint.fill == "surroundings" else known
    cells = F.max_pool2d(opened, codec.factor)  # a latent is drawn where any of its pixels is
    finish = partial(_compose, picture, paint.edge)
    start_or_noise = start if paint.strength < 1 else None
    if system.unet.config.in_channels != INPAINTING_CHANNELS:
        seen = _to_edit(system, known) if edits(system) else None
        return Canvas(start_or_noise, known, cells, seen, paint.fill, finish)
    images = to_tensor([picture]).to(opened.device)
    hidden = codec.encode_tensor(images.where(opened < 0.5, torch.zeros_like(images)))
    return Canvas(start_or_noise, None, cells, torch.cat([cells, hidden], dim=1), paint.fill, finish)


def edits(system: StableDiffusion) -> bool:
    """Tell whether a model edits pictures: its U-Net sees one, and prompts say what to change (InstructPix2Pix)."""
    return system.unet.config.in_channels == EDITING_CHANNELS and not doubles(system)


def takes_depth(system: StableDiffusion) -> bool:
    """Tell whether a model draws by a depth map."""
    return system.unet.config.in_channels == DEPTH_CHANNELS


def enlarges(system: StableDiffusion) -> bool:
    """Tell whether a model enlarges pictures, of which its U-Net sees the pixels (SD 2's x4 upscaler)."""
    return system.unet.config.num_class_embeds is not None


def doubles(system: StableDiffusion) -> bool:
    """Tell whether a model doubles pictures, of which its U-Net sees the latents (SD 2's latent upscaler)."""
    return isinstance(system.unet, KUNet)


def further_channels(
    system: StableDiffusion, codec: ImageCodec, request: TextToImage
) -> Float[Tensor, "1 e h w"] | None:
    """Return what a U-Net takes beside the latents of a request without a mask; None where it takes nothing.

    An inpainting one is told to draw all of a picture, of which it sees grey: so does AUTOMATIC1111. Raises
    ReverieError where the model edits or enlarges pictures, or draws by a depth map, and there is none.
    """
    size = (request.width or system.size, request.height or system.size)
    if edits(system):
        if not isinstance(request, ImageToImage):
            raise ReverieError(f"{system.name} edits pictures, and the prompt says what to change; give one as init")
        return _to_edit(system, codec.encode([resize(request.init.image(), size)]))
    if enlarges(system) or doubles(system):
        if not isinstance(request, ImageToImage):
            raise ReverieError(f"{system.name} enlarges pictures; give one as init")
        height, width = codec.latent_shape(*size)[1:]
        if doubles(system):
            half = (-(-width // 2) * codec.factor, -(-height // 2) * codec.factor)
            seen = codec.encode([resize(request.init.image(), half)])
            return F.interpolate(seen, (height, width), mode="nearest")
        return to_tensor([resize(request.init.image(), (width, height))]).to(system.device)
    if takes_depth(system):
        if request.depth is None:
            raise ReverieError(f"{system.name} draws by a depth map; give a picture of one as `depth`", field="depth")
        return _depth(request.depth.image(), codec.latent_shape(*size)[1:]).to(system.device)
    if system.unet.config.in_channels != INPAINTING_CHANNELS:
        return None
    hidden = codec.encode_tensor(torch.zeros(1, 3, size[1], size[0], device=system.device))
    return torch.cat([torch.ones_like(hidden[:, :1]), hidden], dim=1)


def _depth(picture: Image.Image, size: tuple[int, int]) -> Float[Tensor, "1 1 h w"]:
    """Bring a depth map, bright where it is near, to latents: from -1, the farthest, to 1, the nearest (diffusers)."""
    grey = torch.from_numpy(np.asarray(to_rgb(picture).convert("L"), dtype=np.float32))[None, None]
    depth = F.interpolate(grey, size, mode="bicubic")
    far, near = depth.aminmax()
    return 2 * (depth - far) / (near - far).clamp(min=1) - 1


def _to_edit(system: StableDiffusion, latents: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 c h w"]:
    """Return the latents of a picture as a U-Net that edits sees them: CosXL Edit scaled, others not (diffusers)."""
    return latents if system.schedule_config.is_edm else unscale_latents(latents, system.autoencoder.config)


def resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize a picture, RGB or RGBA; Pillow weighs colours by alpha."""
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _open(mask: Image.Image) -> np.ndarray:
    return (np.asarray(mask) >= masks.PAINTED).astype(np.float32)


def _compose(picture: Image.Image, mask: Image.Image, drawn: Image.Image) -> Image.Image:
    """Keep the picture where the mask is 0, to the bit, and the drawing where it is 255."""
    return Image.composite(drawn, picture, mask)


def _paste_box(whole: Image.Image, mask: Image.Image, box: masks.Box, drawn: Image.Image) -> Image.Image:
    """Lay a drawing of a box into the whole picture, under the mask."""
    sheet = whole.copy()
    sheet.paste(drawn.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS), box[:2])
    return Image.composite(sheet, whole, mask)


def _larger_latents(
    codec: ImageCodec, size: tuple[int, int], latents: Tensor, *, mode: str = "bilinear", antialias: bool = False
) -> Tensor:
    return F.interpolate(latents, codec.latent_shape(*size)[1:], mode=mode, antialias=antialias)


def _lanczos(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture.resize(size, Image.Resampling.LANCZOS)


def _larger_pictures(
    codec: ImageCodec,
    size: tuple[int, int],
    latents: Tensor,
    *,
    resize: Callable[[Image.Image, tuple[int, int]], Image.Image] = _lanczos,
) -> Tensor:
    return codec.encode([resize(picture, size) for picture in codec.pictures(latents)])


UPSCALERS: dict[str, Callable[[ImageCodec, tuple[int, int], Tensor], Tensor]] = {
    "latent": _larger_latents,
    "latent-antialiased": partial(_larger_latents, antialias=True),
    "latent-bicubic": partial(_larger_latents, mode="bicubic"),
    "latent-bicubic-antialiased": partial(_larger_latents, mode="bicubic", antialias=True),
    "latent-nearest": partial(_larger_latents, mode="nearest"),
    "latent-nearest-exact": partial(_larger_latents, mode="nearest-exact"),
    "lanczos": _larger_pictures,
}


def pick_upscaler(
    system: StableDiffusion, name: str
) -> Callable[[ImageCodec, tuple[int, int], Float[Tensor, "b c h w"]], Float[Tensor, "b c h2 w2"]]:
    """Return what enlarges latents to a size in pixels: one of UPSCALERS, or a learned upscaler that is read here.

    A learned one enlarges the decoded pictures.
    """
    if name in UPSCALERS:
        return UPSCALERS[name]
    network = load_upscaler(name, device=system.device)
    return partial(_larger_pictures, resize=partial(enlarge, pack(network) if is_packed(system.unet) else network))


@torch.no_grad()
def embed_pictures(system: StableDiffusion, request: TextToImage) -> Float[Tensor, "1 d"] | None:
    """Return what a model sees of the pictures that a request varies, blended; None for a model that sees none.

    Blends lie on great circles, as DALL-E 2's do (2204.06125, section 3.2). Raises ReverieError where a model varies no
    pictures, neither by itself nor by an IP-Adapter, and is to, and the other way round.
    """
    encoder = system.image_encoder
    if encoder is None:
        if request.vary and not varies(system):
            raise ReverieError(
                f"{system.name} varies no pictures; give the bundled model, one of SD 2.1 unCLIP or of image "
                "variations, or the picture as `init`",
                field="vary",
            )
        return None
    if not request.vary:
        raise ReverieError(f"{system.name} draws variations of pictures; give one as `vary`", field="vary")
    if request.noise_level and system.embedding_noise is None:
        raise ReverieError(f"{system.name} does not noise what it sees; leave out `noise_level`", field="noise_level")
    size = encoder.config.image_size
    see = Preprocessing(size=size, edge=size, begin=floor_margin)
    pixels = see([to_rgb(one.image.image()) for one in request.vary])
    rows = encoder(pixels.to(system.device, system.dtype)).pooled
    seen, share = rows[:1], request.vary[0].weight
    for index, one in enumerate(request.vary[1:], start=1):
        share += one.weight
        seen = slerp(seen, rows[index : index + 1], one.weight / share)
    return seen
