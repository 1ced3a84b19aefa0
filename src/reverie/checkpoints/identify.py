"""What a file of tensors holds: a model of which family and parameterisation, a part of one, or something else.

Told from names, shapes, the header and a few scalars, before any weights are read. Loading, converting and inspecting
ask `identify` alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from reverie.checkpoints.adapter_keys import algorithms
from reverie.checkpoints.compvis import OFFICIAL, Layout, unet_layout
from reverie.checkpoints.families import (
    FAMILIES,
    Family,
    autoencoder_prefix,
    same_process,
)
from reverie.checkpoints.weights import Source
from reverie.diffusion.denoiser import PARAMETERISATIONS, ScheduleConfig, parameterise
from reverie.errors import ReverieError, choose
from reverie.models.unet import UNetConfig
from reverie.models.upscalers import recognise, today_names
from reverie.requests.samplers import few_steps

SELF_KEYS = "attn1to_kweight"  # as wide as the image, where it attends to itself
RESIDUAL = re.compile(r"(in_layers0|resnets\d+norm1)weight$")  # of a residual block, CompVis' and diffusers'


class UNetShape(NamedTuple):
    """Tell U-Nets apart: by width, channels, prompt's width, added embedding, embedded guidance, and their blocks.

    `crossed` says that some image never attends to itself.
    """

    width: int
    in_channels: int
    context: int
    added: int | None
    guided: bool
    residuals: int
    transformers: int
    crossed: bool

    @classmethod
    def of(cls, config: UNetConfig) -> UNetShape:
        """Return a config's."""
        levels, middle = len(config.block_out_channels), config.mid_transformer_depth
        up = [config.up_depths(level) for level in range(levels)]
        return cls(
            config.block_out_channels[0],
            config.in_channels,
            config.cross_attention_dim,
            config.projection_input_dim,
            config.time_cond_proj_dim is not None,
            levels * config.layers_per_block + sum(map(len, up)) + (0 if middle is None else 2 if middle else 1),
            config.layers_per_block * sum(config.transformer_depth) + sum(map(sum, up)) + (middle or 0),
            config.only_cross_attention is not None,
        )

    @classmethod
    def read(cls, source: Source, layout: Layout) -> UNetShape:
        """Read a file's; 0 stands for what it lacks. Running averages are named without dots, so dots do not count."""
        start = layout.rename(layout.prefix)
        inside = {name.removeprefix(start).replace(".", ""): name for name in source.names() if name.startswith(start)}

        def axis(index: int, *suffixes: str) -> int | None:
            name = next((name for short, name in inside.items() if short.endswith(suffixes)), None)
            shape = () if name is None else source.shape(name)
            return shape[index] if len(shape) > index else None

        return cls(
            (source.shape(layout.first) or (0,))[0],
            (*source.shape(layout.first), 0, 0)[1],
            axis(1, "attn2to_kweight") or 0,
            axis(1, "label_emb00weight", "add_embeddinglinear_1weight", "class_embeddinglinear_1weight"),
            any(short.endswith("cond_projweight") for short in inside),
            sum(RESIDUAL.search(short) is not None for short in inside),
            sum(short.endswith("attn2to_kweight") for short in inside),
            any(len(set(source.shape(name)[:2])) > 1 for short, name in inside.items() if short.endswith(SELF_KEYS)),
        )


AUTOENCODER, TEXT_ENCODER, IMAGE_ENCODER = "autoencoder (VAE)", "text encoder", "image encoder"
EMBEDDED_WIDTHS = (768, 1024, 1280)  # of the text towers of SD 1, SD 2 and XL's second
LATENT_CHANNELS = 4
# What single files say of their parameterisation by tensors of their own: NoobAI and OneTrainer, CosXL, Playground 2.5.
MARKERS = ("v_pred", "ztsnr", "edm_vpred.sigma_max", "edm_vpred.sigma_min", "edm_mean", "edm_std")
PLAYGROUND_SCALE = 0.5  # of latents that `edm_mean` and `edm_std` standardise (diffusers: single_file_utils.py)
ZERO_SNR = 1e-4  # an alpha_bar below is no noise level of the plain schedule, which ends at 0.0047
HEADER = "modelspec.prediction_type"  # of Stability's ModelSpec, which sd-scripts and OneTrainer write
STATED = {"v": "v", "v_prediction": "v", "epsilon": "eps", "eps": "eps", "edm": "edm", "flow": "flow"}
# Of a configuration beside the file, as A1111 and Forge take it: CompVis' parameterization, generative-models' scaling.
YAML = re.compile(r"^\s*parameterization\s*:\s*[\"']?(v|eps|x0)\b|denoiser_scaling\.(\w+)", re.MULTILINE)
YAML_SCALINGS = {"VScaling": "v", "EpsScaling": "eps", "EDMScaling": "edm", "VScalingWithEDMcNoise": "edm_v"}


