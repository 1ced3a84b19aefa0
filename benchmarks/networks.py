"""How fast is one call of each network beside its peer? The same random weights, in memory once, serve both sides."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig as PeerTextConfig
from transformers import CLIPTextModel

import floor
from measure import Remote, Row, alternate, seconds
from reverie.checkpoints.configs import write_unet
from reverie.fast import pack
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig
from reverie.models.clip import CLIPTextConfig, TextTower
from reverie.models.unet import UNETS, UNet, UNetConfig

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Sizes:
    """Choose the networks and what they are given."""

    unet_name: str = "SD 1.5"
    unet: UNetConfig = UNetConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text: CLIPTextConfig = CLIPTextConfig()
    unet_latents: tuple[int, ...] = (32, 64)
    decoder_latents: tuple[int, ...] = (32,)


XL = Sizes(unet_name="SDXL", unet=UNETS["sdxl"], unet_latents=(64,))

QUICK = Sizes(
    unet_name="tiny",
    unet=UNetConfig(block_out_channels=(32, 64, 64, 64), num_heads=(2, 2, 2, 2), cross_attention_dim=64),
    autoencoder=AutoencoderConfig(block_out_channels=(32, 32, 64, 64), layers_per_block=1),
    text=CLIPTextConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2),
    unet_latents=(16, 32),
    decoder_latents=(16,),
)


@dataclass(frozen=True)
class Peers:
    """Choose which peers are measured beside eager diffusers: OpenVINO by its Python, compiled and frozen diffusers."""

    openvino: Path | None = None
    compiled: bool = False


def rows(sizes: Sizes, rounds: int, peers: Peers = Peers()) -> Iterator[Row]:
    """Measure every network: a U-Net step of batch 2, an autoencoder's decoding of one image, one prompt's text."""
    yield from unet_rows(sizes, rounds, peers)
    decoders = decoder_pair(sizes.autoencoder)
    for side in sizes.decoder_latents:
        ours, theirs = decoder_calls(*decoders, side)
        yield compare(f"VAE decode, {8 * side}x{8 * side} pixels", ours, theirs, rounds)
    ours, theirs = text_calls(sizes.text)
    yield compare("CLIP text, 77 tokens", ours, theirs, max(rounds, 10), peer="transformers")


def unet_rows(sizes: Sizes, rounds: int, peers: Peers = Peers()) -> Iterator[Row]:
    """Measure a U-Net step of batch 2 beside each peer and beside the floor."""
    ours, theirs = unet_pair(sizes.unet)
    rate = floor.best_rate()
    for side in sizes.unet_latents:
        name, given = f"{sizes.unet_name} U-Net step, batch 2, {side}x{side} latents", unet_inputs(sizes.unet, side)
        step, eager_step = unet_calls(ours, theirs, given)
        yield (eager := compare(name, step, eager_step, rounds))
        yield floor.row(name, eager.ours, sizes.unet, given, rate)
        if peers.compiled:
            yield beside_compiled(name, ours, theirs, given, rounds)
        if peers.openvino is not None and sizes.unet == UNetConfig():
            yield beside_openvino(name, step, peers.openvino, side, rounds)


def beside_compiled(name: str, ours: UNet, theirs: UNet2DConditionModel, given: tuple[Tensor, ...], rounds: int) -> Row:
    """Measure a step beside torch.compile with freezing, which takes minutes to compile."""
    import torch._inductor.config

    with torch._inductor.config.patch(freezing=True):
        compiled, step = torch.compile(theirs), unet_calls(ours, theirs, given)[0]
        with torch.no_grad():
            waited = seconds(lambda: compiled(*given))
            row = compare(name, step, lambda: compiled(*given).sample, rounds, "diffusers, compiled and frozen")
    return replace(row, note=f"{row.note}; its first call took {waited:.0f} s")


@torch.no_grad()
def beside_openvino(name: str, step: Call, python: Path, side: int, rounds: int) -> Row:
    """Measure a step beside OpenVINO's, which lives in another process with random weights of its own."""
    with closing(openvino_step(python, side)) as remote:
        step()  # warm again
        times = alternate(lambda: seconds(step), remote.seconds, rounds)
    return Row(name, "s", *times, peer="OpenVINO, float32", note="in its own process, with other random weights")


