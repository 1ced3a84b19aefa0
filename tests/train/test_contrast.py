"""Are the losses what the papers write, and does saving memory leave the gradients of the whole batch?"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reverie.models.clip import CLIP, MLP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig, contrastive_loss
from reverie.train.contrast import Sigmoid, Softmax, in_chunks
from reverie.train.layers import recompute_layers_


def features(count: int = 6, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images, texts = torch.randn(2, count, width, generator=generator)
    return images, texts, torch.tensor(0.7)


def test_sigmoid_judges_every_pair_alone() -> None:
    images, texts, logit_scale = features()
    loss = Sigmoid()
    expected = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            cosine = float(image @ text / (image.norm() * text.norm()))
            logit = math.exp(0.7) * cosine - 10
            chance = 1 / (1 + math.exp(-logit))
            expected -= math.log(chance if i == j else 1 - chance) / len(images)
    assert loss(images, texts, logit_scale).item() == pytest.approx(expected, rel=1e-5)


def test_where_the_losses_start_and_settle() -> None:
    clip = tiny()
    for loss, start, kept in ((Softmax(), 1 / 0.07, 100.0), (Sigmoid(), 10.0, math.exp(9))):
        assert math.exp(loss.start) == pytest.approx(start)
        with torch.no_grad():
            clip.logit_scale.fill_(9)
        loss.settle(clip)
        assert clip.logit_scale.exp().item() == pytest.approx(kept, rel=1e-5)


def tiny() -> CLIP:
    torch.manual_seed(0)
    layers = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    return CLIP(
        CLIPConfig(
            text=CLIPTextConfig(vocab_size=20, max_position_embeddings=5, eos_token_id=19, projection_dim=8, **layers),
            vision=CLIPVisionConfig(image_size=16, patch_size=8, **layers),
            projection_dim=8,
        )
    )


def gradients(clip: CLIP, chunk: int = 0) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of one batch of 7 and its gradients."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(7, 3, 16, 16, generator=generator)
    tokens = torch.randint(19, (7, 5), generator=generator)
    tokens[:, -1] = 19
    images, texts = in_chunks(clip.encode_image, pixels, chunk), in_chunks(clip.encode_text, tokens, chunk)
    loss = contrastive_loss(images, texts, clip.logit_scale)
    parameters = dict(clip.named_parameters())
    return loss.item(), dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def assert_near(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 6, 7, 100])
def test_chunks_are_contrasted_with_the_whole_batch(chunk: int) -> None:
    clip = tiny()
    loss, expected = gradients(clip)
    chunked, found = gradients(clip, chunk)
    assert chunked == pytest.approx(loss, rel=1e-6)
    assert_near(found, expected)


@pytest.mark.parametrize(("chunk", "sizes"), [(0, [7]), (7, [7]), (3, [3, 3, 1, 1, 3, 3])])
def test_a_chunk_at_a_time_passes_twice(chunk: int, sizes: list[int]) -> None:
    """Forth without a trace, and once more on the way back, where the chunks come last first."""
    seen = []
    line = nn.Linear(2, 2)

    def encode(x: Tensor) -> Tensor:
        seen.append(len(x))
        return line(x).square()

    in_chunks(encode, torch.ones(7, 2), chunk).sum().backward()
    assert seen == sizes


def test_layers_are_computed_twice_and_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, again = tiny(), tiny()
    recompute_layers_([again])
    assert list(again.state_dict()) == list(clip.state_dict())
    calls = counted(monkeypatch)
    loss, expected = gradients(clip)
    plain = len(calls)
    calls.clear()
    recomputed, found = gradients(again)
    assert (plain, len(calls)) == (4, 8)  # two layers of two towers
    assert recomputed == loss
    assert_near(found, expected)
    calls.clear()
    assert_near(gradients(again, 3)[1], expected)  # both at once
    assert len(calls) >= 3 * 8


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the passes through layers, by their MLPs."""
    calls: list[int] = []
    forward: Callable[..., Tensor] = MLP.forward

    def counting(self: nn.Module, x: Tensor) -> Tensor:
        calls.append(1)
        return forward(self, x)

    monkeypatch.setattr(MLP, "forward", counting)
    return calls
