"""LPIPS against its formula written out with functions, its properties and its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from reverie.errors import ReverieError
from reverie.models.lpips import LPIPS, VGG16, FeatureDistance

# torchvision's vgg16: the places of its convolutions in `features`, and before which of them it pools.
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
LAST_OF_STAGE = (2, 7, 14, 21, 28)


@pytest.fixture(scope="module")
def model() -> LPIPS:
    torch.manual_seed(0)
    model = LPIPS()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lin" in name:
                parameter.uniform_(0, 1)
            elif parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
            else:
                nn.init.normal_(parameter, std=0.1)
    return model


def written_out(x: Tensor, y: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Equation 1 of Zhang et al. 2018, place by place."""
    total = torch.zeros(len(x), dtype=x.dtype)
    stacks = []
    for images in (x, y):
        h = torch.stack(
            [(images[:, c] - s) / d for c, (s, d) in enumerate([(-0.030, 0.458), (-0.088, 0.448), (-0.188, 0.450)])], 1
        )
        stack = []
        for n in CONVOLUTIONS:
            h = F.conv2d(h, state[f"net.features.{n}.weight"], state[f"net.features.{n}.bias"], padding=1).clamp(min=0)
            if n in LAST_OF_STAGE:
                stack.append(h)
                h = F.max_pool2d(h, 2)
        stacks.append(stack)
    for i, (a, b) in enumerate(zip(*stacks, strict=True)):
        difference = a / (a.norm(dim=1, keepdim=True) + 1e-10) - b / (b.norm(dim=1, keepdim=True) + 1e-10)
        weights = state[f"lin{i}.model.1.weight"].flatten()
        total += torch.einsum("c,bchw->b", weights, difference**2) / (a.shape[2] * a.shape[3])
    return total


def test_equals_the_formula(model: LPIPS) -> None:
    x, y = torch.rand(2, 2, 3, 40, 32) * 2 - 1
    torch.testing.assert_close(model(x, y), written_out(x, y, model.state_dict()), rtol=1e-5, atol=1e-7)


def test_is_a_distance(model: LPIPS) -> None:
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    assert torch.equal(model(x, x), torch.zeros(2))
    assert torch.equal(model(x, y), model(y, x))
    assert (model(x, y) > 0).all()
    near, far = (model(x, (1 - w) * x + w * y) for w in (0.1, 0.5))
    assert (near < far).all()


def test_gradient_is_finite_even_for_black_and_equal_images(model: LPIPS) -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[1] = torch.rand(3, 32, 32)
    images.requires_grad_()
    (model(images, images.detach()) + model(images, torch.ones(2, 3, 32, 32))).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_trunk_has_torchvisions_names_and_published_size() -> None:
    with torch.device("meta"):
        trunk = VGG16()
    assert set(trunk.state_dict()) == {f"features.{n}.{part}" for n in CONVOLUTIONS for part in ("weight", "bias")}
    assert sum(p.numel() for p in trunk.parameters()) == 14_714_688  # torchvision's vgg16().features


def write_files(model: LPIPS, folder: Path, suffix: str) -> tuple[Path, Path]:
    vgg, lins = folder / f"vgg16{suffix}", folder / f"lpips{suffix}"
    trunk = {**model.net.state_dict(), "classifier.0.weight": torch.zeros(2, 2)}
    weights = {name: value for name, value in model.state_dict().items() if name.startswith("lin")}
    for tensors, path in ((trunk, vgg), (weights, lins)):
        if suffix == ".safetensors":
            save_file(tensors, path)
        else:
            torch.save(tensors, path)
    return vgg, lins


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_load_reads_both_files(model: LPIPS, tmp_path: Path, suffix: str) -> None:
    loaded = LPIPS.load(*write_files(model, tmp_path, suffix)).state_dict()
    assert set(loaded) == set(model.state_dict())
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_load_says_what_is_wrong(model: LPIPS, tmp_path: Path) -> None:
    vgg, lins = write_files(model, tmp_path, ".pth")
    with pytest.raises(ReverieError, match=r"no file .*none\.pth; give VGG16's weights"):
        LPIPS.load(tmp_path / "none.pth", lins)
    with pytest.raises(ReverieError, match=r"features\.0\.weight is missing in .*lpips\.pth"):
        LPIPS.load(lins, lins)
    torch.save({"lin0.model.1.weight": torch.zeros(1, 3, 1, 1)}, tmp_path / "odd.pth")
    with pytest.raises(ReverieError, match=r"has shape \(1, 3, 1, 1\) in .*; it should have shape \(1, 64, 1, 1\)"):
        LPIPS.load(vgg, tmp_path / "odd.pth")
    torch.save({"evil": Path("x")}, tmp_path / "pickle.pth")
    with pytest.raises(ReverieError, match="holds more than tensors"):
        LPIPS.load(tmp_path / "pickle.pth", lins)


def test_feature_distance_is_lpips_with_unit_weights(model: LPIPS) -> None:
    state = {k: torch.ones_like(v) if k.startswith("lin") else v for k, v in model.state_dict().items()}
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    distance = FeatureDistance(model._features)
    torch.testing.assert_close(distance(x, y), written_out(x, y, state), rtol=1e-5, atol=1e-7)


def test_feature_distance_of_known_maps() -> None:
    """Unit vectors at an angle of 90 degrees are sqrt(2) apart, whatever their length."""
    distance = FeatureDistance(lambda images: [images, images[:, :, ::2]])
    x, y = torch.zeros(2, 1, 2, 4, 4)
    x[:, 0], y[:, 1] = 3, 5
    torch.testing.assert_close(distance(x, y), torch.tensor([4.0]))
