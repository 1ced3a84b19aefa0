"""Do learned words stand in a prompt as their vectors, in every layout, and leave the model as it was?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from reverie.adapters import inversion
from reverie.errors import ReverieError
from reverie.generate.conditioning import adapter_notes, encode, split
from reverie.generate.prompt import weigh
from reverie.pipeline import Pipeline
from reverie.requests.adapter_files import embeddings
from reverie.requests.pictures import TextToImage

WIDTH = 16


def a1111(vectors: torch.Tensor, name: str = "made of") -> dict[str, object]:
    """Lay an inversion out as AUTOMATIC1111 saves it."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": name,
        "step": 500,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }


def test_layouts(write: Callable[..., Path]) -> None:
    vectors, single = torch.randn(3, WIDTH), torch.randn(WIDTH)
    files = {
        "a.pt": (a1111(vectors), ("a",), [vectors]),
        "parameter.pt": (a1111(torch.nn.Parameter(vectors)), ("parameter",), [vectors]),
        "b.bin": ({"<cat-toy>": single}, ("b", "<cat-toy>"), [single[None]]),
        "c.safetensors": ({"emb_params": vectors}, ("c",), [vectors]),
        "d.safetensors": ({"<d>": vectors}, ("d", "<d>"), [vectors]),
        "e.safetensors": ({"clip_l": vectors, "clip_g": 2 * vectors}, ("e",), [vectors, 2 * vectors]),
        "f.pt": ({"clip_g": vectors, "clip_l": 2 * vectors}, ("f",), [2 * vectors, vectors]),
    }
    paths = [write(state, f"words/{name}") for name, (state, _, _) in files.items()]
    for path, (_, names, tables) in zip(paths, files.values(), strict=True):
        loaded = inversion.load(path)
        assert loaded.names == names
        assert all(ours.equal(theirs) for ours, theirs in zip(loaded.vectors, tables, strict=True))
    assert [word.names[0] for word in inversion.load_all(embeddings([str(paths[0].parent)]))] == [
        path.stem for path in sorted(paths)
    ]
    assert [word.names[0] for word in inversion.load_all([paths[1], paths[0]])] == ["parameter", "a"]


def test_the_first_trainer(write: Callable[..., Path]) -> None:
    """Gal et al.'s own (rinongal/textual_inversion, ldm/modules/embedding_manager.py) saves an `nn.ParameterDict`, as
    A1111 1.10 (modules/safe.py) allows."""
    vectors = torch.randn(2, WIDTH)
    state = {"string_to_token": {"<toy>": torch.tensor(265)}, "string_to_param": nn.ParameterDict({"<toy>": vectors})}
    loaded = inversion.load(write(state, "embeddings.pt"))
    assert loaded.names == ("embeddings", "<toy>")
    assert loaded.vectors[0].equal(vectors)


def test_one_trainers_files(write: Callable[..., Path]) -> None:
    """OneTrainer 23df383, modules/modelSaver: StableDiffusionEmbeddingSaver.py, StableDiffusionXLEmbeddingSaver.py."""
    one, two, out = torch.randn(2, WIDTH), torch.randn(2, WIDTH), torch.randn(2, WIDTH)
    plain = inversion.load(write({"emp_params": one}, "toy.safetensors"))
    assert (plain.names, plain.outputs) == (("toy",), ())
    assert plain.vectors[0].equal(one)
    learned = inversion.load(write({"emp_params": one * 0, "emp_params_out": out}, "out.safetensors"))
    assert learned.outputs[0] is not None
    assert learned.outputs[0].equal(out)
    alone = inversion.load(write({"emp_params_out": out}, "alone.safetensors"))
    assert alone.vectors[0].equal(one * 0)
    large = inversion.load(write({"clip_l": one, "clip_g": two, "clip_g_out": out}, "xl.safetensors"))
    assert large.outputs[0] is None
    assert [table.equal(wanted) for table, wanted in zip(large.vectors, (one, two), strict=True)] == [True, True]


