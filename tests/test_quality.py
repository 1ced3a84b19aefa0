"""The benchmark of quality measures what it says, and what is bundled loads, fits and can be measured."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from reverie.adapters.ip_adapter import load_ip_adapter
from reverie.checkpoints.load import CLIPComponents, load_clip
from reverie.checkpoints.save import save_autoencoder, save_clip
from reverie.corpora.captions import chinese, english
from reverie.corpora.concepts import CLDR, Concept, concepts
from reverie.corpora.scenes import COLOURS, FONT, Placed, Scene
from reverie.models.autoencoder import Autoencoder
from reverie.models.clip import CLIP, CLIPConfig, CLIPVisionConfig, VisionTowerWithProjection
from reverie.pipeline import Pipeline, load
from reverie.train.classifier import ClassifierObjective, ClassifierSettings
from reverie.train.ip_adapter import IPAdapterSettings, begin

ROOT = Path(__file__).parents[1]
SUBSET = "instruments"
needs_corpus = pytest.mark.skipif(
    not (CLDR.is_dir() and FONT.is_file()), reason="needs fonts-noto-color-emoji and unicode-cldr-core"
)

BEAR = Concept("🐻", "animal-mammal", ("bear",), ("熊",))
APPLE = Concept("🍎", "food-fruit", ("red apple", "apple"), ("红苹果", "苹果"))


@pytest.fixture(scope="module", autouse=True)
def beside() -> None:
    """Let the scripts be imported as they import each other."""
    for folder in ("benchmarks", "scripts"):
        if str(ROOT / folder) not in sys.path:
            sys.path.append(str(ROOT / folder))


def scene(*things: Concept, colour: str = "blue") -> Scene:
    placed = tuple(Placed(thing, 64 * i, 0, 64) for i, thing in enumerate(things))
    return Scene(colour, COLOURS[colour][1], placed, "", "beside" if len(things) == 2 else "")


def test_psnr_of_a_constant_error() -> None:
    figures = importlib.import_module("figures")
    black = np.zeros((4, 4, 3), np.uint8)
    assert figures.psnr(black, black) == math.inf
    assert figures.psnr(black, np.full_like(black, 51)) == pytest.approx(20 * math.log10(5))


@pytest.mark.parametrize("colour", COLOURS)
def test_ground_is_named_with_an_object_in_a_corner(colour: str) -> None:
    figures = importlib.import_module("figures")
    pixels = np.empty((128, 128, 3), np.uint8)
    pixels[:] = COLOURS[colour][1]
    pixels[:100, :100] = 0
    pixels[:, -1] = 255  # a rim that a decoder may leave
    assert figures.ground_colour(Image.fromarray(pixels)) == colour


def test_one_object_ranks_first_and_two_in_any_order() -> None:
    figures = importlib.import_module("figures")
    assert figures.found(scene(BEAR), ("🐻", "🍎"))
    assert not figures.found(scene(BEAR), ("🍎", "🐻"))
    assert figures.found(scene(BEAR, APPLE), ("🍎", "🐻"))
    assert not figures.found(scene(BEAR, APPLE), ("🍎", "🐼"))


@pytest.mark.parametrize("tell", [english, chinese])
def test_prompts_know_whether_they_name_the_ground(tell: Callable[[Scene, np.random.Generator], str]) -> None:
    figures = importlib.import_module("figures")
    asked = figures.prompts([scene(APPLE, colour="red")] * 40, tell)
    named = [prompt for prompt in asked if prompt.names_ground]
    assert 0 < len(named) < 40
    assert all("background" not in prompt.text and "背景" not in prompt.text for prompt in asked if prompt not in named)
    assert len({prompt.seed for prompt in asked}) == 40


def test_spread_takes_evenly_from_the_first() -> None:
    figures = importlib.import_module("figures")
    assert figures.spread(range(100), 4) == range(0, 100, 25)
    assert len(figures.spread(range(103), 20)) <= 20
    assert figures.spread(range(3), None) == range(3)


def test_table_tells_what_is_met_and_what_is_left_out(tmp_path: Path) -> None:
    figures = importlib.import_module("figures")
    rows = [
        figures.Figure("a", 80.0, 5, goal=75, gpu_goal=95),
        figures.Figure("b", 24.96, 5, "dB", 25),
        figures.Figure("c", 1, 2),
    ]
    table, data = figures.write(rows, {"steps": 20}, ["the judge"], tmp_path / "new")
    lines = table.read_text().splitlines()
    assert lines[2:4] == ["| a | 80.0 % | 5 | 75 | 95 | met |", "| b | 25.0 dB | 5 | 25 |  | missed |"]
    assert lines[-1] == "Left out: the judge."
    assert [figure["met"] for figure in json.loads(data.read_text())["figures"]] == [True, False, None]


def test_contact_sheet_holds_every_picture() -> None:
    sheets = importlib.import_module("sheets")
    red = Image.new("RGB", (32, 32), (255, 0, 0))
    sheet = sheets.contact_sheet([(red, "a bear on a blue background, told at great length")] * 9, columns=4)
    assert (np.asarray(sheet) == (255, 0, 0)).all(-1).sum() == 9 * 32 * 32


@pytest.fixture
def runs(tiny: Pipeline, tmp_path: Path) -> Path:
    """Lay out what training leaves: a model, its student, CLIP, a judge and a recipe, all tiny and untrained."""
    tiny.save(tmp_path / "unet")
    tiny.save(tmp_path / "turbo")
    (tmp_path / "turbo" / "recommended.json").write_text('{"guidance": 1.0, "steps": 2}')
    text = tiny.text_encoders[0].config
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=16
    )
    torch.manual_seed(0)
    clip = CLIP(CLIPConfig(text=text, vision=vision, projection_dim=16))
    save_clip(CLIPComponents(clip, tiny.tokenizers[0]), tmp_path / "clip")
    adapter = begin(IPAdapterSettings(kind="whole"), tiny, VisionTowerWithProjection(vision, 16))
    save_file(adapter.state_dict(), tmp_path / "adapter")
    ClassifierObjective(ClassifierSettings("residual", (8, 8), SUBSET), seed=0).export(tmp_path / "judge")
    (tmp_path / "recipe.toml").write_text(f'objective = "diffusion"\n[data]\nsubset = "{SUBSET}"\n')
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    return importlib.import_module(script).main()


def bundle(monkeypatch: pytest.MonkeyPatch, runs: Path, root: Path, *more: object) -> int:
    given = [f"--{name}={runs / name}" for name in ("unet", "turbo", "clip", "adapter", "judge")]
    given += [f"--{name}={runs / 'unet' / 'vae'}" for name in ("decoder", "patched")]
    return call(monkeypatch, "bundle", *given, f"--recipe={runs / 'recipe.toml'}", f"--root={root}", *more)


@needs_corpus
def test_bundle_loads_and_is_measured(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    assert bundle(monkeypatch, runs, root) == 0
    assets = root / "src" / "reverie" / "assets"
    known = json.loads((assets / "bundled" / "concepts.json").read_text(encoding="utf-8"))
    assert ("🎷", ["saxophone"], ["萨克斯管"]) in [(thing["emoji"], thing["en"], thing["zh"]) for thing in known]
    assert all("instrument" in thing["keywords"] for thing in known if thing["emoji"] in "🎷🎸🎹")
    assert len(known) == len(concepts(SUBSET))
    assert load(assets / "bundled", device="cpu").size == 32
    own = {"unet", "vae", "model_index.json", "recommended.json"}
    assert {path.name for path in (assets / "turbo").iterdir()} == own
    assert json.loads((assets / "turbo" / "recommended.json").read_text()) == {"guidance": 1.0, "steps": 2}
    assert load_clip(assets / "clip").clip.config.vision.image_size == 32
    adapter = load_ip_adapter(assets / "ip_adapter" / "model.safetensors", dtype=None)
    assert {weight.dtype for weight in adapter.parameters()} == {torch.float16}

    places = [f"--model={assets / 'bundled'}", f"--clip={assets / 'clip'}", f"--judge={root / 'benchmarks' / 'judge'}"]
    few = ["--limit", 2, "--steps", 2, "--device", "cpu"]
    assert call(monkeypatch, "quality", *places, *few, "--subset", SUBSET, "--out", out) == 0
    written = json.loads((out / "quality.json").read_text(encoding="utf-8"))
    assert written["left_out"] == []
    names = " ".join(figure["name"] for figure in written["figures"])
    assert all(part in names for part in ("PSNR", "zero-shot", "single-object", "two-object", "Chinese", "real scenes"))
    assert len((out / "pictures.jsonl").read_text(encoding="utf-8").splitlines()) == 5 * 2
    assert {path.stem for path in out.glob("*.png")} >= {"concepts", "pairs", "chinese", "reconstructions"}


@needs_corpus
def test_missing_models_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [f"--{name}={tmp_path / name}" for name in ("model", "clip", "judge")]
    assert call(monkeypatch, "quality", *places, "--subset", SUBSET, "--out", tmp_path / "out") == 0
    left_out = json.loads((tmp_path / "out" / "quality.json").read_text())["left_out"]
    assert [reason.split(",")[0] for reason in left_out] == [
        "the autoencoder's figures",
        "CLIP's figures",
        "the judge's own figures",
        "the figures of drawn pictures",
    ]


@needs_corpus
def test_bundle_refuses_what_is_too_large_or_does_not_fit(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assets = tmp_path / "root" / "src" / "reverie" / "assets"
    with monkeypatch.context() as smaller:
        smaller.setattr(importlib.import_module("bundle"), "LARGEST", 1000)
        assert bundle(monkeypatch, runs, tmp_path / "root") == 2
    assert "may ship" in capsys.readouterr().err
    assert list(assets.iterdir()) == []
    torch.manual_seed(5)
    save_autoencoder(Autoencoder(load(runs / "unet", device="cpu").autoencoder.config), runs / "decoder")
    assert bundle(monkeypatch, runs, tmp_path / "root", f"--decoder={runs / 'decoder'}") == 2
    assert "another encoder" in capsys.readouterr().err


@needs_corpus
def test_bundle_takes_a_tuned_decoder(
    runs: Path, tiny: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Autoencoder(tiny.autoencoder.config)
    tuned.load_state_dict(tiny.autoencoder.state_dict())
    torch.nn.init.ones_(tuned.decoder_last_weight())
    save_autoencoder(tuned, runs / "decoder")
    assert bundle(monkeypatch, runs, tmp_path / "root", f"--decoder={runs / 'decoder'}") == 0
    shipped = load(tmp_path / "root" / "src" / "reverie" / "assets" / "bundled", device="cpu", fast=False).autoencoder
    assert (shipped.decoder_last_weight() == 1).all()


def test_the_kernel_distance_is_the_mean_over_pairs() -> None:
    figures = importlib.import_module("figures")
    x, y = torch.randn(5, 3).double(), torch.randn(4, 3).double() + 1

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    xx = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([kernel(a, b) for a in x for b in y])
    assert figures.kernel_distance(x, y) == pytest.approx(xx + yy - 2 * xy)


def test_the_frechet_distance_is_that_of_scipys_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    figures = importlib.import_module("figures")
    x, y = torch.randn(40, 5).double(), 2 * torch.randn(30, 5).double() + 1
    cx, cy = np.cov(x.numpy().T), np.cov(y.numpy().T)
    means = float((x.mean(0) - y.mean(0)).square().sum())
    expected = means + np.trace(cx + cy - 2 * linalg.sqrtm(cx @ cy).real)
    assert figures.frechet_distance(x, y) == pytest.approx(expected)
