"""How fast is one call of each network beside its peer? The same random weights, in memory once, serve both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig as PeerTextConfig
from transformers import CLIPTextModel

from measure import Remote, Row, alternate, borrowed, seconds
from reverie.checkpoints.configs import write_unet
from reverie.models.autoencoder import Autoencoder, AutoencoderConfig
from reverie.models.clip import CLIPTextConfig, TextTower
from reverie.models.unet import UNETS, UNet, UNetConfig
from reverie.runtime import kernels, pack, quantize, unpack
from untrained import random_weights

Call = Callable[[], Tensor]
TRIES = 5  # of each product and convolution, of which the fastest tells the machine's best rate
IMAGES = ((320, 64), (640, 32), (1280, 16))  # channels and sides of Stable Diffusion's convolutions, at 512 pixels


@dataclass(frozen=True)
class Sizes:
    """Choose the networks and what they are given."""

    name: str = "SD 1.5"
    unet: UNetConfig = UNetConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text: CLIPTextConfig = CLIPTextConfig()
    unet_latents: tuple[int, ...] = (32, 64)
    decoder_latents: tuple[int, ...] = (32, 64)


XL = Sizes(name="SDXL", unet=UNETS["sdxl"], unet_latents=(64,))

QUICK = Sizes(
    name="tiny",
    unet=UNetConfig(block_out_channels=(32, 64, 64, 64), num_heads=(2, 2, 2, 2), cross_attention_dim=64),
    autoencoder=AutoencoderConfig(block_out_channels=(32, 32, 64, 64), layers_per_block=1),
    text=CLIPTextConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2),
    unet_latents=(16, 32),
    decoder_latents=(16,),
)


def rows(sizes: Sizes, rounds: int, openvino: Path | None = None) -> Iterator[Row]:
    """Measure every network."""
    yield from unet_rows(sizes, rounds, openvino)
    yield from decoder_rows(sizes, rounds, openvino)
    yield text_row(sizes, rounds)


def unet_rows(sizes: Sizes, rounds: int, openvino: Path | None = None) -> Iterator[Row]:
    """Measure a U-Net step of batch 2 beside diffusers, the floor, and OpenVINO by the Python of its environment."""
    ours, theirs = unet_pair(sizes.unet)
    rate = best_rate()
    for side in sizes.unet_latents:
        name, given = unet_name(sizes, side), unet_inputs(sizes.unet, side)
        step, eager_step = unet_calls(ours, theirs, given)
        yield (eager := compare(name, step, eager_step, rounds))
        yield floor_row(name, eager.ours, sizes.unet, given, rate)
        if openvino is not None and sizes.unet == UNetConfig():
            yield beside_openvino(name, step, openvino, "unet", side, rounds)


@torch.no_grad()
def large_unet_rows(sizes: Sizes, rounds: int) -> Iterator[Row]:
    """Measure a step of a U-Net that memory does not hold twice: the weights go from side to side at every turn."""
    ours, theirs = random_unet(sizes.unet), empty_peer(sizes.unet)
    rate = best_rate()
    for side in sizes.unet_latents:
        given = unet_inputs(sizes.unet, side)
        step, eager_step = unet_calls(ours, theirs, given)

        def mine(step: Call = step) -> float:
            pack(ours)
            step()
            taken = seconds(step)
            unpack(ours)
            return taken

        def other(step: Call = eager_step) -> float:
            theirs.load_state_dict(ours.state_dict(), assign=True)
            step()
            taken = seconds(step)
            theirs.to("meta")
            return taken

        row = Row(unet_name(sizes, side), "s", *alternate(mine, other, rounds))
        yield row
        yield floor_row(row.name, row.ours, sizes.unet, given, rate)


def unet_name(sizes: Sizes, side: int) -> str:
    """Name a step of batch 2, as guidance needs."""
    return f"{sizes.name} U-Net step, {8 * side} px"


def decoder_rows(sizes: Sizes, rounds: int, openvino: Path | None = None) -> Iterator[Row]:
    """Measure an autoencoder's decoding of one picture."""
    decoders = decoder_pair(sizes.autoencoder)
    for side in sizes.decoder_latents:
        name, (ours, theirs) = f"{sizes.name} VAE decode, {8 * side} px", decoder_calls(*decoders, side)
        yield compare(name, ours, theirs, rounds)
        if openvino is not None and sizes.autoencoder == AutoencoderConfig():
            yield beside_openvino(name, ours, openvino, "decoder", side, rounds)


def text_row(sizes: Sizes, rounds: int) -> Row:
    """Measure one prompt's text."""
    ours, theirs = text_calls(sizes.text)
    return compare("CLIP text, 77 tokens", ours, theirs, max(rounds, 10), peer="transformers")


def compiled_rows(sizes: Sizes, rounds: int) -> Iterator[Row]:
    """Measure the smallest step beside torch.compile, with freezing and without: each compiles for minutes."""
    import torch._inductor.config

    ours, theirs = unet_pair(sizes.unet)
    side = min(sizes.unet_latents)
    given = unet_inputs(sizes.unet, side)
    for peer, freezing in (("diffusers, compiled and frozen", True), ("diffusers, compiled", False)):
        torch._dynamo.reset()
        with torch._inductor.config.patch(freezing=freezing), torch.no_grad():
            step, compiled_step = unet_calls(ours, torch.compile(theirs), given)
            waited = seconds(compiled_step)
            row = compare(unet_name(sizes, side), step, compiled_step, rounds, peer)
        yield replace(row, note=f"{row.note}; its first call took {waited:.0f} s")