def test_an_unknown_tensor_spoils_itself_alone(write: Callable[..., Path]) -> None:
    """SD 3's and Flux's encoders are no part of these models; a counter is no vector."""
    vectors = torch.randn(2, WIDTH)
    for state, left in (
        ({"clip_l": vectors, "clip_g": vectors.clone(), "t5": torch.randn(2, 32)}, "t5"),
        ({"<toy>": vectors, "step": torch.tensor(3)}, "step"),
        ({"emb_params": vectors, "extra": torch.ones(2)}, "extra"),
    ):
        loaded = inversion.load(write(state, "toy.safetensors"))
        assert loaded.vectors[0].equal(vectors)
        assert loaded.notes == (f"'toy.safetensors': {left} is left out, beside the vectors of 'toy'",)


def test_a_lora_brings_its_words(tiny: Pipeline, write: Callable[..., Path]) -> None:
    """sd-scripts' and A1111's keys (extensions-builtin/Lora/networks.py: bundle_emb), and OneTrainer's."""
    one, two, out = torch.randn(2, WIDTH), torch.randn(1, WIDTH), torch.randn(1, WIDTH)
    layer = "lora_unet_mid_block_attentions_0_proj_in.diff"
    state = {"bundle_emb.toy.string_to_param.*": one, "bundle_emb.cub.clip_l": two, "bundle_emb.cub.clip_l_out": out}
    file = write(state | {layer: torch.zeros_like(tiny.unet.mid_block.attentions[0].proj_in.weight)})
    cub, toy = inversion.load_all([], [file])
    assert (toy.names, cub.names) == (("toy",), ("cub",))
    assert toy.vectors[0].equal(one)
    assert cub.outputs[0] is not None
    plain = encode(tiny, TextToImage(prompt="a toy bear", seed=1))
    request = TextToImage(prompt="a toy bear", loras=(str(file),), seed=1)
    brought = encode(tiny, request)
    assert not brought.positive[0].at(0).tokens.equal(plain.positive[0].at(0).tokens)
    assert adapter_notes(tiny, request) == ()


def test_learned_outputs_stand_in_the_place_of_their_words(tiny: Pipeline, write: Callable[..., Path]) -> None:
    """OneTrainer 23df383, modules/model/BaseModel.py: _apply_output_embeddings; the input is then zeros."""
    out = torch.randn(2, WIDTH)
    file = write({"emp_params": out * 0, "emp_params_out": out}, "toy.safetensors")
    tokens = encode(tiny, TextToImage(prompt="a toy bear", embeddings=(str(file),), seed=1)).positive[0].at(0).tokens
    first = 1 + len(tiny.tokenizers[0].encode("a"))
    assert tokens[0, first : first + 2].equal(out)
    other = {"emp_params": out * 0}
    alone = encode(tiny, TextToImage(prompt="a toy bear", embeddings=(str(write(other, "toy.safetensors")),), seed=1))
    rest = [n for n in range(tokens.shape[1]) if n not in (first, first + 1)]
    assert tokens[0, rest].equal(alone.positive[0].at(0).tokens[0, rest])


def test_refusals(write: Callable[..., Path], tmp_path: Path) -> None:
    cases = {
        tmp_path / "none.pt": r"^no textual inversion at '.*none.pt': there is no such file$",
        write(
            {"a": torch.ones(2), "b": torch.ones(2)}, "two.safetensors"
        ): "is no textual inversion: it holds a, b; give a",
        write({"a": torch.ones(2, 3, 4)}, "cube.safetensors"): r"'a' has shape \(2, 3, 4\), not \(vectors, width\)$",
        write({"a": torch.ones(2, dtype=torch.long)}, "long.safetensors"): "'a' has shape",
        write({}, "empty.safetensors"): "it holds nothing",
    }
    for path, told in cases.items():
        with pytest.raises(ReverieError, match=told) as error:
            inversion.load(path)
        assert "\n" not in str(error.value)


