"""Does the command do what it says, refuse what it cannot do in one line, and cost nothing before it must?"""

from __future__ import annotations

import inspect
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops

import reverie
from reverie.cli import progress
from reverie.cli.app import app, run
from reverie.cli.options import ModelOptions, ResultOptions
from reverie.jobs.outputs import numbered_paths, slug
from reverie.pipeline import Pipeline
from reverie.progress import Progress
from reverie.requests import references
from reverie.requests.base import MAX_SEED
from reverie.requests.pictures import TextToImage


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr(reverie, "load", load, raising=False)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused, and return the one line that it says."""
    assert run(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("reverie: ")
    assert told.err.count("\n") == 1
    return told.err.removeprefix("reverie: ").strip()


def same(a: Path, b: Path) -> bool:
    with Image.open(a) as left, Image.open(b) as right:
        return left.size == right.size and ImageChops.difference(left, right).getbbox() is None


def test_help_imports_nothing_that_takes_long() -> None:
    code = """
import sys
from reverie.cli.app import app, run
for name in [(), *((name,) for name in app if not name.startswith("-"))]:
    assert run([*name, "--help"]) == 0, name
    assert not {"torch", "numpy", "pydantic", "PIL"} & sys.modules.keys(), name
assert run(["image", "x", "--steps", "0"]) == 2
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", [name for name in app if app[name].usage])
def test_a_usage_that_is_given_is_what_the_flags_say(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    given = capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app[name], "usage", None)
        assert run([name, "--help"]) == 0
    assert capsys.readouterr().out == given


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"│ {name} " in told for name in ("image", "replay", "concepts", "data", "train"))


