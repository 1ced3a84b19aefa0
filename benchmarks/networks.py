"""How fast is one call of each network beside its peer? The same random weights, in memory once, serve both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig as PeerTextConfig
from transformers import CLIPTextModel

from measure import Row, alternate, seconds
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig
from reverie.models.clip import CLIPTextConfig, TextTower
from reverie.models.unet import UNet, UNetConfig

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Sizes:
    """Choose the networks and what they are given."""

    unet: UNetConfig = UNetConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text: CLIPTextConfig = CLIPTextConfig()
    unet_latents: tuple[int, ...] = (32, 64)
    decoder_latents: tuple[int, ...] = (32,)


QUICK = Sizes(
    unet=UNetConfig(block_out_channels=(32, 64, 64, 64), num_heads=(2, 2, 2, 2), cross_attention_dim=64),
    autoencoder=AutoencoderConfig(block_out_channels=(32, 32, 64, 64), layers_per_block=1),
    text=CLIPTextConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2),
    unet_latents=(16, 32),
    decoder_latents=(16,),
)


def rows(sizes: Sizes, rounds: int) -> Iterator[Row]:
    """Measure every network: a U-Net step of batch 2, an autoencoder's decoding of one image, one prompt's text."""
    unets = unet_pair(sizes.unet)
    for side in sizes.unet_latents:
        ours, theirs = unet_calls(*unets, side)
        yield compare(f"SD 1.5 U-Net step, batch 2, {side}x{side} latents", ours, theirs, rounds)
    del unets, ours, theirs
    decoders = decoder_pair(sizes.autoencoder)
    for side in sizes.decoder_latents:
        ours, theirs = decoder_calls(*decoders, side)
        yield compare(f"VAE decode, {8 * side}x{8 * side} pixels", ours, theirs, rounds)
    ours, theirs = text_calls(sizes.text)
    yield compare("CLIP text, 77 tokens", ours, theirs, max(rounds, 10), peer="transformers")


@torch.inference_mode()
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
    """Build both U-Nets of SD 1's kind around one set of weights."""
    with torch.device("meta"):
        ours = UNet(config)
        theirs = UNet2DConditionModel(
            block_out_channels=config.block_out_channels,
            cross_attention_dim=config.cross_attention_dim,
            attention_head_dim=config.num_heads,  # diffusers' historic name for the number of heads
            sample_size=config.sample_size,
        )
    weights = random_weights(ours)
    ours.load_state_dict(weights, assign=True)
    theirs.load_state_dict(weights, assign=True)
    return ours.eval(), theirs.eval()


def unet_calls(ours: UNet, theirs: UNet2DConditionModel, side: int) -> tuple[Call, Call]:
    """Return one step of each at `side` x `side` latents, batch 2 as guidance needs."""
    x, t = torch.randn(2, ours.config.in_channels, side, side), torch.tensor([500.0, 500.0])
    context = torch.randn(2, 77, ours.config.cross_attention_dim)
    return lambda: ours(x, t, context), lambda: theirs(x, t, context).sample


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
    return ours.eval(), theirs.eval()


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
    return lambda: ours(tokens).last, lambda: theirs(tokens).last_hidden_state
