"""Does a recipe's distillation resume to the bit, share its teacher's weights, and write what others read?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reverie.adapters.lora import apply
from reverie.checkpoints.load import load_folder
from reverie.checkpoints.save import save_folder
from reverie.cli import app as cli
from reverie.errors import ReverieError
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline
from reverie.train import run
from reverie.train.distill import build
from reverie.train.finetune import prepare
from reverie.train.loop import Learner, RunSettings
from reverie.train.recipe import read, section

RECIPE = """
objective = "distill"
[run]
steps = 4
lr = 1e-3
warmup = 0
ema = 0.9
seed = 3
threads = 1
device = "cpu"
log_every = 1
save_every = 2
[model]
base = "{folder}/base"
[data]
pictures = "{folder}/pictures"
caption = "a bear"
batch = 2
dropout = 0
show = ["a bear"]
"""
TABLES = {
    "whole": "[distill]\nphases = 2\nguidance = 2.0\n[adversary]\nweight = 0.1\nwidth = 4\n",
    "thin": '[distill]\nending = "later"\nsteps = 4\n[lora]\nrank = 2\n',
}


@pytest.fixture(scope="module")
def folder(tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a model, pictures, and a recipe with its run for each of TABLES; tests must not change it."""
    folder = tmp_path_factory.mktemp("distill")
    tiny.save(folder / "base")
    (folder / "pictures").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    for name, tables in TABLES.items():
        path = folder / f"{name}.toml"
        path.write_text(RECIPE.replace("{folder}", str(folder)) + tables)
        list(run(path, folder / name))
    return folder


@pytest.mark.parametrize("name", TABLES)
def test_stopped_and_resumed(folder: Path, tmp_path: Path, same_run: Callable[[Path, Path], None], name: str) -> None:
    events = run(folder / f"{name}.toml", tmp_path / name)
    while next(events).step < 3:
        pass
    events.close()
    list(run(folder / f"{name}.toml", tmp_path / name, resume=True))
    same_run(folder / name, tmp_path / name)
    with Image.open(folder / name / "samples/000004.png") as sheet:
        assert sheet.size == (32, 3 * 32)  # one step, two and four


def test_a_whole_student_is_a_model_that_recommends_its_steps(tiny: Pipeline, folder: Path) -> None:
    model = load_folder(folder / "whole/export")
    assert model.recommended.fields() == {"guidance": 1.0, "steps": 2, "sampler": "euler", "schedule": "trailing"}
    theirs = tiny.unet.state_dict()
    assert not any(torch.equal(value, theirs[name]) for name, value in model.unet.state_dict().items())


def test_a_student_may_be_smaller_than_its_teacher(tiny: Pipeline, folder: Path, tmp_path: Path) -> None:
    teacher = tiny.unet.config
    torch.manual_seed(1)
    smaller = UNet(replace(teacher, mid_transformer_depth=None))
    save_folder(replace(load_folder(folder / "base"), unet=smaller), tmp_path / "smaller")
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.replace("{folder}", str(folder)) + f'[distill]\nstudent = "{tmp_path}/smaller/unet"\n')
    objective = build(read(recipe), 3, tmp_path / "small")
    assert objective.teacher.config == teacher
    begun = smaller.state_dict()
    assert all(torch.equal(value, begun[name]) for name, value in objective.student.unet.state_dict().items())
    list(run(recipe, tmp_path / "small"))
    exported = load_folder(tmp_path / "small/export").unet
    assert exported.config == smaller.config
    assert not all(torch.equal(value, begun[name]) for name, value in exported.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "more", "message"),
    [
        ({"cross_attention_dim": 24}, "", "differs from its teacher in cross_attention_dim; give a U-Net of the same"),
        ({}, "[lora]\nrank = 2\n", r"leave out student in \[distill\], or \[lora\]"),
    ],
)
def test_a_student_of_other_words_is_refused(
    tiny: Pipeline, folder: Path, tmp_path: Path, changed: dict[str, Any], more: str, message: str
) -> None:
    other = UNet(replace(tiny.unet.config, **changed))
    save_folder(replace(load_folder(folder / "base"), unet=other), tmp_path / "other")
    path = tmp_path / "recipe.toml"
    tables = f'[distill]\nstudent = "{tmp_path}/other/unet"\n{more}'
    path.write_text(RECIPE.replace("{folder}", str(folder)) + tables)
    with pytest.raises(ReverieError, match=message):
        next(prepare(path, tmp_path / "out", "distill"))


