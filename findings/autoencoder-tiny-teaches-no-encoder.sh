#!/usr/bin/env bash
# diffusers 0.42.1: training AutoencoderTiny by calling it leaves its encoder as it was, without a word.
#
# Between encoder and decoder forward() rounds the latents to 256 levels, as if they were kept in an eight-bit picture, and a byte
# has no gradient: after backward() every tensor of the decoder has one and no tensor of the encoder, so an optimiser passes them
# over. The output is that of rounded latents too. encode() and decode() do not round: decode(encode(x)) teaches both, and its
# output is another than forward's. AutoencoderKL, whose place it takes, teaches both by either. Seen: 29 November 2026.
# What reverie does: its tiny autoencoder never rounds its latents (models/autoencoder.py; docs/compatibility.md).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0
"$work/venv/bin/python" - <<'PY'
import diffusers, torch
from diffusers import AutoencoderKL, AutoencoderTiny

torch.manual_seed(0)
tiny = AutoencoderTiny(encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8))
full = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
x = 2 * torch.rand(1, 3, 16, 16) - 1


def taught(network: torch.nn.Module, y: torch.Tensor) -> tuple[int, int]:
    """Tell how many tensors of the encoder and of the decoder a loss would move."""
    network.zero_grad(set_to_none=True)
    (y - x).square().mean().backward()
    return tuple(sum(p.grad is not None for p in part.parameters()) for part in (network.encoder, network.decoder))


def size(network: torch.nn.Module) -> tuple[int, int]:
    return tuple(len(list(part.parameters())) for part in (network.encoder, network.decoder))


called = taught(tiny, tiny(x).sample)
apart = taught(tiny, tiny.decode(tiny.encode(x).latents).sample)
latents = tiny.encode(x).latents
rounded = tiny.unscale_latents((tiny.scale_latents(latents) * 255).round() / 255)
with torch.no_grad():
    between = (tiny(x).sample - tiny.decode(latents).sample).abs().max().item()
    same = (tiny(x).sample - tiny.decode(rounded).sample).abs().max().item()
print("diffusers", diffusers.__version__, "tensors of encoder and decoder", size(tiny), "taught: called", called, "apart", apart)
print("AutoencoderKL", size(full), "taught: called", taught(full, full(x).sample))
print("called beside apart:", between, "| beside rounded latents:", same)
assert called == (0, size(tiny)[1]), "calling it teaches the encoder now"
assert apart == size(tiny) and taught(full, full(x).sample) == size(full)
assert between > 1e-6 and same < 1e-6, "it no longer rounds its latents to 256 levels"
PY
