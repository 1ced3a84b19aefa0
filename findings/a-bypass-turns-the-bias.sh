#!/usr/bin/env bash
# lycoris-lora 4.1.3: with bypass_mode, OFT, BOFT and (IA)3 change a layer's bias as well, so its files draw another picture.
#
# These three multiply a layer's weights, by rotations or by factors for each output. Bypass mode, which leaves the weights alone,
# multiplies what comes out of the layer instead, and that has the bias in it: R (W x + b) where R W x + b was meant. With
# a bias as large as PyTorch begins with, the change of the outputs is off by a third in a Linear layer of 16, by a tenth in a
# convolution of 16. Bypass mode is taken of itself for quantised layers. The file does not say how it was trained: merged, or read by another program,
# it acts on the weights alone. Layers without bias (queries, keys and values of Stable Diffusion) are right, and so are
# LoRA, LoHa, LoKr and GLoRA in both modes. Seen: 30 November 2026.
# What reverie does: OFT, BOFT and (IA)3 change weights, never biases, as LyCORIS without bypass mode does (models/deltas.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 lycoris-lora==4.1.3
"$work/venv/bin/python" - <<'PY'
import logging

import torch
from importlib.metadata import version
from lycoris import LycorisNetwork, create_lycoris

logging.disable(logging.WARNING)
MULTIPLYING, ADDING = ("diag-oft", "boft", "ia3"), ("lora", "loha", "lokr", "glora")


def change(make, x: torch.Tensor, algo: str, bias: bool, **options: bool) -> torch.Tensor:
    """Give how an adapter, the same one for the same arguments, changes the outputs of a layer."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(make(bias))
    plain = network(x)
    LycorisNetwork.apply_preset({"target_module": [type(network[0]).__name__, "Sequential"]})
    sizes = {"linear_dim": 4, "linear_alpha": 4, "conv_dim": 4, "conv_alpha": 4}
    adapter = create_lycoris(network, 1.0, algo=algo, **sizes, **options)
    adapter.apply_to()
    adapter.eval()
    generator = torch.Generator().manual_seed(2)
    for _, parameter in sorted(adapter.named_parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return (network(x) - plain).detach()


def apart(make, x: torch.Tensor, algo: str, bias: bool) -> float:
    """Give how far the change in bypass mode is from the one without, in parts of it."""
    meant, bypassed = change(make, x, algo, bias), change(make, x, algo, bias, bypass_mode=True)
    return ((bypassed - meant).norm() / meant.norm()).item()


def linear(bias: bool) -> torch.nn.Module:
    return torch.nn.Linear(16, 16, bias=bias)


def convolution(bias: bool) -> torch.nn.Module:
    return torch.nn.Conv2d(16, 16, 3, padding=1, bias=bias)


generator = torch.Generator().manual_seed(3)
layers = {linear: torch.randn(5, 16, generator=generator), convolution: torch.randn(1, 16, 6, 6, generator=generator)}
found = {
    (make.__name__, bias): {algo: round(apart(make, x, algo, bias), 4) for algo in MULTIPLYING + ADDING}
    for make, x in layers.items()
    for bias in (True, False)
}
print("lycoris-lora", version("lycoris-lora"), "bypass mode beside the change of weights, by layer and whether it has a bias:")
for key, parts in found.items():
    print(key, parts)
for (_, bias), parts in found.items():
    assert all(parts[algo] < 1e-3 for algo in ADDING), "kinds that add are bypassed otherwise too"
    assert all((parts[algo] > 0.05) == bias and (bias or parts[algo] < 1e-3) for algo in MULTIPLYING), "the bias is left alone now"
PY
