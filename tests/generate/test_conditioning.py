"""Is a prompt in A1111's syntax encoded as it is meant? Plain ones to the bit, the others against encodings by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reverie.errors import ReverieError
from reverie.generate.conditioning import adapter_notes, apply_adapters, emphasise, encode
from reverie.media.pictures import save
from reverie.pipeline import Pipeline
from reverie.requests.adapter_files import FOLDERS
from reverie.requests.films import Animation
from reverie.requests.pictures import TextToImage
from reverie.requests.records import from_metadata
from reverie.system import Conditioning


@pytest.fixture(params=["sd", "xl"])
def system(request: pytest.FixtureRequest, tiny: Pipeline, tiny_xl: Pipeline) -> Pipeline:
    return {"sd": tiny, "xl": tiny_xl}[request.param]


def asked(prompt: str, **fields: object) -> TextToImage:
    return TextToImage(prompt=prompt, seed=0, **fields)


def only(system: Pipeline, prompt: str, **fields: object) -> Conditioning:
    """Encode a prompt of one part and one stage."""
    (guide,) = encode(system, asked(prompt, **fields)).positive
    ((_, conditioning),) = guide.stages
    return conditioning


def same(ours: Conditioning, theirs: Conditioning) -> bool:
    """Tell whether two conditionings agree to the bit."""
    pairs = [(getattr(ours, kind), getattr(theirs, kind)) for kind in ("tokens", "pooled", "sizes")]
    return all((a is None and b is None) or a.equal(b) for a, b in pairs)


@pytest.mark.parametrize(
    "prompt", ["a bear", "", "a bear on a blue background", "an apple, a bear", "a, b: c. 'd' {e}"]
)
def test_a_plain_prompt_is_the_plain_embedding(system: Pipeline, prompt: str) -> None:
    """To the bit, positive and negative, where it fits the context."""
    short = prompt if len(system.tokenizers[0].encode(prompt)) <= system.tokenizers[0].length - 2 else prompt[:6]
    assert same(only(system, short, width=48, height=32), system.encode_prompt([short], width=48, height=32))
    negative = encode(system, asked("", negative=short)).negative.at(0)
    assert same(negative, system.encode_negative([short]))


def test_weights_multiply_and_the_mean_is_kept() -> None:
    z = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([1, 1.3, 1, 0.5])[:, None]
    raised = z.numpy().astype(np.float64) * weights.numpy()
    wanted = raised * z.numpy().mean() / raised.mean()
    np.testing.assert_allclose(emphasise(z, weights).numpy(), wanted, rtol=1e-4)
    assert emphasise(z, torch.ones(4, 1)) is z
    assert emphasise(z.half(), weights).dtype == torch.float16


def test_a_mean_of_chance_is_not_restored() -> None:
    z = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    z = z - z.mean() + 1e-3
    weights = torch.tensor([1, 1.3, 1, 0.5])[:, None]
    assert emphasise(z, weights).equal(z * weights)


@pytest.mark.parametrize("bias", [0.0, 0.2])
def test_emphasis_by_hand(make_system: Callable[..., Pipeline], bias: float) -> None:
    """Only the bear's tokens weigh 1.5; without a bias the LayerNorm leaves no mean to restore."""
    tiny = make_system()
    tiny.text_encoders[0].text_model.final_layer_norm.bias.data += bias
    plain = tiny.encode_prompt(["a bear"]).tokens.numpy().astype(np.float64)
    a, bear = (len(tiny.tokenizers[0].encode(word)) for word in ("a", "bear"))
    weights = np.ones((1, plain.shape[1], 1))
    weights[0, 1 + a : 1 + a + bear] = 1.5
    raised = plain * weights
    wanted = raised * plain.mean() / raised.mean() if bias else raised
    np.testing.assert_allclose(only(tiny, "a (bear:1.5)").tokens.numpy(), wanted, atol=1e-4, rtol=1e-4)


def test_emphasis_of_sdxl_keeps_the_mean_of_each_encoder(make_system: Callable[..., Pipeline]) -> None:
    tiny_xl = make_system(xl=True)
    for sign, tower in zip((-1, 1), tiny_xl.text_encoders, strict=True):
        tower.text_model.encoder.layers[0].mlp.fc2.bias.data += 0.3 * sign
    plain, weighed = tiny_xl.encode_prompt(["a bear"]), only(tiny_xl, "a (bear:1.5)")
    for half in (slice(0, 16), slice(16, 32)):
        torch.testing.assert_close(weighed.tokens[..., half].mean(), plain.tokens[..., half].mean())
    assert not weighed.tokens.equal(plain.tokens)
    assert weighed.pooled.equal(plain.pooled)


def test_sections_are_encoded_apart(system: Pipeline) -> None:
    parts = [system.encode_prompt([text]) for text in ("a bear", "an apple", "")]
    long = only(system, "a bear BREAK an apple BREAK BREAK a bear")
    assert long.tokens.equal(torch.cat([parts[k].tokens for k in (0, 1, 2, 0)], dim=1))
    if long.pooled is not None:
        assert long.pooled.equal(parts[0].pooled)
        assert long.sizes.equal(parts[0].sizes)


