"""Models and their parts from folders in the layouts of diffusers and transformers; TAESD, from any file of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from reverie.checkpoints import configs
from reverie.checkpoints.adapter_keys import canonical, group, targets
from reverie.checkpoints.compvis import autoencoder_name, text_tower_name
from reverie.checkpoints.weights import (
    Rename,
    Source,
    blueprint,
    find_weights,
    load_weights,
    open_source,
    read_json,
    same,
)
from reverie.diffusion.denoiser import ScheduleConfig
from reverie.diffusion.noise import EmbeddingNoise, PictureNoise
from reverie.errors import ReverieError
from reverie.models.autoencoder import Autoencoder, ImageAutoencoder, TinyAutoencoder, TinyConfig
from reverie.models.clip import (
    CLIP,
    SafetyChecker,
    SafetyConfig,
    TextTower,
    TextTowerWithProjection,
    VisionTowerWithProjection,
)
from reverie.models.deltas import weight_delta
from reverie.models.k_unet import KUNet, KUNetConfig
from reverie.models.unet import UNet, UNetConfig
from reverie.requests.references import locate_part
from reverie.sound.spectrogram import SpectrogramParams
from reverie.tokenizer import Tokenizer

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C")

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
    "LatentConsistencyModelPipeline",
    "StableDiffusionImageVariationPipeline",
    "StableUnCLIPImg2ImgPipeline",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionUpscalePipeline",
    "StableDiffusionLatentUpscalePipeline",
)
CPU = torch.device("cpu")
# Of SD 2's latent upscaler: SD 1's levels, and EDM's preconditioning, of which its folder's scheduler says nothing.
LATENT_UPSCALING = ScheduleConfig(prediction="edm", sigma_min=0.0291675, sigma_max=14.614642, sigma_data=1.0)
RECOMMENDED = "recommended.json"  # the fields of Recommended; diffusers does not know it
SPECTROGRAM = "spectrogram.json"  # of a model of music; the fields of SpectrogramParams
LORA = "lora.safetensors"  # what a model adds to the U-Net that it shares, in kohya's layout
CONCEPTS = "concepts.json"  # what the model was taught; diffusers does not know it
LOW_RES = "low_res_scheduler"  # the folder's name of how pictures are noised that are enlarged
SAFETY = "safety_checker"  # the folder's name inside a model
DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
STEMS = {  # of the weights in the folders of a model's networks
    "unet": DIFFUSERS_STEM,
    "vae": DIFFUSERS_STEM,
    "text_encoder": TRANSFORMERS_STEM,
    "text_encoder_2": TRANSFORMERS_STEM,
    "image_encoder": TRANSFORMERS_STEM,
    "image_normalizer": DIFFUSERS_STEM,
}


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """Recommend values of requests' fields, which a request that leaves them open follows; None leaves its default.

    `family` is that of few-step models whose settings these are, where they are known by the model's name.
    """

    guidance: Annotated[float, Field(ge=0, le=100, strict=True, allow_inf_nan=False)] = 5.0
    steps: Annotated[int, Field(ge=1, le=1000, strict=True)] | None = None
    sampler: str | None = None
    schedule: str | None = None
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    timesteps: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    family: str | None = None

    def fields(self) -> dict[str, Any]:
        """Return what is recommended, by the names of requests' fields."""
        return {name: value for name, value in asdict(self).items() if value is not None and name != "family"}


@dataclass(frozen=True)
class Known:
    """Name one thing that a model can draw or play: its English and Chinese names, and words that have to do with it.

    Of a model of music `kind` is instrument, style, tempo or word.
    """

    emoji: str
    en: tuple[str, ...]
    zh: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    kind: str = "thing"


@dataclass(frozen=True, eq=False, kw_only=True)
class Components:
    """Hold the parts of a model: what a folder in diffusers' layout holds.

    SD 1 and 2 have one tokenizer and text encoder, XL two of each, its refiner only the second. `zero_empty` says that
    an empty negative prompt conditions on zeros (XL: `force_zeros_for_empty_prompt`). `spectrogram` says how a model
    of music hears; one of pictures has none. `recommended` is for requests that leave it open. `known` are the things
    that it says it knows; most models say nothing. Those that vary pictures see them by the `image_encoder`; unCLIP
    noises what it sees (`embedding_noise`), and image variations have nothing else, neither tokenizer nor text encoder.
    Those that enlarge pictures noise them by `picture_noise`.
    """

    tokenizers: tuple[Tokenizer, ...]
    text_encoders: tuple[TextTower, ...]
    unet: UNet
    autoencoder: ImageAutoencoder
    schedule_config: ScheduleConfig = ScheduleConfig()
    zero_empty: bool = False
    image_encoder: VisionTowerWithProjection | None = None
    embedding_noise: EmbeddingNoise | None = None
    picture_noise: PictureNoise = PictureNoise()
    spectrogram: SpectrogramParams | None = None
    recommended: Recommended = Recommended()
    known: tuple[Known, ...] = ()
    name: str = "model"

    @property
    def guidance(self) -> float:
        """Return the scale of classifier-free guidance that the model recommends."""
        return self.recommended.guidance


