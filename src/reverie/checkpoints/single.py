"""Models from single files, through the tables of their families, and back into such a layout; TAESD too."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from reverie.checkpoints.compvis import Table, to_single_file
from reverie.checkpoints.configs import parameterise
from reverie.checkpoints.families import (
    AVERAGES,
    OFFICIAL,
    Family,
    FilePart,
    autoencoder_part,
    autoencoder_prefix,
    spelling,
    unet_layout,
)
from reverie.checkpoints.identify import AUTOENCODER, TEXT_ENCODER, Contents, identify
from reverie.checkpoints.load import CPU, DIFFUSERS_STEM, Components, blueprint, load_autoencoder
from reverie.checkpoints.vocabulary import find_tokenizer
from reverie.checkpoints.weights import Source, find_weights, load_weights, open_source
from reverie.errors import ReverieError
from reverie.models.autoencoder import AUTOENCODERS, Autoencoder, AutoencoderConfig, TinyAutoencoder, TinyConfig
from reverie.models.clip import TextTower
from reverie.models.unet import UNet
from reverie.tokenizer import Tokenizer

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Networks:
    """Hold all that a single file holds of a model: its networks, but no tokenizer."""

    family: Family
    unet: UNet
    autoencoder: Autoencoder
    text_encoders: tuple[TextTower, ...]

    def components(self, tokenizers: tuple[Tokenizer, ...], name: str) -> Components:
        """Complete the model."""
        return Components(
            tokenizers=tokenizers,
            text_encoders=self.text_encoders,
            unet=self.unet,
            autoencoder=self.autoencoder,
            schedule_config=self.family.schedule,
            zero_empty=self.family.zero_empty,
            name=name,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Lay the weights out as a single file holds them, with what it says of its parameterisation."""
        laid = {
            name: tensor for state, table in self._tables() for name, tensor in to_single_file(state, table).items()
        }
        return self._markers() | laid

    def _markers(self) -> dict[str, Tensor]:
        schedule, autoencoder = self.family.schedule, self.family.autoencoder
        if schedule.prediction == "edm_v":
            levels = {"sigma_max": schedule.sigma_max, "sigma_min": schedule.sigma_min}
            return {f"edm_vpred.{key}": torch.tensor(level, dtype=torch.float64) for key, level in levels.items()}
        if schedule.prediction == "edm":
            latents = {"edm_mean": autoencoder.latents_mean, "edm_std": autoencoder.latents_std}
            return {key: torch.tensor(values).view(1, -1, 1, 1) for key, values in latents.items() if values}
        if schedule.prediction != "v" or (self.family.ambiguous and not schedule.zero_terminal_snr):
            return {}
        return {"v_pred": torch.zeros(0)} | ({"ztsnr": torch.zeros(0)} if schedule.zero_terminal_snr else {})

    def names(self, held: Collection[str]) -> set[str]:
        """Name the tensors of such a file, and where one that holds these names has them."""
        tables = (*self._tables(), *self._tables(held))
        return {spelling(place.name, held) or place.name for _, table in tables for place in table.values()}

    def _tables(self, held: Collection[str] = ()) -> list[tuple[dict[str, Tensor], Table]]:
        states = [module.state_dict() for module in (self.unet, self.autoencoder, *self.text_encoders)]
        return [(state, part.places(state)) for part, state in zip(self.family.parts(held), states, strict=True)]


def load_file(
    path: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    config: str | Family | None = None,
    prediction: str | None = None,
    vae: str | Path | None = None,
) -> Components:
    """Read a model from a single file (.safetensors, .ckpt, .pt, .gguf), as CompVis and Stability publish them.

    `config` names its family where names and shapes do not tell it, `prediction` its parameterisation, and `vae` an
    autoencoder in place of its own. Running averages and what else a training left are ignored, where there are plain
    weights. Weights stay mapped as `load_folder`'s do, and an autoencoder that overflows in half precision is likewise
    read in float32. Raises ReverieError.
    """
    path = Path(path)
    source = open_source(path)
    contents = identify(source, path, config, prediction)
    family = contents.drawable(str(path), [AUTOENCODER] if vae is not None else [])
    tokenizers = find_tokenizers(path, family)  # before the weights, for a refusal should cost nothing
    return _read(path, source, contents, device, dtype, vae).components(tokenizers, path.stem)


