"""Is a step of a ControlNet's training diffusers' own, does it begin as the model, and does nothing else learn?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from reverie.adapters.control import load_controlnet
from reverie.errors import ReverieError
from reverie.media.edges import canny
from reverie.pipeline import Pipeline
from reverie.requests.parts import ControlInput
from reverie.train.finetune import ControlFinetuning, build, prepare
from reverie.train.folders import find_named
from reverie.train.loop import Learner, RunSettings, step_generator
from reverie.train.recipe import read

RECIPE = """
objective = "finetune"
[run]
steps = 2
seed = 5
lr = 1e-2
warmup = 0
threads = 1
device = "cpu"
[model]
base = "{folder}/{base}"
[data]
pictures = "{folder}/pictures"
dropout = 0.0
held_out = 0.25
batch = 3
show = ["a bear"]
[control]
{control}
"""
HINTS = 'hints = "{folder}/hints"'


@pytest.fixture(scope="module")
def folder(tiny: Pipeline, tiny_xl: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give models of two families, captioned pictures and their hints."""
    folder = tmp_path_factory.mktemp("control")
    tiny.save(folder / "sd")
    tiny_xl.save(folder / "xl")
    rng = np.random.default_rng(0)
    for kind in ("pictures", "hints"):
        (folder / kind).mkdir()
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / f"{kind}/{number}.png")
    for number, caption in enumerate(("a bear", "a red apple", "a star", "an apple and a bear")):
        (folder / f"pictures/{number}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def objective(folder: Path) -> Callable[..., ControlFinetuning]:
    def make(base: str = "sd", control: str = HINTS, tables: str = "") -> ControlFinetuning:
        text = RECIPE.replace("{control}", control).replace("{base}", base).replace("{folder}", str(folder))
        (path := folder / "recipe.toml").write_text(text + tables)
        return build(read(path), 5, folder / "run" / base)

    return make


def shake(objective: ControlFinetuning) -> None:
    """Give the ControlNet something to say: its last convolutions begin at 0."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in objective.control.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def their_prediction(objective: ControlFinetuning, base: Path, step: int) -> tuple[Tensor, Tensor]:
    """Predict the noise of a step with diffusers' modules, as examples/controlnet/train_controlnet.py does."""
    latents, told, _ = objective.batches(step)
    generator = step_generator(5, step)
    t = torch.randint(1000, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = DDPMScheduler.from_pretrained(base / "scheduler").add_noise(latents, noise, t)
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    controlnet = ControlNetModel.from_unet(unet)
    controlnet.load_state_dict(objective.control.state_dict())
    given = objective.encode({name: value for name, value in told.items() if name != "hint"})
    added = {"text_embeds": given.pooled, "time_ids": given.sizes}
    down, middle = controlnet(
        noisy,
        t,
        encoder_hidden_states=given.tokens,
        controlnet_cond=told["hint"].float() / 255,
        added_cond_kwargs=added,
        return_dict=False,
    )
    predicted = unet(
        noisy,
        t,
        encoder_hidden_states=given.tokens,
        added_cond_kwargs=added,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        return_dict=False,
    )[0]
    return predicted, noise


@pytest.mark.parametrize("base", ["sd", "xl"])
@torch.no_grad()
def test_a_step_is_diffusers(folder: Path, objective: Callable[..., ControlFinetuning], base: str) -> None:
    ours = objective(base)
    shake(ours)
    for step in (0, 1):
        predicted, noise = their_prediction(ours, folder / base, step)
        ((_, loss, _),) = ours.losses(step)
        assert loss.item() == pytest.approx(F.mse_loss(predicted, noise).item(), abs=1e-5)


@pytest.mark.parametrize("base", ["sd", "xl"])
def test_it_begins_as_the_model_and_nothing_else_learns(objective: Callable[..., ControlFinetuning], base: str) -> None:
    ours = objective(base)
    latents, told, _ = ours.batches(0)
    x, t = torch.randn_like(latents), torch.tensor([7, 500, 999])
    given = ours.encode({name: value for name, value in told.items() if name != "hint"})
    with torch.no_grad():
        alone = ours.components.unet(x, t, given.tokens, given.pooled, given.sizes)
        assert torch.equal(ours.predict(x, t, told), alone)
    shared = ours.components.unet.state_dict()
    copied = {name for name, value in ours.control.state_dict().items() if torch.equal(value, shared.get(name, x))}
    assert copied == {name for name in shared if not name.startswith(("up_blocks", "conv_norm_out", "conv_out"))}
    learner = Learner(ours, RunSettings(steps=9, lr=1e-2, warmup=0))
    before = {name: value.clone() for name, value in ours.control.state_dict().items()}
    frozen = [ours.components.unet, ours.components.autoencoder, *ours.components.text_encoders]
    kept = [{name: value.clone() for name, value in network.state_dict().items()} for network in frozen]
    learner.step(0)
    moved = {name for name, value in ours.control.state_dict().items() if not torch.equal(value, before[name])}
    silent = ("controlnet_down_blocks", "controlnet_mid_block")
    assert moved == {name for name in before if name.startswith(silent)}  # behind them all gradients are 0 at first
    learner.step(1)  # the hint's last convolution, which begins at 0 too
    learner.step(2)
    assert not any(torch.equal(value, before[name]) for name, value in ours.control.state_dict().items())
    for network, state in zip(frozen, kept, strict=True):
        assert all(parameter.grad is None for parameter in network.parameters())
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_what_is_written_is_what_was_trained(folder: Path, objective: Callable[..., ControlFinetuning]) -> None:
    ours = objective()
    shake(ours)
    ours.export(folder / "edges/export")
    folders = [load_controlnet(folder / "edges/export")]
    folders.append(load_controlnet(folder / "edges/export/edges.safetensors", config=folders[0].control))
    theirs = ControlNetModel.from_pretrained(folder / "edges/export").state_dict()
    for name, value in ours.control.state_dict().items():
        assert torch.equal(theirs[name], value)
        assert all(torch.equal(found.state_dict()[name], value) for found in folders)
    hint = ControlInput(model=str(folder / "edges/export"), image=str(folder / "hints/0.png"))
    model = Pipeline(**vars(ours.components))
    led, free = (model.text_to_image("a bear", steps=1, seed=1, controls=given)[0] for given in ([hint], []))
    assert led.tobytes() != free.tobytes()
    on = objective(control=f'{HINTS}\ninitial = "{folder}/edges/export"')
    assert all(torch.equal(value, theirs[name]) for name, value in on.control.state_dict().items())


def test_hints_are_cut_and_mirrored_as_their_pictures(
    folder: Path, objective: Callable[..., ControlFinetuning], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    monkeypatch.setattr("reverie.train.control.find_named", lambda *named: looked.append(named) or find_named(*named))
    varied = "[augment]\nvariants = 4\nflip = 0.5\nrandom_crop = true\n"
    ours = objective(control=f'hints = "{folder}/pictures"', tables=varied)
    assert len(looked) == 2  # when the recipe is checked, and when it is followed
    examples = ours.hints.pictures
    for index in range(len(examples)):
        assert np.array_equal(ours.hints.hint(index), examples.picture(index).transpose(2, 0, 1))
    found = objective(control='detect = "canny"', tables=varied)
    edges = np.asarray(canny(Image.fromarray(examples.picture(2))).convert("RGB"))
    assert np.array_equal(found.hints.hint(2), edges.transpose(2, 0, 1))
    assert set(found.batches(0)[1]) == {"caption", "hint"}
    assert found.measures() == found.measures() != {}
    sheet = np.asarray(found.samples())
    assert np.array_equal(sheet[:, :32], found.hints.hint(0).transpose(1, 2, 0))  # the drawing stands beside it
    assert sheet[:, 32:64].std() > 0


@pytest.mark.parametrize(
    ("control", "tables", "message"),
    [
        ("", "", r"needs hints = FOLDER, or detect = one of canny"),
        (f'{HINTS}\ndetect = "canny"', "", r"needs hints = FOLDER, or detect = one of canny"),
        ('detect = "depth"', "", r"unknown detect in \[control\] 'depth'; choose from canny"),
        (HINTS, "[lora]\nrank = 2\n", r"trains a ControlNet and nothing else; leave out \[lora\]"),
        ('hints = "{folder}/few"', "", r"2 pictures without a hint in .*few: \d, \d; name hints as these"),
        ('hints = "{folder}/sd"', "", r"no hints in .*sd; give a folder of pictures"),
    ],
)
def test_wrong_recipes_get_one_line(
    folder: Path, objective: Callable[..., ControlFinetuning], control: str, tables: str, message: str
) -> None:
    (folder / "few").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "few/0.png")
    with pytest.raises(ReverieError, match=message):
        objective(control=control.replace("{folder}", str(folder)), tables=tables)


def test_captions_are_encoded_ahead(folder: Path, objective: Callable[..., ControlFinetuning]) -> None:
    kept = objective(tables="[text]\ncached = true\n")
    assert set(kept.batches(0)[1]) == {"tokens", "hint"}
    assert list(prepare(folder / "recipe.toml", folder / "run/sd")) == []  # all is there
