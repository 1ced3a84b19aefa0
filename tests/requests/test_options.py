"""A field of a request is said once: the flags and the methods' options are written from it."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from reverie.cli import flags
from reverie.requests.films import Animation
from reverie.requests.music import Film, Music
from reverie.requests.pictures import Inpaint, TextToImage

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("write_options", ROOT / "scripts/write_options.py")
assert SPEC is not None
assert SPEC.loader is not None
WRITER = importlib.util.module_from_spec(SPEC)
sys.modules["write_options"] = WRITER
SPEC.loader.exec_module(WRITER)

SHARED = {"loras", "embeddings", "folders", "sums", "clip_skip"}  # sums are what records say


@pytest.mark.parametrize("path", WRITER.FILES, ids=lambda path: path.name)
def test_files_are_what_the_script_writes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == WRITER.FILES[path](), "run scripts/write_options.py"


def names(*groups: type) -> set[str]:
    return {field.name for group in groups for field in dataclasses.fields(group)}


def test_every_field_has_a_flag() -> None:
    pictures = names(flags.PictureFlags, flags.InitFlags, flags.FurtherFlags) | SHARED
    parts = {
        "prompt",
        "width",
        "height",
        "controls",
        "ip_adapters",
        "regions",
        "variation",
        "template",
        "negative_template",
    }
    assert set(Inpaint.model_fields) | set(TextToImage.model_fields) == pictures & set(Inpaint.model_fields) | parts
    films = (
        names(flags.PathFlags, flags.FrameFlags, flags.SourceFlags)
        | SHARED
        | {"width", "height", "keyframes", "regions"}
    )
    assert set(Animation.model_fields) <= films
    music = names(flags.PlayingFlags, flags.WayFlags, flags.SoundFlags) | SHARED | {"prompt"}
    assert set(Music.model_fields) <= music
    of_music = {name.removeprefix("film_") for name in names(flags.FilmFlags)}
    left_out = {"guidance", "negative", "seed", "sha256"}  # the first are the music's, the last is what records say
    assert set(Film.model_fields) - left_out <= of_music | {"prompts", "width", "height"}


LINES = """
from reverie.requests.films import Animation, Keyframe
from reverie.requests.music import Music
from reverie.requests.parts import ControlInput
from reverie.requests.pictures import Inpaint, Outpaint, TextToImage

Animation(keyframes=("a bear", "an apple"))
Animation(keyframes=[{"prompt": "a bear"}, Keyframe(image="bear.png")], init_video="film.mp4")
Outpaint(init="bear.png", left=64, right=64)
Inpaint(prompt="a red hat", init="bear.png", mask="hat.png")
TextToImage(prompt="a bear", steps=20, seed=None, sampler="Euler a")
TextToImage(controls=(ControlInput(model="canny", image="edges.png"),))
Music(prompt="jazz", to="blues", alpha=0.5)
Outpaint(init="bear.png", lefft=64)
"""
CONFIG = """
[mypy]
python_version = 3.11
strict = true
follow_imports = silent
[mypy-torch.*,numpy.*,jaxtyping.*,soundfile.*,soxr.*,av.*]
follow_imports = skip
ignore_missing_imports = true
"""


@pytest.mark.slow
def test_type_checkers_take_what_is_taken(tmp_path: Path) -> None:
    (tmp_path / "lines.py").write_text(LINES)
    (tmp_path / "mypy.ini").write_text(CONFIG)
    command = [sys.executable, "-m", "mypy", "lines.py"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert f'lines.py:{len(LINES.splitlines())}: error: Unexpected keyword argument "lefft"' in told
    assert told.count("error:") == 1, told
