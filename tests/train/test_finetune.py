"""Does fine-tuning move what it should and nothing else, from pictures, sounds and music, and resume to the bit?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from PIL import Image
from torch import nn

from reverie.adapters.lora import apply
from reverie.checkpoints.load import load_folder
from reverie.cli import app as cli
from reverie.corpora.music.fluidsynth import FONTS
from reverie.errors import ReverieError
from reverie.media import sound
from reverie.media.sound import Sound
from reverie.models.k_unet import KUNet, KUNetConfig
from reverie.models.unet import UNet
from reverie.pipeline import Pipeline
from reverie.train import run
from reverie.train.finetune import build, prepare
from reverie.train.loop import Learner, RunSettings, step_generator
from reverie.train.recipe import read, section

RUN = """
objective = "finetune"
[run]
steps = 4
lr = 1e-3
warmup = 0
ema = 0.9
weight_decay = 0.01
seed = 3
threads = 1
device = "cpu"
log_every = 1
save_every = 2
[model]
base = "{folder}/base"
"""
PICTURES = '[data]\npictures = "{folder}/pictures"\ncaption = "a photo of sks dog"\ndropout = 0.2\nshow = ["a bear"]\n'
SPECTROGRAM = "sample_rate = 8000\nstep_ms = 20\nwindow_ms = 64\npadded_ms = 64\nmels = 32\nhigh = 4000\ncolumns = 64\n"
LORA = "[lora]\nrank = 2\n"
TEXT = "[text]\npace = 0.5\n"
WORDS = "[text]\npace = 0.5\nwords = 5\n"
PRIOR = '[prior]\npictures = "{folder}/prior"\ncaption = "a photo of a dog"\nweight = 0.5\n'


@pytest.fixture(scope="module")
def folder(tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a model, pictures of which only some have captions, and others of their class."""
    folder = tmp_path_factory.mktemp("finetune")
    tiny.save(folder / "base")
    rng = np.random.default_rng(0)
    for kind, count in (("pictures", 5), ("prior", 3)):
        (folder / kind).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (48, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number}.png")
    (folder / "pictures" / "3.txt").write_text("a bear on a blue background")
    return folder


RUNS = {"words": PICTURES + WORDS, "dog": PICTURES + TEXT + LORA + PRIOR}


@pytest.fixture(scope="module")
def whole(folder: Path) -> Callable[[str], tuple[Path, Path]]:
    """Give the recipe and the folder of one of RUNS, carried out once; tests must not change them."""

    @cache
    def carried_out(name: str) -> tuple[Path, Path]:
        path = folder / f"{name}.toml"
        path.write_text((RUN + RUNS[name]).replace("{folder}", str(folder)))
        list(run(path, folder / name))
        return path, folder / name

    return carried_out


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Write a recipe with the given tables."""

    def write(tables: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text((RUN + tables).replace("{folder}", str(folder)))
        return path

    return write


def learner(path: Path, out: Path) -> Learner:
    sections = read(path)
    return Learner(build(sections, 3, out), section(sections, "run", RunSettings))


def moved(network: nn.Module, other: nn.Module) -> set[str]:
    before = other.state_dict()
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", RUNS)
def test_stopped_and_resumed(
    whole: Callable[[str], tuple[Path, Path]], tmp_path: Path, same_run: Callable[[Path, Path], None], name: str
) -> None:
    path, out = whole(name)
    events = run(path, tmp_path / name)
    while next(events).step < 3:
        pass
    events.close()
    list(run(path, tmp_path / name, resume=True))
    same_run(out, tmp_path / name)
    with Image.open(out / "samples/000004.png") as sheet:
        assert sheet.size == (4 * 32, 32)  # four in a row


def test_all_of_a_unet_learns_and_a_frozen_text_encoder_stays(
    tiny: Pipeline, recipe: Callable[[str], Path], tmp_path: Path
) -> None:
    list(run(recipe(PICTURES), tmp_path / "out"))
    model = load_folder(tmp_path / "out/export")
    assert moved(model.unet, tiny.unet) == set(tiny.unet.state_dict())
    assert not moved(model.text_encoders[0], tiny.text_encoders[0])
    assert not moved(model.autoencoder, tiny.autoencoder)
    assert model.schedule_config == tiny.schedule_config
    assert model.spectrogram is None


def test_the_text_encoder_learns_at_its_own_pace(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    """AdamW's first step is the learning rate, whatever the gradient, but for the decay of the weights."""
    found = learner(recipe(PICTURES + TEXT), tmp_path)
    components = found.objective.components
    weights = {
        1.0: components.unet.conv_in.weight,
        0.5: components.text_encoders[0].text_model.encoder.layers[0].mlp.fc1.weight,
    }
    before = {pace: weight.detach().clone() for pace, weight in weights.items()}
    found.step(0)
    for pace, weight in weights.items():
        step = (weight - before[pace] * (1 - 1e-3 * pace * 0.01)).abs()
        assert step.median().item() == pytest.approx(1e-3 * pace, rel=0.02)


