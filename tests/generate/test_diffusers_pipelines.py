"""diffusers' own tests of pipelines: what they draw is drawn by reverie too, and is the same; see `diffusers_shim`.

The tests are not in diffusers' package. `DIFFUSERS_SOURCE=path/to/a/checkout pytest -m slow -k diffusers_pipelines`
runs them. Their own assertions on single pixels are not looked at: those hold for a tokenizer that is on the hub.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = os.environ.get("DIFFUSERS_SOURCE", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SOURCE, reason="DIFFUSERS_SOURCE names no checkout of diffusers"),
]
HERE = Path(__file__).parent
TOLERANCE = 1e-4  # on [0, 1]
INTEGRATED = {"LMSDiscreteScheduler": 1e-3}  # by scipy to a relative 1e-4
# Those of pictures to start from and of SD 2 draw by PNDM, which takes its first step twice.
MODULES = (
    "stable_diffusion/test_stable_diffusion",
    "stable_diffusion_xl/test_stable_diffusion_xl",
    "controlnet/test_controlnet",
    "controlnet/test_controlnet_sdxl",
)
# Of those tests these are about something else than what is drawn.
ELSEWHERE = "ip_adapter IPAdapter offload layerwise batch Memory num_images callback save_load to_d float16 xformers"
ELSEWHERE += " dict_tuple encode_prompt attention device_map multi_vae freeu fused"
"""Why a call of theirs has no request that says it, by how the reason begins."""
CANNOT = (
    "a batch: its noise is one draw of one generator",
    "no generator, or several",
    "argument ",
    "the decoder in tiles",
    "a prompt of more than 77 tokens",
    "several pictures to start from",
    "latents to start from",
    "sampler: ",
    "scheduler: ",
    "a step of no length alone",
    "PNDM takes its first step twice",
    "a control's start and end choose by the share of steps",
)


@pytest.mark.parametrize("module", MODULES)
def test_what_their_tests_draw_is_drawn_alike(module: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    asked = " and ".join(f"not {word}" for word in ELSEWHERE.split())
    command = [sys.executable, "-m", "pytest", "-p", "diffusers_shim", "-p", "no:cacheprovider", "-q", "-k", asked]
    paths = os.pathsep.join((str(HERE), str(HERE.parents[1] / "src")))
    environment = os.environ | {"SHIM_LOG": str(log), "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [*command, f"tests/pipelines/{module}.py"], cwd=SOURCE, env=environment, check=False, capture_output=True
    )
    verdicts = [json.loads(line) for line in log.read_text().splitlines()]
    drawn = [one for one in verdicts if "difference" in one]
    others = [one for one in verdicts if "difference" not in one]
    assert drawn, "nothing of it was drawn"
    for one in drawn:
        assert one["difference"] < INTEGRATED.get(one["scheduler"], TOLERANCE), one
        assert one["contrast"] > 0.01, one
    unsaid = [one for one in others if not str(one.get("cannot", "")).startswith(CANNOT)]
    assert [one for one in unsaid if "mid_block_type is 'UNetMidBlock2D'" not in one.get("refused", "")] == []
