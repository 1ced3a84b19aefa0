"""Do packed networks compute the same where the processor has AVX2 alone?"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
SCRIPT = """
import torch
from reverie.runtime import extension, is_packed, pack, transform, winograd
from reverie.models.unet import UNet, UNetConfig

torch.manual_seed(0)
transform.WIDE = 16
extension.BUILDS = {"_avx2": extension.BUILDS["_avx2"]}
assert torch.backends.cpu.get_cpu_capability() == "AVX2"
unet = UNet(UNetConfig(block_out_channels=(32, 96), layers_per_block=1, transformer_depth=(1, 0), num_heads=(2, 4),
                       cross_attention_dim=48, norm_num_groups=8)).eval()
given = torch.randn(2, 4, 16, 16), torch.tensor([900.0, 100.0]), torch.randn(2, 7, 48)
with torch.no_grad():
    exact = unet(*given)
    for winograd.FEW in (1, 256):
        assert is_packed(pack(unet))
        print(((unet(*given) - exact).norm() / exact.norm()).item())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86 has AVX2")
def test_the_same_with_avx2_alone() -> None:
    environment = {**os.environ, **OLDER}
    printed = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True, stdout=subprocess.PIPE).stdout
    errors = [float(line) for line in printed.split()]
    assert len(errors) == 2
    assert max(errors) < 1e-5
