"""Does a recipe fill the settings that it names, and say in one line what is wrong with it?"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from reverie.errors import ReverieError
from reverie.models.autoencoder import AutoencoderConfig
from reverie.models.unet import UNetConfig
from reverie.sound.spectrogram import SpectrogramParams
from reverie.train import (
    autoencoder,
    classifier,
    clip,
    diffusion,
    distill,
    enlarge,
    finetune,
    inputs,
    listener,
    patched,
    probe,
    run,
)
from reverie.train.control import ControlSettings
from reverie.train.examples import Augmentation, Wording
from reverie.train.inversion import InversionSettings
from reverie.train.ip_adapter import IPAdapterSettings
from reverie.train.loop import RunSettings
from reverie.train.lora import LoRASettings
from reverie.train.recipe import OBJECTIVES, check_apart, read, section

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
KINDS: dict[str, dict[str, Any]] = {
    "autoencoder": {
        "model": AutoencoderConfig,
        "data": autoencoder.DataSettings,
        "spectrogram": SpectrogramParams,
        "loss": autoencoder.LossSettings,
    },
    "classifier": {"classifier": classifier.ClassifierSettings},
    "clip": {
        "text": clip.TextSettings,
        "vision": clip.VisionSettings,
        "contrast": clip.ContrastSettings,
        "data": clip.PairSettings,
        "evaluation": clip.EvaluationSettings,
    },
    "diffusion": {
        "unet": UNetConfig,
        "data": diffusion.LatentSettings,
        "diffusion": diffusion.DiffusionSettings,
    },
    "distill": {
        "model": inputs.ModelSettings,
        "data": inputs.FinetuneDataSettings,
        "scenes": inputs.SceneSettings,
        "spectrogram": SpectrogramParams,
        "lora": LoRASettings,
        "distill": distill.DistillSettings,
        "adversary": distill.AdversarySettings,
    },
    "patched": {"patched": patched.PatchedSettings},
    "enlarge": {"enlarge": enlarge.EnlargeSettings, "scenes": inputs.SceneSettings},
    "probe": {"probe": probe.ProbeSettings},
    "finetune": {
        "model": inputs.ModelSettings,
        "data": inputs.FinetuneDataSettings,
        "scenes": inputs.SceneSettings,
        "spectrogram": SpectrogramParams,
        "text": inputs.FinetuneTextSettings,
        "lora": LoRASettings,
        "inversion": InversionSettings,
        "control": ControlSettings,
        "ip_adapter": IPAdapterSettings,
        "augment": Augmentation,
        "captions": Wording,
        "prior": inputs.PriorSettings,
        "loss": finetune.FinetuneLossSettings,
    },
    "listener": {"listener": listener.ListenerSettings},
}


@dataclass(frozen=True)
class Settings:
    """Some settings."""

    width: int
    rate: float = 0.5
    widths: tuple[int, ...] = (1, 2)
    name: str = "plain"


def test_a_table_becomes_settings() -> None:
    table = {"width": 3, "rate": 1, "widths": [4, 5, 6]}
    assert section({"some": table}, "some", Settings) == Settings(3, 1.0, (4, 5, 6))
    assert section({"some": {"width": 1}}, "some", Settings) == Settings(1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"width": 3, "heigth": 2}, r"unknown setting 'heigth' in \[some\] of the recipe; choose from width, rate"),
        ({"rate": 3.0}, r"the recipe's \[some\] lacks 'width'; add it"),
        ({"width": "wide"}, r"width = 'wide' in \[some\] of the recipe: Input should be a valid integer"),
        ({"width": 1.5}, r"width = 1.5 in \[some\] of the recipe"),
        ({"width": 1, "widths": [1, "x"]}, r"widths\.1 = 'x' in \[some\] of the recipe"),
        ({"width": True}, r"width = true in \[some\] of the recipe: give a number, not true or false"),
        ({"width": 1, "rate": False}, r"rate = false in \[some\] of the recipe: give a number"),
        ({"width": 1, "widths": [1, True]}, r"widths = \[1, true\] in \[some\] of the recipe: give a number"),
        (7, r"the recipe has some = 7; write a table \[some\]"),
    ],
)
def test_wrong_tables_get_one_line(table: object, message: str) -> None:
    with pytest.raises(ReverieError, match=message) as caught:
        section({"some": table}, "some", Settings)
    assert "\n" not in str(caught.value)


def test_what_a_dataclass_refuses_is_told_in_its_words() -> None:
    with pytest.raises(ReverieError, match=r"^unknown decay in \[run\] 'steps'"):
        section({"run": {"steps": 1, "lr": 1.0, "decay": "steps"}}, "run", RunSettings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("objective = ", "is not TOML"),
        ("\n", r"names no objective; add a line objective = \"...\", with one of autoencoder, classifier, clip"),
        ('objective = "gan"', "has objective 'gan'; choose from"),
        ("objective = [1]", r"has objective \[1\]; choose from"),
        ("extends = true", "extends True; give the name of another recipe"),
        ('extends = "recipe.toml"', "extends 'recipe.toml'; give the name of another recipe"),
        (
            'objective = "clip"\n[txet]\n',
            "has an unknown table 'txet'; choose from objective, run, text, vision, contrast",
        ),
    ],
)
def test_wrong_recipes_get_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ReverieError, match=message):
        read(path)


def test_objectives_whose_batch_cannot_be_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    path = tmp_path / "recipe.toml"
    path.write_text('objective = "enlarge"\n[run]\nsteps = 1\nlr = 1e-3\n')
    with pytest.raises(ReverieError, match="enlarge learns in one process, not in 2; leave torchrun out"):
        next(run(path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    path.write_text('objective = "clip"\n[run]\nsteps = 1\nlr = 1e-3\naccumulate = 2\n')
    with pytest.raises(ReverieError, match=r"the objective clip needs whole batches; give chunk in \[contrast\]"):
        next(run(path, tmp_path / "out"))


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match=r"cannot read the recipe .*: no such file or directory"):
        next(run(tmp_path / "none.toml"))
    (tmp_path / "picture.toml").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ReverieError, match="is not TOML"):
        read(tmp_path / "picture.toml")


def test_no_number_of_any_table_may_be_true_or_false() -> None:
    """Whatever a table's field is said to be, in its annotation: true stays true, or is refused."""
    refused = 0
    for kind in {RunSettings, *(kind for kinds in KINDS.values() for kind in kinds.values())}:
        for field in fields(kind):
            given = {one.name: 1 for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
            try:
                read_as = getattr(section({"some": given | {field.name: True}}, "some", kind), field.name)
            except ReverieError:
                refused += 1
            else:
                assert read_as is True, (kind, field.name)
    assert refused > 100


def test_a_run_does_not_learn_from_itself(tmp_path: Path) -> None:
    (photos := tmp_path / "photos").mkdir()
    path = tmp_path / "recipe.toml"
    for objective, key in (("finetune", "pictures"), ("clip", "path"), ("autoencoder", "sounds")):
        path.write_text(f'objective = "{objective}"\n[run]\nsteps = 1\nlr = 1e-3\n[data]\n{key} = "{photos}"\n')
        for out in (photos, photos / "runs" / "one", tmp_path / "x" / ".." / "photos" / "one"):
            with pytest.raises(ReverieError, match=rf"lies in {key} = '.*photos' of \[data\].*choose another `out`"):
                next(run(path, out))
    path.write_text(path.read_text().replace('"autoencoder"', '"finetune"'))
    with pytest.raises(ReverieError, match="lies in sounds"):
        next(finetune.prepare(path, photos / "runs"))
    assert not list(photos.iterdir())
    (photos / "00000.tar").touch()  # then shards are read, and nothing beside them
    check_apart(read(path), photos / "runs")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_fit_their_settings(path: Path) -> None:
    sections = read(path)
    assert section(sections, "run", RunSettings).steps > 0
    for name, kind in KINDS[sections["objective"]].items():
        section(sections, name, kind)


def test_the_tables_of_every_objective_are_known() -> None:
    assert len(SHIPPED) >= 4
    assert {name: set(tables) for name, (_, tables) in OBJECTIVES.items()} == {
        name: set(kinds) for name, kinds in KINDS.items()
    }


def test_a_recipe_extends_another_table_by_table_and_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('objective = "clip"\n[run]\nsteps = 5\nlr = 1e-3\n[text]\nwidth = 8\n')
    (tmp_path / "more.toml").write_text('extends = "base.toml"\n[run]\nsteps = 7\n[vision]\npatch = 4\n')
    assert read(tmp_path / "more.toml") == {
        "objective": "clip",
        "run": {"steps": 7, "lr": 1e-3},
        "text": {"width": 8},
        "vision": {"patch": 4},
    }


@pytest.mark.parametrize(
    ("name", "digest"),
    [("clip-vit-b16", 16), ("clip-vit-l14", 14), ("unet-more", 23500), ("unet-common", 26000)],
)
def test_the_shipped_stages_say_what_they_change(name: str, digest: int) -> None:
    sections = read(SHIPPED[0].parent / f"{name}.toml")
    assert digest in (sections["run"]["steps"], sections.get("vision", {}).get("patch"))
    assert sections["run"]["betas"] == [0.9, 0.98 if "clip" in name else 0.99]  # said in the base alone