@dataclass(frozen=True)
class Contents:
    """Say what a file holds: its kind and title, and, where it is no model to draw with, what to do with it.

    `family`, with the file's parameterisation, is that of a U-Net which reverie draws with; `doubtful` says that only
    running it tells whether it predicts eps or v. `missing` lists what a whole model has beside it.
    """

    kind: str
    title: str
    advice: str = ""
    family: Family | None = None
    doubtful: bool = False
    missing: tuple[str, ...] = ()

    def drawable(self, where: str, given: Sequence[str] = ()) -> Family:
        """Return the family of a model which is whole with the parts `given`. Raises ReverieError for anything else."""
        if self.family is None:
            raise ReverieError(f"{where} {'holds' if self.kind == 'unknown' else 'is'} {self.title}; {self.advice}")
        if lacking := [part for part in self.missing if part not in given]:
            help = "give one as vae" if lacking == [AUTOENCODER] else "give a whole model, and this as its unet"
            raise ReverieError(f"{where} is {self.title} without {' and '.join(lacking)}; {help}")
        return self.family


Fits = Callable[[set[str], Source], bool]


def _holds(*parts: str) -> Fits:
    return lambda names, _: any(part in name for name in names for part in parts)


def _starts(*parts: str) -> Fits:
    return lambda names, _: any(name.startswith(parts) for name in names)


def _has(*required: str) -> Fits:
    return lambda names, _: names.issuperset(required)


def _is_clip(names: set[str], _: Source) -> bool:
    bare = {name.removeprefix("module.") for name in names}
    openai = {"visual.class_embedding", "visual.proj"}
    return openai <= bare or {"vision_model.embeddings.class_embedding", "text_projection.weight"} <= bare


def _is_embedding(names: set[str], source: Source) -> bool:
    if any(name.startswith(("emb_params", "emp_params", "string_to_param", "bundle_emb.")) for name in names):
        return True
    shapes = [source.shape(name) for name in names]
    return 0 < len(names) <= 4 and all(0 < len(shape) <= 2 and shape[-1] in EMBEDDED_WIDTHS for shape in shapes)


def _is_upscaler(names: set[str], source: Source) -> bool:
    return recognise({ours: source.shape(theirs) for ours, theirs in today_names(names).items()}) is not None


def _is_aesthetic(names: set[str], source: Source) -> bool:
    """Tell linear layers that end in one number: LAION's predictors on CLIP's embeddings."""
    rows = {source.shape(name)[0] for name in names if name.endswith("weight") and len(source.shape(name)) == 2}
    return 1 in rows and all(re.fullmatch(r"(?:layers\.\d+\.)?(?:weight|bias)", name) for name in names)


@dataclass(frozen=True)
class Kind:
    """Name a kind of file that is no model, and say how to give it to reverie."""

    name: str
    title: str
    advice: str
    fits: Fits


UNREAD = "reverie does not read it"
NOT_DRAWN = "reverie draws with Stable Diffusion 1, 2 and XL"
LORA = (".lora_down", ".lora_up", ".lora_A", ".lora_B", ".lora.down.", ".lora.up.", "lora_linear_layer.", ".lokr_w")
CONTROLNET = ("control_model.", "controlnet_cond_embedding.", "controlnet_down_blocks.", "input_hint_block.")
TINY = ("taesd_decoder.", "taesd_encoder.", "encoder.layers.0.weight", "decoder.layers.0.weight", "3.conv.0.weight")
DIT = ("joint_blocks.", "double_blocks.", "transformer_blocks.0.attn.add_", "caption_projection.", "double_layers.")

TINY_FIRST = ("decoder.layers.0.weight", "taesd_decoder.1.weight", "1.weight")  # of decoders, in their layouts
VAE = Contents("vae", "an autoencoder (VAE)", "give it beside a model, as its vae")
OTHER_LATENTS = f"reverie's models have latents of {LATENT_CHANNELS}"