def openvino_step(python: Path, side: int, precision: str = "f32") -> Remote:
    """Start OpenVINO with a U-Net of our own shape in its own environment, which borrows torch of this one."""
    borrowed = [str(Path(__file__).parent), str(Path(torch.__file__).parents[1]), *sys.path[1:]]
    script = str(Path(__file__).with_name("peer_openvino.py"))
    command = [str(python), script, str(side), str(torch.get_num_threads()), precision]
    return Remote(command, PYTHONPATH=os.pathsep.join(filter(None, borrowed)))


@torch.no_grad()
def compare(name: str, ours: Call, theirs: Call, rounds: int, peer: str = "diffusers") -> Row:
    """Warm both sides up, note how far apart their results are, and time them in turns."""
    mine, other = ours(), theirs()
    error = ((mine - other).norm() / other.norm()).item()
    times = alternate(lambda: seconds(ours), lambda: seconds(theirs), rounds)
    return Row(name, "s", *times, peer=peer, note=f"relative difference {error:.0e}")


def random_weights(model: nn.Module) -> dict[str, Tensor]:
    """Draw weights for a model on the meta device that keep activations near 1, so that no denormals slow a side."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in model.state_dict().items():
        fan_in = value[0].numel() if value.ndim > 1 else 4
        weights[name] = torch.randn(value.shape, generator=generator).div_(fan_in**0.5)
        if "norm" in name and name.endswith("weight"):
            weights[name] += 1
    return weights


def unet_pair(config: UNetConfig) -> tuple[UNet, UNet2DConditionModel]:
    """Build both U-Nets around one set of weights; ours packs copies when it first computes, as it does for users."""
    ours = random_unet(config)
    with torch.device("meta"):
        theirs = UNet2DConditionModel.from_config(write_unet(config))
    theirs.load_state_dict(ours.state_dict(), assign=True)
    return pack(ours), theirs.eval()


def random_unet(config: UNetConfig) -> UNet:
    """Build a U-Net of random weights."""
    with torch.device("meta"):
        unet = UNet(config)
    unet.load_state_dict(random_weights(unet), assign=True)
    return unet.eval()


def unet_inputs(config: UNetConfig, side: int) -> tuple[Tensor, ...]:
    """Draw what a step takes at `side` x `side` latents, batch 2 as guidance needs, and what SDXL is told."""
    x, t = torch.randn(2, config.in_channels, side, side), torch.tensor([500.0, 500.0])
    context = torch.randn(2, 77, config.cross_attention_dim)
    if config.projection_input_dim is None or config.addition_time_embed_dim is None:
        return x, t, context
    pooled = torch.randn(2, config.projection_input_dim - 6 * config.addition_time_embed_dim)
    return x, t, context, pooled, torch.tensor([[512.0, 512, 0, 0, 512, 512]] * 2)


def unet_calls(ours: UNet, theirs: UNet2DConditionModel, given: tuple[Tensor, ...]) -> tuple[Call, Call]:
    """Return one step of each."""
    told = dict(zip(("text_embeds", "time_ids"), given[3:], strict=False))
    return lambda: ours(*given), lambda: theirs(*given[:3], added_cond_kwargs=told).sample


def decoder_pair(config: AutoencoderConfig) -> tuple[Autoencoder, AutoencoderKL]:
    """Build both autoencoders around one set of weights."""
    levels = len(config.block_out_channels)
    down, up = ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels
    with torch.device("meta"):
        ours = Autoencoder(config)
        theirs = AutoencoderKL(down_block_types=down, up_block_types=up, **asdict(config))
    weights = random_weights(ours)
    ours.load_state_dict(weights, assign=True)
    theirs.load_state_dict(weights, assign=True)
    return pack(ours.eval()), theirs.eval()


def decoder_calls(ours: Autoencoder, theirs: AutoencoderKL, side: int) -> tuple[Call, Call]:
    """Return one decoding by each, of `side` x `side` latents."""
    z = torch.randn(1, ours.config.latent_channels, side, side)
    return lambda: ours.decode(z), lambda: theirs.decode(z).sample


def text_calls(config: CLIPTextConfig) -> tuple[Call, Call]:
    """Return the embedding of one full prompt by each."""
    ours, theirs = TextTower(config).eval(), CLIPTextModel(PeerTextConfig(**asdict(config))).eval()
    shared = theirs.state_dict()
    prefixed = {name if name.startswith("text_model.") else f"text_model.{name}": v for name, v in shared.items()}
    ours.load_state_dict(prefixed, assign=True)
    tokens = torch.randint(0, config.eos_token_id - 1, (1, config.max_position_embeddings))
    tokens[:, -1] = config.eos_token_id
    pack(ours)
    return lambda: ours(tokens).last, lambda: theirs(tokens).last_hidden_state