def test_image_writes_a_picture_that_knows_its_request(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bear.png"
    options = ["--seed", "7", "--steps", "2", "--guidance", "3.5", "--negative", "red", "--sampler", "euler"]
    options += ["--schedule", "exponential", "--size", "32x16", "--device", "cpu", "--dtype", "float32"]
    assert run(["image", "a bear", "-o", str(file), "--model", model, *options]) == 0
    told = capsys.readouterr()
    assert told.out == f"{file}\n"
    assert "seed 7;" in told.err
    assert reverie.from_metadata(file) == TextToImage(
        prompt="a bear",
        negative="red",
        seed=7,
        steps=2,
        guidance=3.5,
        width=32,
        height=16,
        sampler="euler",
        schedule="exponential",
    )
    with Image.open(file) as picture:
        assert picture.size == (32, 16)
        assert picture.info["parameters"].startswith("a bear\nNegative prompt: red\nSteps: 2")


def test_count_writes_numbered_files_of_consecutive_seeds(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", model, "--steps", "2", "--device", "cpu"]
    assert (
        run(["image", "a bear", "-o", str(tmp_path / "b.png"), "--count", "3", "--seed", "5", "--json", *options]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    files = [tmp_path / f"b-{index}.png" for index in range(3)]
    assert told["files"] == [str(file) for file in files]
    assert told["seeds"] == [5, 6, 7]
    assert told["sizes"] == [[32, 32]] * 3
    assert set(told["timings"]) == {"load", "draw", "save"}
    assert told["request"]["prompt"] == "a bear"
    assert sorted(tmp_path.iterdir()) == files
    assert run(["image", "a bear", "-o", str(tmp_path / "alone.png"), "--seed", "6", *options]) == 0
    assert same(tmp_path / "alone.png", files[1])


@pytest.mark.parametrize("options", [[], ["--count", "3", "--grid"]], ids=["picture", "grid"])
def test_replay_makes_the_same_picture_again(model: str, tmp_path: Path, options: list[str]) -> None:
    file = tmp_path / "bear.png"
    assert run(["image", "a bear", "-o", str(file), "--model", model, "--steps", "2", *options]) == 0
    assert run(["replay", str(file), "--model", model]) == 0
    assert same(file, tmp_path / "bear-replay.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bear-replay.png", "bear.png"]


def test_replay_asks_for_a_model_that_is_not_bundled(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bear.png"
    assert run(["image", "a bear", "-o", str(file), "--model", model, "--steps", "1"]) == 0
    capsys.readouterr()
    assert re.search(
        r"drawn by the model 'tiny \[\w{10}\]'; say where that is with --model", refusal(capsys, "replay", str(file))
    )


def test_replay_knows_the_bundled_model_by_its_place(
    tiny: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder elsewhere may be called as the bundled one is; its pictures are not the bundled model's."""
    shipped, other = tmp_path / "package" / "bundled", tmp_path / "home" / "bundled"
    for folder in (shipped, other):
        tiny.save(folder)
    monkeypatch.setitem(references.BUNDLED, references.BUNDLED_NAME, shipped)
    for name, options in {"a": [], "b": ["--model", str(shipped)], "c": ["--model", str(other)]}.items():
        assert run(["image", "a bear", "-o", str(tmp_path / f"{name}.png"), "--steps", "1", *options]) == 0
    for name in ("a", "b"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert "Model: reverie-emoji" in picture.info["parameters"]
        assert run(["replay", str(tmp_path / f"{name}.png")]) == 0
        assert same(tmp_path / f"{name}.png", tmp_path / f"{name}-replay.png")
    capsys.readouterr()
    asked = refusal(capsys, "replay", str(tmp_path / "c.png"))
    assert re.search(r"drawn by the model 'bundled \[\w{10}\]'; say where", asked)


@pytest.mark.parametrize("options", [[], ["--grid"]], ids=["pictures", "grid"])
def test_timings_are_disjoint(
    options: list[str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("reverie.jobs.pictures.save", lambda *_, **__: time.sleep(0.5))
    start = time.perf_counter()
    file = str(tmp_path / "b.png")
    assert (
        run(["image", "a bear", "-o", file, "--model", model, "--steps", "1", "--count", "2", "--json", *options]) == 0
    )
    taken = time.perf_counter() - start
    timings = json.loads(capsys.readouterr().out)["timings"]
    assert timings["save"] >= 0.5 * (1 if options else 2)
    assert sum(timings.values()) <= taken + 0.01


def test_name_and_seed_are_chosen_and_told(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["image", "一只熊, A Bear!", "--model", model, "--steps", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [f"一只熊-a-bear-{told['seeds'][0]}.png"]
    assert Path(told["files"][0]).is_file()


@pytest.mark.usefixtures("unloadable")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "0"], "steps 0 is not possible"),
        (["--steps", "2.5"], "'2.5' is not a whole number"),
        (["--steps", "many"], "'many' is not a whole number"),
        (["--stepz", "3"], "Did you mean --steps?"),
        (["--size", "100x96"], "width 100 is not possible"),
        (["--size", "128"], "write WIDTHxHEIGHT"),
        (["--sampler", "eulr"], "unknown sampler 'eulr'; did you mean 'euler'?"),
        (["--schedule", "karas"], "unknown schedule 'karas'; did you mean 'karras'?"),
        (["--guidance", "nan"], "guidance nan is not possible"),
        (["--seed", "-2"], "seed -2 is not possible"),
        (["--seed", str(MAX_SEED), "--count", "2"], "lower one of them"),
        (["--count", "0"], "count 0 is not possible"),
        (["on", "blue"], "unexpected 'on blue'; put a prompt of several words in quotes"),
        (["-o", "."], "output '.' is a folder"),
        (["-o", "bear.gif"], "choose from .png"),
        (["-o", "bear"], "a name without suffix"),
        (["-o", "missing/bear.png"], "there is no such folder"),
        (["-o", "/proc/bear.png"], "no file can be made there"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refusal(capsys, "image", "a bear", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["imge", "x"], 'Did you mean "image"?'),
        (["replay", "nowhere.png"], "cannot read 'nowhere.png': no such file or directory"),
        (["serve", "--max-queue", "0"], "--max-queue 0 lets nobody draw; give 1 or more"),
        (["serve", "--time-limit", "-1"], "--time-limit -1 lets nobody draw"),
        (["image"], "nothing to draw; give a prompt"),
        (["image", "x", "-o", "x.png", "--model", "nowhere"], "no model at 'nowhere'"),
        (["image", "x", "-o", "x.png", "--device", "abacus"], "abacus"),
        (["image", "x", "-o", "x.png", "--dtype", "int3"], "int3"),
        (["replay", "nothing.png"], "cannot read 'nothing.png'"),
        (["train", "nothing.toml"], "cannot read the recipe nothing.toml"),
        (["data", "emoji"], "--output"),
    ],
)
def test_other_bad_input_is_refused(
    arguments: list[str],
    says: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "image" and "--model" not in arguments and len(arguments) > 2:
        arguments = [*arguments, "--model", model]
    assert says in refusal(capsys, *arguments)


def test_a_plain_picture_cannot_be_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert "does not say how it was made" in refusal(capsys, "replay", str(tmp_path / "plain.png"))


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (RuntimeError("two\nlines"), 1)])
def test_other_ends_have_their_status(
    error: BaseException,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(reverie, "load", load, raising=False)
    assert run(["image", "x", "-o", str(tmp_path / "x.png")]) == status
    assert capsys.readouterr().err.count("\n") == (status == 1)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(reverie.ReverieError, match="steps 0"):
        run(["image", "x", "--steps", "0", "--debug"])


def test_slugs_and_numbers() -> None:
    assert slug("A bear, on: blue/red_") == "a-bear-on-blue-red"
    assert slug("熊" * 100) == "熊" * 48
    assert slug("?!") == slug("") == "picture"
    assert slug("", "music") == "music"
    assert numbered_paths(Path("a/b.c.png"), 2) == [Path("a/b.c-0.png"), Path("a/b.c-1.png")]


def test_concepts_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(references.BUNDLED, references.BUNDLED_NAME, tmp_path)
    assert "no bundled model" in refusal(capsys, "concepts")
    known = [
        {"emoji": "🐻", "en": ["bear", "brown bear"], "zh": ["熊"]},
        {"emoji": "🍎", "en": ["apple"], "zh": ["苹果", "红苹果"]},
    ]
    (tmp_path / "concepts.json").write_text(json.dumps(known))
    assert run(["concepts"]) == 0
    assert capsys.readouterr().out == "🐻\tbear, brown bear\t熊\n🍎\tapple\t苹果, 红苹果\n"
    assert run(["concepts", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == known


def test_instruments_styles_and_tempos_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Fault 41: the 35 instruments were listed nowhere."""
    assert run(["concepts", "--model", "reverie-music"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [kind for kind, *_ in rows].count("instrument") == 35
    assert ["style", "jazz, swing", "爵士"] in rows
    assert ["tempo", "144 bpm", "144拍"] in rows
    assert "does not say what it knows" in refusal(capsys, "concepts", "--model", str(tmp_path))
    assert "give a folder, or one of reverie-emoji" in refusal(capsys, "concepts", "--model", str(tmp_path / "none"))


class Terminal(io.StringIO):
    """Pretend to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_and_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def events() -> Iterator[Progress]:
        for done in range(1, 6):
            time.sleep(0.02)
            yield Progress(done, 5, "steps")

    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.03)
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert [event.done for event in progress.show_progress(events())] == [1, 2, 3, 4, 5]
        assert "steps" in stream.getvalue()
    assert "steps 2/5, " in stream.getvalue()
    assert stream.getvalue().splitlines()[0].endswith(" s left")


def test_options_left_out_are_those_of_the_api() -> None:
    load = inspect.signature(reverie.load).parameters
    names = ("device", "dtype", "config", "revision", "variant", "vae")
    assert ModelOptions() == ModelOptions(**{name: load[name].default for name in names})
    assert ResultOptions().output is None


@pytest.mark.parametrize(
    ("shell", "ends"),
    [
        ("{} train --help | head -1 >&2; exit ${{PIPESTATUS[0]}}", 141),  # as a shell reports SIGPIPE
        ("{} concepts >&-", 0),
        ("PYTHONIOENCODING=ascii {} concepts >&2", 0),
    ],
)
def test_a_closed_or_plain_output_is_no_error_of_ours(shell: str, ends: int) -> None:
    command = f"{sys.executable} -c 'from reverie.cli.app import main; main()'"
    ran = subprocess.run(["bash", "-c", shell.format(command)], capture_output=True, text=True, check=False)
    assert ran.returncode == ends
    assert "Traceback" not in ran.stderr
    assert "Error" not in ran.stderr
