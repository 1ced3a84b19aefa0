"""Models from single files, through the tables of their families, and back into such a layout.

A single file holds no tokenizer: it is found on the user's disk, else on the hub.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from tokenizers import pre_tokenizers
from torch import Tensor, nn

from reverie.checkpoints import hub
from reverie.checkpoints.compvis import Table, to_single_file
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
from reverie.checkpoints.load import CPU, Components, Recommended, load_autoencoder, load_tiny
from reverie.checkpoints.weights import Source, open_source
from reverie.diffusion.denoiser import parameterise
from reverie.errors import ReverieError
from reverie.models.autoencoder import (
    AUTOENCODERS,
    AutoencoderConfig,
    ImageAutoencoder,
    TinyAutoencoder,
    TinyConfig,
)
from reverie.models.clip import TextTower
from reverie.models.unet import UNet
from reverie.requests.samplers import LATENT_CONSISTENCY, few_steps
from reverie.tokenizer import BOS, END_OF_WORD, EOS, Tokenizer

VARIABLE = "REVERIE_TOKENIZER"
OPENAI = "openai/clip-vit-large-patch14"
FILES = ("vocab.json", "merges.txt")
MERGES = "bpe_simple_vocab_16e6.txt.gz"  # OpenAI's own form, which the packages clip and open_clip carry
MERGES_USED = 49152 - 256 - 2  # the file goes on with more
GZIP = b"\x1f\x8b"
HELP = (
    f"a single file holds no vocabulary; put vocab.json and merges.txt of {OPENAI} beside it, "
    f"or give their folder in {VARIABLE}"
)


def find_tokenizer(near: Path, size: int) -> Tokenizer:
    """Find CLIP's tokenizer of `size` tokens for a checkpoint.

    Looked for in the folder (or merges file) that REVERIE_TOKENIZER names, beside the checkpoint, in the hub's cache,
    in the packages clip and open_clip, and at last fetched from the hub. Raises ReverieError.
    """
    if given := os.environ.get(VARIABLE):
        return _check(Path(given), size)
    for place in (near.parent, near.parent / "tokenizer", near.parent / MERGES):
        if _is_vocabulary(place):
            return _check(place, size)
    for place in (*_cached_files(), *_installed_files()):
        with suppress(ReverieError):  # the cache holds those of other models too, which need not be like CLIP's
            tokenizer = read_tokenizer(place)
            if len(tokenizer) == size:
                return tokenizer
    try:
        return _check(hub.fetch(OPENAI, FILES), size)
    except ReverieError as error:
        raise ReverieError(f"no tokenizer for '{near}': {HELP} ({error})") from error


def read_tokenizer(place: Path) -> Tokenizer:
    """Read the folder of a tokenizer, or OpenAI's file of merges."""
    return Tokenizer.load(place) if place.is_dir() else _from_merges(place)


def _check(place: Path, size: int) -> Tokenizer:
    tokenizer = read_tokenizer(place)
    if len(tokenizer) != size:
        raise ReverieError(f"the tokenizer in '{place}' has {len(tokenizer)} tokens; this model was made with {size}")
    return tokenizer


def _is_vocabulary(place: Path) -> bool:
    return place.is_file() or all((place / name).is_file() for name in FILES)


def _cached_files() -> Iterator[Path]:
    """Find the tokenizers of models in the hub's cache: CLIP's own first."""
    models = sorted(_hub_cache().glob("models--*"), key=lambda path: (OPENAI.replace("/", "--") not in path.name, path))
    for model in models:
        for name in (".", "tokenizer", "tokenizer_2"):
            yield from (place for snapshot in model.glob("snapshots/*") if _is_vocabulary(place := snapshot / name))


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", Path(home, "hub")))


def _installed_files() -> Iterator[Path]:
    """Find OpenAI's file in packages that have it, without importing them."""
    for package in ("open_clip", "clip"):
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (file := Path(folder, MERGES)).is_file():
                yield file


def _from_merges(file: Path) -> Tokenizer:
    """Read OpenAI's merges: the vocabulary is the bytes, the bytes that end a word, the merges, start and end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    try:
        data = file.read_bytes()
        lines = (gzip.decompress(data) if data.startswith(GZIP) else data).decode("utf-8").splitlines()
        merges = [(left, right) for left, right in (line.split() for line in lines[1 : MERGES_USED + 1])]
        symbols = alphabet + [symbol + END_OF_WORD for symbol in alphabet]
        tokens = [*symbols, *(left + right for left, right in merges), BOS, EOS]
        return Tokenizer({token: index for index, token in enumerate(tokens)}, merges)
    except Exception as error:  # the tokenizers library raises no narrower one
        reason = " ".join(f"{error}".split())
        raise ReverieError(f"{file} is no file of CLIP's merges ({reason}); fetch it again") from error


M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Networks:
    """Hold all that a single file holds of a model: its networks, but no tokenizer."""

    family: Family
    unet: UNet
    autoencoder: ImageAutoencoder
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

    It comes onto `device` in `dtype`. `config` names its family where names and shapes do not tell it, `prediction` its
    parameterisation, and `vae` an autoencoder in place of its own. Running averages and what else a training left are
    ignored, where there are plain weights. Weights stay mapped as `load_folder`'s do, and an autoencoder that overflows
    in half precision is likewise read in float32. Raises ReverieError.
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
    config: AutoencoderConfig | TinyConfig = AUTOENCODERS["sd"],
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
    if isinstance(config, TinyConfig):
        config = AUTOENCODERS["sd"]
    prefix = autoencoder_prefix(names)
    if prefix is None:
        raise ReverieError(f"{path} holds {contents.title}; give an autoencoder (VAE)")
    latent = source.shape(f"{prefix}decoder.conv_in.weight")[1:] if f"{prefix}decoder.conv_in.weight" in names else ()
    if latent and latent[0] != config.latent_channels:
        raise ReverieError(f"{path} is {contents.title}; the model's latents have {config.latent_channels}")
    upcast = config.force_upcast and dtype == torch.float16
    part = autoencoder_part(config, names)
    return read_part(part, source, str(path), device, torch.float32 if upcast else dtype)


def _check_decoder(
    autoencoder: ImageAutoencoder, path: Path, config: AutoencoderConfig | TinyConfig
) -> ImageAutoencoder:
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
