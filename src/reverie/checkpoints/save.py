"""Models written so that diffusers and transformers read them: beside the target first, then moved into place."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from reverie.checkpoints import configs
from reverie.checkpoints.load import (
    DIFFUSERS_STEM,
    LOW_RES,
    RECOMMENDED,
    SPECTROGRAM,
    TRANSFORMERS_STEM,
    CLIPComponents,
    Components,
    Recommended,
)
from reverie.diffusion.denoiser import ScheduleConfig
from reverie.diffusion.noise import EmbeddingNoise
from reverie.errors import ReverieError
from reverie.files import atomic_write, reason_of
from reverie.models.autoencoder import ImageAutoencoder
from reverie.models.clip import (
    IMAGE_MEAN,
    IMAGE_STD,
    CLIPVisionConfig,
    TextTower,
    TextTowerWithProjection,
    VisionTowerWithProjection,
)
from reverie.models.k_unet import KUNet
from reverie.models.unet import UNet

LOW_RES_CLASS = "DDPMScheduler"  # which diffusers asks for
SHARD_BYTES = 5 << 30
WEIGHTS = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)([.-].*)?\.(safetensors|bin)(\.index.*\.json)?")


@dataclass(frozen=True)
class Precision:
    """Say how weights are written: dtype (None: each its own), which variant's name, split above which size."""

    dtype: torch.dtype | None = torch.float32
    variant: str | None = None
    shard_bytes: int = SHARD_BYTES

    def size(self, tensor: Tensor) -> int:
        """Return how many bytes a tensor takes so written."""
        return tensor.numel() * (self.dtype or tensor.dtype).itemsize


