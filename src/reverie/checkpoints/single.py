"""How is a single file read, and how is a model written as one? Through the tables of its family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from reverie.checkpoints import keymaps
from reverie.checkpoints.components import Components
from reverie.checkpoints.compvis import Table, averaged, stored
from reverie.checkpoints.families import (
    SD2,
    SD21_V,
    Family,
    Part,
    autoencoder_part,
    identify,
    is_doubtful,
    named,
    spelled,
)
from reverie.checkpoints.kinds import VAE_PREFIXES, kind_of
from reverie.checkpoints.load import CPU, blueprint, load_autoencoder
from reverie.checkpoints.vocabulary import find_tokenizer
from reverie.checkpoints.weights import Rename, Source, load_weights, open_source
from reverie.errors import ReverieError
from reverie.models.autoencoder import AUTOENCODERS, Autoencoder, AutoencoderConfig
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
        """Lay the weights out as a single file holds them."""
        return {name: tensor for state, table in self._tables() for name, tensor in stored(state, table).items()}

    def names(self) -> set[str]:
        """Name the tensors of such a file."""
        return {place.name for _, table in self._tables() for place in table.values()}

    def _tables(self) -> list[tuple[dict[str, Tensor], Table]]:
        states = [module.state_dict() for module in (self.unet, self.autoencoder, *self.text_encoders)]
        return [(state, part.places(state)) for part, state in zip(self.family.parts(), states, strict=True)]


def load_file(
    path: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    config: str | Family | None = None,
) -> Components:
    """Read a model from a single file (.safetensors, .ckpt, .pt) as CompVis and Stability publish them.

    `config` names its family where names and shapes do not tell it. Running averages and what else a training left
    are ignored. Weights stay mapped as `load_folder`'s do, and an autoencoder that overflows in half precision is
    likewise read in float32. Raises ReverieError.
    """
    path = Path(path)
    family = _given(config) or identify(open_source(path), str(path))
    tokenizers = find_tokenizers(path, family)  # before the weights, for a refusal should cost nothing
    networks = load_networks(path, device=device, dtype=dtype, config=config)
    return networks.components(tokenizers, path.stem)


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
    ema: bool = False,
) -> Networks:
    """Read the networks of a single file; dtype None keeps each tensor's own, `ema` takes the U-Net's averages."""
    source, where = open_source(path), str(path)
    given = _given(config)
    family = given or identify(source, where)
    if ema and not any(name.startswith("model_ema.") for name in source.names()):
        raise ReverieError(f"{where} holds no running averages (model_ema); leave `ema` out")
    unet = read_part(family.unet_part(), source, where, device, dtype, averaged if ema else keymaps.same)
    if given is None and is_doubtful(family):
        family = SD21_V if predicts_v(unet) else SD2
        unet.config = family.unet  # of the same shapes
    upcast = family.autoencoder.force_upcast and dtype == torch.float16
    return Networks(
        family,
        unet,
        read_part(family.autoencoder_part(), source, where, device, torch.float32 if upcast else dtype),
        tuple(read_part(tower.part(), source, where, device, dtype) for tower in family.towers),
    )


def _given(config: str | Family | None) -> Family | None:
    return named(config) if isinstance(config, str) else config


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
    dtype: torch.dtype = torch.float32,
    config: AutoencoderConfig = AUTOENCODERS["sd"],
) -> Autoencoder:
    """Read an autoencoder alone: diffusers' folder, or a file in CompVis' or diffusers' layout, or a whole model's.

    Files do not say how latents are scaled; `config` does: that of the model which it is for. Raises ReverieError.
    """
    path = Path(path)
    if path.is_dir():
        return load_autoencoder(path, device=device, dtype=dtype)
    dtype = torch.float32 if config.force_upcast and dtype == torch.float16 else dtype
    source = open_source(path)
    names = set(source.names())
    prefix = next((one for one in VAE_PREFIXES if f"{one}decoder.conv_in.weight" in names), None)
    if prefix is None:
        kind = kind_of(source)
        raise ReverieError(f"{path} is {kind.title if kind else 'no autoencoder'}; give an autoencoder (VAE)")
    if any(name.startswith("decoder.up_blocks.") for name in names):
        autoencoder = blueprint(lambda: Autoencoder(config))
        load_weights(autoencoder, [path], device=device, dtype=dtype, rename=keymaps.autoencoder)
        return autoencoder
    return read_part(autoencoder_part(config, prefix), source, str(path), device, dtype)


def read_part(
    part: Part[M],
    source: Source,
    where: str,
    device: torch.device,
    dtype: torch.dtype | None,
    rename: Rename = keymaps.same,
) -> M:
    """Build a network and give it its weights, mapped where device and dtype are the file's own."""
    module, names = part.blueprint(), set(source.names())
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    table = part.places(wanted)
    found = {ours: spelled(rename(place.name), names) or rename(place.name) for ours, place in table.items()}
    faults = [f"'{theirs}' is missing" for theirs in sorted(set(found.values()) - names)]
    used = {*found.values(), *(place.name for place in table.values())}
    faults += [f"'{name}' is not known" for name in sorted(names - used) if name.startswith(part.closed)]
    for ours, theirs in found.items():
        if theirs in names and table[ours].shape(source.shape(theirs)) != wanted[ours]:
            faults.append(f"'{theirs}' has the shape {source.shape(theirs)}, which does not become {wanted[ours]}")
        elif theirs in names and not source.dtype(theirs).is_floating_point:
            faults.append(f"'{theirs}' holds whole numbers, as quantised models do, which reverie does not read")
    if faults:
        others = f" (and {len(faults) - 1} other faults)" if len(faults) > 1 else ""
        raise ReverieError(f"{where} is not as its kind should be: {faults[0]}{others}; fetch it again")
    state = {}
    for ours, theirs in found.items():
        tensor = table[ours].read(source.tensor(theirs))
        state[ours] = tensor.to(device, dtype if tensor.is_floating_point() else None)
    module.load_state_dict(state, assign=True)
    return module.eval()
