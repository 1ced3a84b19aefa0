"""How is a processor with AVX-512 measured as one that has AVX2 alone? All that computes is told before it loads."""

from __future__ import annotations

import os
import sys

# By name: what torch's own kernels, oneDNN (OpenVINO's too) and MKL read from the environment when they load.
ISAS = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}


def restrict(name: str) -> None:
    """Start this process anew with an instruction set's variables where it lacks them; its children inherit them."""
    if any(os.environ.get(key) != value for key, value in ISAS[name].items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ISAS[name]})