FULL = Precision()
FORMAT = {"format": "pt"}
"""The header's entry that transformers asks for."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] = FORMAT) -> None:
    """Write tensors as a safetensors file, whole or not at all, readable as the umask allows. Raises ReverieError."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        try:
            save_file(ready, temporary, metadata=dict(metadata))
            if len(metadata) > 1:
                _sort_metadata(temporary)
        except SafetensorError as error:
            if number := _OS_ERROR.search(str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
            raise ReverieError(f"cannot write '{path}': {error}") from error


def _sort_metadata(file: Path) -> None:
    """Bring the entries of a safetensors header into order: the library writes them in another one each time."""
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        opened.seek(8)
        opened.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def save_folder(components: Components, path: str | Path, precision: Precision = FULL) -> None:
    """Write a model in diffusers' layout.

    A variant ("fp16") goes into the names of the weights, so that several precisions can share a folder. Files of a
    model that is already there are replaced, others are left. Raises ReverieError.
    """
    parts = zip(_suffixes(components), components.tokenizers, components.text_encoders, strict=True)
    with _stage(Path(path), precision) as folder:
        for suffix, tokenizer, tower in parts:
            tokenizer.save(folder / f"tokenizer{suffix}")
            _write_text_encoder(tower, folder / f"text_encoder{suffix}", precision)
        if components.image_encoder is not None:
            _write_image_encoder(components.image_encoder, folder / "image_encoder", precision)
            made = _preprocessor(components.image_encoder.config)
            _write_json(folder / "feature_extractor/preprocessor_config.json", made)
        if components.embedding_noise is not None:
            _write_embedding_noise(components.embedding_noise, folder, precision)
        if components.unet.config.num_class_embeds is not None:
            made = {**configs.write_schedule(components.picture_noise.config), "_class_name": LOW_RES_CLASS}
            _write_json(folder / LOW_RES / "scheduler_config.json", made)
        _write_unet(components.unet, folder / "unet", precision)
        _write_autoencoder(components.autoencoder, folder / "vae", precision)
        made = configs.write_schedule(components.schedule_config)
        if isinstance(components.unet, KUNet):  # whose pipeline there preconditions
            plain = configs.write_schedule(ScheduleConfig(prediction="x0", timestep_spacing="linspace"))
            made = {**plain, "_class_name": "EulerDiscreteScheduler"}
        _write_json(folder / "scheduler/scheduler_config.json", made)
        if components.spectrogram is not None:
            _write_json(folder / SPECTROGRAM, asdict(components.spectrogram))
        if components.recommended != Recommended():
            _write_json(folder / RECOMMENDED, components.recommended.fields())
        _write_json(folder / "model_index.json", _index(components))
    if components.spectrogram is None:
        Path(path, SPECTROGRAM).unlink(missing_ok=True)  # of a model of music that was there before
    if components.recommended == Recommended():
        Path(path, RECOMMENDED).unlink(missing_ok=True)


def save_clip(components: CLIPComponents, path: str | Path, precision: Precision = FULL) -> None:
    """Write a CLIP as transformers' CLIPModel, CLIPTokenizer and CLIPImageProcessor read it."""
    config = components.clip.config
    with _stage(Path(path), precision) as folder:
        components.tokenizer.save(folder)
        _write_json(folder / "preprocessor_config.json", _preprocessor(config.vision))
        _write(components.clip, configs.write_clip(config), folder, TRANSFORMERS_STEM, precision)


def save_part(module: nn.Module, config: dict[str, Any], path: str | Path, precision: Precision = FULL) -> None:
    """Write a network's folder as diffusers does: its weights, and its config."""
    with _stage(Path(path), precision) as folder:
        _write(module, config, folder, DIFFUSERS_STEM, precision)


def save_unet(unet: UNet, path: str | Path, precision: Precision = FULL) -> None:
    """Write a U-Net's folder, which `load_unet` and diffusers' UNet2DConditionModel read."""
    save_part(unet, configs.write_unet(unet.config), path, precision)


def save_autoencoder(autoencoder: ImageAutoencoder, path: str | Path, precision: Precision = FULL) -> None:
    """Write an autoencoder's folder, which `load_autoencoder` and, unless it is patched, diffusers' classes read."""
    with _stage(Path(path), precision) as folder:
        _write_autoencoder(autoencoder, folder, precision)


def save_text_encoder(tower: TextTower, path: str | Path, precision: Precision = FULL) -> None:
    """Write a text tower's folder, which `load_text_encoder` and transformers' CLIPTextModel read."""
    with _stage(Path(path), precision) as folder:
        _write_text_encoder(tower, folder, precision)


def save_image_encoder(tower: VisionTowerWithProjection, path: str | Path, precision: Precision = FULL) -> None:
    """Write a vision tower's folder, which `load_image_encoder` and transformers' class of that name read."""
    with _stage(Path(path), precision) as folder:
        _write_image_encoder(tower, folder, precision)


def _write_unet(unet: UNet, folder: Path, precision: Precision) -> None:
    _write(unet, configs.write_unet(unet.config), folder, DIFFUSERS_STEM, precision)


def _write_autoencoder(autoencoder: ImageAutoencoder, folder: Path, precision: Precision) -> None:
    _write(autoencoder, configs.write_autoencoder(autoencoder.config), folder, DIFFUSERS_STEM, precision)


def _write_text_encoder(tower: TextTower, folder: Path, precision: Precision) -> None:
    _write(tower, configs.write_text(tower.config, _architecture(tower)), folder, TRANSFORMERS_STEM, precision)


def _write_image_encoder(tower: VisionTowerWithProjection, folder: Path, precision: Precision) -> None:
    config = configs.write_vision(tower.config, tower.visual_projection.out_features)
    _write(tower, config, folder, TRANSFORMERS_STEM, precision)


def _write_embedding_noise(noise: EmbeddingNoise, folder: Path, precision: Precision) -> None:
    """Write how unCLIP noises embeddings, by a schedule that all its models share."""
    normalizer = nn.ParameterDict({"mean": noise.mean[None], "std": noise.std[None]})
    config = {"_class_name": "StableUnCLIPImageNormalizer", "embedding_dim": len(noise.mean)}
    _write(normalizer, config, folder / "image_normalizer", DIFFUSERS_STEM, precision)
    schedule = configs.write_schedule(ScheduleConfig(beta_schedule="squared_cosine", steps=len(noise.schedule)))
    _write_json(folder / "image_noising_scheduler/scheduler_config.json", schedule)


def _suffixes(components: Components) -> list[str]:
    """Name the folders of the text encoders; one with a projection that stands alone is the refiner's second."""
    alone = len(components.text_encoders) == 1
    return ["_2"] if alone and _is_xl(components) else ["", "_2"][: len(components.text_encoders)]


def _is_refiner(components: Components) -> bool:
    return _suffixes(components) == ["_2"]


def _is_xl(components: Components) -> bool:
    return components.unet.config.takes_sizes


def _architecture(tower: TextTower) -> str:
    return "CLIPTextModelWithProjection" if isinstance(tower, TextTowerWithProjection) else "CLIPTextModel"


LATENT_UPSCALER = "StableDiffusionLatentUpscalePipeline"
FURTHER = {9: "Inpaint", 8: "InstructPix2Pix", 7: "Upscale", 5: "Depth2Img"}


def _pipeline(components: Components) -> str:
    """Name diffusers' class: of nine channels five are a mask and a masked picture, of eight four one that is edited.

    Of seven three are a picture that is enlarged. Of five one is a depth map, which reverie is given: diffusers loads
    such a folder with `depth_estimator=None`.
    """
    if components.image_encoder is not None:
        return "StableUnCLIPImg2ImgPipeline" if components.text_encoders else "StableDiffusionImageVariationPipeline"
    if isinstance(components.unet, KUNet):
        return LATENT_UPSCALER
    if components.unet.config.time_cond_proj_dim is not None:
        return "LatentConsistencyModelPipeline"
    family = "StableDiffusionXL" if _is_xl(components) else "StableDiffusion"
    if (further := FURTHER.get(components.unet.config.in_channels)) is not None:
        return f"{family}{further}Pipeline"
    return f"{family}Img2ImgPipeline" if _is_refiner(components) else f"{family}Pipeline"


def _index(components: Components) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": _pipeline(components),
        "_diffusers_version": configs.DIFFUSERS_VERSION,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", configs.write_autoencoder(components.autoencoder.config)["_class_name"]],
        "feature_extractor": [None, None],
    }
    if components.image_encoder is not None:
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        index["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
    if components.embedding_noise is not None:
        index["image_normalizer"] = ["stable_diffusion", "StableUnCLIPImageNormalizer"]
        index["image_noising_scheduler"] = ["diffusers", "DDIMScheduler"]
    for suffix, tower in zip(_suffixes(components), components.text_encoders, strict=True):
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
        index[f"text_encoder{suffix}"] = ["transformers", _architecture(tower)]
    if _is_xl(components):
        score = {"requires_aesthetics_score": True} if _is_refiner(components) else {}
        edit = {"is_cosxl_edit": components.schedule_config.is_edm} if components.unet.config.in_channels == 8 else {}
        return {
            **index,
            **score,
            **edit,
            "force_zeros_for_empty_prompt": components.zero_empty,
            "add_watermarker": None,
        }
    if index["_class_name"] == LATENT_UPSCALER:
        del index["feature_extractor"]
        return {**index, "scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    if components.embedding_noise is not None:
        return index
    if components.unet.config.num_class_embeds is not None:
        enlarging = {LOW_RES: ["diffusers", LOW_RES_CLASS], "max_noise_level": components.picture_noise.max_level}
        return {**index, **enlarging, "safety_checker": [None, None], "watermarker": [None, None]}
    return {**index, "safety_checker": [None, None], "requires_safety_checker": False}


def _preprocessor(config: CLIPVisionConfig) -> dict[str, Any]:
    size = config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
    }


@contextmanager
def _stage(target: Path, precision: Precision) -> Iterator[Path]:
    """Yield a folder inside `target`; when the block ends well, rename its files into place one by one.

    All writing happens in the staging folder: where it fails, the target stays as it was (a killed process leaves a
    `.saving-*` folder in it). Weights go first, then what describes them, the model's index last. At the end the older
    weights beside the new ones are removed, with a variant only those of that variant. All other files stay.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=target) as staging:
            yield Path(staging)
            files = [file.relative_to(staging) for file in Path(staging).rglob("*") if file.is_file()]
            for file in sorted(files, key=lambda file: (file.name == "model_index.json", file.suffix == ".json")):
                (target / file.parent).mkdir(exist_ok=True)
                Path(staging, file).replace(target / file)
        _remove_stale(target, files, precision.variant)
    except OSError as error:
        raise ReverieError(f"cannot write a model to '{target}': {reason_of(error)}") from error


def _remove_stale(target: Path, written: list[Path], variant: str | None) -> None:
    for folder in {file.parent for file in written if WEIGHTS.fullmatch(file.name)}:
        for old in (target / folder).iterdir():
            of_variant = variant is None or re.search(rf"\.{re.escape(variant)}[.-]", old.name)
            if WEIGHTS.fullmatch(old.name) and of_variant and folder / old.name not in written:
                old.unlink()


def _write(module: nn.Module, config: dict[str, Any], folder: Path, stem: str, precision: Precision) -> None:
    """Write config.json and a safetensors file, or shards with an index, named as diffusers and transformers do."""
    _write_json(folder / "config.json", config)
    infix = f".{precision.variant}" if precision.variant else ""
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    shards = _split(state, precision)
    table: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = f"{stem}{infix}{part}.safetensors"
        tensors = {name: state[name].to("cpu", precision.dtype).contiguous() for name in names}
        write_tensors(tensors, folder / file)
        table |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(precision.size(tensor) for tensor in state.values())
        index = {"metadata": {"total_size": total}, "weight_map": table}
        _write_json(folder / f"{stem}.safetensors.index{infix}.json", index)


def _split(state: Mapping[str, Tensor], precision: Precision) -> list[list[str]]:
    """Divide the names, in order, into groups of at most `shard_bytes` (or of one tensor)."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in state.items():
        nbytes = precision.size(tensor)
        if shards[-1] and size + nbytes > precision.shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards


def _write_json(file: Path, data: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
