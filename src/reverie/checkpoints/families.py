"""Which models come as single files, and which of them is this one? Told from names and shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from torch import nn

from reverie.checkpoints import compvis
from reverie.checkpoints.components import Components
from reverie.checkpoints.compvis import Table
from reverie.checkpoints.configs import ScheduleConfig
from reverie.checkpoints.kinds import not_a_model
from reverie.checkpoints.load import blueprint
from reverie.checkpoints.weights import Source
from reverie.diffusion.names import choose
from reverie.errors import ReverieError
from reverie.models.autoencoder import AUTOENCODERS, Autoencoder, AutoencoderConfig
from reverie.models.clip import CLIPTextConfig, TextTower, TextTowerWithProjection
from reverie.models.unet import UNETS, UNet, UNetConfig
from reverie.tokenizer import EOS

UNET_PREFIX, AUTOENCODER_PREFIX = "model.diffusion_model.", "first_stage_model."
Shapes = dict[str, tuple[int, ...]]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Part(Generic[M]):
    """Describe one network of a single file: how to build it, and where the file holds each of its tensors.

    Below the names `closed` there must be nothing else.
    """

    make: Callable[[], M]
    modules: Table = field(repr=False)
    prefix: str
    closed: tuple[str, ...] = ()

    def blueprint(self) -> M:
        """Build the network without values."""
        return blueprint(self.make)

    def places(self, names: Iterable[str]) -> Table:
        """Give each of the network's tensors its place."""
        return compvis.places(names, self.modules, self.prefix)


def autoencoder_part(config: AutoencoderConfig, prefix: str) -> Part[Autoencoder]:
    """Describe an autoencoder whose names begin with `prefix`."""
    closed = (f"{prefix}encoder.", f"{prefix}decoder.")
    return Part(lambda: Autoencoder(config), compvis.autoencoder(config), prefix, closed)


@dataclass(frozen=True)
class Tower:
    """Describe a text encoder of a single file: what it is, where it is, and which token its prompts are padded with.

    OpenCLIP's are stored in their own layout, OpenAI's in that of transformers.
    """

    config: CLIPTextConfig
    prefix: str
    kind: type[TextTower] = TextTower
    open_clip: bool = False
    pad: str = EOS

    def part(self) -> Part[TextTower]:
        """Describe the network."""
        modules = compvis.open_clip(self.config) if self.open_clip else compvis.transformers()
        return Part(lambda: self.kind(self.config), modules, self.prefix)


@dataclass(frozen=True)
class Family:
    """Describe models that share their networks' shapes, their schedule and the layout of their single files.

    `marks` are names that nothing but such a file holds.
    """

    name: str
    title: str
    unet: UNetConfig
    towers: tuple[Tower, ...]
    autoencoder: AutoencoderConfig = AUTOENCODERS["sd"]
    schedule: ScheduleConfig = ScheduleConfig()
    zero_empty: bool = False
    marks: tuple[str, ...] = ()

    def unet_part(self) -> Part[UNet]:
        """Describe the U-Net."""
        return Part(lambda: UNet(self.unet), compvis.unet(self.unet), UNET_PREFIX, (UNET_PREFIX,))

    def autoencoder_part(self) -> Part[Autoencoder]:
        """Describe the autoencoder."""
        return autoencoder_part(self.autoencoder, AUTOENCODER_PREFIX)

    def parts(self) -> list[Part[Any]]:
        """List the networks: U-Net, autoencoder, text encoders."""
        return [self.unet_part(), self.autoencoder_part(), *(tower.part() for tower in self.towers)]

    def shapes(self) -> Shapes:
        """Give the tensors that tell this family from others: the U-Net's ends, and each tower's positions."""
        unet = self.unet
        level = next((level for level, depth in enumerate(unet.transformer_depth) if depth), 0)
        ours = f"down_blocks.{level}.attentions.0.transformer_blocks.0.attn2.to_k.weight"
        key = self.unet_part().places([ours])[ours].name
        shapes: Shapes = {
            f"{UNET_PREFIX}input_blocks.0.0.weight": (unet.block_out_channels[0], unet.in_channels, 3, 3),
            key: (unet.block_out_channels[level], unet.cross_attention_dim),
        }
        for tower in self.towers:
            ours, config = "text_model.embeddings.position_embedding.weight", tower.config
            shapes[tower.part().places([ours])[ours].name] = (config.max_position_embeddings, config.hidden_size)
        return shapes


def _wide(width: int, layers: int, heads: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act="gelu",
        projection_dim=projection,
    )


