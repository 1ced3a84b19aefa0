"""Does CLIP's training tell pictures with their captions, clamp its temperature and export what transformers reads?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn

from reverie.checkpoints.load import load_clip
from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import render, scene_at
from reverie.corpora.shards import write
from reverie.data.captioned import open_captioned
from reverie.errors import ReverieError
from reverie.models.clip import CLIP, IMAGE_MEAN, IMAGE_STD, normalise
from reverie.similarity.embed import load_clip as load
from reverie.tokenizer import Tokenizer
from reverie.train import run
from reverie.train.clip import (
    ContrastSettings,
    TextSettings,
    VisionSettings,
    build,
    clip_config,
    learn_words,
)
from reverie.train.pairs import ScenePairs, captioned_scene, named_thing
from reverie.train.recipe import read, section

RECIPES = Path(__file__).parents[2] / "recipes"


def test_pixels_have_clips_mean_and_deviation() -> None:
    mean = (torch.tensor(IMAGE_MEAN) * 255).view(1, 3, 1, 1)
    assert normalise(mean).abs().max().item() < 1e-6
    above = normalise(mean + 255 * torch.tensor(IMAGE_STD).view(1, 3, 1, 1))
    torch.testing.assert_close(above, torch.ones(1, 3, 1, 1))


def test_pictures_come_with_a_caption(corpus: None) -> None:
    things = concepts("instruments")
    picture, caption = captioned_scene(things, 1, 5)
    assert np.array_equal(picture, render(scene_at(things, 1, 5)).transpose(2, 0, 1))
    assert captioned_scene(things, 1, 5)[1] == caption


def test_the_vocabulary_is_made_of_the_captions_alone(corpus: None) -> None:
    things = concepts("instruments")
    settings = TextSettings(vocabulary=600, length=16, captions=200)
    one, other = (learn_words(ScenePairs(things, 2, 4, 2), settings) for _ in range(2))
    assert one.vocab == other.vocab
    assert one.length == 16
    assert 514 < len(one) <= 600


def test_named_things_are_distinct_within_a_batch_and_bare(corpus: None) -> None:
    things, batch = concepts("instruments"), 8
    meant = {name: thing.emoji for thing in things for name in thing.en + thing.zh}
    for start in (0, 8, 16):
        items = [named_thing(things, 1, index, batch) for index in range(start, start + batch)]
        assert len({meant[name] for _, name in items}) == batch
        assert all(picture.shape == (3, 128, 128) for picture, _ in items)
    picture, name = named_thing(things, 1, 3, batch)
    again, name_again = named_thing(things, 1, 3, batch)
    assert np.array_equal(picture, again)
    assert name == name_again


def test_every_other_batch_names_things(workshop: Any) -> None:
    objective = build(read(workshop.recipe("clip")), 3, Path())
    meant = {name for thing in objective.batches.items.make.things for name in thing.en + thing.zh}
    for step in range(4):
        _, captions = objective.batches(step)
        bare = all(caption in meant for caption in captions)
        assert bare == (step % 2 == 1)


def test_losses_start_at_chance_and_the_temperature_is_clamped(workshop: Any) -> None:
    objective = build(read(workshop.recipe("clip")), 3, Path())
    ((name, loss, metrics),) = objective.losses(0)
    assert name == "clip"
    assert math.isfinite(loss.item())
    assert metrics["scale"] == pytest.approx(1 / 0.07, rel=1e-3)
    with torch.no_grad():
        objective.averaged.logit_scale.fill_(9)
    objective.after_step()
    assert objective.averaged.logit_scale.exp().item() == pytest.approx(100)
    assert objective.samples() is None


def test_the_export_holds_the_average(workshop: Any) -> None:
    out = workshop.trained("clip")
    loaded = load_clip(out / "export", device=torch.device("cpu"), dtype=torch.float32)
    average = torch.load(out / "checkpoint.pt", weights_only=True)["average"]["weights"]
    assert all(torch.equal(value, average[name]) for name, value in loaded.clip.named_parameters())
    assert loaded.tokenizer(["一只熊", "a bear"]).shape == (2, 16)


def written(recipe: Path, folder: Path, **changed: str) -> Path:
    """Write a recipe with further lines in some of its tables."""
    text = recipe.read_text()
    for table, lines in changed.items():
        head, found, tail = text.partition(f"[{table}]\n")
        text = f"{head}[{table}]\n{lines}\n{tail}" if found else f"{text}\n[{table}]\n{lines}\n"
    path = folder / "changed.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("run_lines", "contrast"),
    [
        ("recompute_layers = true", "chunk = 3"),
        ('precision = "bfloat16"', 'chunk = 2\nloss = "sigmoid"'),
        ('precision = "float16"', ""),
    ],
)
def test_a_stopped_run_ends_in_the_same_bits(
    workshop: Any, tmp_path: Path, same_run: Callable[[Path, Path], None], run_lines: str, contrast: str
) -> None:
    recipe = written(workshop.recipe("clip"), tmp_path, run=run_lines, contrast=contrast)
    list(run(recipe, tmp_path / "whole"))
    part = run(recipe, tmp_path / "parts")
    while next(part).step < 3:  # the last checkpoint is of step 2
        pass
    part.close()
    list(run(recipe, tmp_path / "parts", resume=True))
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_saving_memory_changes_no_loss(workshop: Any, tmp_path: Path) -> None:
    """The batch of 4 is contrasted as a whole, whatever passes the towers at once."""
    plain = [event.metrics for event in run(written(workshop.recipe("clip"), tmp_path), tmp_path / "plain")]
    saving = written(workshop.recipe("clip"), tmp_path, run="recompute_layers = true", contrast="chunk = 1")
    for one, other in zip(plain, run(saving, tmp_path / "saving"), strict=True):
        assert other.metrics == pytest.approx(one, rel=1e-4)


def test_low_precision_is_near(workshop: Any, tmp_path: Path) -> None:
    first = next(run(workshop.recipe("clip"), tmp_path / "float32")).metrics["loss"]
    for precision in ("bfloat16", "float16"):
        recipe = written(workshop.recipe("clip"), tmp_path, run=f'precision = "{precision}"')
        out = tmp_path / precision
        event, *_ = run(recipe, out)
        assert event.metrics["loss"] == pytest.approx(first, rel=3e-2)
        assert event.metrics["loss"] != first
        state = torch.load(out / "checkpoint.pt", weights_only=True)
        assert ("scaler" in state) == (precision == "float16")
        assert {value.dtype for value in state["networks"].values()} == {torch.float32}


def test_pictures_are_named_while_it_learns(workshop: Any, tmp_path: Path) -> None:
    things = concepts("instruments")
    for thing in things[:2]:
        folder = tmp_path / "classes" / thing.en[0].replace(" ", "_")
        folder.mkdir(parents=True)
        Image.fromarray(render(scene_at((thing,), 5, 0, pair_share=0))).save(folder / "1.png")
    exam = f'folder = "{tmp_path}/classes"\nscenes = 5'
    recipe = written(workshop.recipe("clip"), tmp_path, run="sample_every = 4", evaluation=exam)
    events = list(run(recipe, tmp_path / "named"))
    assert [event.step for event in events if "top1" in event.metrics] == [4, 6]
    for event in events[3], events[5]:
        assert event.metrics["top1"] in (0.0, 0.5, 1.0)
        assert event.metrics["top5"] == 1.0  # of two classes
        assert event.metrics["scenes_top1"] * 5 == pytest.approx(round(event.metrics["scenes_top1"] * 5))
    plain, named = (
        torch.load(out / "checkpoint.pt", weights_only=True)["networks"]
        for out in (workshop.trained("clip"), tmp_path / "named")
    )
    assert all(torch.equal(value, named[name]) for name, value in plain.items())  # measuring changed nothing


def test_a_collection_of_ones_own_is_learned(workshop: Any, tmp_path: Path) -> None:
    list(write(tmp_path / "shards", subset="instruments", count=7, seed=1, shard_size=4))
    recipe = written(
        workshop.recipe("clip"), tmp_path, data=f'path = "{tmp_path}/shards"', vision="", contrast='loss = "sigmoid"'
    )
    text = recipe.read_text().replace("size = 128", "size = 64")
    recipe.write_text(text)
    objective = build(read(recipe), 3, Path())
    pixels, captions = objective.batches(0)
    assert pixels.shape == (4, 3, 64, 64)
    seen = [objective.batches.items.make(index)[1] for index in range(14)]
    found = open_captioned(tmp_path / "shards")
    assert sorted(seen[:7]) == sorted(seen[7:]) == sorted(found.caption(index) for index in range(len(found)))
    assert list(captions) == seen[:4]
    assert seen[:7] != seen[7:]
    out = tmp_path / "out"
    events = list(run(recipe, out))
    assert all(math.isfinite(event.metrics["loss"]) for event in events)
    state = torch.load(out / "checkpoint.pt", weights_only=True)["networks"]
    assert state["contrast.bias"].item() != -10
    assert load_clip(out / "export", device=torch.device("cpu"), dtype=torch.float32).tokenizer.length == 16


@pytest.mark.parametrize(
    ("name", "text", "whole"),
    [  # text tower and whole model; OpenAI's published counts (ViT-B/32: its notebook; open_clip's model_profile.csv)
        ("clip-vit-b32", 63_165_952, 151_277_313),
        ("clip-vit-b16", 63_165_952, 149_620_737),
        ("clip-vit-l14", 123_060_480, 427_616_513),
    ],
)
def test_recipes_of_the_paper_have_its_parameters(name: str, text: int, whole: int) -> None:
    sections = read(RECIPES / f"{name}.toml")
    tables = (
        section(sections, "text", TextSettings),
        section(sections, "vision", VisionSettings),
        section(sections, "contrast", ContrastSettings),
    )
    with torch.device("meta"):
        clip = CLIP(clip_config(*tables, vocabulary=49408, length=77, eos=49407))
    assert tables[0].vocabulary == 49408
    assert tables[0].length == 77
    assert count(clip.text_model) == text
    assert count(clip) == whole


def test_the_papers_base_text_model_has_63_million() -> None:
    """Radford et al. 2021, section 2.4: 12 layers, width 512, 8 heads, 49,152 byte pairs, at most 76 tokens."""
    tables = (TextSettings(width=512, layers=12, heads=8), VisionSettings(), ContrastSettings(projection=512))
    with torch.device("meta"):
        clip = CLIP(clip_config(*tables, vocabulary=49152, length=76, eos=49151))
    assert count(clip.text_model) == 63_034_368
    assert round(count(clip.text_model) / 1e6) == 63


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


TUNED = """
objective = "clip"
[run]
steps = 4
lr = 1e-3
warmup = 0
threads = 1
device = "cpu"
log_every = 1
save_every = 2
[data]
path = "{folder}/pairs"
smallest = 1.0
[contrast]
batch = 4
initial = "{folder}/{initial}"
"""


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a tiny CLIP as transformers saves it, and captioned pictures of its size."""
    folder = tmp_path_factory.mktemp("pretrained")
    words = Tokenizer.train(["a bear on a blue background", "an apple next to a bear"] * 2, 530, length=12)
    words.save(folder / "theirs")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(words), "max_position_embeddings": 12, "eos_token_id": words.eos_id}
    torch.manual_seed(0)
    vision = tower | {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    theirs = transformers.CLIPModel(config)
    theirs.save_pretrained(folder / "theirs")
    (folder / "pairs").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"pairs/{number}.png")
        (folder / f"pairs/{number}.txt").write_text("a bear" if number % 2 else f"an apple next to {number} bears")
    return folder