def test_new_words_are_learned_and_exported(tiny: Pipeline, whole: Callable[[str], tuple[Path, Path]]) -> None:
    _, out = whole("words")
    model = load_folder(out / "export")
    assert len(model.tokenizers[0]) == len(tiny.tokenizers[0]) + 5
    assert model.text_encoders[0].config.vocab_size == len(model.tokenizers[0])
    assert model.text_encoders[0].config.eos_token_id == model.tokenizers[0].eos_id
    assert len(model.tokenizers[0].encode("a photo of sks dog")) < len(tiny.tokenizers[0].encode("a photo of sks dog"))


def test_the_lora_of_a_run_is_what_it_trained(folder: Path, whole: Callable[[str], tuple[Path, Path]]) -> None:
    path, out = whole("dog")
    (file,) = (out / "export").iterdir()
    assert file.name == "dog.safetensors"
    trained = learner(path, out)
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    trained.load_state_dict(state)
    base = Pipeline(**vars(load_folder(folder / "base")))
    with trained.ema_weights(), torch.no_grad(), apply(base, [(file, 1.0, 1.0)]):
        for ours in (trained.objective.components, base):
            context = ours.text_encoders[0](ours.tokenizers[0](["a photo of sks dog"])).last
            predicted = ours.unet(torch.ones(1, 4, 4, 4), torch.tensor([7]), context)
            if ours is not base:
                expected = predicted
    assert torch.equal(predicted, expected)


