"""A whole model: tokenizers, text encoders, U-Net, autoencoder and schedule in one frozen bundle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from reverie.checkpoints import hub
from reverie.checkpoints.identify import identify
from reverie.checkpoints.load import STEMS, Components, load_folder, weight_files
from reverie.checkpoints.save import FULL, Precision, save_folder
from reverie.checkpoints.single import autoencoder_config, load_file, load_vae, recommendation_for, replace_unet
from reverie.checkpoints.weights import content_hash, find_weights, open_source
from reverie.codecs.image import WHOLE, WHOLE_PACKED, ImageCodec
from reverie.diffusion.denoiser import Network, Scalings, parameterise
from reverie.diffusion.noise import slerp
from reverie.diffusion.schedule import Schedule
from reverie.errors import ReverieError
from reverie.models.k_unet import KUNet
from reverie.models.unet import UNet
from reverie.requests.references import BUNDLED, BUNDLED_NAME, locate_model, locate_part
from reverie.runtime import cast_to, is_packed, limit_threads, native, pack, pack_after, quantize, spare_threads
from reverie.runtime.cache import machine_folder
from reverie.runtime.changes import check_combination
from reverie.runtime.compiled import compile_network, keep_in
from reverie.runtime.offload import HOST, Offloader, pick_offloader
from reverie.runtime.transform import pick_device, pick_dtype, to_channels_last
from reverie.runtime.weights import bytes_of

WIDE_FROM = 256  # widest level from which a U-Net's operations are worth several threads
KEPT_FROM = 2**28  # bytes of a U-Net whose packed weights are kept for later processes
TOWER_CALLS = 8  # after so many prompts packing a text tower has paid for itself
# What SDXL's refiner is told of the picture to make, and of the one to keep away from (diffusers' defaults).
GOOD_SCORE, POOR_SCORE = 6.0, 2.5


class RegionPrompt(NamedTuple):
    """Hold a prompt of one row that a part of the picture follows, and how far: 0 to 1 in an image of a size.

    `coverage` takes height and width. Weights above 1 are for regions that overlap. It holds in rows that are
    `prompted` so: 1 in those to go towards, 0 in those to keep away from.
    """

    tokens: Float[Tensor, "1 l d"]
    coverage: Callable[[int, int], Float[Tensor, "h w"]]
    weight: float
    prompted: float = 1.0


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Hold what a U-Net is told: the prompt's tokens, and for SDXL the pooled prompt and the sizes in pixels.

    unCLIP's `pooled` is a picture's embedding. `guidance` is the scale less 1 that a latent consistency model, which is
    not guided from outside, is told.
    `prompted` is 1 for rows to go towards and 0 for those to keep away from; None where nobody asks. `regions` are what
    parts of the picture follow in place of the tokens.
    """

    tokens: Float[Tensor, "b l d"]
    pooled: Float[Tensor, "b p"] | None = None
    sizes: Float[Tensor, "b s"] | None = None
    guidance: Float[Tensor, " b"] | None = None
    prompted: Float[Tensor, " b"] | None = None
    regions: tuple[RegionPrompt, ...] = ()

    def lerp(self, other: Conditioning, w: float) -> Conditioning:
        """Go the fraction w of the straight line to another."""
        return _merge([self, other], lambda ends: torch.lerp(ends[0], ends[1], w))

    def slerp(self, other: Conditioning, w: float) -> Conditioning:
        """Go the fraction w of the great circle to another, each row on its own; sizes and guidance go straight."""
        straight = self.lerp(other, w)
        pooled = None
        if self.pooled is not None and other.pooled is not None:
            pooled = slerp(self.pooled, other.pooled, w)
        return replace(straight, tokens=slerp(self.tokens, other.tokens, w), pooled=pooled)

    def cat(self, *others: Conditioning) -> Conditioning:
        """Join the rows of this and others into one batch."""
        return _merge([self, *others], torch.cat)

    def repeat(self, count: int) -> Conditioning:
        """Repeat each row `count` times in place: a, a, b, b."""
        return _merge([self], lambda only: only[0].repeat_interleave(count, dim=0))