def test_a_long_prompt_loses_nothing(tiny: Pipeline) -> None:
    """Beyond the context it goes on in another chunk: the tokens of each are a row of their own."""
    prompt, tokenizer = "a bear next to an apple next to a bear on a blue background", tiny.tokenizers[0]
    ids, room = tokenizer.encode(prompt), tokenizer.length - 2
    assert len(ids) > room
    rows = []
    for start in range(0, len(ids), room):
        inside = ids[start : start + room]
        row = [tokenizer.bos_id, *inside, *[tokenizer.eos_id] * (tokenizer.length - 1 - len(inside))]
        rows.append(tiny.text_layers([torch.tensor([row])])[0][0])
    assert only(tiny, prompt).tokens.equal(torch.cat(rows, dim=1))


def test_a_prompt_that_changes(system: Pipeline) -> None:
    """With 4 steps a half is step 2, which A1111 counts from 0: the first words hold at steps 0, 1 and 2."""
    (guide,) = encode(system, asked("a [bear:apple:0.5]", steps=4)).positive
    assert [until for until, _ in guide.stages] == [2, 4]
    bear, apple = (system.encode_prompt([text]) for text in ("a bear", "a apple"))
    assert [same(guide.at(step), bear) for step in range(5)] == [True, True, True, False, False]
    assert [same(guide.at(step), apple) for step in range(5)] == [False, False, False, True, True]
    negative = encode(system, asked("", negative="[bear|apple]", steps=4)).negative
    bear, apple = (system.encode_negative([text]) for text in ("bear", "apple"))
    assert [same(negative.at(step), bear) for step in range(5)] == [True, True, False, True, False]
    assert same(negative.at(2), apple)


def test_the_second_pass_counts_on(tiny: Pipeline) -> None:
    request = asked("a [bear:apple:1.5]", steps=4)
    (guide,) = encode(tiny, request, after=10).positive
    assert [until for until, _ in guide.stages] == [2, 4]
    assert len(encode(tiny, request.replace(prompt="[bear:apple:0.5]"), after=10).positive[0].stages) == 1


def test_stages_have_one_length(tiny: Pipeline) -> None:
    """A shorter stage is filled up with the encoding of nothing."""
    (guide,) = encode(tiny, asked("a bear[ BREAK an apple::2]", steps=4)).positive
    long, short = guide.at(0).tokens, guide.at(3).tokens
    bear, apple, nothing = (tiny.encode_prompt([text]).tokens for text in ("a bear", "an apple", ""))
    assert long.equal(torch.cat([bear, apple], dim=1))
    assert short.equal(torch.cat([bear, nothing], dim=1))


def test_parts(system: Pipeline) -> None:
    first, second, third = encode(system, asked("a bear AND an apple :1.5 AND blue: -1")).positive
    assert [guide.weight for guide in (first, second, third)] == [1, 1.5, -1]
    assert same(second.at(0), system.encode_prompt(["an apple"]))
    for text in ("a AND b", "<lora:b>"):  # means nothing there
        negative = encode(system, asked("", negative=text)).negative
        assert same(negative.at(0), system.encode_negative([text]))


def test_nothing_to_keep_away_from_is_zero_where_the_model_says_so(tiny_xl: Pipeline) -> None:
    assert encode(tiny_xl, asked("a bear")).negative.at(0).tokens.eq(0).all()
    changing = encode(tiny_xl, asked("", negative="[bear::2]", steps=4)).negative
    assert same(changing.at(3), tiny_xl.encode_prompt([""]))
    assert not only(tiny_xl, "").tokens.eq(0).all()


def test_clip_skip(tiny: Pipeline, tiny_xl: Pipeline) -> None:
    text = tiny.text_encoders[0].text_model
    with torch.no_grad():
        hidden = text(tiny.tokenizers[0](["a bear"])).hidden
        assert only(tiny, "a bear", clip_skip=2).tokens.equal(text.final_layer_norm(hidden[-2]))
        torch.testing.assert_close(only(tiny, "a bear", clip_skip=1).tokens, text.final_layer_norm(hidden[-1]))
    with pytest.raises(ReverieError, match=r"^clip skip 3 is too much; this model's text encoder has 2 layers$"):
        only(tiny, "a bear", clip_skip=3)
    # SDXL conditions on the last layer but one as it is.
    assert same(only(tiny_xl, "a bear", clip_skip=2), only(tiny_xl, "a bear"))


def test_sizes(tiny: Pipeline, tiny_xl: Pipeline) -> None:
    def sizes(**fields: object) -> tuple[list[float], list[float]]:
        prompts = encode(tiny_xl, asked("a", negative="b", width=64, height=48, **fields))
        return prompts.positive[0].at(0).sizes[0].tolist(), prompts.negative.at(0).sizes[0].tolist()

    assert sizes() == ([48, 64, 0, 0, 48, 64],) * 2
    fields = {"original_size": (100, 200), "crop": (3, 4), "target_size": (10, 20)}
    assert sizes(**fields) == ([200, 100, 4, 3, 20, 10],) * 2
    fields |= {"negative_original_size": (5, 6), "negative_crop": (7, 8), "negative_target_size": (9, 10)}
    assert sizes(**fields) == ([200, 100, 4, 3, 20, 10], [6, 5, 8, 7, 10, 9])
    assert only(tiny, "a", original_size=(5, 6)).sizes is None


