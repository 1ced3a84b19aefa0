"""Is each adapter's change the one that its paper writes? Computed anew with numpy, number by number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reverie.models.deltas import bias_delta, weight_delta

Draw = Callable[..., Tensor]
ORACLES = load_file(Path(__file__).with_name("oracles.safetensors"))
LINEAR, KERNEL = (6, 4), (6, 4, 3, 3)


@pytest.fixture
def draw() -> Draw:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


def agree(parts: dict[str, Tensor], weight: Tensor, wanted: np.ndarray) -> None:
    got = weight_delta(parts, weight)
    assert got is not None
    assert got.shape == weight.shape
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("shape", [LINEAR, KERNEL, (6, 4, 1, 1)])
def test_lora(draw: Draw, shape: tuple[int, ...]) -> None:
    down, up, weight = draw(2, *shape[1:]), draw(6, 2), draw(*shape)
    wanted = np.zeros(shape)
    for o in range(6):
        for p in range(2):
            wanted[o] += up[o, p].item() * down[p].numpy()
    agree({"down": down, "up": up}, weight, wanted)
    agree(
        {"down": down, "up": up.view(6, 2, *[1] * (len(shape) - 2)), "alpha": torch.tensor(3.0)}, weight, wanted * 1.5
    )


def test_lora_for_a_matrix_fits_a_kernel_of_one_pixel(draw: Draw) -> None:
    down, up = draw(2, 4), draw(6, 2)
    agree({"down": down, "up": up}, draw(6, 4, 1, 1), (up @ down).numpy()[:, :, None, None])


def test_lora_with_a_core(draw: Draw) -> None:
    down, core, up = draw(2, 4, 1, 1), draw(2, 2, 3, 3), draw(6, 2, 1, 1)
    wanted = np.zeros(KERNEL)
    for o, i, p, q in np.ndindex(6, 4, 2, 2):
        wanted[o, i] += up[o, p].item() * core[p, q].numpy() * down[q, i].item()
    agree({"down": down, "mid": core, "up": up}, draw(*KERNEL), wanted)


@pytest.mark.parametrize("shape", [LINEAR, KERNEL])
def test_loha(draw: Draw, shape: tuple[int, ...]) -> None:
    width = int(np.prod(shape[1:]))
    a1, b1, a2, b2 = draw(6, 2), draw(2, width), draw(6, 2), draw(2, width)
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(1.0)}
    wanted = (a1.numpy() @ b1.numpy()) * (a2.numpy() @ b2.numpy()) / 2
    agree(parts, draw(*shape), wanted.reshape(shape))


def test_loha_with_cores(draw: Draw) -> None:
    parts = {f"hada_w{n}_{side}": draw(2, {"a": 6, "b": 4}[side]) for n in (1, 2) for side in "ab"}
    parts |= {"hada_t1": draw(2, 2, 3, 3), "hada_t2": draw(2, 2, 3, 3)}
    factors = []
    for n in (1, 2):
        factor = np.zeros(KERNEL)
        for o, i, p, q in np.ndindex(6, 4, 2, 2):
            a, b = parts[f"hada_w{n}_a"][p, o].item(), parts[f"hada_w{n}_b"][q, i].item()
            factor[o, i] += a * parts[f"hada_t{n}"][p, q].numpy() * b
        factors.append(factor)
    agree(parts, draw(*KERNEL), factors[0] * factors[1])


def kronecker(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Put a copy of `second`, times the number, in the place of each number of `first`."""
    return np.block([[second * number for number in row] for row in first])


def test_lokr(draw: Draw) -> None:
    first, second, weight = draw(3, 2), draw(2, 2), draw(*LINEAR)
    wanted = kronecker(first.numpy(), second.numpy())
    agree({"lokr_w1": first, "lokr_w2": second, "alpha": torch.tensor(7.0)}, weight, wanted)
    a1, b1, a2, b2 = draw(3, 1), draw(1, 2), draw(2, 1), draw(1, 2)
    wanted = kronecker((a1 @ b1).numpy(), (a2 @ b2).numpy())
    parts = {"lokr_w1_a": a1, "lokr_w1_b": b1, "lokr_w2_a": a2, "lokr_w2_b": b2}
    agree(parts, weight, wanted)
    agree({**parts, "alpha": torch.tensor(0.5)}, weight, wanted / 2)


def test_lokr_of_a_convolution(draw: Draw) -> None:
    first, whole, weight = draw(3, 2), draw(2, 2, 3, 3), draw(*KERNEL)
    wanted = np.zeros(KERNEL)
    for y, x in np.ndindex(3, 3):
        wanted[:, :, y, x] = kronecker(first.numpy(), whole[:, :, y, x].numpy())
    agree({"lokr_w1": first, "lokr_w2": whole}, weight, wanted)
    a, b = draw(2, 1), draw(1, 2 * 9)
    flat = (a @ b).numpy().reshape(2, 2, 3, 3)
    for y, x in np.ndindex(3, 3):
        wanted[:, :, y, x] = kronecker(first.numpy(), flat[:, :, y, x])
    agree({"lokr_w1": first, "lokr_w2_a": a, "lokr_w2_b": b}, weight, wanted)
    core, left, right = draw(1, 1, 3, 3), draw(1, 2), draw(1, 2)
    for y, x in np.ndindex(3, 3):
        product = left.numpy().T * core[0, 0, y, x].item() @ right.numpy()
        wanted[:, :, y, x] = kronecker(first.numpy(), product)
    agree({"lokr_w1": first, "lokr_t2": core, "lokr_w2_a": left, "lokr_w2_b": right}, weight, wanted)


