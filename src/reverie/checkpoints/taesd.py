"""TAESD: read from its author's files, which hold a half each, or from diffusers' folder or file."""

from __future__ import annotations

from pathlib import Path

import torch

from reverie.checkpoints.load import CPU, DIFFUSERS_STEM, blueprint
from reverie.checkpoints.weights import Source, find_weights, load_weights, open_source
from reverie.errors import ReverieError
from reverie.models.autoencoder import TinyAutoencoder, TinyConfig

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
