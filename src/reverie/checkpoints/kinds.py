"""What is a file of tensors, where it is no whole model? Told from names and shapes, with what to do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from reverie.checkpoints.adapter_keys import algorithms
from reverie.checkpoints.weights import Source

CONTROLNET = ("control_model.", "controlnet_cond_embedding.", "controlnet_down_blocks.", "input_hint_block.")
TRANSFORMERS = ("joint_blocks.", "double_blocks.", "transformer_blocks.0.attn.add_", "caption_projection.")
ADAPTERS = ("ip_adapter.", "image_proj.", "adapter.body.", "body.0.block1.", "body.0.resnets.")
TAESD = (
    "taesd_decoder.",
    "taesd_encoder.",
    "encoder.layers.0.weight",
    "decoder.layers.0.weight",
    "3.conv.0.weight",
)
CLIP_MARKS = (  # OpenAI's and open_clip's layout, transformers'
    {"visual.class_embedding", "visual.proj"},
    {"vision_model.embeddings.class_embedding", "text_projection.weight"},
)
EMBEDDED_WIDTHS = (768, 1024, 1280)  # of the text towers of SD 1, SD 2 and XL's second


@dataclass(frozen=True)
class Kind:
    """Name a kind of file, and say how to give it to reverie."""

    name: str
    title: str
    advice: str
    fits: Callable[[set[str], Source], bool]


def _holds(*parts: str) -> Callable[[set[str], Source], bool]:
    return lambda names, _: any(part in name for name in names for part in parts)


def _starts(*parts: str) -> Callable[[set[str], Source], bool]:
    return lambda names, _: any(name.startswith(parts) for name in names)


def _is_vae(names: set[str], _: Source) -> bool:
    return any(f"{prefix}{half}.conv_in.weight" in names for prefix in VAE_PREFIXES for half in ("encoder", "decoder"))


def _is_embedding(names: set[str], source: Source) -> bool:
    if any(name.startswith(("emb_params", "emp_params", "string_to_param")) for name in names):
        return True
    shapes = [source.shape(name) for name in names]
    return 0 < len(names) <= 4 and all(0 < len(shape) <= 2 and shape[-1] in EMBEDDED_WIDTHS for shape in shapes)


VAE_PREFIXES = ("", "first_stage_model.", "vae.")

# The first that fits counts.
KINDS = (
    Kind("adapter", "an IP-Adapter or T2I-Adapter", "reverie has no use for it", _starts(*ADAPTERS)),
    Kind("lora", "a LoRA", "give it with --lora", lambda names, _: bool(algorithms(names))),
    Kind("controlnet", "a ControlNet", "give it with --control", _holds(*CONTROLNET)),
    Kind("taesd", "a TAESD (tiny autoencoder)", "it belongs beside a model, for previews", _starts(*TAESD)),
    Kind(
        "transformer",
        "a transformer (Stable Diffusion 3, Flux or the like)",
        "reverie reads Stable Diffusion 1, 2 and XL",
        _holds(*TRANSFORMERS),
    ),
    Kind(
        "unet",
        "a U-Net in diffusers' layout",
        "give the model's folder, with model_index.json",
        lambda names, _: {"conv_in.weight", "time_embedding.linear_1.weight"} <= names,
    ),
    Kind(
        "clip",
        "a CLIP",
        "give it to `reverie similarity`, `classify` or `index` with --model",
        lambda names, _: any(marks <= {name.removeprefix("module.") for name in names} for marks in CLIP_MARKS),
    ),
    Kind(
        "text-encoder",
        "a text encoder",
        "give the whole model",
        _starts("text_model.embeddings.", "embeddings.token_embedding.", "vision_model."),
    ),
    Kind("embedding", "an embedding (textual inversion)", "give it with --embedding", _is_embedding),
)
VAE = Kind("vae", "an autoencoder (VAE) alone", "give it beside a model", _is_vae)
PART_OF_A_MODEL = "model.diffusion_model."


def kind_of(source: Source) -> Kind | None:
    """Tell what a file is that holds no U-Net in CompVis' layout; None for one that does, or that is not known."""
    names = set(source.names())
    if any(name.startswith(f"{PART_OF_A_MODEL}input_blocks.") for name in names):
        return None
    return next((kind for kind in (*KINDS, VAE) if kind.fits(names, source)), None)


def not_a_model(source: Source, known: Iterable[str]) -> str:
    """Say what a file is instead of one of the known models, and what to do."""
    kind = kind_of(source)
    if kind is not None:
        return f"is {kind.title}; {kind.advice}"
    first = f"{PART_OF_A_MODEL}input_blocks.0.0.weight"
    if first in set(source.names()):
        width, channels = (*source.shape(first), 0, 0)[:2]
        told = f"holds a U-Net of width {width} with {channels} input channels"
    else:
        told = "holds no model"
    return f"{told} that reverie knows; it reads single files of {', '.join(known)}, and --config names one of them"