def test_whole_differences_and_biases(draw: Draw) -> None:
    weight, difference = draw(*KERNEL), draw(*KERNEL)
    agree({"diff": difference}, weight, difference.numpy())
    agree({"w_norm": difference[:, 0, 0, 0]}, weight[:, 0, 0, 0], difference[:, 0, 0, 0].numpy())
    assert weight_delta({"diff_b": difference}, weight) is None
    assert bias_delta({"diff_b": difference}) is difference
    assert bias_delta({"b_norm": difference}) is difference
    assert bias_delta({"diff": difference}) is None


@pytest.mark.parametrize("shape", [LINEAR, KERNEL])
def test_ia3(draw: Draw, shape: tuple[int, ...]) -> None:
    weight, rows, columns = draw(*shape), draw(6), draw(4)
    wanted = np.stack([weight[o].numpy() * rows[o].item() for o in range(6)])
    agree({"ia3": rows, "on_input": torch.tensor(False)}, weight, wanted)
    wanted = np.stack([weight[:, i].numpy() * columns[i].item() for i in range(4)], axis=1)
    agree({"ia3": columns, "on_input": torch.tensor(True)}, weight, wanted)


@pytest.mark.parametrize("shape", [LINEAR, KERNEL])
def test_dora(draw: Draw, shape: tuple[int, ...]) -> None:
    """The merged weight has, for each output or each input, the learned magnitude and the direction of W + B A."""
    ones = [1] * (len(shape) - 2)
    down, up, weight = draw(2, *shape[1:]), draw(6, 2), draw(*shape)
    merged = weight + torch.einsum("op,p...->o...", up, down)
    for role, magnitude, axis in (
        ("dora_scale", draw(6, 1, *ones).abs(), 0),
        ("dora_scale", draw(1, 4, *ones).abs(), 1),
        ("dora_scale", draw(6).abs(), 0),
        ("magnitude", draw(6).abs(), 0),
        ("magnitude", draw(1, 6, *ones).abs(), 0),
    ):
        delta = weight_delta({"down": down, "up": up, role: magnitude}, weight)
        assert delta is not None
        got = (weight + delta).numpy()
        for index in range(shape[axis]):
            mine, theirs = got.take(index, axis), merged.numpy().take(index, axis)
            np.testing.assert_allclose(np.linalg.norm(mine), magnitude.flatten()[index].item(), rtol=1e-5)
            cosine = (mine * theirs).sum() / np.linalg.norm(mine) / np.linalg.norm(theirs)
            np.testing.assert_allclose(cosine, 1, rtol=1e-5)


def test_dora_that_learned_nothing_changes_nothing(draw: Draw) -> None:
    weight = draw(*LINEAR)
    parts = {"down": draw(2, 4), "up": torch.zeros(6, 2), "dora_scale": weight.norm(dim=1, keepdim=True)}
    agree(parts, weight, np.zeros(LINEAR))


@pytest.mark.parametrize("case", sorted({name.partition("/")[0] for name in ORACLES if "/" in name}))
def test_kin_do_as_the_programs_that_train_them(case: str) -> None:
    """As lycoris-lora 4.1.3 (`get_diff_weight`) and peft 0.21.2 (`merge_and_unload`) change layers, and OneTrainer
    23df383 (modules/module/oft_utils.py, LoRAModule.py), each run once."""
    parts = {name.partition("/")[2]: tensor for name, tensor in ORACLES.items() if name.startswith(f"{case}/")}
    told = {name.partition("|")[2]: tensor for name, tensor in ORACLES.items() if name.startswith(f"{case}|")}
    delta = weight_delta(parts, told["weight"], told["strength"].item())
    torch.testing.assert_close(delta, told["delta"], atol=1e-6, rtol=1e-5)
    assert told["delta"].abs().max() > 1e-3
    if "bias" in told:
        change = bias_delta(parts, told["bias"])
        wanted = torch.zeros_like(told["bias"]) if change is None else change
        torch.testing.assert_close(wanted, told["bias_delta"], atol=1e-6, rtol=1e-5)


def test_glora_of_the_first_lycoris(draw: Draw) -> None:
    """Its names were the other way round: W A2 A1 + B2 B1 (ComfyUI 0.3.64, comfy/weight_adapter/glora.py)."""
    a1, a2, b1, b2, weight = draw(2, 4), draw(4, 2), draw(2, 4), draw(6, 2), draw(*LINEAR)
    wanted = (weight @ a2 @ a1 + b2 @ b1) / 2
    agree({"a1": a1, "a2": a2, "b1": b1, "b2": b2, "alpha": torch.tensor(1.0)}, weight, wanted.numpy())


def test_no_strength_leaves_a_rotation_out(draw: Draw) -> None:
    for shape in ((2, 4, 4), (2, 4, 2, 2)):
        parts = {"oft_blocks": draw(*shape), "rescale": draw(8, 1)}
        change = weight_delta(parts, draw(8, 4), 0.0)
        assert change is not None
        assert change.abs().max() < 1e-6


def test_what_does_not_fit_is_an_error(draw: Draw) -> None:
    for parts in ({"down": draw(2, 5), "up": draw(6, 2)}, {"lokr_w1": draw(3, 3), "lokr_w2": draw(2, 2)}):
        with pytest.raises(RuntimeError):
            weight_delta(parts, draw(*LINEAR))
    for parts in ({"down": draw(2, 4)}, {"up": draw(6, 2)}, {"hada_w1_a": draw(6, 2)}, {"dora_scale": draw(6)}):
        with pytest.raises(KeyError):
            weight_delta(parts, draw(*LINEAR))
