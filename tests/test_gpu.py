"""Does a GPU draw what the processor draws, and in as little memory as is said? `pytest -m gpu` asks one, with CUDA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import reverie
from reverie import TextToImage
from reverie.checkpoints.families import FAMILIES
from reverie.models.unet import UNet
from reverie.runtime.offload import OFFLOADS, Offloader

pytestmark = pytest.mark.gpu
BEAR = TextToImage(prompt="a bear", seed=7, steps=4)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply in float32 as it is, and not in TF32."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def drawn(system: reverie.Pipeline) -> np.ndarray:
    return np.asarray(system.draw(BEAR)[0], dtype=np.int16)


def test_the_picture_is_that_of_the_processor() -> None:
    theirs = drawn(reverie.load(device="cpu", fast=False))
    ours = drawn(reverie.load(device="cuda", dtype="float32"))
    assert np.abs(ours - theirs).max() <= 4


@pytest.mark.parametrize("mode", OFFLOADS)
def test_offloading_changes_no_bit(mode: str) -> None:
    plain, kept = reverie.load(device="cuda"), reverie.load(device="cuda", offload=mode)
    assert kept.device.type == "cuda"
    for _ in range(2):  # the second time blocks are fetched ahead
        assert np.array_equal(drawn(kept), drawn(plain))


def test_convolutions_are_channels_last() -> None:
    weight = reverie.load(device="cuda").unet.conv_out.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_blocks_stay_under_their_ceiling() -> None:
    """A step of SD 1.5 at 512 px with guidance: 0.28 GB by count, and the workspaces of convolutions."""
    unet = UNet(FAMILIES["sd15"].unet).half().eval()
    Offloader(torch.device("cuda"), OFFLOADS["blocks"]).take(unet)
    x, context = torch.randn(2, 4, 64, 64).half().cuda(), torch.randn(2, 77, 768).half().cuda()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        unet(x, torch.full((2,), 500.0, device="cuda"), context)
    assert torch.cuda.max_memory_allocated() < 1e9


def test_saving_takes_every_weight_home(tmp_path: Path) -> None:
    kept = reverie.load(device="cuda", offload="blocks")
    drawn(kept)
    kept.save(tmp_path)
    assert np.array_equal(drawn(reverie.load(tmp_path, device="cuda")), drawn(kept))


def compiled() -> tuple[reverie.Pipeline, reverie.Pipeline]:
    """Load the bundled model in float32, plain and compiled."""
    return tuple(reverie.load(device="cuda", dtype="float32", compile=compile) for compile in (False, True))


@pytest.mark.slow
def test_compiled_pictures_are_the_same_but_for_rounding() -> None:
    """Also of another size between, and where guidance asks twice a step: each replay writes over the last output."""
    plain, ours = compiled()
    longer = BEAR.replace(prompt=" ".join(["a bear"] * 60), negative="red")
    for asked in (BEAR, BEAR.replace(width=160), longer, BEAR.replace(guidance=1.0), BEAR.replace(count=3), BEAR):
        for _ in range(3):  # compiled, recorded as a CUDA graph, repeated
            pairs = zip(plain.draw(asked), ours.draw(asked), strict=True)
            assert max(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max() for a, b in pairs) <= 4


@pytest.mark.slow
@torch.no_grad()
def test_a_recorded_graph_sees_other_weights() -> None:
    """As a LoRA brings them, and takes them away."""
    plain, ours = compiled()
    x, t = torch.randn(2, 4, 16, 16, device="cuda"), torch.full((2,), 500.0, device="cuda")
    told = plain.encode_prompt(["a bear", ""]).tokens
    layers = [system.unet.mid_block.resnets[0].conv1 for system in (plain, ours)]
    before = [layer.weight for layer in layers]
    for factor in (1, 2, 1, 3, 1):
        for layer, weight in zip(layers, before, strict=True):
            layer.weight = torch.nn.Parameter(factor * weight, requires_grad=False) if factor > 1 else weight
        for _ in range(3):
            assert torch.allclose(ours.unet(x, t, told), plain.unet(x, t, told), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
def test_the_host_does_not_wait_within_the_loop(compile: bool, sampler: str) -> None:
    """torch raises where the host waits; in the first two pictures it compiles, and in the last step it decodes."""
    system, asked = reverie.load(device="cuda", compile=compile), BEAR.replace(sampler=sampler, steps=6)
    for _ in range(2):
        system.draw(asked)
    steps = system.stream(asked)
    next(steps)  # encodes the prompt
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(asked.steps - 2):
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(next(steps).pictures) == 1
