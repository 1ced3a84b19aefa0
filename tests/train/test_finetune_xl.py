"""Is a step of SDXL's training diffusers' own, with what is told of each picture, and do LoRAs of it open again?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from reverie.adapters.lora import apply
from reverie.checkpoints.load import load_folder
from reverie.errors import ReverieError
from reverie.pipeline import Pipeline
from reverie.train.finetune import Finetuning, build, prepare
from reverie.train.loop import Learner, RunSettings, step_generator
from reverie.train.recipe import read

RECIPE = """
objective = "finetune"
[run]
steps = 2
lr = 1e-2
warmup = 0
threads = 1
device = "cpu"
[model]
base = "{folder}/base"
[data]
pictures = "{folder}/pictures"
batch = 4
dropout = 0.0
show = ["a bear"]
"""
CAPTIONS = ("a bear", "a red apple", "a star", "an apple and a bear")
SIZES = ((48, 40), (100, 33), (32, 64), (31, 31))  # width and height


@pytest.fixture(scope="module")
def folder(tiny_xl: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xl")
    tiny_xl.save(folder / "base")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number, (caption, (width, height)) in enumerate(zip(CAPTIONS, SIZES, strict=True)):
        file = folder / f"pictures/{number}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file)
        file.with_suffix(".txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def objective(folder: Path) -> Callable[[str], Finetuning]:
    """Build what a recipe with further tables trains."""

    def make(tables: str = "") -> Finetuning:
        (path := folder / "recipe.toml").write_text(RECIPE.format(folder=folder) + tables)
        return build(read(path), 5, folder / "run")

    return make


def encode_theirs(base: Path, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode tokens as `encode_prompt` of diffusers' train_text_to_image_lora_sdxl.py does."""
    layers = []
    for kind, name in ((CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2")):
        output = kind.from_pretrained(base / name)(rows, output_hidden_states=True, return_dict=False)
        pooled, hidden = output[0], output[-1][-2]
        layers.append(hidden)
    return torch.cat(layers, -1), pooled


@torch.no_grad()
def test_a_step_is_diffusers(folder: Path, objective: Callable[..., Finetuning]) -> None:
    """The arithmetic of examples/text_to_image/train_text_to_image_lora_sdxl.py, with diffusers' modules."""
    ours, base = objective(), folder / "base"
    latents, described, _ = ours.batches(0)
    order = [CAPTIONS.index(caption) for caption in described["caption"]]
    pictures, time_ids = [], []
    for number in order:
        picture = Image.open(folder / f"pictures/{number}.png")
        original, side = (picture.height, picture.width), min(picture.size)
        resized = picture.size[0] * 32 / side, picture.size[1] * 32 / side
        crop = (round((resized[1] - 32) / 2), round((resized[0] - 32) / 2))
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        square = picture.resize((32, 32), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        pictures.append(torch.tensor(np.array(square)).permute(2, 0, 1) / 127.5 - 1)
        time_ids.append([*original, *crop, 32, 32])
    vae = AutoencoderKL.from_pretrained(base / "vae")
    encoded = vae.encode(torch.stack(pictures)).latent_dist.mode() * vae.config.scaling_factor
    assert (encoded - latents).abs().max() < 2e-3  # kept in half precision

    generator = step_generator(5, 0)
    t = torch.randint(1000, (4,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = DDPMScheduler.from_pretrained(base / "scheduler").add_noise(latents, noise, t)
    tokens, pooled = encode_theirs(base, ours.components.tokenizers[0](described["caption"]))
    added = {"time_ids": torch.tensor(time_ids), "text_embeds": pooled}
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    predicted = unet(noisy, t, tokens, added_cond_kwargs=added, return_dict=False)[0]
    expected = F.mse_loss(predicted, noise)
    ((_, loss, _),) = ours.losses(0)
    assert abs(loss.item() - expected.item()) < 1e-5
    assert torch.equal(described["sizes"], added["time_ids"].float())


def test_captions_are_encoded_ahead(folder: Path, objective: Callable[..., Finetuning]) -> None:
    live = objective()
    progress = list(prepare(folder / "recipe.toml", folder / "run"))
    kept = objective("[text]\ncached = true\n")
    assert progress == []  # the latents are there
    _, described, _ = kept.batches(0)
    assert set(described) == {"tokens", "pooled", "sizes"}
    ((_, expected, _),), ((_, loss, _),) = live.losses(0), kept.losses(0)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-3)  # kept in half precision
    written = (folder / "run/texts.safetensors").stat().st_mtime_ns
    assert [event.what for event in prepare(folder / "recipe.toml", folder / "run")] == []
    assert (folder / "run/texts.safetensors").stat().st_mtime_ns == written


def test_the_lora_of_a_run_is_what_it_trained(folder: Path, objective: Callable[..., Finetuning]) -> None:
    ours = objective("[lora]\nrank = 2\n[text]\npace = 1.0\n")
    learner = Learner(ours, RunSettings(steps=2, lr=0.1, warmup=0))
    learner.step(0)
    learner.step(1)
    ours.export(folder / "ink/export")
    base = Pipeline(**vars(load_folder(folder / "base")))
    before = base.encode_prompt(["a bear"])
    with apply(base, [(folder / "ink/export/ink.safetensors", 1.0, 1.0)]), torch.no_grad():
        merged, trained = base.encode_prompt(["a bear"]), Pipeline(**vars(ours.components)).encode_prompt(["a bear"])
        assert merged.pooled is not None
        assert torch.equal(merged.tokens, trained.tokens)
        assert torch.equal(merged.pooled, trained.pooled)
        for half in (slice(0, 16), slice(16, 32)):  # both encoders learned
            assert not torch.allclose(merged.tokens[..., half], before.tokens[..., half])
        x, t = torch.ones(1, 4, 4, 4), torch.tensor([7])
        assert torch.equal(base.network(merged)(x, t), Pipeline(**vars(ours.components)).network(trained)(x, t))


def test_a_word_has_vectors_for_both_encoders(folder: Path, objective: Callable[..., Finetuning]) -> None:
    word = '[inversion]\nword = "bear"\nstart = "star"\nvectors = 2\n'
    objective(word).export(folder / "word")
    base = Pipeline(**vars(load_folder(folder / "base")))
    assert base.text_to_image("a bear", steps=1, embeddings=[str(folder / "word/bear.safetensors")])


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ("[text]\ncached = true\npace = 0.5\n", r"cached in \[text\] keeps what frozen text encoders give"),
        ("[text]\nwords = 3\npace = 0.5\n", r"are learned by SD 1's or 2's text encoder itself"),
    ],
)
def test_wrong_recipes_get_one_line(objective: Callable[..., Finetuning], tables: str, message: str) -> None:
    with pytest.raises(ReverieError, match=message):
        objective(tables)