def text_layers(
    components: Components, tokens: Sequence[Int64[Tensor, "b l"]], clip_skip: int = 1
) -> tuple[list[Float[Tensor, "b l d"]], Float[Tensor, "b p"] | None]:
    """Return the layer of each text encoder that the U-Net conditions on, and for SDXL and upscalers the pooled text.

    `clip_skip` counts layers from the end: 1 is the last, which SD 1 and 2 normalise. SDXL never takes the last, so
    1 and 2 both mean its own, the last but one. Raises ReverieError where there are not so many layers.
    """
    features = [tower(ids) for ids, tower in zip(tokens, components.text_encoders, strict=True)]
    fewest = min(len(feature.hidden) - 1 for feature in features)
    if clip_skip > fewest:
        raise ReverieError(f"clip skip {clip_skip} is too much; this model's text encoder has {fewest} layers")
    if components.unet.config.takes_sizes:
        return [feature.hidden[-max(clip_skip, 2)] for feature in features], features[-1].pooled
    if isinstance(components.unet, KUNet):
        return [features[0].hidden[-clip_skip]], features[0].pooled
    if clip_skip == 1:
        return [features[0].last], None
    return [components.text_encoders[0].text_model.final_layer_norm(features[0].hidden[-clip_skip])], None


def _merge(parts: Sequence[Conditioning], merge: Callable[[list[Tensor]], Tensor]) -> Conditioning:
    """Merge the parts' tensors kind by kind; a kind that one of them lacks is left out. Regions are those of any.

    All parts that have some have the same, but for those to go towards and to keep away from.
    """

    def cat_or_none(tensors: list[Tensor | None]) -> Tensor | None:
        held = [tensor for tensor in tensors if tensor is not None]
        return merge(held) if len(held) == len(tensors) else None

    sides = [[[one for one in part.regions if one.prompted == side] for part in parts] for side in (0.0, 1.0)]
    return Conditioning(
        merge([part.tokens for part in parts]),
        cat_or_none([part.pooled for part in parts]),
        cat_or_none([part.sizes for part in parts]),
        cat_or_none([part.guidance for part in parts]),
        cat_or_none([part.prompted for part in parts]),
        tuple(region for side in sides for region in next(filter(None, side), [])),
    )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class StableDiffusion(Components):
    """Hold a whole model, frozen: the parts of `Components`, and what follows from them."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.size} px, {self.dtype}, {self.device})"

    @cached_property
    def codec(self) -> ImageCodec:
        """Return the way between pictures and latents."""
        wide = max(self.unet.config.block_out_channels) >= WIDE_FROM
        return ImageCodec(self.autoencoder, WHOLE_PACKED if wide and is_packed(self.autoencoder) else WHOLE)

    @cached_property
    def schedule(self) -> Schedule:
        """Return the noise levels the U-Net was trained on."""
        return self.schedule_config.schedule()

    @cached_property
    def scalings(self) -> Callable[[Schedule, Tensor], Scalings]:
        """Return how to read what the U-Net predicts."""
        return self.schedule_config.scalings()

    def progress(self, t: float) -> float:
        """Return how far denoising is, from 0 to 1, where the U-Net is given the time t (`c_noise` of the scalings)."""
        if self.schedule_config.is_edm:
            t = self.schedule.sigma_to_t(math.exp(4 * t)).item()
        return max(0.0, 1 - t / (len(self.schedule) - 1))

    @property
    def device(self) -> torch.device:
        """Return where the U-Net is."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Return what the U-Net computes in."""
        return self.unet.conv_in.weight.dtype

    @property
    def size(self) -> int:
        """Return the width and height in pixels that the model was trained at."""
        return self.unet.config.sample_size * self.codec.factor

    def encode_prompt(
        self, texts: Sequence[str], *, width: int | None = None, height: int | None = None
    ) -> Conditioning:
        """Encode prompts, one row each, for pictures of a size in pixels (the model's own where None).

        SD 1 and 2 condition on the last layer after the final LayerNorm (SD 2's files leave out the layer that it
        skips); SDXL on the last layer but one of each encoder, the last encoder's pooled projection and the sizes.
        Texts that are too long lose their tail.
        """
        return self._encode(texts, width, height, GOOD_SCORE)

    def encode_negative(
        self, texts: Sequence[str], *, width: int | None = None, height: int | None = None
    ) -> Conditioning:
        """Encode negative prompts: as prompts, but for SDXL.

        There an empty one conditions on zeros where the model says so, as one left out does in diffusers, and the
        refiner is told of a poor picture.
        """
        conditioning = self._encode(texts, width, height, POOR_SCORE)
        if conditioning.pooled is None or not self.zero_empty:
            return conditioning
        kept = torch.tensor([text != "" for text in texts], device=self.device)
        tokens, pooled = conditioning.tokens * kept[:, None, None], conditioning.pooled * kept[:, None]
        return replace(conditioning, tokens=tokens, pooled=pooled)

    def _encode(self, texts: Sequence[str], width: int | None, height: int | None, score: float) -> Conditioning:
        layers, pooled = self.text_layers([tokenizer(texts) for tokenizer in self.tokenizers])
        size = (width or self.size, height or self.size)
        sized = self.unet.config.takes_sizes
        sizes = self.sizes(size, (0, 0), size, score).expand(len(texts), -1) if sized else None
        return Conditioning(torch.cat(layers, dim=-1), pooled, sizes)

    @torch.no_grad()
    def text_layers(
        self, tokens: Sequence[Int64[Tensor, "b l"]], clip_skip: int = 1
    ) -> tuple[list[Float[Tensor, "b l d"]], Float[Tensor, "b p"] | None]:
        """Return what the module's `text_layers` does, of tokens on any device, without gradients."""
        return text_layers(self, [ids.to(self.device) for ids in tokens], clip_skip)

    def sizes(
        self, original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int], score: float = GOOD_SCORE
    ) -> Float[Tensor, "1 s"]:
        """Say what SDXL was told of a training picture: original size, crop and target size; the refiner: a score.

        In pixels, (width, height) and (left, top). Raises ReverieError for a model that takes no sizes.
        """
        config = self.unet.config
        if config.projection_input_dim is None or config.addition_time_embed_dim is None:
            raise ReverieError("this U-Net takes no sizes")
        pooled_dim = self.text_encoders[-1].config.projection_dim
        count = (config.projection_input_dim - pooled_dim) // config.addition_time_embed_dim
        end = (score,) if count == 5 else target[::-1]
        return torch.tensor([[*original[::-1], *crop[::-1], *end]], dtype=torch.float32, device=self.device)

    def network(self, conditioning: Conditioning) -> Network:
        """Bind the U-Net to a conditioning with a row for each of the latents it will be given."""

        def predict(x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            micro = (conditioning.pooled, conditioning.sizes)
            return self.unet(x.to(self.dtype), t, conditioning.tokens, *micro, guidance=conditioning.guidance)

        return predict

    def save(self, path: str | Path, precision: Precision = FULL) -> None:
        """Write the model as a folder that reverie and diffusers load. See `checkpoints.save.save_folder`."""
        save_folder(self, path, precision)


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
    offload: str | Offloader | None = None,
    compile: Path | None = None,
) -> StableDiffusion:
    """Load a model: the bundled one where no path is given, else a folder, a single file or a name.

    A folder is in diffusers' layout, a single file in CompVis' or Stability's (.safetensors, .ckpt, .gguf); `config`
    names the file's family where it does not tell, `prediction` what the U-Net predicts where that is not said or said
    wrongly: eps, v, v_zsnr, x0, edm, edm_v or flow (`diffusion.denoiser.PARAMETERISATIONS`). "reverie-emoji" and
    "reverie-music" are the bundled models; another name, `owner/name`, is looked for in the hub's cache, then fetched,
    of a `revision` and in a `variant` ("fp16"). `vae` is an autoencoder to put in place of the model's (a folder or
    a file, of a whole model too), `unet` a file with a U-Net to.

    `device` "auto" takes a GPU where there is one. `dtype` None is float16 on CUDA and float32 elsewhere, whatever the
    files hold. `fast` lets networks that gain by it compute with packed weights where they are float32 (or bfloat16, on
    processors that compute in it) on the CPU: the same results but for rounding. Weights that are packed, or still in
    files of another dtype, are missing from `parameters()` until `runtime.unpack` or `state_dict()`. `int8` rounds the
    U-Net's weights to 8 bits, and the model is named so. `offload` keeps the weights in host memory, from which
    "networks" come to the device one at a time, or their "blocks" (see `runtime.offload`); an `Offloader` is that of a
    model to share it with. `compile` is a folder to keep kernels in that are compiled for U-Net and decoder (see
    `runtime.compiled`).
    The model is called by its file or folder, a hash of the weights, "v1-5 [1a2b3c4d5e]", the dtype where that is not
    float32, and the `prediction` that was named, so that what it draws says which of that name drew it. Raises
    ReverieError where there is no model or it is damaged.
    """
    target = pick_device(device)
    kind = pick_dtype(dtype, target)
    asked = {"fast": fast and target.type == "cpu", "int8": int8, "offload": offload, "compile": compile}
    check_combination(way for way, value in asked.items() if value)
    if compile is not None:
        keep_in(compile)
    offloader = offload if isinstance(offload, Offloader) else pick_offloader(offload, target)
    place = target if offloader is None else HOST
    found, name = _locate(path, revision, variant)
    vae = None if vae is None else _locate_vae(vae)
    plainly = not fast or target.type != "cpu" or not native(kind) or any(part is not None for part in (unet, compile))
    later = not plainly and _reads_only(found, config, prediction)
    components = _read(found, place, None if later else kind, variant, config, prediction, vae)
    if later:
        for network in (*components.text_encoders, components.unet, components.autoencoder):
            cast_to(network, kind)
        if components.image_encoder is not None:
            components.image_encoder.to(kind)
    if unet is not None:
        components = replace_unet(components, unet, prediction)
    components = replace(components, recommended=recommendation_for(components, name, unet))
    files, added = _weight_files(found, kind, variant), [Path(part) for part in (unet, vae) if part]
    name = _with_hash(name, files, added, kind)
    _lay_out(components, target, offloader)
    if fast and offloader is None:
        _quicken(components, name, files if unet is None else [*files, Path(unet)], quantize if int8 else pack)
    elif int8:
        quantize(components.unet)
    if int8:
        name = f"{name} in int8"
    if kind != torch.float32:
        name = f"{name} in {str(kind).removeprefix('torch.')}"
    if prediction is not None:
        name = f"{name} predicting {prediction}"
    if compile is not None:
        compile_network(components.unet)
        compile_network(components.autoencoder.decoder)
    return StableDiffusion(**vars(replace(components, name=name)))


