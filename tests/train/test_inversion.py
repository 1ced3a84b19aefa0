"""Is a trained word what its file says, here and in diffusers, and does nothing else learn?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from reverie.adapters import inversion
from reverie.checkpoints.load import load_folder
from reverie.errors import ReverieError
from reverie.generate.conditioning import encode
from reverie.pipeline import Pipeline
from reverie.requests.pictures import TextToImage
from reverie.train import run
from reverie.train.finetune import build, prepare
from reverie.train.recipe import read

RECIPE = """
objective = "finetune"
[run]
steps = 3
lr = 0.1
warmup = 0
threads = 1
device = "cpu"
save_every = 2
log_every = 1
[model]
base = "{base}"
[data]
pictures = "{pictures}"
caption = "a my-toy"
batch = 2
dropout = 0.0
[inversion]
word = "my-toy"
vectors = 3
start = "a bear"
"""


@pytest.fixture(scope="module")
def recipe(tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inversion")
    tiny.save(folder / "base")
    (folder / "pictures").mkdir()
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (32, 32), colour).save(folder / f"pictures/{number}.png")
    path = folder / "toy.toml"
    path.write_text(RECIPE.format(base=folder / "base", pictures=folder / "pictures"))
    return path


@pytest.fixture(scope="module")
def file(recipe: Path) -> Path:
    """Give the file of a run that was stopped and went on."""
    events = run(recipe, out := recipe.parent / "out")
    next(event for event in events if event.step == 2)
    events.close()
    list(run(recipe, out, resume=True))
    return out / "export/my-toy.safetensors"


def test_the_vectors_alone_learn_and_begin_as_known_words(recipe: Path, file: Path, tiny: Pipeline) -> None:
    objective = build(read(recipe), 0, recipe.parent / "out")
    table = tiny.text_encoders[0].text_model.embeddings.token_embedding.weight
    ids = tiny.tokenizers[0].encode("a bear")
    (learned,) = [p for p in objective.networks.parameters() if p.requires_grad]
    assert torch.equal(learned, table[[ids[0], ids[1 % len(ids)], ids[2 % len(ids)]]])
    assert not any(p.requires_grad for p in objective.components.unet.parameters())
    (loss,) = [loss for _, loss, _ in objective.losses(0)]
    loss.backward()
    assert learned.grad is not None
    assert learned.grad.abs().amin(1).gt(0).all()
    (written,) = inversion.load(file).vectors
    assert (written - learned).abs().min() > 0.01  # each step of AdamW moves every number by about the rate


def test_a_word_is_trained_as_it_is_drawn(recipe: Path, file: Path) -> None:
    """What the U-Net was told in training is what a request with the file tells it."""
    objective = build(read(recipe), 0, recipe.parent / "out")
    state = torch.load(recipe.parent / "out/checkpoint.pt", weights_only=True)
    objective.networks.load_state_dict(state["networks"])
    base = Pipeline(**vars(load_folder(recipe.parent / "base")))
    prompts = encode(base, TextToImage(prompt="a my-toy", embeddings=[str(file)]))
    with torch.no_grad():
        assert torch.equal(prompts.positive[0].at(0).tokens, objective.encode({"caption": ["a my-toy"]}).tokens)


def test_diffusers_reads_the_word(recipe: Path, file: Path) -> None:
    """Oracle: `load_textual_inversion` of diffusers gives the same hidden states for the same prompt."""
    base = recipe.parent / "base"
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.load_textual_inversion(str(file))
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt("a my-toy", "cpu", 1, False)
    system = Pipeline(**vars(load_folder(base)))
    ours = encode(system, TextToImage(prompt="a my-toy", embeddings=[str(file)])).positive[0].at(0).tokens
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('word = "my-toy"', 'word = "my toy"', r"word = 'my toy' in \[inversion\] of the recipe cannot name a file"),
        ('start = "a bear"', "", r"\[inversion\] of the recipe needs a word such as 'my-dog', and start = 'dog'"),
        (
            "a my-toy",
            "a toy",
            r"none of 2 captions says 'my-toy' in the 10 tokens that are read; write it into them, or give caption",
        ),
        ("[inversion]", "[lora]\nrank = 2\n[inversion]", r"learns one word and nothing else; leave out \[lora\]"),
    ],
)
def test_wrong_recipes_get_one_line(recipe: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    (path := tmp_path / "recipe.toml").write_text(recipe.read_text().replace(old, new))
    with pytest.raises(ReverieError, match=message):
        next(prepare(path, out := tmp_path / "out"))
    assert not out.exists()
    with pytest.raises(ReverieError, match=message):
        build(read(path), 0, out)
