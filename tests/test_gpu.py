"""Does a GPU draw what the processor draws, and in as little memory as is said? `pytest -m gpu` asks one, with CUDA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import reverie
from reverie import TextToImage
from reverie.checkpoints.families import FAMILIES
from reverie.models.offload import OFFLOADS, Ferry
from reverie.models.unet import UNet

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
    Ferry(torch.device("cuda"), OFFLOADS["blocks"]).take(unet)
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