def _reads_only(path: Path, config: str | None, prediction: str | None) -> bool:
    """Tell whether nothing is computed with a model's weights, nor added to them, while it is read."""
    if path.is_dir():
        return locate_part(path, "unet").parent == path
    return not identify(open_source(path), path, config, prediction).doubtful


def _read(
    path: Path,
    device: torch.device,
    dtype: torch.dtype | None,
    variant: str | None,
    config: str | None,
    prediction: str | None,
    vae: str | Path | None,
) -> Components:
    """Read a single file, or a folder with what is put in the place of its parameterisation and autoencoder."""
    if path.is_file():
        return load_file(path, device=device, dtype=dtype, config=config, prediction=prediction, vae=vae)
    if config is not None:
        raise ReverieError(f"config '{config}' was given for the folder '{path}'; it is for single files alone")
    read = None if vae is None else lambda: load_vae(vae, device=device, dtype=dtype, config=autoencoder_config(path))
    components = load_folder(path, device=device, dtype=dtype, variant=variant, vae=read)
    if prediction is not None and isinstance(components.unet, KUNet):
        raise ReverieError(f"'{path}' doubles latents and is preconditioned as EDM's models; leave out prediction")
    if prediction is not None:
        components = replace(components, schedule_config=parameterise(components.schedule_config, prediction))
    return components