@dataclass(frozen=True, eq=False)
class CLIPComponents:
    """Hold a whole CLIP and its tokenizer: what a folder of transformers' CLIPModel holds."""

    clip: CLIP
    tokenizer: Tokenizer


def read_known(folder: Path) -> tuple[Known, ...]:
    """Read what a model knows; nothing where its folder does not say. Raises ReverieError where that is damaged."""
    file = locate_part(folder, CONCEPTS)
    if not file.is_file():
        return ()
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        return tuple(_read_known(**one) for one in listed)
    except (TypeError, ValueError) as error:
        raise ReverieError(f"{file} is no list of concepts with en and zh; remove or repair it") from error


def _read_known(
    *, en: list[str], zh: list[str], emoji: str = "", keywords: Sequence[str] = (), kind: str = Known.kind
) -> Known:
    return Known(emoji, tuple(en), tuple(zh), tuple(keywords), kind)


def load_folder(
    path: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype | None = torch.float32,
    variant: str | None = None,
    vae: Callable[[], ImageAutoencoder] | None = None,
) -> Components:
    """Read a model in diffusers' layout (model_index.json and a folder for each part).

    Weights of another dtype are converted (None: none is); where dtype and device are those of the files, they stay
    mapped. An autoencoder that overflows in half precision (`force_upcast`) is read in float32. Of several files of the
    same weights, those of the `variant` are taken, such as "fp16" or "non_ema". `vae` reads
    another autoencoder in place of the folder's own. Raises ReverieError.
    """
    path = _folder(path)
    index = read_json(path / "model_index.json")
    if (kind := index.get("_class_name")) not in PIPELINES:
        raise ReverieError(f"{path / 'model_index.json'} describes a {kind}; reverie reads {', '.join(PIPELINES)}")
    suffixes = [suffix for suffix in ("", "_2") if (index.get(f"text_encoder{suffix}") or [None])[0]]
    towers = [
        load_text_encoder(locate_part(path, f"text_encoder{suffix}"), device=device, dtype=dtype, variant=variant)
        for suffix in suffixes
    ]
    sees = (index.get("image_encoder") or [None])[0] is not None
    if not towers and not sees:
        raise ReverieError(f"{path / 'model_index.json'} names no text_encoder")
    place = locate_part(path, "unet")
    unet = load_unet(place, device=device, dtype=dtype, variant=variant)
    if place.parent != path:
        _add_lora(unet, path / LORA)
    if vae is None and not locate_part(path, "vae").is_dir():
        raise ReverieError(f"'{path}' holds no autoencoder (vae); give one as vae")
    see = partial(load_image_encoder, device=device, dtype=dtype, variant=variant)
    return Components(
        tokenizers=tuple(Tokenizer.load(locate_part(path, f"tokenizer{suffix}")) for suffix in suffixes),
        text_encoders=tuple(towers),
        unet=unet,
        autoencoder=load_autoencoder(locate_part(path, "vae"), device=device, dtype=dtype, variant=variant)
        if vae is None
        else vae(),
        schedule_config=read_process(path)[1],
        image_encoder=see(locate_part(path, "image_encoder")) if sees else None,
        embedding_noise=_embedding_noise(path, variant) if index.get("image_normalizer") else None,
        picture_noise=_picture_noise(path, index),
        zero_empty=bool(index.get("force_zeros_for_empty_prompt", False)),
        spectrogram=_spectrogram(path / SPECTROGRAM),
        recommended=read_recommended(path / RECOMMENDED),
        known=read_known(path),
        name=path.resolve().name,
    )


def read_process(folder: Path) -> tuple[UNetConfig, ScheduleConfig]:
    """Read the U-Net's config from a model's folder, and the noise levels and the parameterisation that it learned."""
    unet = _config(locate_part(folder, "unet"), configs.read_unet)
    if isinstance(unet, KUNetConfig):
        return unet, LATENT_UPSCALING
    return unet, _config(locate_part(folder, "scheduler"), configs.read_schedule, "scheduler_config.json")