CLIP_L = Tower(CLIPTextConfig(), "cond_stage_model.transformer.")
# 24 layers, of which SD 2 uses all but the last.
OPENCLIP_H = Tower(_wide(1024, 23, 16, 512), "cond_stage_model.model.", open_clip=True, pad="!")
OPENCLIP_G = Tower(
    _wide(1280, 32, 20, 1280), "conditioner.embedders.1.model.", TextTowerWithProjection, open_clip=True, pad="!"
)
XL_TOWERS = (replace(CLIP_L, prefix="conditioner.embedders.0.transformer."), OPENCLIP_G)

V = ScheduleConfig(prediction="v")
SD15 = Family("sd15", "Stable Diffusion 1.x", UNETS["sd15"], (CLIP_L,))
SD2 = Family("sd2", "Stable Diffusion 2.x base (512 px, eps)", replace(UNETS["sd21"], sample_size=64), (OPENCLIP_H,))
SD21_V = Family(
    "sd21-v",
    "Stable Diffusion 2.x (768 px, v)",
    UNETS["sd21"],
    (OPENCLIP_H,),
    replace(AUTOENCODERS["sd"], sample_size=768),
    V,
)
SDXL = Family("sdxl", "Stable Diffusion XL", UNETS["sdxl"], XL_TOWERS, AUTOENCODERS["sdxl"], zero_empty=True)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        SD15,
        Family("sd15-inpainting", "Stable Diffusion 1.x inpainting", UNETS["sd15-inpainting"], (CLIP_L,)),
        SD2,
        SD21_V,
        replace(
            SD2,
            name="sd2-inpainting",
            title="Stable Diffusion 2 inpainting",
            unet=replace(SD2.unet, in_channels=9),
        ),
        SDXL,
        replace(SDXL, name="sdxl-v", title="Stable Diffusion XL, v-prediction", schedule=V, marks=("v_pred",)),
        replace(
            SDXL,
            name="sdxl-v-zsnr",
            title="Stable Diffusion XL, v-prediction, zero terminal SNR",
            schedule=replace(V, zero_terminal_snr=True),
            marks=("v_pred", "ztsnr"),
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
            (replace(OPENCLIP_G, prefix="conditioner.embedders.0.model."),),
            AUTOENCODERS["sdxl"],
        ),
    )
}


def identify(source: Source, where: str, families: Sequence[Family] = tuple(FAMILIES.values())) -> Family:
    """Tell which family a single file is of.

    SD 2 base and 768-v look alike: a file is taken for the latter, and `single.load_networks` looks closer. Raises
    ReverieError, naming what the file is, where it is no model.
    """
    names = set(source.names())
    found = [family for family in families if _fits(family, source, names)]
    if not found:
        raise ReverieError(f"{where} {not_a_model(source, FAMILIES)}")
    return max(found, key=lambda family: (len(family.marks), family == SD21_V))


def is_doubtful(family: Family) -> bool:
    """Tell whether a file of this family may as well be of another: SD 2, which predicts eps or v."""
    return family in (SD2, SD21_V)


def named(name: str) -> Family:
    """Look up a family. Raises ReverieError with all of them for another name."""
    return choose("config", name, FAMILIES)


def alike(unet: UNetConfig, schedule: ScheduleConfig) -> list[Family]:
    """List the families of a U-Net and a schedule, whatever size of pictures they were trained at."""
    return [
        family
        for family in FAMILIES.values()
        if replace(unet, sample_size=family.unet.sample_size) == family.unet
        and schedule.prediction == family.schedule.prediction
        and schedule.zero_terminal_snr == family.schedule.zero_terminal_snr
    ]


def family_of(components: Components) -> Family:
    """Tell which family a loaded model is of, so which layout its single file has. Raises ReverieError."""
    layers = [(tower.config.hidden_size, tower.config.num_hidden_layers) for tower in components.text_encoders]
    for family in alike(components.unet.config, components.schedule_config):
        if layers == [(tower.config.hidden_size, tower.config.num_hidden_layers) for tower in family.towers]:
            return family
    known = ", ".join(FAMILIES)
    raise ReverieError(f"'{components.name}' has networks of its own, which no single file holds; those are of {known}")


def _fits(family: Family, source: Source, names: set[str]) -> bool:
    def fits(name: str, shape: tuple[int, ...]) -> bool:
        stored = spelled(name, names)
        return stored is not None and source.shape(stored) == shape

    marked = all(mark in names for mark in family.marks)
    return marked and all(fits(name, shape) for name, shape in family.shapes().items())


def spelled(name: str, names: set[str]) -> str | None:
    """Return the name by which a file holds a tensor; some writers leave out transformers' `text_model.`."""
    return next((one for one in (name, name.replace(".text_model.", ".", 1)) if one in names), None)