def _lay_out(components: Components, device: torch.device, offloader: Offloader | None) -> None:
    """Lay kernels out as a GPU convolves fastest, and give the networks to who carries them."""
    if device.type == "cuda":
        to_channels_last(components.unet)
        to_channels_last(components.autoencoder)
    if offloader is not None:
        encoders = (*components.text_encoders, *filter(None, [components.image_encoder]))
        offloader.take(*encoders, components.unet, components.autoencoder)


def _quicken(
    components: Components, name: str, files: Sequence[Path], way: Callable[[UNet, Path | None], UNet]
) -> None:
    """Let a model's networks compute as fast as they can on the CPU, its U-Net in a way; elsewhere nothing changes.

    What a large model's weights, read from `files`, are packed into is kept in the user's cache, its autoencoder's too.
    """
    limit_threads()
    unet = components.unet
    large = bytes_of(unet) >= KEPT_FROM
    folder = machine_folder(name, files, unet.conv_in.weight.dtype) if large else None
    pack(components.autoencoder, folder)
    if max(unet.config.block_out_channels) < WIDE_FROM:
        for network in (*components.text_encoders, unet, components.autoencoder.decoder):
            spare_threads(network)
    way(unet, folder)
    for tower in components.text_encoders:
        pack_after(TOWER_CALLS, tower)


