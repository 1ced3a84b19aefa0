"""Families of models that come as single files: their networks, and where a file holds each of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

from torch import nn

from reverie.checkpoints import compvis
from reverie.checkpoints.compvis import OFFICIAL, OLD_ATTENTION, Layout, Table, unet_layout
from reverie.checkpoints.load import Components
from reverie.checkpoints.weights import Source, blueprint, same
from reverie.diffusion.denoiser import ScheduleConfig
from reverie.errors import ReverieError
from reverie.models.autoencoder import AUTOENCODERS, Autoencoder, AutoencoderConfig
from reverie.models.clip import (
    CLIPTextConfig,
    CLIPVisionConfig,
    TextTower,
    TextTowerWithProjection,
    VisionTowerWithProjection,
)
from reverie.models.unet import UNETS, UNet, UNetConfig
from reverie.tokenizer import EOS

AUTOENCODER_PREFIXES = ("first_stage_model.", "vae.", "")
POSITIONS = "text_model.embeddings.position_embedding.weight"
QUERY = "text_model.encoder.layers.0.self_attn.q_proj.weight"
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class FilePart(Generic[M]):
    """Describe one network of a single file: how to build it, and where the file holds each of its tensors.

    Below the names `closed` there must be nothing else.
    """

    make: Callable[[], M]
    modules: Table = field(repr=False)
    prefix: str
    closed: tuple[str, ...] = ()
    rename: Callable[[str], str] = same

    def blueprint(self) -> M:
        """Build the network without values."""
        return blueprint(self.make)

    def places(self, names: Iterable[str]) -> Table:
        """Give each of the network's tensors its place."""
        table = compvis.places(names, self.modules, self.prefix)
        return table if self.rename is same else {n: replace(p, name=self.rename(p.name)) for n, p in table.items()}


def autoencoder_part(config: AutoencoderConfig, names: Collection[str] = ()) -> FilePart[Autoencoder]:
    """Describe the autoencoder of a file with these names: its prefix, and whether in CompVis' layout or diffusers'."""
    found = autoencoder_prefix(names)
    prefix = AUTOENCODER_PREFIXES[0] if found is None else found
    theirs = any(name.startswith(f"{prefix}decoder.up_blocks.") for name in names)
    closed = (f"{prefix}encoder.", f"{prefix}decoder.")
    return FilePart(
        lambda: Autoencoder(config), compvis.SAME_NAMES if theirs else compvis.autoencoder(config), prefix, closed
    )


def autoencoder_prefix(names: Collection[str]) -> str | None:
    """Return what the names of an autoencoder begin with in a file; None where it holds none."""
    halves = ("encoder", "decoder")
    return next((p for p in AUTOENCODER_PREFIXES if any(f"{p}{half}.conv_in.weight" in names for half in halves)), None)


Naming = Callable[[CLIPTextConfig], Table]
"""How a file names the modules of a text encoder."""


@dataclass(frozen=True)
class Tower:
    """Describe a text encoder of a single file: what it is, where it is, and which token its prompts are padded with.

    OpenCLIP's are stored in their own layout, OpenAI's in that of transformers; `others` are further prefixes of other
    writers, each with the layout of what follows.
    """

    config: CLIPTextConfig
    prefix: str
    kind: type[TextTower] = TextTower
    layout: Naming = compvis.same_names
    pad: str = EOS
    others: tuple[tuple[str, Naming], ...] = ()

    def part(self, names: Collection[str] = ()) -> FilePart[TextTower]:
        """Describe the network, in the first of the layouts that a file with these names is in."""
        parts = [self._part(*layout) for layout in ((self.prefix, self.layout), *self.others)]
        for wanted in ((POSITIONS, QUERY), (POSITIONS,)):
            for part in parts:
                if all(spelling(place.name, names) for place in part.places(wanted).values()):
                    return part
        return parts[0]

    def _part(self, prefix: str, layout: Naming) -> FilePart[TextTower]:
        return FilePart(lambda: self.kind(self.config), layout(self.config), prefix)

    def positions(self, names: Collection[str]) -> str | None:
        """Return what a file with these names calls the tower's positions; None where it does not hold the tower."""
        return spelling(self.part(names).places([POSITIONS])[POSITIONS].name, names)

    def fits(self, source: Source, names: Collection[str]) -> bool:
        """Tell whether a file holds a tower with as many positions of the same width."""
        stored, config = self.positions(names), self.config
        return stored is not None and source.shape(stored) == (config.max_position_embeddings, config.hidden_size)


