"""Does a LoRA change a model by its formula, and leave it to the bit? Against hooks that add B A x to every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.adapters import lora
from reverie.errors import ReverieError
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline
from reverie.runtime.changes import seamless

from .conftest import RANK, Pairs, layers, pairs

UNET = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "proj_in",
    "proj_out",
    "conv1",
    "downsamplers.0.conv",
)
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def kohya(prefix: str, drawn: Pairs, alpha: float | None = None) -> dict[str, Tensor]:
    state = {}
    for name, (down, up) in drawn.items():
        key = f"{prefix}_{name.replace('.', '_')}"
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if alpha is not None:
            state[f"{key}.alpha"] = torch.tensor(alpha)
    return state


@contextmanager
def added(network: nn.Module, drawn: Pairs, scale: float) -> Iterator[None]:
    """Let layers answer W x + scale B A x, without touching a weight: the definition of a LoRA."""

    def hook(down: Tensor, up: Tensor) -> Callable[..., Tensor]:
        def forward(module: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:
            if isinstance(module, nn.Linear):
                return y + scale * F.linear(F.linear(args[0], down), up)
            return y + scale * F.conv2d(F.conv2d(args[0], down, None, module.stride, module.padding), up)

        return forward

    handles = [network.get_submodule(name).register_forward_hook(hook(*both)) for name, both in drawn.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def answers(system: Pipeline) -> tuple[Tensor, Tensor]:
    """Return what the text encoders and the U-Net answer to something."""
    conditioning = system.encode_prompt(["a bear"])
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return conditioning.tokens, system.network(conditioning)(x, torch.tensor([500.0]))


def snapshot(system: Pipeline) -> dict[str, tuple[int, int, Tensor]]:
    """Name every parameter's object, storage and bits."""
    networks = [system.unet, *system.text_encoders]
    found = {}
    for number, network in enumerate(networks):
        for name, p in network.named_parameters():
            found[f"{number}.{name}"] = (id(p), p.data_ptr(), p.detach().clone())
    return found


def unchanged(system: Pipeline, before: dict[str, tuple[int, int, Tensor]]) -> bool:
    after = snapshot(system)
    return before.keys() == after.keys() and all(
        old[:2] == after[name][:2] and old[2].equal(after[name][2]) for name, old in before.items()
    )


def test_a_lora_adds_its_product(tiny: Pipeline, write: Callable[..., Path]) -> None:
    unet, text = pairs(tiny.unet, *UNET), pairs(tiny.text_encoders[0], *TEXT, seed=1)
    assert len(unet) > 20
    assert len(text) == 12
    file = write(kohya("lora_unet", unet, alpha=1.5) | kohya("lora_te", text, alpha=1.5))
    before, plain = snapshot(tiny), answers(tiny)
    with lora.apply(tiny, [(file, 0.8, 0.4)]):
        merged = answers(tiny)
    with added(tiny.unet, unet, 0.8 * 1.5 / RANK), added(tiny.text_encoders[0], text, 0.4 * 1.5 / RANK):
        wanted = answers(tiny)
    assert unchanged(tiny, before)
    for ours, theirs, without in zip(merged, wanted, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        assert (ours - without).abs().max() > 1e-2


def test_a_seamless_picture_stays_so_with_a_lora_of_convolutions(tiny: Pipeline, write: Callable[..., Path]) -> None:
    """What is added to a convolution wraps as it does, but in peft (findings/an-adapter-of-a-tile-has-a-seam.sh)."""
    file = write(kohya("lora_unet", pairs(tiny.unet, "conv1"), alpha=1.5))
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 12, 16)
    with torch.no_grad(), seamless([tiny.unet], "xy"):
        plain = tiny.unet(x, t, context)
        with lora.apply(tiny, [(file, 1.0, 0.0)]):
            heard, rolled = tiny.unet(x, t, context), tiny.unet(x.roll((2, 2), (2, 3)), t, context)
    torch.testing.assert_close(rolled, heard.roll((2, 2), (2, 3)), atol=1e-5, rtol=1e-4)
    assert (heard - plain).abs().max() > 1e-2