def _locate(path: str | Path | None, revision: str | None, variant: str | None) -> tuple[Path, str]:
    """Find a model's file or folder, fetching it where it is a name on the hub; say what the model is called."""
    found = locate_model(BUNDLED_NAME if path is None else path)
    if not found.exists() and hub.is_name(str(path)):
        return hub.find(str(path), revision=revision, variant=variant), str(path)
    if found.is_file() or (found / "model_index.json").is_file():
        return found, _name(found.resolve())
    raise ReverieError(_no_model(found))


def _locate_vae(path: str | Path) -> Path:
    """Find an autoencoder: a file, its own folder, or that inside a model's."""
    folder = locate_model(path)
    return locate_part(folder, "vae") if (folder / "model_index.json").is_file() else folder


def model_files(path: str | Path, dtype: torch.dtype) -> list[Path]:
    """Return the files that a model's weights are read from: a folder's, a single file, or those of a name."""
    return _weight_files(_locate(path, None, None)[0], dtype, None)


def _with_hash(name: str, files: list[Path], added: list[Path], dtype: torch.dtype) -> str:
    """Name a model and the parts put into it, with a hash of all their weights; the bundled ones go without."""
    name = " + ".join([name, *(part.name for part in added)])
    if name in BUNDLED:
        return name
    parts = [find_weights(part, STEMS["vae"], dtype) if part.is_dir() else [part] for part in added]
    return f"{name} [{content_hash([*files, *(file for part in parts for file in part)])}]"


def _weight_files(path: Path, dtype: torch.dtype, variant: str | None) -> list[Path]:
    """List the files whose weights a model is read from."""
    return [path] if path.is_file() else weight_files(path, dtype, variant)


def _name(path: Path) -> str:
    """Name a model by its folder or file; the bundled ones have names of their own, which no other can take."""
    for name, folder in BUNDLED.items():
        if path == folder.resolve():
            return name
    name = path.stem if path.is_file() else path.name
    return str(path) if name in BUNDLED else name


def _no_model(path: Path) -> str:
    allowed = "give a folder in diffusers' layout, a single file, or a name on the hub such as owner/name"
    for name, folder in BUNDLED.items():
        if path == folder:
            return f"this installation holds no bundled model {name}; {allowed}"
    if path.is_dir():
        return f"no model in '{path}': it holds no model_index.json; {allowed}"
    return f"no model at '{path}': there is no such file or folder; {allowed}"