def test_learned_words(tiny: Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "toy.safetensors"
    save_file({"emb_params": torch.randn(2, 16)}, file)
    table = tiny.text_encoders[0].text_model.embeddings.token_embedding
    before = table.weight
    ours, plain = only(tiny, "a toy", embeddings=[str(tmp_path)]), only(tiny, "a toy")
    assert not ours.tokens.equal(plain.tokens)
    assert table.weight is before
    assert only(tiny, "a bear", embeddings=[str(file)]).tokens.equal(tiny.encode_prompt(["a bear"]).tokens)


@pytest.fixture
def ink(tiny: Pipeline, tmp_path: Path) -> Path:
    """Write a LoRA for one layer of the tiny U-Net and one of its text encoder."""
    file = tmp_path / "ink.safetensors"
    state = {}
    for layer, size in (("lora_unet_conv_in", (8, 4, 3, 3)), ("lora_te_text_model_encoder_layers_0_mlp_fc1", (32, 16))):
        state[f"{layer}.diff"] = torch.ones(size)
    save_file(state, file)
    return file


def test_loras_of_requests_and_prompts(
    tiny: Pipeline, ink: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDERS, raising=False)
    conv, fc1 = tiny.unet.conv_in, tiny.text_encoders[0].text_model.encoder.layers[0].mlp.fc1
    weights = conv.weight, fc1.weight

    def change(request: TextToImage) -> tuple[float, float]:
        with apply_adapters(tiny, request):
            changes = tuple(
                (module.weight - old).mean().item() for module, old in zip((conv, fc1), weights, strict=True)
            )
        assert (conv.weight, fc1.weight) == weights
        return changes

    def near(*numbers: float) -> Callable[[float, float], bool]:
        return pytest.approx(numbers, abs=1e-5)

    assert change(asked("a bear")) == (0, 0)
    assert change(asked("a", loras=[str(ink)])) == near(1, 1)
    assert change(asked("a", loras=[f"{ink}:0.25:0.5"])) == near(0.5, 0.25)
    assert change(asked("a <lora:ink:0.5>", loras=[f"{ink}:2"])) == near(2.5, 2.5)
    with (
        pytest.raises(ReverieError, match=r"^nowhere to look for the LoRA 'ink'"),
        apply_adapters(tiny, asked("a <lora:ink:0.5>")),
    ):
        pass
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    assert change(asked("a <lora:ink:0.25:0.5>")) == near(0.5, 0.25)
    assert only(tiny, "a bear<lora:ink:1>").tokens.equal(tiny.encode_prompt(["a bear"]).tokens)


def test_another_file_of_a_recorded_name_is_said(tiny: Pipeline, tmp_path: Path) -> None:
    """The record of a picture names its LoRA and holds its sum; beside the picture lies another of that name."""
    layer = {"lora_unet_mid_block_attentions_0_proj_in.diff": torch.zeros(16, 16, 1, 1)}
    drawn, here = tmp_path / "drawn", tmp_path / "here"
    for folder, value in ((drawn, 0.0), (here, 1.0)):
        folder.mkdir()
        save_file({name: tensor + value for name, tensor in layer.items()}, folder / "ink.safetensors")
    request = TextToImage(prompt="a bear", loras=(f"{drawn / 'ink.safetensors'}:0.5",), seed=1, steps=1)
    (picture,) = tiny.draw(request)
    save(picture, here / "bear.png")
    again = from_metadata(here / "bear.png")
    assert again.loras == ("ink.safetensors:0.5",)
    (note,) = adapter_notes(tiny, again)
    assert note.startswith("'ink.safetensors' is not the file that it was: its SHA-256 is ")
    (drawn / "bear.png").write_bytes((here / "bear.png").read_bytes())
    assert adapter_notes(tiny, from_metadata(drawn / "bear.png")) == ()


def test_what_is_not_honoured_reaches_every_face(tiny: Pipeline) -> None:
    told = "'<hypernet:agm:1>' in the prompt is left out: reverie honours the tags of LoRAs alone"
    request = TextToImage(prompt="a bear <hypernet:agm:1>", seed=1, steps=2)
    assert [event.notes for event in tiny.stream(request)] == [(told,), ()]
    with pytest.warns(UserWarning, match="hypernet:agm:1"):
        (picture,) = tiny.draw(request)
    plain = TextToImage(prompt="a bear ", seed=1, steps=2)
    assert picture.tobytes() == tiny.draw(plain)[0].tobytes()
    film = Animation(keyframes=("a bear <hypernet:agm:1>", "an apple"), frames=2, seed=1, steps=2, anchor=0)
    assert [frame.notes for frame in tiny.animate(film)] == [(told,), ()]