def find_tokenizers(path: Path, family: Family) -> tuple[Tokenizer, ...]:
    """Find CLIP's vocabulary for a single file, and pad with it as each of the family's text encoders asks."""
    found = find_tokenizer(path, family.towers[0].config.vocab_size)
    lengths = [tower.config.max_position_embeddings for tower in family.towers]
    return tuple(
        Tokenizer(found.vocab, found.merges, length=length, bos=found.bos, eos=found.eos, pad=tower.pad)
        for tower, length in zip(family.towers, lengths, strict=True)
    )


def load_networks(
    path: Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype | None = None,
    config: str | Family | None = None,
    prediction: str | None = None,
    vae: str | Path | None = None,
    ema: bool = False,
) -> Networks:
    """Read the networks of a single file; dtype None keeps each tensor's own, `ema` takes the U-Net's averages."""
    source = open_source(path)
    return _read(path, source, identify(source, path, config, prediction), device, dtype, vae, ema)


def _read(
    path: Path,
    source: Source,
    contents: Contents,
    device: torch.device,
    dtype: torch.dtype | None,
    vae: str | Path | None,
    ema: bool = False,
) -> Networks:
    where, names = str(path), set(source.names())
    family = contents.drawable(where, [AUTOENCODER] if vae is not None else [])
    if ema and AVERAGES.first not in names:
        raise ReverieError(f"{where} holds no running averages (model_ema); leave out `ema`")
    unet_part, autoencoder, *towers = family.parts(names)
    unet = read_part(family.unet_part(AVERAGES) if ema else unet_part, source, where, device, dtype)
    if contents.doubtful:
        family = identify(source, path, prediction="v" if predicts_v(unet) else "eps").family or family
        unet.config = family.unet  # of the same shapes
    if vae is not None:
        decoder = load_vae(vae, device=device, dtype=dtype, config=family.autoencoder)
        family = replace(family, autoencoder=decoder.config)
    else:
        upcast = family.autoencoder.force_upcast and dtype == torch.float16
        decoder = read_part(autoencoder, source, where, device, torch.float32 if upcast else dtype)
    return Networks(family, unet, decoder, tuple(read_part(tower, source, where, device, dtype) for tower in towers))


def replace_unet(components: Components, path: str | Path, prediction: str | None = None) -> Components:
    """Put the U-Net of a single file in place of a model's, with its parameterisation; it may be a whole model's.

    Raises ReverieError where the file holds no U-Net of the model's shapes.
    """
    path, config = Path(path), components.unet.config
    source = open_source(path)
    family = identify(source, path, prediction=prediction).drawable(str(path), [AUTOENCODER, TEXT_ENCODER])
    if replace(family.unet, sample_size=config.sample_size) != config:
        raise ReverieError(
            f"{path} is {family.title}, whose U-Net does not fit '{components.name}'; give one that does"
        )
    weight = components.unet.conv_in.weight
    layout = unet_layout(set(source.names())) or OFFICIAL
    unet = read_part(family.unet_part(layout), source, str(path), weight.device, weight.dtype)
    schedule = family.schedule
    if family.ambiguous and prediction is None:
        schedule = parameterise(schedule, "v" if predicts_v(unet) else "eps")
    unet.config = config
    return replace(components, unet=unet, schedule_config=schedule)


@torch.no_grad()
def predicts_v(unet: Callable[[Tensor, Tensor, Tensor], Tensor] | UNet) -> bool:
    """Tell whether a U-Net of SD 2 predicts v, by what it makes of the last timestep.

    There eps is about the input itself, and v about minus the picture. AUTOMATIC1111 tells them apart by the same
    input and threshold, so a file is taken here for what it is taken for there.
    """
    weight = next(unet.parameters()) if isinstance(unet, UNet) else torch.empty(0)
    x = torch.full((1, 4, 8, 8), 0.5, dtype=weight.dtype, device=weight.device)
    context = torch.full((1, 2, 1024), 0.5, dtype=weight.dtype, device=weight.device)
    out = unet(x, torch.tensor([999], device=weight.device), context)
    return bool((out - x).float().mean() < -1)


