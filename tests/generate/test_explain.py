"""Are a word's maps the softmax that the layers compute, is the picture the same, and does it cost nothing when off?"""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from torch import nn

from reverie.errors import ReverieError
from reverie.generate.explain import attention, explain, record_attention, token_words
from reverie.models.layers import Attention
from reverie.pipeline import Pipeline
from reverie.requests.parts import Refiner
from reverie.requests.pictures import TextToImage
from reverie.tokenizer import Tokenizer

REQUEST = TextToImage(prompt="a red bear", seed=3, steps=3)


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def test_attention_is_what_weighs_the_values() -> None:
    torch.manual_seed(0)
    layer = Attention(16, heads=4, context_dim=12)
    x, context = torch.randn(2, 9, 16), torch.randn(2, 5, 12)
    # With values that are the same for all heads, the layer's output is the mean attention times these values.
    values = torch.randn(2, 5, 4)
    layer.to_v = nn.Identity()  # type: ignore[assignment]
    layer.to_out = nn.Sequential(nn.Identity())

    class Values(nn.Module):
        def forward(self, context: torch.Tensor) -> torch.Tensor:
            return values.repeat(1, 1, 4)

    layer.to_v = Values()  # type: ignore[assignment]
    with torch.no_grad():
        out = layer(x, context).unflatten(-1, (4, 4)).mean(2)
    torch.testing.assert_close(attention(layer, x, context) @ values, out, atol=1e-6, rtol=1e-5)


def test_the_picture_is_the_same_and_nothing_stays(tiny: Pipeline) -> None:
    before = hooks(tiny.unet)
    explained = explain(tiny, REQUEST)
    assert explained.picture.tobytes() == tiny.draw(REQUEST)[0].tobytes()
    assert explained.picture.info == tiny.draw(REQUEST)[0].info
    assert hooks(tiny.unet) == before


def test_shows_itself(tiny: Pipeline) -> None:
    explained = tiny.explain(REQUEST)
    with Image.open(io.BytesIO(explained._repr_png_())) as shown:
        assert shown.tobytes() == explained.sheet().tobytes()
        assert shown.width >= 2 * 96  # the picture and three words, two by two


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_maps_agree_with_a_plain_recomputation(tiny: Pipeline, guidance: float) -> None:
    """One step, every layer's q and k written down by other hooks, rows picked by their place in the batch."""
    request = REQUEST.replace(steps=1, guidance=guidance)
    seen: list[torch.Tensor] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor | None], output: torch.Tensor) -> None:
        assert isinstance(module, Attention)
        if inputs[1] is not None:
            x, context = inputs[0][-1], inputs[1][-1]  # the positive row is the last
            heads = []
            for q, k in zip(module.to_q(x).chunk(module.heads, -1), module.to_k(context).chunk(module.heads, -1)):  # noqa: B905
                heads.append(torch.softmax(q @ k.T / q.shape[-1] ** 0.5, -1))
            seen.append(torch.stack(heads).mean(0))

    handles = [part.register_forward_hook(note) for part in tiny.unet.modules() if isinstance(part, Attention)]
    with torch.no_grad():
        explained = explain(tiny, request)
    for handle in handles:
        handle.remove()
    size = next(iter(explained.maps.values())).shape
    maps = []
    for probabilities in seen:
        side = int(probabilities.shape[0] ** 0.5)
        maps.append(nn.functional.interpolate(probabilities.T.reshape(1, -1, side, side), size, mode="bilinear")[0])
    expected = torch.stack(maps).mean(0)
    names = token_words(tiny.tokenizers[0], tiny.tokenizers[0].encode(request.prompt))
    for word, got in explained.maps.items():
        own = sum(expected[1 + place] for place, name in enumerate(names) if name == word)
        torch.testing.assert_close(got, own, atol=1e-6, rtol=1e-4)


def test_words_are_in_order_and_shares_within_one(tiny: Pipeline) -> None:
    maps = explain(tiny, REQUEST).maps
    assert list(maps) == ["a", "red", "bear"]
    total = torch.stack(list(maps.values())).sum(0)
    assert (total > 0).all()
    assert (total < 1).all()  # start, end and padding take the rest


def test_parts_and_stages(tiny: Pipeline) -> None:
    maps = explain(tiny, REQUEST.replace(prompt="[red:green:0.5] bear AND a house :0.5")).maps
    assert {"red", "green", "bear", "house"} <= set(maps)


def test_two_encoders(tiny_xl: Pipeline) -> None:
    explained = explain(tiny_xl, REQUEST)
    assert list(explained.maps) == ["a", "red", "bear"]


@pytest.mark.parametrize("text", ["a red bear", "红苹果 house", "unbelievably crème"])
def test_words_are_spelled_whole(tokenizer: Tokenizer, text: str) -> None:
    names = token_words(tokenizer, ids := tokenizer.encode(text))
    assert len(names) == len(ids)
    assert "".join(dict.fromkeys(names)) == text.replace(" ", "")


def test_a_refiner_is_refused(tiny: Pipeline) -> None:
    with pytest.raises(ReverieError, match="refiner"):
        explain(tiny, REQUEST.replace(refiner=Refiner(model="x")))


def test_a_prompt_without_words_is_refused(tiny: Pipeline) -> None:
    with pytest.raises(ReverieError, match="no words to explain"):
        explain(tiny, REQUEST.replace(prompt="()"))


def test_hooks_go_when_the_drawing_fails(tiny: Pipeline) -> None:
    from reverie.generate.conditioning import encode

    before = hooks(tiny.unet)
    with pytest.raises(RuntimeError), record_attention(tiny.unet, encode(tiny, REQUEST)):
        raise RuntimeError
    assert hooks(tiny.unet) == before