def weight_files(folder: Path, dtype: torch.dtype | None, variant: str | None = None) -> list[Path]:
    """List the files whose weights a model's networks have, also where it shares them, chosen as by `find_weights`."""
    parts = [(locate_part(folder, part), stem) for part, stem in STEMS.items()]
    files = [file for part, stem in parts if part.is_dir() for file in find_weights(part, stem, dtype, variant)]
    return files if locate_part(folder, "unet").parent == folder else [*files, folder / LORA]


@torch.no_grad()
def _add_lora(unet: UNet, file: Path) -> None:
    """Add a LoRA to a U-Net's weights, for good."""
    source, layers = open_source(file), targets(unet, ())
    for name, keys in group(source.names())[0].items():
        module = layers[canonical(name)].module
        weight = module.get_parameter("weight")
        parts = {role: source.tensor(key).to(weight.device, torch.float32) for role, key in keys.items()}
        if (delta := weight_delta(parts, weight)) is not None:
            changed = (weight.float() + delta).to(weight.dtype)
            module.register_parameter("weight", nn.Parameter(changed, requires_grad=False))


def load_unet(
    folder: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype | None = torch.float32,
    variant: str | None = None,
) -> UNet:
    """Read a U-Net's folder, config.json and its weights of a `variant` ("fp16"), onto `device` in `dtype`.

    None is the files' own dtype.
    """
    folder = _folder(folder)
    config = _config(folder, configs.read_unet)
    make = partial(KUNet, config) if isinstance(config, KUNetConfig) else partial(UNet, config)
    return _load(make, folder, DIFFUSERS_STEM, device, dtype, variant)


def load_autoencoder(
    folder: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype | None = torch.float32,
    variant: str | None = None,
) -> ImageAutoencoder:
    """Read an autoencoder's folder, config.json and its weights of a `variant` ("fp16"), onto `device` in `dtype`.

    It is diffusers' AutoencoderKL or AutoencoderTiny, or a patched autoencoder. None is the files' own dtype.
    """
    folder = _folder(folder)
    if read_json(folder / "config.json").get("_class_name") == configs.TINY:
        return load_tiny(folder, device=device, dtype=dtype, variant=variant)
    config = _config(folder, configs.read_autoencoder)
    if config.force_upcast and dtype == torch.float16:
        dtype = torch.float32
    return _load(lambda: Autoencoder(config), folder, DIFFUSERS_STEM, device, dtype, variant, autoencoder_name)


def load_text_encoder(
    folder: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype | None = torch.float32,
    variant: str | None = None,
) -> TextTower:
    """Read a text tower's folder as `load_unet` does, with the projection where config.json says that there is one."""
    folder = _folder(folder)
    config = _config(folder, configs.read_text)
    architectures = read_json(folder / "config.json").get("architectures") or []
    tower = TextTowerWithProjection if "CLIPTextModelWithProjection" in architectures else TextTower
    return _load(lambda: tower(config), folder, TRANSFORMERS_STEM, device, dtype, variant, text_tower_name)


def load_image_encoder(
    folder: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype | None = torch.float32,
    variant: str | None = None,
) -> VisionTowerWithProjection:
    """Read transformers' CLIPVisionModelWithProjection as `load_unet` reads a U-Net."""
    folder = _folder(folder)
    config = _config(folder, configs.read_vision)
    space = read_json(folder / "config.json").get("projection_dim", configs.VISION_SPACE)
    return _load(lambda: VisionTowerWithProjection(config, space), folder, TRANSFORMERS_STEM, device, dtype, variant)


def load_clip(
    folder: str | Path, *, device: torch.device = CPU, dtype: torch.dtype | None = torch.float32
) -> CLIPComponents:
    """Read a CLIP in transformers' layout, with its tokenizer in the same folder."""
    folder = _folder(folder)
    config = _config(folder, configs.read_clip)
    clip = _load(lambda: CLIP(config), folder, TRANSFORMERS_STEM, device, dtype)
    return CLIPComponents(clip, Tokenizer.load(folder))


def load_safety(
    path: str | Path, *, device: torch.device = CPU, dtype: torch.dtype | None = torch.float32
) -> SafetyChecker:
    """Read a safety checker: `path` is its folder, or that of a model which holds one.

    Raises ReverieError where there is none or it is damaged.
    """
    folder = Path(path) / SAFETY if (Path(path) / SAFETY).is_dir() else Path(path)
    if not (folder / "config.json").is_file():
        raise ReverieError(f"no safety checker in '{path}'; give the folder {SAFETY} of a model in diffusers' layout")
    config = _config(folder, configs.read_clip)
    safety = SafetyConfig(vision=config.vision, projection_dim=config.projection_dim)
    # transformers before version 5 put one `vision_model.` into another
    once = ("vision_model.vision_model.", "vision_model.", 1)
    rename: Rename = lambda name: name.replace(*once)  # noqa: E731
    return _load(lambda: SafetyChecker(safety), folder, TRANSFORMERS_STEM, device, dtype, None, rename)


