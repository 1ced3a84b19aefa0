"""Models from single files, through the tables of their families, and back into such a layout; learned upscalers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from reverie.checkpoints.compvis import AVERAGES, OFFICIAL, Table, to_single_file, unet_layout
from reverie.checkpoints.configs import TINY, read_autoencoder
from reverie.checkpoints.families import (
    Family,
    FilePart,
    alike,
    autoencoder_part,
    autoencoder_prefix,
    spelling,
)
from reverie.checkpoints.hub import find_tokenizer
from reverie.checkpoints.identify import AUTOENCODER, TEXT_ENCODER, Contents, identify
from reverie.checkpoints.load import CPU, Components, Recommended, load_autoencoder, load_tiny, read_process
from reverie.checkpoints.weights import Source, blueprint, open_source, read_json
from reverie.diffusion.denoiser import parameterise
from reverie.diffusion.noise import EmbeddingNoise
from reverie.diffusion.schedule import squared_cosine
from reverie.errors import ReverieError
from reverie.models.autoencoder import (
    AUTOENCODERS,
    AutoencoderConfig,
    ImageAutoencoder,
    TinyAutoencoder,
)
from reverie.models.clip import TextTower, VisionTowerWithProjection
from reverie.models.unet import UNet
from reverie.models.upscalers import Upscaler, recognise, today_names
from reverie.requests.references import locate_part
from reverie.requests.samplers import LATENT_CONSISTENCY, few_steps
from reverie.tokenizer import Tokenizer

STATISTICS = ("noise_augmentor.data_mean", "noise_augmentor.data_std")  # which generative-models does not store
STATISTICS_FILE = "ViT-L-14_stats.th"  # a pair of tensors


M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Networks:
    """Hold all that a single file holds of a model: its networks, but no tokenizer."""

    family: Family
    unet: UNet
    autoencoder: ImageAutoencoder
    text_encoders: tuple[TextTower, ...]
    image_encoder: VisionTowerWithProjection | None = None
    embedding_noise: EmbeddingNoise | None = None

    def components(self, tokenizers: tuple[Tokenizer, ...], name: str) -> Components:
        """Complete the model."""
        return Components(
            tokenizers=tokenizers,
            text_encoders=self.text_encoders,
            unet=self.unet,
            autoencoder=self.autoencoder,
            schedule_config=self.family.schedule,
            zero_empty=self.family.zero_empty,
            image_encoder=self.image_encoder,
            embedding_noise=self.embedding_noise,
            name=name,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Lay the weights out as a single file holds them, with what it says of its parameterisation."""
        laid = {
            name: tensor for state, table in self._tables() for name, tensor in to_single_file(state, table).items()
        }
        return self._markers() | self._statistics() | laid

    def _statistics(self) -> dict[str, Tensor]:
        if self.embedding_noise is None:
            return {}
        return dict(zip(STATISTICS, (self.embedding_noise.mean[None], self.embedding_noise.std[None]), strict=True))

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
        modules = (self.unet, self.autoencoder, *self.text_encoders, *filter(None, [self.image_encoder]))
        states = [module.state_dict() for module in modules]
        return [(state, part.places(state)) for part, state in zip(self.family.parts(held), states, strict=True)]


def load_file(
    path: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype | None = torch.float32,
    config: str | Family | None = None,
    prediction: str | None = None,
    vae: str | Path | None = None,
) -> Components:
    """Read a model from a single file (.safetensors, .ckpt, .pt, .gguf), as CompVis and Stability publish them.

    It comes onto `device` in `dtype` (None: each tensor in its own). `config` names its family where names and shapes
    do not tell it, `prediction` its parameterisation, and `vae` an autoencoder in place of its own. Running averages
    and what else a training left are ignored, where there are plain weights. Weights stay mapped as `load_folder`'s do,
    and an autoencoder that overflows in half precision is likewise read in float32. Raises ReverieError.
    """
    path = Path(path)
    source = open_source(path)
    contents = identify(source, path, config, prediction)
    family = contents.drawable(str(path), [AUTOENCODER] if vae is not None else [])
    tokenizers = find_tokenizers(path, family)  # before the weights, for a refusal should cost nothing
    return _read(path, source, contents, device, dtype, vae).components(tokenizers, path.stem)


def find_tokenizers(path: Path, family: Family) -> tuple[Tokenizer, ...]:
    """Find CLIP's vocabulary for a single file, and pad with it as each of the family's text encoders asks."""
    if not family.towers:
        return ()
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
    """Read the networks of a single file as `load_file` does.

    `dtype` None keeps each tensor's own; `ema` takes the U-Net's running averages.
    """
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
    noise = _embedding_noise(path, source, family) if family.unet.projection_input_dim else None
    unet_part, autoencoder, *towers = family.parts(names)
    unet = read_part(family.unet_part(AVERAGES) if ema else unet_part, source, where, device, dtype)
    if contents.doubtful:
        family = identify(source, path, prediction="v" if predicts_v(unet) else "eps").family or family
        unet.config = family.unet  # of the same shapes
    if vae is not None:
        decoder = load_vae(vae, device=device, dtype=dtype, config=family.autoencoder)
        if isinstance(decoder.config, AutoencoderConfig):
            family = replace(family, autoencoder=decoder.config)
    else:
        upcast = family.autoencoder.force_upcast and dtype == torch.float16
        decoder = read_part(autoencoder, source, where, device, torch.float32 if upcast else dtype)
    encoders = [read_part(tower, source, where, device, dtype) for tower in towers]
    vision = encoders.pop() if family.vision else None
    return Networks(family, unet, decoder, tuple(encoders), vision, noise)