# The first that fits counts; a U-Net in the official layout goes before all.
KINDS = tuple(
    Kind(*row)
    for row in (
        ("lllite", "a ControlNet-LLLite", "give it beside a model, among its controls", _starts("lllite_")),
        ("control-lora", "a Control-LoRA", "give it beside a model, among its controls", _has("lora_controlnet")),
        ("motion", "a motion module (AnimateDiff)", UNREAD, _holds("motion_modules.")),
        (
            "ip-adapter",
            "an IP-Adapter",
            "give it beside a model, among its ip_adapters",
            _starts("ip_adapter.", "image_proj."),
        ),
        ("lora", "a LoRA", "give it beside a model, among its loras", _holds(*LORA)),
        ("lora", "a LoRA", "give it beside a model, among its loras", lambda names, _: bool(algorithms(names))),
        ("lora", "a LoRA", "give it beside a model, among its loras", _starts("lora_unet_", "lora_te", "lycoris_")),
        ("controlnet", "a ControlNet", "give it beside a model, among its controls", _holds(*CONTROLNET)),
        (
            "t2i-adapter",
            "a T2I-Adapter",
            "give it beside a model, among its controls",
            _starts("adapter.body.", "body.0.block1.", "body.0.resnets.", "body.0.body."),
        ),
        ("taesd", "a TAESD (tiny autoencoder)", "give it beside a model, as its vae or for previews", _starts(*TINY)),
        ("transformer", "a transformer (Stable Diffusion 3, Flux or the like)", NOT_DRAWN, _holds(*DIT)),
        ("cascade", "a Stable Cascade", NOT_DRAWN, _holds("clip_txt_mapper.", "channelwise.0.weight")),
        (
            "upscaler",
            "an upscaler (ESRGAN, Real-ESRGAN, SwinIR or DAT)",
            "give it to upscale, or as hires_upscaler",
            _is_upscaler,
        ),
        ("upscaler", "an upscaler", UNREAD, _holds("conv_first.", "model.1.sub.", ".rdb1.")),
        ("safety", "a safety checker", "give its folder, with config.json", _has("concept_embeds")),
        ("clip", "a CLIP", "it compares pictures with words: similarity, classify, index", _is_clip),
        ("text-encoder", "a text encoder (T5)", NOT_DRAWN, _holds("block.0.layer.0.SelfAttention.q.", "enc.blk.0.")),
        ("language-model", "a language model", NOT_DRAWN, _starts("token_embd.", "model.embed_tokens.")),
        ("vision", "the vision tower of a CLIP", "give the whole CLIP", _starts("vision_model.", "visual.")),
        (
            "text-encoder",
            "a text encoder",
            "give the whole model",
            _starts("text_model.", "embeddings.token_embedding."),
        ),
        ("aesthetic", "an aesthetic predictor on CLIP's embeddings", "it curates pictures", _is_aesthetic),
        (
            "embedding",
            "an embedding (textual inversion)",
            "give it beside a model, among its embeddings",
            _is_embedding,
        ),
    )
)

# U-Nets of Stable Diffusion's kind that are not drawn with, by their shape and by what else is in the file.
OTHER_UNETS: tuple[tuple[str, Callable[[UNetShape], bool], tuple[str, ...]], ...] = (
    ("Stable Video Diffusion", lambda unet: unet.in_channels == 8, ("time_stack.",)),
    ("Stable Diffusion with motion modules (AnimateDiff)", lambda unet: True, ("motion_modules.",)),
    ("Stable Diffusion with GLIGEN", lambda unet: True, ("position_net.",)),
    ("Stable Zero123", lambda unet: unet.in_channels == 8, ("cc_projection.",)),
    ("Kolors", lambda unet: (unet.context, unet.added) == (2048, 5632), ()),
    ("CompVis' latent diffusion of 2021", lambda unet: (unet.width, unet.context) == (320, 1280), ()),
)


def identify(
    source: Source,
    path: str | Path,
    config: str | Family | None = None,
    prediction: str | None = None,
    families: Sequence[Family] | None = None,
) -> Contents:
    """Say what a file holds, by what a configuration beside `path` says too.

    `config` names the family where the file does not tell, `prediction` the parameterisation (`PARAMETERISATIONS`).
    SD 2 base and 768-v look alike, and many files do not say which they are. Raises ReverieError for unknown names.
    """
    names = set(source.names())
    if config is not None:
        given = choose("config", config, FAMILIES) if isinstance(config, str) else config
        return _model(source, Path(path), names, [given], prediction)
    kind = None if OFFICIAL.first in names else next((kind for kind in KINDS if kind.fits(names, source)), None)
    if kind is not None:
        first = next((name for name in TINY_FIRST if name in names), "")
        contents = Contents(kind.name, kind.title, kind.advice)
        return _of_latents(source, first, names, contents) if kind.name == "taesd" else contents
    layout = unet_layout(names)
    if layout is None:
        return _autoencoder(source, names)
    shape = UNetShape.read(source, layout)
    for title, fits, marks in OTHER_UNETS:
        if fits(shape) and (not marks or any(mark in name for name in names for mark in marks)):
            return Contents("model", title, NOT_DRAWN)
    found = [family for family in families or FAMILIES.values() if UNetShape.of(family.unet) == shape]
    if not found:
        blocks = f"{shape.residuals} residual and {shape.transformers} transformer blocks"
        title = (
            f"a U-Net of width {shape.width} with {shape.in_channels} input channels, {blocks}, that is not known here"
        )
        return Contents("unknown", title, f"it reads single files of {', '.join(FAMILIES)}")
    whole = [family for family in found if family.fits(source, names)]
    return _model(source, Path(path), names, whole or found, prediction)