def _folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise ReverieError(f"no model at '{path}': there is no such folder")
    return path


def _config(folder: Path, read: Callable[[dict[str, Any], str], C], name: str = "config.json") -> C:
    return read(read_json(folder / name), str(folder / name))


def _embedding_noise(path: Path, variant: str | None) -> EmbeddingNoise:
    """Read diffusers' StableUnCLIPImageNormalizer and the schedule beside it."""
    folder, names = locate_part(path, "image_normalizer"), ("mean", "std")
    source = open_source(find_weights(folder, DIFFUSERS_STEM, torch.float32, variant)[0])
    if not set(names) <= set(source.names()):
        raise ReverieError(f"'{folder}' does not hold the mean and std of CLIP's embeddings; fetch it again")
    mean, std = (source.tensor(name).flatten().float() for name in names)
    scheduler = locate_part(path, "image_noising_scheduler")
    return EmbeddingNoise(mean, std, _config(scheduler, configs.read_schedule, "scheduler_config.json").schedule())


def _picture_noise(path: Path, index: dict[str, Any]) -> PictureNoise:
    """Read how a model that enlarges pictures noises them; as the official one where a folder does not say."""
    if not index.get(LOW_RES):
        return PictureNoise()
    config = _config(locate_part(path, LOW_RES), configs.read_schedule, "scheduler_config.json")
    return PictureNoise(config, index.get("max_noise_level", PictureNoise.max_level))


def _spectrogram(file: Path) -> SpectrogramParams | None:
    if not file.exists():
        return None
    try:
        return TypeAdapter(SpectrogramParams).validate_python(read_json(file))
    except ValidationError as error:
        raise ReverieError(f"{file} describes no spectrogram: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def read_recommended(file: Path) -> Recommended:
    if not file.exists():
        return Recommended()
    try:
        return TypeAdapter(Recommended).validate_python(read_json(file))
    except ValidationError as error:
        raise ReverieError(f"{file} recommends what cannot be: {_first(error)}") from error


def _load(
    make: Callable[[], M],
    folder: Path,
    stem: str,
    device: torch.device,
    dtype: torch.dtype | None,
    variant: str | None = None,
    rename: Rename = same,
) -> M:
    module = blueprint(make)
    load_weights(module, find_weights(folder, stem, dtype, variant), device=device, dtype=dtype, rename=rename)
    return module


HALVES = ("encoder", "decoder")


def load_tiny(
    path: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype | None = torch.float32,
    variant: str | None = None,
) -> TinyAutoencoder:
    """Read a TAESD, a file or diffusers' folder; which halves it has and their shape are told from names and shapes.

    Raises ReverieError where there is none, or where the folder's config.json asks for what is not computed.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        configs.check_tiny(read_json(path / "config.json"), str(path / "config.json"))
    file = find_weights(path, DIFFUSERS_STEM, dtype, variant)[0] if path.is_dir() else path
    source = open_source(file)
    shapes = {today(name, source): source.shape(name) for name in source.names()}
    halves = [half for half in HALVES if f"{half}.layers.0.weight" in shapes]
    if not halves:
        raise ReverieError(f"{path} is no TAESD; give taesd_decoder.pth, or diffusers' AutoencoderTiny")
    config = TinyConfig.of(shapes, halves)
    tiny = blueprint(lambda: TinyAutoencoder(config, encoder="encoder" in halves, decoder="decoder" in halves))
    load_weights(tiny, [file], device=device, dtype=dtype, rename=lambda name: today(name, source))
    return tiny


def today(name: str, source: Source) -> str:
    """Give diffusers' name of a weight.

    The author's decoder begins with a clamp, which has no weights but a number, and diffusers' does not.
    """
    if name.startswith(("encoder.layers.", "decoder.layers.")):
        return name
    half, bare = name.partition(".")[::2] if name.startswith("taesd_") else (None, name)
    number, _, rest = bare.partition(".")
    decoder = half == "taesd_decoder" if half else "0.weight" not in set(source.names())
    if not number.isdecimal():
        return name
    return f"decoder.layers.{int(number) - 1}.{rest}" if decoder else f"encoder.layers.{number}.{rest}"