@dataclass(frozen=True)
class VisionPart:
    """Describe the vision tower of a single file, in OpenCLIP's layout: what it is, and where.

    `normalised` tells whether embeddings are noised by statistics of their own, which the file does not hold.
    """

    config: CLIPVisionConfig
    projection_dim: int
    prefix: str
    normalised: bool = False

    def part(self) -> FilePart[VisionTowerWithProjection]:
        """Describe the network."""
        make = partial(VisionTowerWithProjection, self.config, self.projection_dim)
        return FilePart(make, compvis.open_clip_vision(self.config), f"{self.prefix}model.")

    def fits(self, names: Collection[str]) -> bool:
        """Tell whether a file with these names holds it."""
        return f"{self.prefix}model.visual.class_embedding" in names


@dataclass(frozen=True)
class Family:
    """Describe models that share their networks' shapes and their schedule.

    `vision` is how those that vary pictures see. `ambiguous` families are of the same shapes, and where a file does not
    say of which it is, only running it tells.
    """

    name: str
    title: str
    unet: UNetConfig
    towers: tuple[Tower, ...]
    autoencoder: AutoencoderConfig = AUTOENCODERS["sd"]
    schedule: ScheduleConfig = ScheduleConfig()
    zero_empty: bool = False
    ambiguous: bool = False
    vision: VisionPart | None = None

    def unet_part(self, layout: Layout = OFFICIAL) -> FilePart[UNet]:
        """Describe the U-Net."""
        closed = (layout.prefix,) if layout.prefix and layout.rename is same else ()
        return FilePart(lambda: UNet(self.unet), layout.modules(self.unet), layout.prefix, closed, layout.rename)

    def autoencoder_part(self, held: Collection[str] = ()) -> FilePart[Autoencoder]:
        """Describe the autoencoder of a file that holds these names."""
        return autoencoder_part(self.autoencoder, held)

    def parts(self, held: Collection[str] = ()) -> list[FilePart[Any]]:
        """List the networks, U-Net, autoencoder, text and image encoders, as a file with these names has them."""
        unet = self.unet_part(unet_layout(held) or OFFICIAL)
        visions = [] if self.vision is None else [self.vision.part()]
        return [unet, self.autoencoder_part(held), *(tower.part(held) for tower in self.towers), *visions]

    def fits(self, source: Source, names: Collection[str]) -> bool:
        """Tell whether a file holds all encoders of texts and pictures."""
        return all(tower.fits(source, names) for tower in self.towers) and (
            self.vision is None or self.vision.fits(names)
        )


def _wide(width: int, layers: int, heads: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act="gelu",
        projection_dim=projection,
    )


