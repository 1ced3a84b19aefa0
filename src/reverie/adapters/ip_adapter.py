"""IP-Adapters: pictures as prompts, each with a weight, layers, a part of the way and a mask.

They are read from the authors' files (h94/IP-Adapter), .safetensors or .bin; a CLIP's vision tower sees the pictures.
Keys and values of the pictures are computed once for a drawing, which needs neither the adapter nor the tower again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from reverie.checkpoints.clip_files import load_vision
from reverie.checkpoints.compvis import Place
from reverie.checkpoints.configs import VISION_SPACE, read_vision
from reverie.checkpoints.families import FilePart
from reverie.checkpoints.load import CPU
from reverie.checkpoints.single import read_part
from reverie.checkpoints.weights import Source, open_source, read_json
from reverie.codecs.clip_images import Preprocessing, floor_margin
from reverie.diffusion.denoiser import Network
from reverie.errors import ReverieError
from reverie.media import masks
from reverie.media.pictures import to_rgb
from reverie.models.clip import CLIPVisionConfig, VisionTowerWithProjection
from reverie.models.ip_adapter import (
    ImageProjection,
    IPAdapter,
    PatchProjection,
    Projection,
    Resampler,
    WholeProjection,
)
from reverie.models.layers import Attend, Attention, SpatialTransformer, attend
from reverie.models.unet import UNet
from reverie.requests.adapter_files import SUFFIXES, extract
from reverie.requests.parts import IPAdapterInput
from reverie.requests.pictures import TextToImage
from reverie.requests.references import ASSETS, CLIP_FOLDER, OWNERS, plain_name
from reverie.runtime.changes import attending
from reverie.runtime.offload import HOST, offloader_of
from reverie.system import Conditioning, StableDiffusion

Bind = Callable[[Conditioning], Network]
KeysValues = tuple[Float[Tensor, "2 n d"], Float[Tensor, "2 n d"]]
ENCODER = "image_encoder"  # the folder of the vision tower beside the authors' files
PROJECTION, LAYERS = "image_proj.", "ip_adapter."
FACES = ("perceiver_resampler.proj_in.weight", "norm.weight")  # of FaceID, beside a projection of two layers
FIRST = "proj.0.weight"  # of two layers
OWN = ASSETS / "ip_adapter" / "model.safetensors"  # of the models that come with reverie, seen by the bundled CLIP


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """Hold what cross-attentions see of pictures, for each the keys and values, in the order of `cross_attentions`.

    Row 0 is for what is kept away from, which is no picture, row 1 for what is gone towards. `weights` multiply what
    each attention gathers; the mask, of pixels, is 1 where the pictures act. Where they act `instead` of the text, they
    take its part by their weight in what is gone towards, and none in what is kept away from.
    """

    keys_values: Sequence[KeysValues]
    weights: Sequence[float]
    start: float = 0.0
    end: float = 1.0
    mask: Float[Tensor, "1 1 h w"] | None = None
    instead: bool = False

    def share(self, size: tuple[int, int], tokens: int) -> Float[Tensor, "1 l 1"] | float:
        """Return how far the pictures act on each token of an image, in a U-Net whose latents have a size."""
        if self.mask is None:
            return 1.0
        return F.interpolate(self.mask, level_size(size, tokens), mode="area").flatten(2).mT


def level_size(size: tuple[int, int], tokens: int) -> tuple[int, int]:
    """Return height and width of an image of so many tokens, in a U-Net whose latents have a size."""
    height, width = size
    while height * width > tokens:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def bind_image_prompts(system: StableDiffusion, prompts: Sequence[ImagePrompt], bind: Bind) -> Bind:
    """Return what binds a conditioning as `bind` does, to a U-Net that sees pictures beside the text.

    What an attention gathers of them is added to what it gathers of the text (2308.06721, eq. 5), or put in its place.
    """
    if not prompts:
        return bind
    attentions = [attention for attention, _ in cross_attentions(system.unet)]
    share = cache(ImagePrompt.share)  # once for each size

    def bind_beside(conditioning: Conditioning) -> Network:
        network, prompted = bind(conditioning), conditioning.prompted
        rows = torch.ones(len(conditioning.tokens)) if prompted is None else prompted
        shown = {prompt: [(k[rows.long()], v[rows.long()]) for k, v in prompt.keys_values] for prompt in prompts}
        towards = rows.view(-1, 1, 1).to(system.device, system.dtype)

        def predict(x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            way, size = system.progress(t[0].item()), (x.shape[2], x.shape[3])
            acting = [prompt for prompt in prompts if prompt.start <= way <= prompt.end]

            def gather(layer: int, before: Attend, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
                gathered = said = before(q, k, v, heads)
                for prompt in acting:
                    if weight := prompt.weights[layer]:
                        seen = attend(q, *shown[prompt][layer], heads)
                        if prompt.instead:
                            seen = towards * (seen - said)
                        gathered = gathered + weight * share(prompt, size, q.shape[1]) * seen
                return gathered

            ways = {attention: partial(gather, layer, attention.attend) for layer, attention in enumerate(attentions)}
            with attending(ways if acting else {}):
                return network(x, t)

        return predict

    return bind_beside


def cross_attentions(unet: UNet) -> list[tuple[Attention, int]]:
    """Return the attentions to the prompt as diffusers counts them: the way down, the way up and then the middle.

    Each with the number of its transformer on the way through the network: down, middle and up.
    """
    down, middle, up = (list(_transformers(part)) for part in (unet.down_blocks, unet.mid_block, unet.up_blocks))
    numbers = {transformer: number for number, transformer in enumerate([*down, *middle, *up])}
    return [
        (block.get_submodule("attn2"), numbers[transformer])  # type: ignore[misc]
        for transformer in (*down, *up, *middle)
        for block in transformer.transformer_blocks
    ]


def _transformers(part: nn.Module | None) -> Iterator[SpatialTransformer]:
    return (module for module in part.modules() if isinstance(module, SpatialTransformer)) if part else iter(())


def varies(system: StableDiffusion) -> bool:
    """Tell whether a model, which sees no pictures by itself, varies them by an IP-Adapter that comes with it."""
    return plain_name(system.name) in OWNERS


def show_varied(system: StableDiffusion, request: TextToImage) -> list[IPAdapterInput]:
    """Return what shows the pictures of a request to a model that `varies` them, each by its share of all weights.

    Raises ReverieError for words, in whose place they are seen, and for a refiner, which does not see them.
    """
    if not (request.vary and varies(system)):
        return []
    if extract(request.prompt).text.strip() or request.regions or request.refiner:
        raise ReverieError(
            f"{system.name} sees the pictures that it varies in the place of words; leave out the prompt, `regions` "
            "and `refiner`",
            field="vary",
        )
    whole = sum(one.weight for one in request.vary)
    parts = {"model": str(OWN), "encoder": str(CLIP_FOLDER)}
    return [IPAdapterInput(**parts, images=(one.image,), weight=one.weight / whole) for one in request.vary]


@torch.no_grad()
def load_image_prompts(system: StableDiffusion, asked: Sequence[IPAdapterInput]) -> list[ImagePrompt]:
    """Load IP-Adapters, and let a vision tower see their pictures.

    Raises ReverieError where a file is missing or of another kind, and where adapter, tower and model do not fit.
    """
    place = system.device if offloader_of(system.unet) is None else HOST
    adapters = cache(partial(load_ip_adapter, device=place, dtype=system.dtype))
    towers = cache(partial(load_vision, device=place, dtype=system.dtype))
    return [_prompt(system, one, adapters(one.model), towers) for one in asked]


def _prompt(
    system: StableDiffusion,
    asked: IPAdapterInput,
    adapter: IPAdapter,
    towers: Callable[[str], VisionTowerWithProjection],
) -> ImagePrompt:
    attentions = cross_attentions(system.unet)
    theirs = (adapter.context_dim, adapter.dims)
    if theirs != (system.unet.config.cross_attention_dim, tuple(one.to_q.out_features for one, _ in attentions)):
        raise ReverieError(
            f"'{asked.model}' is made for a U-Net with {len(adapter.dims)} attentions to a context of "
            f"{adapter.context_dim}; the model has {len(attentions)} to one of "
            f"{system.unet.config.cross_attention_dim}: give one of the same family"
        )
    encoder = asked.encoder or find_encoder(Path(asked.model), adapter)
    tower = towers(encoder)
    seen = _numbers(adapter, tower.config, tower.visual_projection.out_features)
    if adapter.image_proj.seen != seen:
        raise ReverieError(
            f"'{asked.model}' was trained with a CLIP that gives it {adapter.image_proj.seen} numbers, and '{encoder}' "
            f"gives {seen}; give its own as encoder"
        )
    cut = Preprocessing(size=tower.config.image_size, edge=tower.config.image_size, begin=floor_margin)
    pixels = cut([to_rgb(picture.image()) for picture in asked.images])
    tokens, nothing = adapter.embed(tower, pixels.to(tower.visual_projection.weight))
    rows = torch.stack([nothing.flatten(0, 1), tokens.flatten(0, 1)])  # several pictures are seen together
    layers = dict(asked.layers)
    count = 1 + max(number for _, number in attentions)
    if wrong := [number for number in layers if number >= count]:
        raise ReverieError(f"IP-Adapter layer {wrong[0]} is not there; this model has layers 0 to {count - 1}")
    shares = [layers.get(number, 0.0) if layers else 1.0 for _, number in attentions]
    return ImagePrompt(
        [(k.to(system.device), v.to(system.device)) for k, v in adapter.keys_values(rows)],
        [asked.weight * share for share in shares],
        asked.start,
        asked.end,
        None if asked.mask is None else mask_tensor(asked.mask.image()).to(system.device, system.dtype),
        adapter.image_proj.instead,
    )


def mask_tensor(picture: Image.Image) -> Float[Tensor, "1 1 h w"]:
    """Return the mask that a picture draws, 0 to 1. Raises ReverieError for one that is 0 everywhere."""
    mask = masks.from_picture(picture)
    if mask.getbbox() is None:
        raise ReverieError("the mask is dark everywhere, so nothing acts; make the part where it is to act white")
    return torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255)[None, None]


def _numbers(adapter: IPAdapter, tower: CLIPVisionConfig, pooled: int) -> int:
    """Return how many numbers an adapter is given at once by a tower: of a picture, of a patch, or of all patches."""
    match adapter.image_proj:
        case ImageProjection():
            return pooled
        case WholeProjection():
            return tower.hidden_size * tower.places
        case _:
            return tower.hidden_size


def find_encoder(file: Path, adapter: IPAdapter) -> str:
    """Return the vision tower of an adapter: the folder image_encoder beside its file, or another of the authors'.

    Their files for SDXL are made for either, and the one that fits is taken. Raises ReverieError where there is none.
    """
    folders = [file.parent / ENCODER, *(file.parent.parent / part / ENCODER for part in ("models", "sdxl_models"))]
    for folder in folders:
        if (folder / "config.json").is_file():
            raw = read_json(folder / "config.json")
            config = read_vision(raw, str(folder / "config.json"))
            if _numbers(adapter, config, raw.get("projection_dim", VISION_SPACE)) == adapter.image_proj.seen:
                return str(folder)
    raise ReverieError(
        f"'{file}' sees pictures through a CLIP that gives it {adapter.image_proj.seen} numbers; give its vision tower "
        f"as encoder, a folder or a file, or put it beside as {ENCODER}"
    )


def image_prompt_files(asked: IPAdapterInput) -> dict[str, list[Path]]:
    """Return the files of an adapter, and of the tower where it is named and here, by these names."""
    files = {asked.model: [Path(asked.model)]}
    if asked.encoder is not None and (place := Path(asked.encoder)).exists():
        inside = sorted(place.iterdir()) if place.is_dir() else [place]
        files[asked.encoder] = [file for file in inside if file.suffix in SUFFIXES]
    return files


def load_ip_adapter(
    path: str | Path, *, device: torch.device = CPU, dtype: torch.dtype | None = torch.float32
) -> IPAdapter:
    """Read an IP-Adapter from a file, onto `device` in `dtype` (None: the file's own).

    What it is, is told from its names and shapes. Raises ReverieError where it is damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ReverieError(f"no IP-Adapter at '{path}'; give a file of weights, .safetensors or .bin")
    source = open_source(path)
    inside = {name.removeprefix(PROJECTION) for name in source.names() if name.startswith(PROJECTION)}
    if FIRST in inside and inside.intersection(FACES):
        raise ReverieError(
            f"'{path}' is an IP-Adapter FaceID, which sees faces by a network (InsightFace's) that reverie does not "
            "have; give a plain, plus, plus-face or full one"
        )
    try:
        adapter = _blueprint(source, inside)
    except (KeyError, IndexError, ValueError) as error:
        raise ReverieError(f"'{path}' is no IP-Adapter that is known here, whole and undamaged") from error
    table = {part: Place(part) for part in ("image_proj", "ip_adapter")}
    return read_part(FilePart(adapter, table, "", (PROJECTION, LAYERS)), source, str(path), device, dtype)


def _blueprint(source: Source, inside: set[str]) -> Callable[[], IPAdapter]:
    """Return what builds the network, by the shapes of its file.

    Raises KeyError, IndexError or ValueError where they are not an IP-Adapter's.
    """

    def shape(name: str) -> tuple[int, ...]:
        return source.shape(PROJECTION + name)

    keys = [
        source.shape(name) for name in source.names() if name.startswith(LAYERS) and name.endswith("to_k_ip.weight")
    ]
    numbers = range(1, 2 * len(keys), 2)
    dims = [source.shape(f"{LAYERS}{number}.to_k_ip.weight")[0] for number in numbers]
    project: Callable[[], Projection]
    if "proj.weight" in inside:
        (rows, seen), dim = shape("proj.weight"), shape("norm.weight")[0]
        project = partial(ImageProjection, seen, rows // dim, dim)
    elif "narrow.weight" in inside:
        (narrow, seen), dim = shape("narrow.weight"), shape("norm.weight")[0]
        count = len({name.split(".")[1] for name in inside if name.startswith("mix.")})
        widths = [shape(f"mix.{number}.weight")[0] for number in range(count)]
        patches, tokens = shape("mix.0.weight")[1] // narrow, shape("out.weight")[0] // dim
        project = partial(WholeProjection, seen, patches, tokens, dim, narrow=narrow, hidden=widths)
    elif FIRST in inside:
        (hidden, seen), dim = shape(FIRST), shape("proj.3.weight")[0]
        project = partial(PatchProjection, seen, hidden, dim)
    else:
        _, tokens, width = shape("latents")
        inner, hidden = shape("layers.0.0.to_q.weight")[0], shape("layers.0.1.1.weight")[0]
        depth = len({name.split(".")[1] for name in inside if name.startswith("layers.")})
        seen, dim = shape("proj_in.weight")[1], shape("proj_out.weight")[0]
        sizes = {"width": width, "inner": inner, "hidden": hidden, "depth": depth}
        project = partial(Resampler, seen, tokens, dim, **sizes)
    return lambda: IPAdapter(project(), keys[0][1], dims)
