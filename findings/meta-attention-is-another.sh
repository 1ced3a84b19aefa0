#!/usr/bin/env bash
# torch 2.13.0: attention on the meta device makes the n x n weights that the real device would not make.
#
# A model on the meta device is the usual way to plan memory and work without either. scaled_dot_product_attention picks its
# kernel by device, and has none for meta: it takes the plain formula, so counting what a U-Net allocates finds n x n tensors
# for n latent pixels, n / 40 times the output of a head of SD 1.5. FlopCounterMode errs the other way about: the formula's
# products are counted on meta, and the CPU's fused kernel counts as 0. Under FakeTensorMode the tensors keep their device and
# the kernel is the real one. Seen: 29 November 2026.
# What reverie does: `reverie train --plan` puts the fused kernel in its place (train/plan.py).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

N, HEAD = 512, 40


class Largest(TorchDispatchMode):
    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.size = max(self.size, *(t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor)), 0)
        return made


def cost(device: str, context) -> tuple[int, int]:
    """Give the largest tensor that attention makes, and the operations that are counted."""
    with context:
        q = torch.empty(1, 1, N, HEAD, device=device)
        with Largest() as largest:
            F.scaled_dot_product_attention(q, q, q)
        with FlopCounterMode(display=False) as counter:
            F.scaled_dot_product_attention(q, q, q)
    return largest.size, counter.get_total_flops()


found = {"cpu": cost("cpu", nullcontext()), "meta": cost("meta", nullcontext()), "fake": cost("cpu", FakeTensorMode())}
print("torch", torch.__version__, "largest tensor and operations, output of", N * HEAD, "numbers:", found)
assert found["cpu"] == (N * HEAD, 0), "the CPU's kernel allocates, or is counted"
assert found["meta"] == (N * N, 2 * 2 * N * N * HEAD), "the meta device takes another way"
assert found["fake"][0] == N * HEAD, "a fake tensor no longer takes the device's way"
PY
