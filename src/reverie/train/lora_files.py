"""Files of trained adapters: kohya-ss/sd-scripts' layout or diffusers' (peft's), with headers that tell what they are.

The header has sd-scripts' `ss_...` and the required entries of Stability's ModelSpec 1.0.0; nothing in it is of the
day, so that a run that is repeated writes the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor, nn

from reverie.checkpoints.adapter_keys import PARTS
from reverie.checkpoints.compvis import places, unet
from reverie.checkpoints.load import Components
from reverie.checkpoints.save import write_tensors
from reverie.train.lora import LearnedDelta, LoRASettings

KOHYA = {"unet": "lora_unet", "text": "lora_te", "text_1": "lora_te1", "text_2": "lora_te2"}
DIFFUSERS = {"unet": "unet", "text": "text_encoder", "text_1": "text_encoder", "text_2": "text_encoder_2"}
PEFT = {"down": ".lora_A.weight", "up": ".lora_B.weight", "dora_scale": ".lora_magnitude_vector"}


def export(
    networks: Iterable[tuple[str, nn.Module]], components: Components, settings: LoRASettings, folder: Path
) -> None:
    """Write the changes of a run into its folder, named after the run, for `--lora FILE`. Raises ReverieError."""
    folder.mkdir(parents=True, exist_ok=True)
    name = folder.resolve().parent.name
    save(networks, components, settings, folder / f"{name}.safetensors")


def save(networks: Iterable[tuple[str, nn.Module]], components: Components, settings: LoRASettings, file: Path) -> None:
    """Write the changes of networks, each after its name as in KOHYA. Raises ReverieError."""
    tensors: dict[str, Tensor] = {}
    lay_out = LAYOUTS[settings.layout]
    for network, changes in networks:
        for delta in changes.children():
            assert isinstance(delta, LearnedDelta)
            tensors |= lay_out(components, network, delta)
    write_tensors(tensors, file, header(components, settings, file.stem))


def _kohya(components: Components, network: str, delta: LearnedDelta) -> dict[str, Tensor]:
    """Name a layer as sd-scripts does: SDXL's U-Net as in its single files, the others as diffusers."""
    path = delta.path
    if network == "unet" and _is_xl(components):
        path = places([path], unet(components.unet.config), "")[path].name
    name = f"{KOHYA[network]}_{path.replace('.', '_')}"
    return {name + PARTS[part][0]: value for part, value in delta.parts.items()} | {f"{name}.alpha": delta.alpha}


def _diffusers(components: Components, network: str, delta: LearnedDelta) -> dict[str, Tensor]:
    """Name a layer as peft does; a file that says nothing of alpha is scaled by 1, so `up` holds the scale."""
    name, parts = f"{DIFFUSERS[network]}.{delta.path}", dict(delta.parts.items())
    parts["up"] = parts["up"] * (delta.alpha / len(parts["down"]))
    if "dora_scale" in parts:
        magnitude = parts["dora_scale"]
        parts["dora_scale"] = magnitude.flatten() if magnitude.ndim == 2 else magnitude.transpose(0, 1)
    return {name + PEFT[part]: value for part, value in parts.items()}


LAYOUTS: dict[str, Callable[[Components, str, LearnedDelta], dict[str, Tensor]]] = {
    "kohya": _kohya,
    "diffusers": _diffusers,
}


def header(components: Components, settings: LoRASettings, title: str) -> dict[str, str]:
    """Return what a file says of itself: sd-scripts' entries, by which A1111 tells families, and ModelSpec's."""
    family, architecture = _family(components)
    alpha, conv = settings.alpha or settings.rank, settings.conv_rank or settings.rank
    arguments: dict[str, str | float | bool] = {"conv_dim": conv, "conv_alpha": alpha * conv / settings.rank}
    if settings.kind != "lora":
        arguments |= {"algo": settings.kind.replace("dora", "lora"), "dora_wd": settings.kind == "dora"}
    prediction = components.schedule_config.prediction
    size = components.unet.config.sample_size * components.autoencoder.factor
    return {
        "format": "pt",
        "ss_network_module": "networks.lora" if settings.kind == "lora" else "lycoris.kohya",
        "ss_network_dim": str(settings.rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(arguments),
        "ss_base_model_version": family,
        "ss_v2": str(family.startswith("sd_v2")),
        "ss_sd_model_name": components.name,
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.prediction_type": "epsilon" if prediction == "eps" else prediction,
    }


def _family(components: Components) -> tuple[str, str]:
    """Return what sd-scripts and ModelSpec call a model's family."""
    if _is_xl(components):
        return "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"
    v = components.schedule_config.prediction == "v"
    if components.unet.config.cross_attention_dim == 1024:
        return ("sd_v2_v", "stable-diffusion-v2-768-v") if v else ("sd_v2", "stable-diffusion-v2-512")
    return "sd_v1_v" if v else "sd_v1", "stable-diffusion-v1"


def _is_xl(components: Components) -> bool:
    return components.unet.config.takes_sizes