@torch.no_grad()
def low_unet_rows(sizes: Sizes, rounds: int, python: Path) -> Iterator[Row]:
    """Measure a U-Net step in bfloat16 and in int8 beside OpenVINO's, and how far either is from float32."""
    for precision in ("bfloat16", "int8"):
        ours = random_unet(sizes.unet)
        asked = [(side, unet_inputs(sizes.unet, side)) for side in sizes.unet_latents]
        expected = [ours(*given) for _, given in asked]
        kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
        ours = quantize(ours) if precision == "int8" else pack(ours.to(kind))
        for (side, given), right in zip(asked, expected, strict=True):
            step = partial(ours, given[0].to(kind), given[1], given[2].to(kind))
            error = ((step() - right).norm() / right.norm()).item()
            name = f"{sizes.name} U-Net step in {precision}, {8 * side} px"
            row = beside_openvino(name, step, python, "unet", side, rounds, precision)
            yield replace(row, note=f"{row.note}; {100 * error:.1f} % from plain float32")


@torch.no_grad()
def beside_openvino(
    name: str, ours: Call, python: Path, network: str, side: int, rounds: int, precision: str = "float32"
) -> Row:
    """Measure a call beside OpenVINO's, which lives in another process with random weights of its own."""
    with closing(openvino(python, network, side, precision)) as remote:
        ours()  # warm again
        times = alternate(lambda: seconds(ours), remote.seconds, rounds)
        apart = f"OpenVINO {100 * float(remote.said):.1f} % from plain float32"
    return Row(name, "s", *times, peer="OpenVINO", note=f"in its own process, on other inputs; {apart}")


def openvino(python: Path, network: str, side: int, precision: str) -> Remote:
    """Start OpenVINO with a network of our own shape in its own environment, which borrows torch of this one."""
    script = str(Path(__file__).with_name("peer_openvino.py"))
    command = [str(python), script, network, str(side), str(torch.get_num_threads()), precision]
    return Remote(command, PYTHONPATH=borrowed())


@torch.no_grad()
def compare(name: str, ours: Call, theirs: Call, rounds: int, peer: str = "diffusers") -> Row:
    """Warm both sides up, note how far apart their results are, and time them in turns."""
    mine, other = ours(), theirs()
    error = ((mine - other).norm() / other.norm()).item()
    times = alternate(lambda: seconds(ours), lambda: seconds(theirs), rounds)
    return Row(name, "s", *times, peer=peer, note=f"relative difference {error:.0e}")


def unet_pair(config: UNetConfig) -> tuple[UNet, UNet2DConditionModel]:
    """Build both U-Nets around one set of weights; ours packs copies when it first computes, as it does for users."""
    ours, theirs = random_unet(config), empty_peer(config)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    return pack(ours), theirs


def empty_peer(config: UNetConfig) -> UNet2DConditionModel:
    """Build diffusers' U-Net without values."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(write_unet(config)).eval()


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
    ours = random_autoencoder(config)
    with torch.device("meta"):
        theirs = AutoencoderKL(down_block_types=down, up_block_types=up, **asdict(config))
    theirs.load_state_dict(ours.state_dict(), assign=True)
    return pack(ours), theirs.eval()


def random_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """Build an autoencoder of random weights."""
    with torch.device("meta"):
        autoencoder = Autoencoder(config)
    autoencoder.load_state_dict(random_weights(autoencoder), assign=True)
    return autoencoder.eval()


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


def operations(config: UNetConfig, given: Sequence[Tensor]) -> int:
    """Count the multiplications and additions of a step, attention's too, without computing any."""
    with torch.device("meta"):
        unet = UNet(config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(*(tensor.to("meta") for tensor in given))
    return int(counter.get_total_flops())


@torch.no_grad()
def best_rate(dtype: torch.dtype = torch.float32) -> float:
    """Return the operations a second of the fastest of the convolutions and products that a U-Net is made of."""
    return max(max(_rates(channels, side, dtype)) for channels, side in IMAGES)


def _rates(channels: int, side: int, dtype: torch.dtype) -> Iterator[float]:
    x = torch.randn(2, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
    shape = ((1, 1), (1, 1), (1, 1))  # stride, padding, dilation
    kernel = kernels.pack_conv2d(torch.randn(channels, channels, 3, 3, dtype=dtype), x.shape, *shape)
    weight = kernels.pack_linear(torch.randn(channels, channels, dtype=dtype))
    pixels, count = x.permute(0, 2, 3, 1), 2 * x.numel() * channels
    for _ in range(TRIES):
        yield 9 * count / seconds(lambda: kernels.conv2d(x, kernel, None, *shape))
        yield count / seconds(lambda: kernels.linear(pixels, weight, None))


def floor_row(name: str, ours: list[float], config: UNetConfig, given: Sequence[Tensor], rate: float) -> Row:
    """Tell how near a step's times come to the floor."""
    count = operations(config, given)
    note = f"{count / 1e9:.0f} G operations at {rate / 1e9:.0f} G a second; convolutions computed directly"
    return Row(name, "s", ours, [count / rate], peer="the floor", note=note)