def test_a_thin_students_file_is_the_lora_that_it_learned(folder: Path) -> None:
    (file,) = (folder / "thin/export").iterdir()
    assert file.name == "thin.safetensors"
    sections = read(folder / "thin.toml")
    objective = build(sections, 3, folder / "thin")
    weights = {id(weight) for weight in objective.teacher.parameters()}
    for unet in (objective.student.unet, objective.target):
        assert weights <= {id(weight) for weight in unet.parameters()}  # one memory for all three
    learner = Learner(objective, section(sections, "run", RunSettings))
    learner.load_state_dict(torch.load(folder / "thin/checkpoint.pt", weights_only=True))
    base = Pipeline(**vars(load_folder(folder / "base")))
    x, t = torch.ones(1, 4, 4, 4), torch.tensor([7])
    with learner.ema_weights(), torch.no_grad():
        context = base.text_encoders[0](base.tokenizers[0](["a bear"])).last
        learned, taught = (unet(x, t, context) for unet in (objective.student.unet, objective.teacher))
        with apply(base, [(file, 1.0, 1.0)]):
            assert torch.equal(base.unet(x, t, context), learned)
        assert torch.equal(base.unet(x, t, context), taught)
        assert not torch.equal(taught, learned)


def test_the_adversary_sees_each_level_of_the_teacher(folder: Path) -> None:
    objective = build(read(folder / "whole.toml"), 3, folder / "whole")
    adversary, unet = objective.adversary, objective.teacher
    assert adversary is not None
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([7, 900])
    context, found = torch.randn(2, 77, unet.config.cross_attention_dim), list[torch.Tensor]()
    for block in unet.down_blocks[:-1]:
        block.register_forward_hook(lambda block, given, outputs: found.append(outputs[-1]))
    unet.mid_block.register_forward_hook(lambda block, given, output: found.append(output))
    with torch.no_grad():
        unet(x, t, context)
        expected = list(found)
        features = adversary.features(x, t, context)
        logits = adversary.discriminator(features)
    assert len(features) == len(unet.config.block_out_channels)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(features, expected, strict=True))
    assert logits.shape == (2, sum(feature[0, 0].numel() for feature in features))
    assert not logits.any()  # it has no say before it has learned


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ('[distill]\nending = "now"\n', "unknown ending 'now'; choose from edge, later"),
        ("[distill]\n[lora]\nrank = 0\n", r"rank = 0 in \[lora\] makes no LoRA; give a rank such as 16"),
        ("[distill]\n[adversary]\nweight = -1\n", r"weight = -1 in \[adversary\] of the recipe"),
        ("[distill]\n[lora]\nrank = 9999\n", r"rank = 9999 in \[lora\] of the recipe is too much: a layer has"),
    ],
)
def test_wrong_recipes_get_one_line(folder: Path, tmp_path: Path, tables: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace("{folder}", str(folder)) + tables)
    with pytest.raises(ReverieError, match=message):
        next(prepare(path, out := tmp_path / "out", "distill"))
    assert not out.exists()
    with pytest.raises(ReverieError, match=message):
        list(run(path, out))


def test_the_command_makes_latents_first_and_takes_no_other_objective(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = folder / "thin.toml", tmp_path / "out"
    assert cli.run(["distill", str(path), "--out", str(out), "--prepare"]) == 0
    assert {file.name for file in out.iterdir()} == {"latents.safetensors", "recipe.json"}
    assert cli.run(["distill", str(path), "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(out), str(out)]
    assert (out / "export" / "out.safetensors").is_file()
    assert cli.run(["finetune", str(path), "--out", str(out), "--resume"]) == 2
    assert "its objective is 'distill'" in capsys.readouterr().err
    with pytest.raises(ReverieError, match="its objective is 'distill'"):
        next(prepare(path, out))
