"""Is a step of an IP-Adapter's training diffusers' own, does nothing else learn, does diffusers open its file?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from reverie.adapters.ip_adapter import bind_image_prompts, load_image_prompts, load_ip_adapter
from reverie.cli import app as cli
from reverie.corpora.concepts import concepts
from reverie.data.loader import BatchPart
from reverie.errors import ReverieError
from reverie.pipeline import Pipeline
from reverie.requests.parts import IPAdapterInput
from reverie.train import run
from reverie.train.examples import Scenes
from reverie.train.finetune import IPAdapterFinetuning, build, prepare
from reverie.train.ip_adapter import IPAdapterSettings, look
from reverie.train.layers import recompute_layers_
from reverie.train.loop import Learner, RunSettings, step_generator
from reverie.train.plan import plan
from reverie.train.recipe import read

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracles warn of their own affairs
RECIPE = """
objective = "finetune"
[run]
steps = 4
seed = 5
lr = 1e-2
warmup = 0
threads = 1
device = "cpu"
save_every = 2
sample_every = 4
[model]
base = "{folder}/{base}"
[data]
pictures = "{folder}/pictures"
dropout = 0.3
batch = 3
show = ["a bear", "an apple"]
[ip_adapter]
encoder = "{folder}/image_encoder"
{settings}
"""
SPACE, HIDDEN, SIDE = 10, 16, 8


@pytest.fixture(scope="module")
def folder(tiny: Pipeline, tiny_xl: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give models of two families, a vision tower and captioned pictures."""
    folder = tmp_path_factory.mktemp("ip")
    tiny.save(folder / "sd")
    tiny_xl.save(folder / "xl")
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=4, projection_dim=SPACE)
    tower = CLIPVisionModelWithProjection(config).half().float()
    tower.save_pretrained(folder / "image_encoder")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number, caption in enumerate(("a bear", "a red apple", "a star", "an apple and a bear")):
        picture = Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).resize((96, 80))
        picture.save(folder / f"pictures/{number}.png")
        (folder / f"pictures/{number}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def write(folder: Path) -> Callable[..., Path]:
    def write(base: str = "sd", settings: str = "", tables: str = "") -> Path:
        text = RECIPE.replace("{settings}", settings).replace("{base}", base).replace("{folder}", str(folder))
        (path := folder / "recipe.toml").write_text(text + tables)
        return path

    return write


@pytest.fixture(scope="module")
def objective(folder: Path, write: Callable[..., Path]) -> Callable[..., IPAdapterFinetuning]:
    def make(base: str = "sd", settings: str = "", tables: str = "") -> IPAdapterFinetuning:
        return build(read(write(base, settings, tables)), 5, folder / "run" / base)

    return make


def processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def oracle(base: Path, file: Path) -> DiffusionPipeline:
    """Open a model and an IP-Adapter that was written, its tower beside it, by diffusers."""
    pipeline = DiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32)
    pipeline.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name)
    pipeline.feature_extractor = processor()
    return pipeline