def test_a_word_becomes_its_vectors(tiny: Pipeline) -> None:
    """The tower's answer is that to the vectors themselves, put in by hand where the word stands."""
    table, tokenizer = tiny.text_encoders[0].text_model.embeddings.token_embedding, tiny.tokenizers[0]
    before, storage, bits = table.weight, table.weight.data_ptr(), table.weight.detach().clone()
    vectors = torch.randn(3, WIDTH)
    word = inversion.Inversion(("toy",), (vectors,))
    with inversion.apply(tiny, [word]) as (words,):
        (chunk,) = split(weigh("a toy bear"), tokenizer, words)
        layers, _ = tiny.text_layers([chunk.row(tokenizer)])
    assert table.weight is before
    assert table.weight.data_ptr() == storage
    assert table.weight.equal(bits)
    first = len(bits)
    a, bear = tokenizer.encode("a"), tokenizer.encode("bear")
    assert chunk.ids == (*a, first, first + 1, first + 2, *bear)

    row = tokenizer(["a bear"])
    ids = torch.tensor([[tokenizer.bos_id, *a, 0, 0, 0, *bear, *[tokenizer.eos_id] * (row.shape[1] - 5 - len(bear))]])
    embedded = bits[ids]
    embedded[0, 1 + len(a) : 4 + len(a)] = vectors
    text = tiny.text_encoders[0].text_model
    with torch.no_grad():
        hidden = text.encoder(embedded + text.embeddings.position_embedding.weight)
        wanted = text.final_layer_norm(hidden[-1])
    torch.testing.assert_close(layers[0], wanted)


def test_several_words_and_the_longest_wins(tiny: Pipeline) -> None:
    short = inversion.Inversion(("bear",), (torch.randn(1, WIDTH),))
    long = inversion.Inversion(("bear cub", "<cub>"), (torch.randn(2, WIDTH),))
    tokenizer = tiny.tokenizers[0]
    with inversion.apply(tiny, [short, long]) as (words,):
        first = len(tokenizer)
        for text, ids in {
            "bear": [first],
            "bear cub": [first + 1, first + 2],
            "<cub> bear": [first + 1, first + 2, first],
            "BEAR": [first],
        }.items():
            (chunk,) = split(weigh(text), tokenizer, words)
            assert list(chunk.ids) == ids
        (chunk,) = split(weigh("(bear:1.5) a"), tokenizer, words)
        assert chunk.weights == (1.5, 1.0)


def test_sdxl_has_a_table_for_each_encoder(tiny_xl: Pipeline) -> None:
    left, right = torch.randn(2, WIDTH), torch.randn(2, WIDTH)
    tables = [tower.text_model.embeddings.token_embedding for tower in tiny_xl.text_encoders]
    with inversion.apply(tiny_xl, [inversion.Inversion(("toy",), (left, right))]) as words:
        assert len(words) == 2
        assert tables[0].weight[-2:].equal(left)
        assert tables[1].weight[-2:].equal(right)


def test_another_familys_words_are_refused(tiny: Pipeline, tiny_xl: Pipeline) -> None:
    wide = inversion.Inversion(("toy",), (torch.randn(2, 2 * WIDTH),))
    double = inversion.Inversion(("toy",), (torch.randn(2, WIDTH), torch.randn(2, WIDTH)))
    good = inversion.Inversion(("fine",), (torch.randn(1, WIDTH),))
    before = tiny.text_encoders[0].text_model.embeddings.token_embedding.weight
    told = {
        (tiny, wide): "^textual inversion 'toy' has vectors of width 32, this model's text encoders take 16; give one",
        (tiny, double): "has vectors of width 16 and 16, this model's text encoders take 16; give",
        (tiny_xl, good): "has vectors of width 16, this model's text encoders take 16 and 16; give",
    }
    for (system, word), message in told.items():
        with (
            pytest.raises(ReverieError, match=message),
            inversion.apply(system, [good, word] if system is tiny else [word]),
        ):
            pass
    assert tiny.text_encoders[0].text_model.embeddings.token_embedding.weight is before


def test_an_error_inside_leaves_no_trace(tiny: Pipeline) -> None:
    table = tiny.text_encoders[0].text_model.embeddings.token_embedding
    before = table.weight
    word = inversion.Inversion(("toy",), (torch.randn(2, WIDTH),))
    with pytest.raises(ZeroDivisionError), inversion.apply(tiny, [word]):
        1 / 0  # noqa: B018
    assert table.weight is before
