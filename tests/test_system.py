"""Does the bundle encode prompts as each family does, mix conditionings, load, and import lazily?"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import reverie
from reverie.checkpoints.load import Recommended
from reverie.errors import ReverieError
from reverie.pipeline import Pipeline
from reverie.requests.pictures import TextToImage
from reverie.requests.references import BUNDLED, BUNDLED_NAME, MUSIC_NAME
from reverie.runtime.transform import pick_device, pick_dtype
from reverie.system import Conditioning


def test_sd_conditions_on_the_last_layer(tiny: Pipeline) -> None:
    texts = ["a bear", ""]
    conditioning = tiny.encode_prompt(texts)
    with torch.no_grad():
        assert conditioning.tokens.equal(tiny.text_encoders[0](tiny.tokenizers[0](texts)).last)
    assert conditioning.pooled is None
    assert conditioning.sizes is None


def test_sdxl_conditions_on_both_encoders_and_the_sizes(tiny_xl: Pipeline) -> None:
    texts = ["a bear", ""]
    conditioning = tiny_xl.encode_prompt(texts, width=64, height=48)
    tokens = tiny_xl.tokenizers[0](texts)
    with torch.no_grad():
        first, second = (tower(tokens) for tower in tiny_xl.text_encoders)
    assert torch.allclose(conditioning.tokens, torch.cat([first.hidden[-2], second.hidden[-2]], -1), atol=1e-6)
    assert torch.allclose(conditioning.pooled, second.pooled, atol=1e-6)
    assert conditioning.sizes.tolist() == [[48, 64, 0, 0, 48, 64]] * 2


def test_an_empty_negative_prompt_is_zero_where_the_model_says_so(tiny: Pipeline, tiny_xl: Pipeline) -> None:
    texts = ["a bear", ""]
    positive, negative = tiny_xl.encode_prompt(texts), tiny_xl.encode_negative(texts)
    assert negative.tokens[0].equal(positive.tokens[0])
    assert negative.pooled[0].equal(positive.pooled[0])
    assert negative.tokens[1].eq(0).all()
    assert negative.pooled[1].eq(0).all()
    kept = replace(tiny_xl, zero_empty=False).encode_negative(texts)
    assert kept.tokens.equal(positive.tokens)
    assert tiny.encode_negative(texts).tokens.equal(tiny.encode_prompt(texts).tokens)


def test_conditionings_mix() -> None:
    def make(value: float) -> Conditioning:
        return Conditioning(torch.full((1, 2, 3), value), torch.tensor([[value, 1.0]]), torch.tensor([[value]]))

    a, b = make(1.0), make(3.0)
    middle = a.lerp(b, 0.5)
    assert middle.tokens.eq(2).all()
    assert middle.sizes.item() == 2
    both = a.cat(b, a)
    assert both.tokens[:, 0, 0].tolist() == [1, 3, 1]
    assert both.repeat(2).sizes.flatten().tolist() == [1, 1, 3, 3, 1, 1]
    x, y = Conditioning(torch.tensor([[[1.0, 0.0]]])), Conditioning(torch.tensor([[[0.0, 1.0]]]))
    assert torch.allclose(x.slerp(y, 0.5).tokens, torch.tensor([[[0.5**0.5, 0.5**0.5]]]))
    assert x.slerp(y, 0.5).sizes is None
    assert a.slerp(b, 0.5).sizes.item() == 2


def test_load_and_save(tiny: Pipeline, tmp_path: Path) -> None:
    tiny.save(tmp_path / "bears")
    loaded = reverie.load(tmp_path / "bears", device="cpu")
    assert re.fullmatch(r"bears \[[0-9a-f]{10}\]", loaded.name)
    assert loaded.size == 32
    assert loaded.dtype == torch.float32
    assert loaded.device.type == "cpu"
    assert repr(loaded) == f"Pipeline('{loaded.name}', 32 px, torch.float32, cpu)"
    pictures = [system.text_to_image("a bear", seed=1, steps=2)[0].tobytes() for system in (tiny, loaded)]
    assert pictures[0] == pictures[1]
    assert reverie.load(str(tmp_path / "bears"), device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_load_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    cases = {
        tmp_path: "^no model in '.*': it holds no model_index.json; give a folder",
        tmp_path / "file": "file is empty; reverie reads .safetensors, GGUF and files of torch.save",
        "nosuch": "^no model at 'nosuch': there is no such file or folder; give a folder",
    }
    for path, told in cases.items():
        with pytest.raises(ReverieError, match=told):
            reverie.load(path)
    monkeypatch.setitem(BUNDLED, BUNDLED_NAME, tmp_path / "none")
    with pytest.raises(ReverieError, match=r"^this installation holds no bundled model reverie-emoji"):
        reverie.load()


def test_devices_and_dtypes() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ReverieError, match=r"^unknown device 'gpu'; choose from auto, cpu"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ReverieError, match=r"^device 'cuda' is not available here; choose from auto, cpu"):
            pick_device("cuda")
    with pytest.raises(ReverieError, match=r"^device 'cpu:3' is not available here"):
        pick_device("cpu:3")
    assert pick_dtype(None, torch.device("cpu")) == torch.float32
    assert pick_dtype(None, torch.device("cuda")) == torch.float16
    assert pick_dtype("float16", torch.device("cpu")) == torch.float16
    with pytest.raises(ReverieError, match=r"^unknown dtype 'float8'; choose from float32, float16, bfloat16$"):
        pick_dtype("float8", torch.device("cpu"))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    for name in ("cuda:2", "cuda:7"):
        with pytest.raises(ReverieError, match=f"^device '{name}' is not available here; choose from auto, cpu, cuda"):
            pick_device(name)


def test_no_other_folder_has_the_bundled_models_name(
    tiny: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bundled", "other/bundled", BUNDLED_NAME):
        tiny.save(tmp_path / name)
    monkeypatch.setitem(BUNDLED, BUNDLED_NAME, tmp_path / "bundled")
    (tmp_path / "link").symlink_to(tmp_path / "bundled")
    names = {
        None: BUNDLED_NAME,
        tmp_path / "link": BUNDLED_NAME,
        tmp_path / "other" / "bundled": "bundled",
        tmp_path / BUNDLED_NAME: str(tmp_path / BUNDLED_NAME),
    }
    assert {path: reverie.load(path, device="cpu").name.partition(" [")[0] for path in names} == names


def test_bundled_models_have_names(tiny: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (BUNDLED_NAME, MUSIC_NAME):
        tiny.save(tmp_path / name)
        monkeypatch.setitem(BUNDLED, name, tmp_path / name)
        assert reverie.load(name, device="cpu").name == name
    monkeypatch.setitem(BUNDLED, MUSIC_NAME, tmp_path / "none")
    with pytest.raises(ReverieError, match=r"^this installation holds no bundled model reverie-music; give a folder"):
        reverie.load(MUSIC_NAME)


def test_a_bundled_model_takes_the_parts_that_it_lacks_from_another(
    tiny: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    tiny.save(whole)
    few = replace(tiny, recommended=Recommended(guidance=1.0, steps=2))
    few.save(part)
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(part / name)
    with pytest.raises(ReverieError):
        reverie.load(part, device="cpu")
    monkeypatch.setattr("reverie.requests.references.SHARED", {part: whole})
    model = reverie.load(part, device="cpu")
    asked = TextToImage(prompt="a bear", seed=7)
    assert model.recommended == few.recommended
    assert model.draw(asked)[0].tobytes() == tiny.draw(asked.replace(steps=2, guidance=1.0))[0].tobytes()


def test_a_bundled_model_adds_a_lora_to_the_unet_that_it_shares(
    tiny: Pipeline, ink: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    tiny.save(whole)
    part.mkdir()
    shutil.copyfile(whole / "model_index.json", part / "model_index.json")
    tensors = load_file(ink)
    halved = {name.replace("lora_up.weight", "alpha"): torch.tensor(1.0) for name in tensors if "lora_up" in name}
    save_file(tensors | halved, part / "lora.safetensors")
    monkeypatch.setattr("reverie.requests.references.SHARED", {part: whole})
    asked = TextToImage(prompt="a bear", seed=7, steps=2)
    drawn, plain = reverie.load(part, device="cpu").draw(asked)[0], tiny.draw(asked)[0]
    assert drawn.tobytes() == tiny.draw(asked.replace(loras=(str(part / "lora.safetensors"),)))[0].tobytes()
    assert drawn.tobytes() != plain.tobytes()


def test_importing_costs_nothing() -> None:
    code = "import sys, reverie; assert not {'torch', 'PIL', 'pydantic'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    for name in reverie.__all__:
        assert getattr(reverie, name).__name__.removeprefix("reverie.") == name
    assert set(reverie.__all__) <= set(dir(reverie))
    with pytest.raises(AttributeError, match="module 'reverie' has no attribute 'nothing'"):
        reverie.nothing  # noqa: B018


@pytest.mark.skipif(
    not (BUNDLED[BUNDLED_NAME] / "model_index.json").exists(), reason="the bundled model is not trained yet"
)
def test_the_bundled_model_draws() -> None:
    picture = reverie.load(device="cpu").text_to_image("a bear", seed=7, steps=2)[0]
    assert picture.size == (256, 256)