def _model(source: Source, path: Path, names: set[str], found: list[Family], prediction: str | None) -> Contents:
    """Describe a model of one of the families found, which differ in their schedule."""
    stated = _read_parameterisation(source, path, names, found[0].schedule)
    named = len(found) == 1 and (found[0].ambiguous or found[0].schedule != ScheduleConfig())  # a schedule goes with it
    schedule = found[0].schedule if stated is None or named else stated
    if prediction is not None:
        schedule = parameterise(schedule, prediction)
    family = next((one for one in found if same_process(one.schedule, schedule)), replace(found[0], schedule=schedule))
    if {"edm_mean", "edm_std"} <= names and schedule.prediction == "edm":
        mean, std = (tuple(source.tensor(f"edm_{key}").flatten().tolist()) for key in ("mean", "std"))
        scaled = replace(family.autoencoder, latents_mean=mean, latents_std=std, scaling_factor=PLAYGROUND_SCALE)
        family = replace(family, autoencoder=scaled)
    doubtful = len(found) > 1 and found[0].ambiguous and stated is None and prediction is None
    missing = [AUTOENCODER] * (autoencoder_prefix(names) is None)
    missing += [TEXT_ENCODER] * any(tower.positions(names) is None for tower in family.towers)
    missing += [IMAGE_ENCODER] * (family.vision is not None and not family.vision.fits(names))
    if len(missing) == 1 + bool(family.towers) + (family.vision is not None):
        return Contents("unet", f"the U-Net of {family.title} alone", "", family, doubtful, tuple(missing))
    return Contents("model", family.title, "", family, doubtful, tuple(missing))


def _read_parameterisation(source: Source, path: Path, names: set[str], base: ScheduleConfig) -> ScheduleConfig | None:
    """Read what a file, or a configuration beside it, says of its parameterisation; None where nothing does."""

    def number(name: str, default: float) -> float:
        values = source.tensor(name).flatten().tolist() if name in names else []
        return float(values[-1]) if values else default

    if {"edm_mean", "edm_std"} <= names:
        return PARAMETERISATIONS["edm"]
    if "edm_vpred.sigma_max" in names:
        plain = PARAMETERISATIONS["edm_v"]
        high, low = number("edm_vpred.sigma_max", plain.sigma_max), number("edm_vpred.sigma_min", plain.sigma_min)
        return replace(plain, sigma_max=high, sigma_min=low)
    zero = "ztsnr" in names or number("alphas_cumprod", 1.0) < ZERO_SNR  # which a network of eps could not learn
    marked = "v" if zero or "v_pred" in names else None
    family = few_steps(path.stem)
    named = family.prediction if family is not None else None
    prediction = _read_yaml(path) or marked or STATED.get(source.metadata.get(HEADER, "").lower()) or named
    if prediction is None:
        return None
    return replace(parameterise(base, prediction), zero_terminal_snr=zero)


def _read_yaml(path: Path) -> str | None:
    """Read the parameterisation from the .yaml beside a file, where eps goes without saying in CompVis' layout."""
    file = path.with_suffix(".yaml")
    if not path.suffix or not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace")
    if match := YAML.search(text):
        return match[1] or YAML_SCALINGS.get(match[2])
    return "eps" if "LatentDiffusion" in text else None


def _autoencoder(source: Source, names: set[str]) -> Contents:
    prefix = autoencoder_prefix(names)
    if prefix is None:
        return Contents("unknown", "no model that reverie knows", f"it reads single files of {', '.join(FAMILIES)}")
    return _of_latents(source, f"{prefix}decoder.conv_in.weight", names, VAE)


def _of_latents(source: Source, first: str, names: set[str], kind: Contents) -> Contents:
    """Describe a decoder by the channels of its latents: 4, or those of other models, 16 and 32."""
    channels = (*source.shape(first), 0, 0)[1] if first in names else LATENT_CHANNELS
    if channels == LATENT_CHANNELS:
        return kind
    return replace(kind, title=f"{kind.title} of {channels} latent channels", advice=OTHER_LATENTS)