# Further prefixes: of generative-models' own configs, of ComfyUI, of merged folders, and of stable-diffusion.cpp, with
# and without its `--convert-name` (src/model_loader.cpp, src/name_conversion.cpp).
CLIP_L = Tower(
    CLIPTextConfig(),
    "cond_stage_model.transformer.",
    others=(
        ("conditioner.embedders.0.transformer.", compvis.same_names),
        ("text_encoders.clip_l.transformer.", compvis.same_names),
        ("text_encoder.", compvis.same_names),
        ("te.", compvis.same_names),
        ("cond_stage_model.transformer.", compvis.same_names),
    ),
)
# 24 layers, of which SD 2 uses all but the last.
OPENCLIP_H = Tower(
    _wide(1024, 23, 16, 512),
    "cond_stage_model.model.",
    layout=compvis.open_clip,
    pad="!",
    others=(
        ("conditioner.embedders.0.model.", compvis.open_clip),
        ("text_encoder.", compvis.same_names),
        ("te.", compvis.same_names),
        ("cond_stage_model.transformer.", compvis.converted_names),
        ("cond_stage_model.transformer.", compvis.same_names),
    ),
)
OPENCLIP_G = Tower(
    _wide(1280, 32, 20, 1280),
    "conditioner.embedders.1.model.",
    TextTowerWithProjection,
    layout=compvis.open_clip,
    pad="!",
    others=(
        ("text_encoders.clip_g.transformer.", compvis.same_names),
        ("text_encoder_2.", compvis.same_names),
        ("te.1.", compvis.same_names),
        ("cond_stage_model.1.transformer.", compvis.converted_names),
        ("cond_stage_model.transformer.1.", compvis.same_names),
    ),
)
XL_TOWERS = (replace(CLIP_L, prefix="conditioner.embedders.0.transformer."), OPENCLIP_G)
REFINER_TOWER = replace(
    OPENCLIP_G,
    prefix="conditioner.embedders.0.model.",
    others=(*OPENCLIP_G.others, ("cond_stage_model.transformer.", compvis.converted_names)),
)

V = ScheduleConfig(prediction="v")
SD15 = Family("sd15", "Stable Diffusion 1.x", UNETS["sd15"], (CLIP_L,))
SD2 = Family(
    "sd2",
    "Stable Diffusion 2.x base (512 px, eps)",
    replace(UNETS["sd21"], sample_size=64),
    (OPENCLIP_H,),
    ambiguous=True,
)
SD21_V = Family(
    "sd21-v",
    "Stable Diffusion 2.x (768 px, v)",
    UNETS["sd21"],
    (OPENCLIP_H,),
    replace(AUTOENCODERS["sd"], sample_size=768),
    V,
    ambiguous=True,
)
SDXL = Family("sdxl", "Stable Diffusion XL", UNETS["sdxl"], XL_TOWERS, AUTOENCODERS["sdxl"], zero_empty=True)

VISION_H = CLIPVisionConfig(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, hidden_act="gelu"
)
UNCLIP = {  # of unCLIP, by the CLIP that sees
    "l": VisionPart(CLIPVisionConfig(), 768, "embedder.", normalised=True),
    "h": VisionPart(VISION_H, 1024, "embedder."),
}

SMALL = {
    "bk-sdm-base": "BK-SDM base or small-sd",
    "bk-sdm-small": "BK-SDM small",
    "bk-sdm-tiny": "BK-SDM tiny or tiny-sd",
    "sdxs": "SDXS-512 (DreamShaper)",
}
SMALL2 = {
    "bk-sdm-v2-base": "BK-SDM v2 base",
    "bk-sdm-v2-small": "BK-SDM v2 small",
    "bk-sdm-v2-tiny": "BK-SDM v2 tiny",
    "sdxs-0.9": "SDXS-512 0.9",
}
SMALLXL = {
    "ssd-1b": "SSD-1B",
    "segmind-vega": "Segmind Vega",
    "koala-700m": "KOALA 700M",
    "koala-1b": "KOALA 1B",
}