def test_several_add_up(tiny: Pipeline, write: Callable[..., Path]) -> None:
    first, second = pairs(tiny.unet, "to_q", "ff.net.2"), pairs(tiny.unet, "to_q", seed=5)
    files = write(kohya("lora_unet", first), "a.safetensors"), write(kohya("lora_unet", second), "b.pt")
    with lora.apply(tiny, [(files[0], 0.5, 1.0), (files[1], -1.5, 1.0)]):
        merged = answers(tiny)[1]
    with added(tiny.unet, first, 0.5), added(tiny.unet, second, -1.5):
        torch.testing.assert_close(merged, answers(tiny)[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once_and_returns_to_the_bit(
    make_system: Callable[..., Pipeline], write: Callable[..., Path], half: torch.dtype
) -> None:
    system = make_system()
    system.unet.to(half)
    drawn = pairs(system.unet, "attn1.to_q")
    file = write({key: tensor.to(half) for key, tensor in kohya("lora_unet", drawn).items()})
    before = snapshot(system)
    originals = {name: system.unet.get_submodule(name).weight.double() for name in drawn}
    with lora.apply(system, [(file, 0.3, 1.0)]):
        for name, original in originals.items():
            merged = system.unet.get_submodule(name).weight
            down, up = (tensor.to(half).double() for tensor in drawn[name])
            exact = original + 0.3 * up @ down
            assert merged.dtype == half
            assert ((merged.double() - exact).abs() <= exact.abs() * torch.finfo(half).eps / 2 + 1e-6).all()
    assert unchanged(system, before)


def test_an_error_inside_leaves_no_trace(tiny: Pipeline, write: Callable[..., Path]) -> None:
    file = write(kohya("lora_unet", pairs(tiny.unet, *UNET)))
    before = snapshot(tiny)

    def draw() -> Iterator[None]:
        with lora.apply(tiny, [(file, 1.0, 1.0)]), lora.apply(tiny, [(file, 1.0, 1.0)]):
            yield

    drawing = draw()
    next(drawing)
    assert not unchanged(tiny, before)
    drawing.close()
    assert unchanged(tiny, before)
    with pytest.raises(ZeroDivisionError), lora.apply(tiny, [(file, 1.0, 1.0)]):
        1 / 0  # noqa: B018
    assert unchanged(tiny, before)
    with lora.apply(tiny, []):
        assert unchanged(tiny, before)


def test_no_strength_changes_nothing(tiny: Pipeline, write: Callable[..., Path]) -> None:
    file = write(kohya("lora_unet", pairs(tiny.unet, *UNET)))
    plain = answers(tiny)
    with lora.apply(tiny, [(file, 0.0, 0.0)]):
        assert all(a.equal(b) for a, b in zip(answers(tiny), plain, strict=True))


def test_biases_change_and_appear(tiny: Pipeline, write: Callable[..., Path]) -> None:
    """`diff_b` of LyCORIS, on a layer with a bias, one without, and a norm."""
    name, norm = "mid_block.attentions.0.transformer_blocks.0.attn1", "conv_norm_out"
    state = {
        f"lora_unet_{name.replace('.', '_')}_to_q.diff_b": torch.ones(16),
        f"lora_unet_{name.replace('.', '_')}_to_out_0.diff_b": torch.ones(16),
        f"lora_unet_{norm}.w_norm": torch.ones(8),
        f"lora_unet_{norm}.b_norm": torch.full((8,), 2.0),
    }
    attention, before = tiny.unet.get_submodule(name), snapshot(tiny)
    bias, scale = attention.to_out[0].bias, tiny.unet.conv_norm_out.weight
    with lora.apply(tiny, [(write(state), 0.5, 1.0)]):
        assert attention.to_q.bias.eq(0.5).all()
        assert attention.to_out[0].bias.equal(bias + 0.5)
        assert tiny.unet.conv_norm_out.weight.equal(scale + 0.5)
        assert tiny.unet.conv_norm_out.bias.equal(before["0.conv_norm_out.bias"][2] + 1)
    assert attention.to_q.bias is None
    assert unchanged(tiny, before)


def test_every_kind_is_found_by_its_keys(tiny: Pipeline, write: Callable[..., Path]) -> None:
    """LyCORIS' and peft's keys reach their formulas, which test_deltas.py checks; strengths scale the whole change."""
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    module, draw = tiny.unet.get_submodule(layer), torch.randn
    weight = module.weight.detach()
    down, up, a1, b1, a2, b2 = draw(RANK, 16), draw(16, RANK), draw(16, 2), draw(2, 16), draw(16, 2), draw(2, 16)
    first, second, scale, alpha = draw(4, 4), draw(4, 4), draw(16, 1).abs(), {"alpha": torch.tensor(1.0)}
    merged = weight + up @ down / RANK
    dora = scale * F.normalize(merged, dim=1) - weight
    kinds = {
        "loha": (
            {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2} | alpha,
            (a1 @ b1) * (a2 @ b2) / 2,
        ),
        "lokr": ({"lokr_w1": first, "lokr_w2": second} | alpha, torch.kron(first, second)),
        "full": ({"diff": up @ down}, up @ down),
        "dora": ({"lora_down.weight": down, "lora_up.weight": up, "dora_scale": scale} | alpha, dora),
        "ia3": ({"weight": scale[:, 0], "on_input": torch.tensor(False)}, weight * scale),
    }
    for kind, (parts, change) in kinds.items():
        state = {f"lora_unet_{layer.replace('.', '_')}.{part}": tensor for part, tensor in parts.items()}
        with lora.apply(tiny, [(write(state, f"{kind}.safetensors"), 0.7, 0.0)]):
            torch.testing.assert_close(module.weight.detach(), weight + 0.7 * change)
    magnitude = {f"unet.{layer}.lora_magnitude_vector": scale[:, 0]}
    state = {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up / RANK} | magnitude
    with lora.apply(tiny, [(write(state, "peft.safetensors"), 0.7, 0.0)]):
        torch.testing.assert_close(module.weight.detach(), weight + 0.7 * dora)


def test_other_files_are_refused_before_anything_changes(
    tiny: Pipeline, tiny_xl: Pipeline, write: Callable[..., Path], tmp_path: Path
) -> None:
    drawn = pairs(tiny.unet, "to_k")
    wide = {name: (torch.randn(RANK, 2 * down.shape[1]), up) for name, (down, up) in drawn.items()}
    good = write(kohya("lora_unet", drawn), "good.safetensors")
    half = {key: tensor for key, tensor in kohya("lora_unet", drawn).items() if "up" not in key}
    cases = {
        write(
            kohya("lora_unet", wide), "wide.safetensors"
        ): r"wide.safetensors' does not fit this model: 'lora_unet_.* is for "
        r"another weight than \(8, 8\); give a LoRA that was made for this family$",
        write(
            {"lora_unet_nothing.lora_up.weight": torch.ones(1)}, "odd.safetensors"
        ): r"odd.safetensors' is no LoRA for this "
        r"model: 1 of its keys name nothing in this model or lack their other half: lora_unet_nothing.lora_up.weight;",
        write({"x.y": torch.ones(1)}, "keys.safetensors"): r"1 of its keys name nothing in this model .*: x.y; give",
        write(
            kohya("lora_te2", pairs(tiny_xl.text_encoders[1], *TEXT)), "xl.safetensors"
        ): "24 of its keys name nothing",
        tmp_path / "missing.safetensors": r"^no LoRA at '.*missing.safetensors': there is no such file$",
    }
    before = snapshot(tiny)
    for file, told in cases.items():
        with pytest.raises(ReverieError, match=told) as error, lora.apply(tiny, [(good, 1.0, 1.0), (file, 1.0, 1.0)]):
            pass
        assert "\n" not in str(error.value)
        assert unchanged(tiny, before)
    # A half of a pair changes nothing that it could; it is refused too.
    with (
        pytest.raises(ReverieError, match="lack their other half"),
        lora.apply(tiny, [(write(half, "half.safetensors"), 1.0, 1.0)]),
    ):
        pass


def test_an_unknown_key_spoils_itself_alone(tiny: Pipeline, write: Callable[..., Path]) -> None:
    """As A1111 1.10 and ComfyUI 0.3.64 ("lora key not loaded") do: the rest is applied; here it is said too."""
    drawn = pairs(tiny.unet, "to_q")
    name = next(iter(drawn)).replace(".", "_")
    strange = {
        "lora_unet_nothing.lora_down.weight": torch.ones(1),
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(()),
        f"lora_unet_{name}.set_weight": torch.ones(1),
        f"lora_unet_{name.replace('to_q', 'to_v')}.lora_up.weight": torch.ones(16, RANK),
        "_aux.3f": torch.ones(1),
    }
    file = write(kohya("lora_unet", drawn) | strange)
    with lora.apply(tiny, [(file, 0.5, 1.0)]):
        merged = answers(tiny)[1]
    with added(tiny.unet, drawn, 0.5):
        torch.testing.assert_close(merged, answers(tiny)[1], atol=1e-5, rtol=1e-4)
    (note,) = lora.notes(tiny, [(file, 1, 1)])
    assert note.startswith("'ink.safetensors': 5 tensors are left out")
    assert lora.notes(tiny, [(write(kohya("lora_unet", drawn), "plain.safetensors"), 1, 1)]) == []


def test_layers_that_are_named_twice_change_once(tiny: Pipeline, write: Callable[..., Path]) -> None:
    """Names of diffusers and of the original code in one file: A1111 and ComfyUI keep one change for each weight."""
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = pairs(tiny.unet, layer)[layer]
    twice = kohya(
        "lora_unet",
        {layer: pair, layer.replace("mid_block.attentions.0", "middle_block.1"): (pair[0].clone(), pair[1].clone())},
        alpha=1,
    )
    module, before = tiny.unet.get_submodule(layer), tiny.unet.get_submodule(layer).weight.detach().clone()
    file = write(twice)
    with lora.apply(tiny, [(file, 1.0, 1.0)]):
        torch.testing.assert_close(module.weight, before + pair[1] @ pair[0] / RANK)
    assert lora.notes(tiny, [(file, 1, 1)]) == ["'ink.safetensors' names 1 layers in two ways; each is changed once"]


def test_another_familys_u_net_is_refused_though_its_text_encoder_fits(
    tiny: Pipeline, write: Callable[..., Path]
) -> None:
    """A LoRA of Flux has CLIP-L's layers too."""
    drawn = kohya("lora_te1", pairs(tiny.text_encoders[0], "fc1"))
    flux = {f"lora_unet_double_blocks_{n}_img_attn_proj.lora_up.weight": torch.ones(1) for n in range(3)}
    with (
        pytest.raises(ReverieError, match="is no LoRA for this model: 3 of its keys"),
        lora.apply(tiny, [(write(drawn | flux), 1.0, 1.0)]),
    ):
        pass


def test_an_inpainting_model_takes_what_was_learned_without_its_mask(
    tiny: Pipeline, write: Callable[..., Path]
) -> None:
    """A1111 1.10 pads the change with zeros (extensions-builtin/Lora/networks.py: "inpainting model")."""
    masked = replace(tiny, unet=UNet(replace(tiny.unet.config, in_channels=9)).eval())
    before, change = masked.unet.conv_in.weight.detach().clone(), torch.randn(tiny.unet.conv_in.weight.shape)
    with lora.apply(masked, [(write({"lora_unet_conv_in.diff": change}), 0.5, 1.0)]):
        after = masked.unet.conv_in.weight
        torch.testing.assert_close(after[:, :4], before[:, :4] + 0.5 * change)
        assert after[:, 4:].equal(before[:, 4:])


def test_every_layer_of_a_kind_is_there(tiny: Pipeline) -> None:
    """The tests above reach linear layers and convolutions, with strides and without."""
    kinds = {type(module) for module in layers(tiny.unet, *UNET).values()}
    assert kinds == {nn.Linear, nn.Conv2d}