def _embedding_noise(path: Path, source: Source, family: Family) -> EmbeddingNoise | None:
    """Read how unCLIP noises embeddings: by statistics in the file, as we write them, or beside it; H has none."""
    if family.vision is None:
        return None
    if set(source.names()).issuperset(STATISTICS):
        mean, std = (source.tensor(name).flatten() for name in STATISTICS)
    elif not family.vision.normalised:
        mean, std = torch.zeros(family.vision.projection_dim), torch.ones(family.vision.projection_dim)
    elif (beside := path.parent / STATISTICS_FILE).is_file():
        mean, std = (open_source(beside).tensor(name).flatten() for name in "01")
    else:
        raise ReverieError(
            f"{path} does not hold the mean and deviation of CLIP's embeddings; put {STATISTICS_FILE} of Karlo beside "
            "it, or give the model's folder in diffusers' layout"
        )
    return EmbeddingNoise(mean.float(), std.float(), squared_cosine())


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


def recommendation_for(components: Components, name: str, unet: str | Path | None = None) -> Recommended:
    """Return what is recommended for the U-Net that was put in, by the model's folder, or for the model's kind.

    That is a family of few-step models, told by the file's or the model's name, or rectified flow, whose levels lie
    evenly in t.
    """
    family = None if unet is None else few_steps(Path(unet).stem)
    if family is None and components.recommended == Recommended():
        if components.schedule_config.prediction == "flow":
            return Recommended(sampler="euler", schedule="normal")
        consistent = components.unet.config.time_cond_proj_dim is not None
        family = few_steps(name) or (LATENT_CONSISTENCY if consistent else None)
    return components.recommended if family is None else Recommended(**family.fields(), family=family.title)


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
) -> ImageAutoencoder:
    """Read an autoencoder alone: diffusers' folder, or a file in CompVis' or diffusers' layout, or a whole model's.

    TAESD comes in its author's layout too. Files do not say how latents are scaled; `config` does: that of the model
    which it is for. Raises ReverieError.
    """
    path = Path(path)
    if path.is_dir():
        return _check_decoder(load_autoencoder(path, device=device, dtype=dtype), path, config)
    source = open_source(path)
    names = set(source.names())
    contents = identify(source, path)
    if contents.kind == "taesd":
        return _check_decoder(load_tiny(path, device=device, dtype=dtype), path, config)
    prefix = autoencoder_prefix(names)
    if prefix is None:
        raise ReverieError(f"{path} holds {contents.title}; give an autoencoder (VAE)")
    latent = source.shape(f"{prefix}decoder.conv_in.weight")[1:] if f"{prefix}decoder.conv_in.weight" in names else ()
    if latent and latent[0] != config.latent_channels:
        raise ReverieError(f"{path} is {contents.title}; the model's latents have {config.latent_channels}")
    upcast = config.force_upcast and dtype == torch.float16
    part = autoencoder_part(config, names)
    return read_part(part, source, str(path), device, torch.float32 if upcast else dtype)


def autoencoder_config(folder: Path) -> AutoencoderConfig:
    """Return what a model's folder says of its autoencoder; without one, or with a TAESD, what its kind's is."""
    file = locate_part(folder, "vae/config.json")
    if file.is_file() and (own := read_json(file)).get("_class_name") != TINY:
        return read_autoencoder(own, str(file))
    return next((family.autoencoder for family in alike(*read_process(folder))), AUTOENCODERS["sd"])


def _check_decoder(autoencoder: ImageAutoencoder, path: Path, config: AutoencoderConfig) -> ImageAutoencoder:
    """Raise ReverieError where an autoencoder cannot decode the latents that `config` describes."""
    if isinstance(autoencoder, TinyAutoencoder) and autoencoder.decoder is None:
        raise ReverieError(f"{path} holds only the encoder of a TAESD; give its decoder, or diffusers' file of both")
    if autoencoder.config.latent_channels != config.latent_channels:
        raise ReverieError(
            f"{path} is an autoencoder of {autoencoder.config.latent_channels} latent channels; the model's latents "
            f"have {config.latent_channels}"
        )
    return autoencoder


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


RGB = 3  # channels


def load_upscaler(path: str | Path, *, device: torch.device = CPU) -> Upscaler:
    """Read a learned upscaler of any of `models.upscalers`, in float32; what it is, is told from names and shapes.

    Raises ReverieError where there is none, it is damaged, or of another kind.
    """
    if Path(path).is_dir():
        raise ReverieError(
            f"'{path}' is a folder, and upscalers are files; models that enlarge draw by `reverie image`"
        )
    source = open_source(Path(path))
    names = today_names(source.names())
    shapes = {ours: source.shape(theirs) for ours, theirs in names.items()}
    make = recognise(shapes)
    network = None if make is None else blueprint(make)
    if network is None or {name: tuple(one.shape) for name, one in network.state_dict().items()} != shapes:
        raise ReverieError(f"'{path}' is no upscaler that is read; give one of ESRGAN, Real-ESRGAN, SwinIR or DAT")
    if network.channels != RGB:
        raise ReverieError(f"'{path}' enlarges pictures of {network.channels} channels; give one for pictures of {RGB}")
    state = {ours: source.tensor(theirs).to(device, torch.float32) for ours, theirs in names.items()}
    network.load_state_dict(state, assign=True)
    return network.eval()