@pytest.fixture
def tuned(pretrained: Path, tmp_path: Path) -> Callable[..., Path]:
    def write(tables: str = "", initial: str = "theirs") -> Path:
        (path := tmp_path / "tuned.toml").write_text(TUNED.format(folder=pretrained, initial=initial) + tables)
        return path

    return write


def test_a_pretrained_clips_loss_is_transformers(pretrained: Path, tuned: Callable[..., Path], tmp_path: Path) -> None:
    objective = build(read(tuned()), 3, tmp_path)
    theirs = transformers.CLIPModel.from_pretrained(pretrained / "theirs").eval()
    for step in (0, 1):
        levels, captions = objective.batches(step)
        given = {"input_ids": objective.tokenizer(captions), "pixel_values": normalise(levels)}
        expected = theirs(**given, return_loss=True).loss
        ((_, loss, metrics),) = objective.losses(step)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        assert metrics["scale"] == pytest.approx(theirs.logit_scale.exp().item())


@pytest.mark.parametrize(
    ("locked", "frozen"),
    [("", ()), ("vision", ("vision_model", "visual_projection")), ("text", ("text_model", "text_projection"))],
)
def test_a_locked_tower_stays_and_the_rest_learns(
    pretrained: Path, tuned: Callable[..., Path], tmp_path: Path, locked: str, frozen: tuple[str, ...]
) -> None:
    list(run(tuned(f'locked = "{locked}"\n'), tmp_path / "out"))
    before = transformers.CLIPModel.from_pretrained(pretrained / "theirs").state_dict()
    after = transformers.CLIPModel.from_pretrained(tmp_path / "out/export")
    same = {name for name, value in after.state_dict().items() if torch.equal(value, before[name])}
    ids = {name for name in before if name.endswith("position_ids")}
    assert same - ids == {name for name in before if name.startswith(frozen or "-")} - ids
    found, pictures = load(tmp_path / "out/export"), sorted((pretrained / "pairs").glob("*.png"))
    pixels = normalise(torch.stack([torch.tensor(np.array(Image.open(file))).permute(2, 0, 1) for file in pictures]))
    with torch.no_grad():
        expected = after.vision_model(pixels).pooler_output @ after.visual_projection.weight.T
    torch.testing.assert_close(found.embed_images(pictures), nn.functional.normalize(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ('loss = "sigmoid"\n', r"learns on by loss = 'softmax'"),
        ('locked = "all"\n', r"unknown locked in \[contrast\] 'all'; choose from , vision, text"),
        ("[text]\nwidth = 8\n", r"has words and a shape of its own; leave out \[text\]"),
    ],
)
def test_wrong_ways_to_go_on_get_one_line(
    tuned: Callable[..., Path], tmp_path: Path, tables: str, message: str
) -> None:
    with pytest.raises(ReverieError, match=message):
        build(read(tuned(tables)), 3, tmp_path)