@pytest.mark.parametrize(("kind", "base"), [("plain", "sd"), ("full", "sd"), ("plus", "xl")])
@torch.no_grad()
def test_a_step_is_diffusers_and_what_is_written_draws_the_same(
    folder: Path, objective: Callable[..., IPAdapterFinetuning], kind: str, base: str
) -> None:
    ours = objective(base, f'kind = "{kind}"\ndropout = 0.4\n')
    torch.manual_seed(1)
    for parameter in ours.adapter.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    ours.export(folder / f"{kind}/export")
    file = folder / f"{kind}/export/{kind}.safetensors"
    theirs = oracle(folder / base, file)
    for step in (0, 1):
        latents, told, _ = ours.batches(step)
        generator = step_generator(5, step)
        t = torch.randint(1000, (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = DDPMScheduler.from_pretrained(folder / base / "scheduler").add_noise(latents, noise, t)
        given = ours.encode({name: value for name, value in told.items() if name != "seen"})
        added = {"image_embeds": [told["seen"][:, None]], "text_embeds": given.pooled, "time_ids": given.sizes}
        predicted = theirs.unet(noisy, t, given.tokens, added_cond_kwargs=added).sample
        ((_, loss, _),) = ours.losses(step)
        assert loss.item() == pytest.approx(F.mse_loss(predicted, noise).item(), rel=1e-4)
    picture = Image.open(folder / "pictures/0.png")
    embeds = theirs.prepare_ip_adapter_image_embeds([picture], None, "cpu", 1, True)
    model = Pipeline(**vars(ours.components))
    ours.gather_alone()
    said = replace(model.encode_prompt(["", "a bear"]), prompted=torch.tensor([0.0, 1.0]))
    x, t = torch.randn(2, 4, 4, 4), torch.full((2,), 501)
    added = {"image_embeds": embeds, "text_embeds": said.pooled, "time_ids": said.sizes}
    seen = load_image_prompts(model, [IPAdapterInput(model=str(file), images=(picture,))])
    a, b = (
        bind_image_prompts(model, seen, model.network)(said)(x, t),
        theirs.unet(x, t, said.tokens, added_cond_kwargs=added),
    )
    assert (a - b.sample).abs().max() < 1e-4


def test_it_is_shown_what_transformers_see(folder: Path, objective: Callable[..., IPAdapterFinetuning]) -> None:
    tower = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder").eval()
    for kind in ("plain", "full"):
        ours = objective(settings=f'kind = "{kind}"\n').looking
        pixels = processor()([Image.fromarray(ours.examples.picture(2))], return_tensors="pt").pixel_values
        with torch.no_grad():
            seen = tower(pixels, output_hidden_states=True)
            nothing = tower(torch.zeros_like(pixels), output_hidden_states=True)
        expected: tuple[Tensor, Tensor] = seen.image_embeds[0], torch.zeros(SPACE)
        if kind == "full":
            expected = seen.hidden_states[-2][0], nothing.hidden_states[-2][0]
        found = ours.rows[2].float(), ours.sight.nothing
        assert all(torch.allclose(a, b, atol=3e-3) for a, b in zip(found, expected, strict=True))


def test_nothing_but_the_adapter_learns(
    objective: Callable[..., IPAdapterFinetuning], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = objective(settings="dropout = 0.0\n")
    learner = Learner(ours, RunSettings(steps=9, lr=1e-2, warmup=0))
    frozen = [
        ours.components.unet,
        ours.components.autoencoder,
        *ours.components.text_encoders,
        ours.looking.sight.tower,
    ]
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in (*frozen, ours.adapter)]
    unet = before[0]
    for part in "kv":  # the first attention of the way down
        began = before[-1][f"ip_adapter.1.to_{part}_ip.weight"]
        assert torch.equal(began, unet[f"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_{part}.weight"])
    learner.step(0)
    monkeypatch.setattr("reverie.train.ip_adapter.save_image_encoder", None)  # the tower is where the recipe names it
    ours.samples()
    learner.step(1)
    for network, state in zip(frozen, before[:-1], strict=True):
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(torch.equal(value, before[-1][name]) for name, value in ours.adapter.state_dict().items())


def test_layers_computed_twice_learn_the_same(objective: Callable[..., IPAdapterFinetuning]) -> None:
    found = []
    for recompute in (False, True):
        ours = objective()
        if recompute:
            recompute_layers_(ours.backbones())
        ((_, loss, _),) = ours.losses(0)
        loss.backward()
        found.append([parameter.grad for parameter in ours.adapter.parameters()])
    assert all(torch.allclose(a, b, atol=1e-7) and a.any() for a, b in zip(*found, strict=True))


def test_pictures_learn_first_to_be_what_captions_are(objective: Callable[..., IPAdapterFinetuning]) -> None:
    """An adapter whose tokens are those of the captions is right; the U-Net is not asked, and comes after."""
    ours = objective(settings="align = 2\ntokens = 12\ndropout = 0.4\n")
    ((_, loss, metrics),) = ours.losses(1)
    assert metrics == {"loss": loss.item()}
    loss.backward()
    assert all(parameter.grad is not None for parameter in ours.adapter.parameters())
    said = ours.batches(1)[1]["said"]
    assert "" in said  # of a picture that is left out
    with torch.no_grad():
        ours.adapter.image_proj.forward = lambda seen: ours.encode(said).tokens  # type: ignore[method-assign]
        assert [loss.item() for _, loss, _ in ours.losses(1)] == [pytest.approx(0, abs=1e-12)]
        for layer in ours.adapter.ip_adapter.values():
            for weight in layer.parameters():
                weight.mul_(3)  # twice as much apart as there is
        assert [loss.item() for _, loss, _ in ours.losses(1)] == [pytest.approx(4, rel=1e-5)]
    ((_, loss, metrics),) = ours.losses(2)
    assert set(metrics) == {"loss", "error"}


def test_what_is_held_out_is_measured_by_the_prediction_however_pictures_learn(
    objective: Callable[..., IPAdapterFinetuning],
) -> None:
    found = []
    for align in (0, 9):
        ours = objective(settings=f"align = {align}\ndropout = 1.0\n")
        ours.held_out = (ours.batches.items.make,)
        found.append(ours.measures())
    assert found[0] == pytest.approx(found[1])


def test_parts_of_a_batch_are_as_far_from_their_captions_as_the_whole(
    objective: Callable[..., IPAdapterFinetuning],
) -> None:
    ours = objective(settings="align = 2\n")
    whole = [loss.item() for _, loss, _ in ours.losses(1)]
    parts = [loss.item() for index in range(3) for _, loss, _ in ours.losses(1, BatchPart(index, 3, 3))]
    assert [sum(parts) / 3] == pytest.approx(whole, rel=1e-5)


def test_stopped_and_resumed(
    folder: Path, write: Callable[..., Path], tmp_path: Path, same_run: Callable[[Path, Path], None]
) -> None:
    path = write(settings='kind = "whole"\nother = 0.5\nalign = 1\n', tables="[augment]\nvariants = 2\nflip = 0.5\n")
    assert [step.unit for step in prepare(path, tmp_path / "whole/run")] == ["latents", "pictures seen"]
    list(run(path, tmp_path / "whole/run"))
    events = run(path, tmp_path / "parts/run")
    while next(events).step < 3:
        pass
    events.close()
    list(run(path, tmp_path / "parts/run", resume=True))
    same_run(tmp_path / "whole/run", tmp_path / "parts/run")
    with Image.open(tmp_path / "whole/run/samples/000004.png") as sheet:
        assert sheet.size == (6 * 32, 32)  # a picture, what it gives alone and with a prompt, twice
    file = tmp_path / "whole/run/export/run.safetensors"
    (path := folder / "on.toml").write_text(write(settings=f'kind = "whole"\ninitial = "{file}"\n').read_text())
    on, state = build(read(path), 5, folder / "run/sd"), load_ip_adapter(file).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in on.adapter.state_dict().items())


def test_pictures_are_left_out_and_exchanged_for_others_of_the_same(
    folder: Path, objective: Callable[..., IPAdapterFinetuning], corpus: None
) -> None:
    varied = objective(settings="other = 0.5\n", tables="[augment]\nvariants = 4\nrandom_crop = true\n").looking
    assert [list(varied.alike[number]) for number in (0, 5, 15)] == [[0, 1, 2, 3], [4, 5, 6, 7], [12, 13, 14, 15]]
    rows, seen = varied.rows.float(), Counter[int]()
    for index in range(400):
        shown = varied(5, np.random.default_rng(index))["seen"]
        assert isinstance(shown, Tensor)
        seen[next((n for n, row in enumerate(rows) if torch.equal(row, shown)), -1)] += 1
    assert set(seen) == {-1, 4, 5, 6, 7}
    assert seen[-1] == pytest.approx(40, abs=15)  # dropout is 0.1
    assert seen[5] == pytest.approx(225, abs=30)  # half of the others, and a quarter of the rest
    scenes = Scenes(concepts("instruments")[:3], 1, 12)
    settings = IPAdapterSettings(encoder=str(folder / "image_encoder"))
    alike = look(settings)(scenes, folder / "none.safetensors").alike
    things = [{one.concept.emoji for one in scenes.scene(number).objects} for number in range(12)]
    assert all(things[other] == things[number] for number in range(12) for other in alike[number])
    assert all(number in alike[number] for number in range(12))
    first, ground = [one.concept.en[0] for one in scenes.scene(0).objects], scenes.scene(0).colour
    said = look(settings)(scenes, folder / "none.safetensors").say(0)
    assert said == f"a {first[0]} next to a {first[1]} on a {ground} background"


def test_a_plan_looks_at_no_pictures(folder: Path, write: Callable[..., Path]) -> None:
    path = write(settings='kind = "plus"\n')
    assert any("ip_adapter" in line for line in plan(path))
    assert not (path.parent / "seen-latents.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "tables", "message"),
    [
        ('kind = "face"', "", r"unknown kind in \[ip_adapter\] 'face'; choose from plain, plus, full"),
        ("align = 3", "[text]\ncached = true\n", r"encodes captions at each step, by whole weights; leave out cached"),
        ("", "[lora]\nrank = 2\n", r"trains an IP-Adapter and nothing else; leave out \[lora\]"),
        ('initial = "{folder}/plus/export/plus.safetensors"', "", r"is made for another model, CLIP or kind"),
        ('initial = "{folder}/none"', "", r"no IP-Adapter at"),
    ],
)
def test_wrong_recipes_get_one_line(
    folder: Path, objective: Callable[..., IPAdapterFinetuning], settings: str, tables: str, message: str
) -> None:
    with pytest.raises(ReverieError, match=message):
        objective(settings=settings.replace("{folder}", str(folder)), tables=tables)


def test_no_rate_is_found_while_pictures_align(
    folder: Path, write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(settings="align = 3\n")
    assert cli.run(["finetune", str(path), "--out", str(tmp_path / "run"), "--find-rate"]) == 2
    assert "align in [ip_adapter] has a loss of its own, and a rate; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_shows_no_pictures_gets_one_line(folder: Path, write: Callable[..., Path]) -> None:
    text = write().read_text()
    changes = {
        f'encoder = "{folder}/image_encoder"': r"needs encoder = a CLIP's vision tower",
        f'pictures = "{folder}/pictures"': r"learns from pictures = FOLDER in \[data\], or from \[scenes\]",
    }
    for line, message in changes.items():
        (path := folder / "without.toml").write_text(text.replace(line, "music = 4" if "pictures" in line else ""))
        with pytest.raises(ReverieError, match=message):
            build(read(path), 5, folder / "run/without")