def _small(base: Family, titles: dict[str, str]) -> list[Family]:
    """List the families of smaller U-Nets that were distilled from one."""
    return [replace(base, name=name, title=title, unet=UNETS[name], ambiguous=False) for name, title in titles.items()]


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        SD15,
        Family("sd15-lcm", "Stable Diffusion 1.x, LCM", replace(UNETS["sd15"], time_cond_proj_dim=256), (CLIP_L,)),
        Family("sd15-inpainting", "Stable Diffusion 1.x inpainting", UNETS["sd15-inpainting"], (CLIP_L,)),
        SD2,
        SD21_V,
        replace(
            SD2,
            name="sd2-inpainting",
            title="Stable Diffusion 2 inpainting",
            unet=replace(SD2.unet, in_channels=9),
            ambiguous=False,
        ),
        replace(
            SD2,
            name="sd2-depth",
            title="Stable Diffusion 2 depth",
            unet=replace(SD2.unet, in_channels=5),
            ambiguous=False,
        ),
        Family(
            "sd2-x4-upscaler",
            "Stable Diffusion 2 x4 upscaler",
            UNETS["x4-upscaler"],
            (OPENCLIP_H,),
            AUTOENCODERS["x4-upscaler"],
            replace(V, beta_start=0.0001, beta_end=0.02),
        ),
        SDXL,
        replace(SDXL, name="sdxl-v", title="Stable Diffusion XL, v-prediction", schedule=V),
        replace(
            SDXL,
            name="sdxl-v-zsnr",
            title="Stable Diffusion XL, v-prediction, zero terminal SNR",
            schedule=replace(V, zero_terminal_snr=True),
        ),
        replace(
            SDXL,
            name="sdxl-inpainting",
            title="Stable Diffusion XL inpainting",
            unet=replace(SDXL.unet, in_channels=9),
        ),
        Family(
            "sdxl-refiner",
            "Stable Diffusion XL refiner",
            UNETS["sdxl-refiner"],
            (REFINER_TOWER,),
            AUTOENCODERS["sdxl"],
        ),
        replace(
            SD15,
            name="sd15-edit",
            title="InstructPix2Pix of Stable Diffusion 1.x",
            unet=replace(SD15.unet, in_channels=8),
        ),
        replace(
            SDXL,
            name="sdxl-edit",
            title="CosXL Edit or InstructPix2Pix of Stable Diffusion XL",
            unet=replace(SDXL.unet, in_channels=8),
        ),
        replace(
            SD15,
            name="sd15-variations",
            title="Stable Diffusion 1.x image variations",
            towers=(),
            vision=VisionPart(CLIPVisionConfig(), 768, "cond_stage_model."),
        ),
        *(
            replace(
                SD21_V,
                name=f"sd21-unclip-{clip}",
                title=f"Stable Diffusion 2.1 unCLIP ({clip.upper()})",
                unet=replace(SD21_V.unet, projection_input_dim=2 * vision.projection_dim),
                ambiguous=False,
                vision=vision,
            )
            for clip, vision in UNCLIP.items()
        ),
        *_small(SD15, SMALL),
        *_small(SD2, SMALL2),
        *_small(SDXL, SMALLXL),
    )
}


def same_process(one: ScheduleConfig, other: ScheduleConfig) -> bool:
    """Tell whether two schedules differ in numbers alone, not in what the network predicts."""
    return (one.prediction, one.zero_terminal_snr) == (other.prediction, other.zero_terminal_snr)


def alike(unet: UNetConfig, schedule: ScheduleConfig) -> list[Family]:
    """List the families of a U-Net, whatever size of pictures they were trained at; those of the schedule come first.

    Families of another schedule are given this one.
    """
    found = [one for one in FAMILIES.values() if replace(unet, sample_size=one.unet.sample_size) == one.unet]
    exact = [one for one in found if same_process(one.schedule, schedule)]
    return exact + [replace(one, schedule=schedule) for one in found if one not in exact]


def family_of(components: Components) -> Family:
    """Tell which family a loaded model is of, so which layout its single file has. Raises ReverieError."""
    layers = [(tower.config.hidden_size, tower.config.num_hidden_layers) for tower in components.text_encoders]
    for family in alike(components.unet.config, components.schedule_config):
        towers = [(tower.config.hidden_size, tower.config.num_hidden_layers) for tower in family.towers]
        if layers == towers and (family.vision is None) == (components.image_encoder is None):
            return family
    known = ", ".join(FAMILIES)
    raise ReverieError(f"'{components.name}' has networks of its own, which no single file holds; those are of {known}")


def spelling(name: str, names: Collection[str]) -> str | None:
    """Return the name by which a file holds a tensor; some writers leave out transformers' `text_model.`."""
    if name in names:
        return name
    others = [name.replace("text_model.", "", 1), *(name.replace(new, old) for old, new in OLD_ATTENTION.items())]
    return next((one for one in others if one in names), None)