def test_batches_of_the_class_come_in_turn(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    batches = learner(recipe(PICTURES + PRIOR), tmp_path).objective.batches
    items = [batches.items.make(index) for index in range(80)]  # batches of 4
    captions = {"a photo of sks dog", "a bear on a blue background", ""}
    own, other = ([item for index, item in enumerate(items) if index // 4 % 2 == turn] for turn in (0, 1))
    assert {told["caption"] for _, told, _ in own} == captions
    assert {told["caption"] for _, told, _ in other} == {"a photo of a dog", ""}
    assert {weight for _, _, weight in own} == {1.0}
    assert {weight for _, _, weight in other} == {0.5}
    objective = learner(recipe(PICTURES + PRIOR), tmp_path).objective
    for step, share in ((0, 1.0), (1, 0.5)):
        ((_, weighted, told),) = objective.losses(step)
        assert weighted.item() == pytest.approx(share * told["error"])


def test_half_precision_trains(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    path = recipe(PICTURES + WORDS)
    path.write_text(path.read_text().replace("steps = 4", 'steps = 1\nprecision = "bfloat16"'))
    (event,) = run(path, tmp_path / "out")
    assert np.isfinite(event.metrics["loss"])


@pytest.mark.skipif(not any(font.is_file() for font in FONTS), reason="needs fluidsynth and a sound font")
def test_music(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    path = recipe(f"[data]\nmusic = 4\nshow = ['jazz saxophone']\n[spectrogram]\n{SPECTROGRAM}{WORDS}")
    list(run(path, tmp_path / "out"))
    model = load_folder(tmp_path / "out/export")
    assert model.spectrogram == section(read(path), "spectrogram", type(model.spectrogram))
    with Image.open(tmp_path / "out/samples/000004.png") as sheet:
        assert sheet.size == (4 * 64, 32)


def test_sounds(folder: Path, recipe: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    (folder / "sounds").mkdir(exist_ok=True)
    seconds = torch.arange(3 * 8000) / 8000
    sound.write(Sound(0.5 * (2000 * seconds).sin()[None], 8000), folder / "sounds/tone.wav")
    path = recipe(f'[data]\nsounds = "{{folder}}/sounds"\ncaption = "a tone"\n[spectrogram]\n{SPECTROGRAM}')
    objective = build(read(path), 3, tmp_path)
    stream = objective.batches.items.make
    assert stream.latents.shape == (2, 4, 4, 8)  # of 1.28 s each; the rest is shorter than half of that
    assert {stream(index)[1]["caption"] for index in range(40)} == {"a tone", ""}
    assert objective.components.spectrogram.columns == 64


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ("", r"the recipe's \[data\] names none of them; give one of pictures, sounds and music"),
        ('[data]\npictures = "x"\nmusic = 3\n', r"names pictures and music; give one of"),
        (PICTURES + "[text]\nwords = 3\n", r"new words = ... in \[text\] are learned by SD 1"),
        (PICTURES + WORDS + LORA, r"give pace, and no \[lora\]"),
        (PICTURES + "batch = 0\n", r"batch = 0 in \[data\] of the recipe: Input should be greater than 0"),
        ("[data]\nmusic = -3\n", r"music = -3 in \[data\] of the recipe: Input should be greater than or equal to 0"),
        (PICTURES + '[loss]\nweighting = "none"\n', r"unknown weighting 'none'; choose from"),
        (PICTURES + "[lora]\nrank = 9999\n", r"rank = 9999 in \[lora\] of the recipe is too much: a layer has"),
        ("zero_terminal_snr = true\n" + PICTURES, r"of which prediction = 'eps' tells nothing; give prediction = 'v'"),
        ('prediction = "v"\n' + PICTURES + LORA, r"change the whole model; leave out \[lora\]"),
        ('prediction = "w"\n' + PICTURES, r"unknown prediction in \[model\] 'w'"),
        (
            PICTURES + "held_out = 2\n",
            r"^held_out = 2 in \[data\] of the recipe: Input should be less than or equal to 1",
        ),
        ("[data]\nmusic = 3\nheld_out = 0.5\n", r"held_out, \[augment\] and \[captions\] are for pictures = FOLDER"),
    ],
)
def test_wrong_recipes_get_one_line(recipe: Callable[[str], Path], tmp_path: Path, tables: str, message: str) -> None:
    with pytest.raises(ReverieError, match=message):
        next(prepare(path := recipe(tables), out := tmp_path / "out"))
    assert not out.exists()
    with pytest.raises(ReverieError, match=message):
        list(run(path, out))


@pytest.mark.parametrize("kind", ["inpainting", "x2 upscaler"])
def test_a_model_that_sees_pictures_gets_one_line_before_anything_is_made(
    recipe: Callable[[str], Path], folder: Path, tmp_path: Path, tiny: Pipeline, kind: str
) -> None:
    shape = {"block_out_channels": (32, 32), "transformer_depth": (0, 1), "num_heads": (1, 1), "layers_per_block": 1}
    wider = KUNet(KUNetConfig(**shape)) if kind == "x2 upscaler" else UNet(replace(tiny.unet.config, in_channels=9))
    replace(tiny, unet=wider).save(tmp_path / "wide")
    path = recipe(PICTURES)
    path.write_text(path.read_text().replace(f"{folder}/base", f"{tmp_path}/wide"))
    with pytest.raises(ReverieError, match=r"^wide .*sees more than a prompt; start from a plain model of its family$"):
        next(prepare(path, out := tmp_path / "out"))
    assert not out.exists()


def test_patience_without_held_out_pictures_gets_one_line_before_anything_is_made(
    recipe: Callable[[str], Path], tmp_path: Path
) -> None:
    path = recipe(PICTURES)
    path.write_text(path.read_text().replace("save_every = 2", "save_every = 2\npatience = 1"))
    with pytest.raises(ReverieError, match=r"patience in \[run\] waits for a validation loss; give held_out"):
        next(prepare(path, out := tmp_path / "out"))
    assert not out.exists()


def test_a_file_in_place_of_the_folder_gets_one_line(
    recipe: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out := tmp_path / "out").touch()
    for flags in ((), ("--prepare",)):
        assert cli.run(["finetune", str(recipe(PICTURES + LORA)), "--out", str(out), *flags]) == 2
        assert "is a file, and a run is kept in a folder; choose another --out" in capsys.readouterr().err


def test_of_several_processes_the_first_makes_the_latents(
    recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not list(prepare(recipe(PICTURES), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_other_new_words_are_told_from_those_a_run_began_with(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    """The vocabulary keeps its size, so that the checkpoint would fit."""
    path, out = recipe(PICTURES + WORDS), tmp_path / "out"
    list(run(path, out))
    list(run(path, out, resume=True))
    path.write_text(path.read_text().replace("sks dog", "zyx cat"))
    with pytest.raises(ReverieError, match=r"other new words than the run in .*out began with"):
        list(run(path, out, resume=True))


def test_nothing_to_resume_is_told_before_latents_are_made(
    recipe: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = recipe(PICTURES + LORA), tmp_path / "out"
    assert cli.run(["finetune", str(path), "--out", str(out), "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert not out.exists()


def test_killed_while_latents_are_made_it_goes_on(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    """Fault 39: `--resume` said "nothing to resume"."""
    path, out = recipe(PICTURES + LORA), tmp_path / "out"
    latents = prepare(path, out)
    next(latents)
    latents.close()
    assert cli.run(["finetune", str(path), "--out", str(out), "--resume"]) == 0
    assert (out / "export").is_dir()


def test_the_command_makes_latents_first(
    recipe: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = recipe(PICTURES + LORA), tmp_path / "out"
    list(prepare(path, out, begin=False))
    assert {file.name for file in out.iterdir()} == {"latents.safetensors"}
    assert cli.run(["finetune", str(path), "--out", str(out), "--prepare"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert {file.name for file in out.iterdir()} == {"latents.safetensors", "recipe.json"}
    written = (out / "latents.safetensors").stat().st_mtime_ns
    path.write_text(path.read_text().replace("steps = 4", "steps = 1"))
    assert cli.run(["finetune", str(path), "--out", str(out)]) == 0
    assert (out / "latents.safetensors").stat().st_mtime_ns == written
    assert capsys.readouterr().out.strip() == str(out)
    path.write_text(path.read_text().replace('"finetune"', '"diffusion"').split("[model]")[0])
    assert cli.run(["finetune", str(path)]) == 2
    assert "is for `reverie train`: its objective is 'diffusion'" in capsys.readouterr().err


ZERO_SNR = '[data]\npictures = "{folder}/pictures"\ncaption = "a dog"\ndropout = 0.0\n'
RELEARNED = 'prediction = "v"\nzero_terminal_snr = true\n' + ZERO_SNR


@torch.no_grad()
def test_a_step_at_zero_terminal_snr_is_diffusers(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    """The arithmetic of examples/text_to_image/train_text_to_image.py with rescaled betas and velocities."""
    objective = build(read(recipe(RELEARNED)), 3, tmp_path)
    theirs = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
    )
    rescaled = theirs.alphas_cumprod.double()
    assert (objective.schedule.alphas_cumprod - rescaled).abs().max() < 2e-6  # they compute in single precision
    assert objective.schedule.alphas_cumprod[-1] == 0
    for step in range(3):
        ((_, loss, _),) = objective.losses(step)
        latents, told, _ = objective.batches(step)
        generator = step_generator(3, step)
        t = torch.randint(1000, (4,), generator=generator)
        noise, components = torch.randn(latents.shape, generator=generator), objective.components
        context = components.text_encoders[0](components.tokenizers[0](told["caption"])).last
        predicted = components.unet(theirs.add_noise(latents, noise, t), t, context)
        expected = F.mse_loss(predicted, theirs.get_velocity(latents, noise, t))
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_model_says_that_its_schedule_ends_in_noise_alone(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    build(read(recipe(RELEARNED)), 3, tmp_path).export(tmp_path / "out/export")
    model, export = Pipeline(**vars(load_folder(tmp_path / "out/export"))), tmp_path / "out/export"
    assert (model.schedule_config.prediction, model.schedule_config.zero_terminal_snr) == ("v", True)
    drawn, asked = (
        model.text_to_image("a dog", steps=3, seed=1, **given)[0] for given in ({}, {"schedule": "trailing"})
    )
    assert drawn.tobytes() == asked.tobytes()
    theirs = DDIMScheduler.from_pretrained(export / "scheduler")
    theirs.set_timesteps(3)
    assert theirs.timesteps[0] == 999
    assert theirs.alphas_cumprod[-1] == 0
