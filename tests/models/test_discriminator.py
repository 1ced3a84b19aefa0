"""PatchGAN: taming-transformers' shape, size, receptive field and initial values."""

from __future__ import annotations

import pytest
import torch

from reverie.models.discriminator import PatchGAN, PatchGANConfig


def test_default_has_the_published_size_and_names() -> None:
    with torch.device("meta"):
        model = PatchGAN()
    convolutions = 3 * 64 * 16 + 64 + (64 * 128 + 128 * 256 + 256 * 512) * 16 + 512 * 16 + 1
    assert sum(p.numel() for p in model.parameters()) == convolutions + 2 * (128 + 256 + 512) == 2_765_633
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if value.ndim == 4}
    assert shapes == {
        "main.0.weight": (64, 3, 4, 4),
        "main.2.weight": (128, 64, 4, 4),
        "main.5.weight": (256, 128, 4, 4),
        "main.8.weight": (512, 256, 4, 4),
        "main.11.weight": (1, 512, 4, 4),
    }
    assert {"main.0.bias", "main.11.bias", "main.3.running_mean"} <= set(model.state_dict())
    assert "main.2.bias" not in model.state_dict()


@pytest.mark.parametrize(("layers", "field", "logits"), [(1, 16, 62), (2, 34, 30), (3, 70, 14)])
def test_receptive_field_and_logit_map(layers: int, field: int, logits: int) -> None:
    model = PatchGAN(PatchGANConfig(width=2, layers=layers)).eval()
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    out = model(images)
    assert out.shape == (1, 1, logits, logits)
    out[0, 0, logits // 2, logits // 2].backward()
    assert images.grad is not None
    rows = images.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == field


def test_width_stops_doubling_at_eight() -> None:
    model = PatchGAN(PatchGANConfig(width=4, layers=5))
    assert [m.out_channels for m in model.main if isinstance(m, torch.nn.Conv2d)] == [4, 8, 16, 32, 32, 32, 1]


def test_initial_values() -> None:
    torch.manual_seed(0)
    state = PatchGAN().state_dict()
    assert state["main.5.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert state["main.6.weight"].mean().item() == pytest.approx(1.0, abs=0.01)
    assert state["main.6.weight"].std().item() == pytest.approx(0.02, rel=0.2)
    assert state["main.6.bias"].abs().max() == 0