def load_vae(
    path: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype | None = torch.float32,
    config: AutoencoderConfig = AUTOENCODERS["sd"],
) -> Autoencoder:
    """Read an autoencoder alone: diffusers' folder, or a file in CompVis' or diffusers' layout, or a whole model's.

    Files do not say how latents are scaled; `config` does: that of the model which it is for. Raises ReverieError.
    """
    path = Path(path)
    if path.is_dir():
        return load_autoencoder(path, device=device, dtype=dtype)
    source = open_source(path)
    names = set(source.names())
    contents = identify(source, path)
    prefix = autoencoder_prefix(names)
    if prefix is None:
        raise ReverieError(f"{path} holds {contents.title}; give an autoencoder (VAE)")
    latent = source.shape(f"{prefix}decoder.conv_in.weight")[1:] if f"{prefix}decoder.conv_in.weight" in names else ()
    if latent and latent[0] != config.latent_channels:
        raise ReverieError(f"{path} is {contents.title}; the model's latents have {config.latent_channels}")
    upcast = config.force_upcast and dtype == torch.float16
    part = autoencoder_part(config, names)
    return read_part(part, source, str(path), device, torch.float32 if upcast else dtype)


def read_part(
    part: FilePart[M], source: Source, where: str, device: torch.device = CPU, dtype: torch.dtype | None = None
) -> M:
    """Build a network and give it its weights, mapped where device and dtype are the file's own.

    Raises ReverieError, before any weights are read, where one is missing, unknown or of another shape.
    """
    module, names = part.blueprint(), set(source.names())
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    table = part.places(wanted)
    found = {ours: spelling(place.name, names) or place.name for ours, place in table.items()}
    faults = [f"'{theirs}' is missing" for theirs in sorted(set(found.values()) - names)]
    used = set(found.values())
    faults += [f"'{name}' is not known" for name in sorted(names - used) if name.startswith(part.closed)]
    for ours, theirs in found.items():
        if theirs in names and _plain(table[ours].shape(source.shape(theirs))) != _plain(wanted[ours]):
            faults.append(f"'{theirs}' has the shape {source.shape(theirs)}, which does not become {wanted[ours]}")
        elif theirs in names and not source.dtype(theirs).is_floating_point:
            faults.append(f"'{theirs}' holds whole numbers, as models quantised without scales do")
    if faults:
        others = f" (and {len(faults) - 1} other faults)" if len(faults) > 1 else ""
        raise ReverieError(f"{where} does not hold what a model of its kind does: {faults[0]}{others}")
    state = {}
    for ours, theirs in found.items():
        tensor = table[ours].read(source.tensor(theirs))
        state[ours] = tensor.view(wanted[ours]).to(device, dtype if tensor.is_floating_point() else None)
    module.load_state_dict(state, assign=True)
    return module.eval()


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop the sides of kernels of one pixel, which some writers leave out of matrices, or add to them."""
    return shape[:2] if set(shape[2:]) == {1} else shape


HALVES = ("encoder", "decoder")


def load_tiny(path: str | Path, *, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> TinyAutoencoder:
    """Read a TAESD; which halves it has, its width and its latent channels are told from names and shapes.

    Raises ReverieError where the file is none.
    """
    path = Path(path)
    file = find_weights(path, DIFFUSERS_STEM, dtype)[0] if path.is_dir() else path
    source = open_source(file)
    table = {today(name, source): name for name in source.names()}
    halves = [half for half in HALVES if f"{half}.layers.0.weight" in table]
    if not halves:
        raise ReverieError(f"{path} is no TAESD; give taesd_decoder.pth, or diffusers' AutoencoderTiny")
    config = TinyConfig(latent_channels=_latent_channels(source, table, halves), channels=_width(source, table, halves))
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


def _width(source: Source, table: dict[str, str], halves: list[str]) -> int:
    return source.shape(table[f"{halves[0]}.layers.0.weight"])[0]


def _latent_channels(source: Source, table: dict[str, str], halves: list[str]) -> int:
    """Read how many channels go into the decoder, or come out of the encoder's last layer."""
    if "decoder" in halves:
        return source.shape(table["decoder.layers.0.weight"])[1]
    last = max(int(name.split(".")[2]) for name in table if name.startswith("encoder.layers."))
    return source.shape(table[f"encoder.layers.{last}.weight"])[0]
