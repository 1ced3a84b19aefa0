#!/usr/bin/env bash
# lycoris-lora 4.1.3: on the CPU, onfly_restore() gives back the merged weights, not those from before onfly_merge().
#
# onfly_merge() puts adapters into a network's own weights, to draw a preview without the wrappers, and keeps what it replaces with
# .data.cpu(). Of a tensor that lies on the CPU that is the tensor itself, and the merged weights are written into it: restoring
# copies them onto themselves. Without a word the network stays merged, the next merge comes on top (twice the LoRA after two
# previews), and with apply_to() the adapters act once more. Biases, which the kind "full" trains, are kept after they
# were overwritten, so by the source they stay on any device. Keep a state_dict() of clones of your own. Seen: 30 November 2026.
# What reverie does: LoRAs are merged into other tensors, and the very same ones are in place afterwards (adapters/lora.py).
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


def changes(algo: str) -> dict[str, list[float]]:
    """Give by how much weight and bias differ from the plain ones: merged, restored, merged again, in parts of the first."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(16, 16))
    plain = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    LycorisNetwork.apply_preset({"target_module": ["Linear", "Sequential"]})
    adapter = create_lycoris(network, 1.0, linear_dim=4, linear_alpha=4, algo=algo)
    adapter.apply_to()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    adapter.restore()
    found = {name: [] for name in plain}
    for act in (adapter.onfly_merge, adapter.onfly_restore, adapter.onfly_merge):
        act()
        for name, tensor in network.state_dict().items():
            found[name].append((tensor - plain[name]).norm().item())
    return {name: [round(size / (sizes[0] or 1), 4) for size in sizes] for name, sizes in found.items()}


lora, full = changes("lora"), changes("full")
print("lycoris-lora", version("lycoris-lora"), "merged, restored, merged again: lora", lora, "full", full)
assert lora == {"0.weight": [1, 1, 2], "0.bias": [0, 0, 0]}, "a LoRA is taken out again"
assert full["0.weight"][1] == full["0.bias"][1] == 1, "a full difference is taken out again"
PY
