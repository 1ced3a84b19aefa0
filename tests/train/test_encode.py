"""Is what is encoded ahead what training would encode itself, the same to the bit however it is spread?"""

from __future__ import annotations

import io
import json
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reverie.cli import app as cli
from reverie.data.captioned import open_captioned
from reverie.data.loader import WHOLE
from reverie.errors import ReverieError
from reverie.files import tar_writer
from reverie.pipeline import Pipeline
from reverie.similarity.curation.samples import Message, Work, by_processes, by_ray
from reverie.train import diffusion, encoded, run
from reverie.train.encode import encode
from reverie.train.encoded import open_encoded
from reverie.train.examples import Pictures
from reverie.train.finetune import Finetuning, build, prepare
from reverie.train.latents import encoder_digest, latent_pool
from reverie.train.recipe import read
from reverie.train.texts import encoders_digest

RECIPE = """
objective = "finetune"
[run]
steps = 2
lr = 1e-3
warmup = 0
threads = 1
device = "cpu"
[model]
base = "{base}"
[data]
{source}
batch = 3
dropout = 0.3
"""
SIZES = ((48, 40), (40, 48), (33, 40), (64, 40), (36, 60))  # width and height


def write_shard(path: Path, first: int, count: int, damaged: Sequence[int] = ()) -> None:
    with tar_writer(path) as add:
        for number in range(first, first + count):
            width, height = SIZES[number % len(SIZES)]
            pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
            add(f"{number:05}.png", b"no picture" if number in damaged else content.getvalue())
            add(f"{number:05}.txt", f"picture {number // 2}".encode())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give shards of 5 and of 4 pictures, one of which is damaged."""
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "00000.tar", 0, 5)
    write_shard(folder / "00001.tar", 5, 4, damaged=[6])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def test_latents_are_those_that_training_makes(tiny: Pipeline, model: str, shards: Path, tmp_path: Path) -> None:
    events = list(encode(shards, tmp_path / "out", path=model, device="cpu"))
    assert [(event.done, event.total, event.pictures) for event in events] == [(0, 2, 0), (1, 2, 5), (2, 2, 3)]
    ((note,), (place,)) = events[2].left_out, [open_captioned(shards).place(6)]
    assert note == f"1 of 4 pictures cannot be read or encoded, and are left out: {place}"
    (row,) = open_encoded(tmp_path / "out", encoder_digest(tiny.autoencoder)).values()
    found = open_captioned(shards)
    kept = [0, 1, 2, 3, 4, 5, 7, 8]
    ours = latent_pool(tiny.autoencoder, Pictures(found, (32, 32), kept), tmp_path / "latents.safetensors")
    assert len(row) == len(row.latents) == 8
    assert row.latents.shape == ours.shape
    for index, number in enumerate(kept):
        assert torch.allclose(
            row.latents[index].float(), ours[index].float(), rtol=0, atol=2e-3
        )  # two of its last bits
        assert row.caption(index, 3) == found.caption(number)
        assert row.place(index) == found.place(number)


def test_all_ways_to_spread_it_give_the_same_bytes(model: str, shards: Path, tmp_path: Path) -> None:
    def scattered(work: Work, given: Sequence[str]) -> Iterator[Message]:
        """Do the last first, each by a worker that went to another process."""
        for shard in reversed(given):
            yield pickle.loads(pickle.dumps(work))(shard)

    options = {"path": model, "device": "cpu", "texts": True, "buckets": 8}
    list(encode(shards, tmp_path / "one", **options))  # type: ignore[arg-type]
    list(encode(shards, tmp_path / "two", spread=scattered, **options))  # type: ignore[arg-type]
    made = contents(tmp_path / "one")
    assert made == contents(tmp_path / "two")
    assert sum(name.endswith(".jsonl") for name in made) > 4
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    events = list(encode(shards, tmp_path / "one", **options))  # type: ignore[arg-type]
    assert [event.pictures for event in events] == [0, 5, 3]
    assert {path: path.stat().st_mtime_ns for path in times if path.name != ".lock"} == {
        path: time for path, time in times.items() if path.name != ".lock"
    }
    (tmp_path / "two" / "00000_stats.json").unlink()  # as if it had been killed there
    next(path for path in (tmp_path / "two").glob("00000-*.jsonl")).write_text("")
    list(encode(shards, tmp_path / "two", **options))  # type: ignore[arg-type]
    assert made == contents(tmp_path / "two")


@pytest.mark.slow  # processes that import torch, and Ray's
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # Ray warns of its own defaults
@pytest.mark.parametrize("by", ["processes", "ray"])
def test_processes_and_ray_give_the_same_bytes(model: str, shards: Path, tmp_path: Path, by: str) -> None:
    if by == "ray":
        pytest.importorskip("ray")
    options = {"path": model, "device": "cpu", "texts": True}
    list(encode(shards, tmp_path / "one", **options))  # type: ignore[arg-type]
    spread = by_processes(2) if by == "processes" else by_ray()
    list(encode(shards, tmp_path / "many", spread=spread, **options))  # type: ignore[arg-type]
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


@pytest.fixture
def objective(model: str, tmp_path: Path) -> Callable[..., Finetuning]:
    def make(source: str, tables: str = "", base: str = model) -> Finetuning:
        (path := tmp_path / "recipe.toml").write_text(RECIPE.format(base=base, source=source) + tables)
        list(prepare(path, tmp_path / "run"))
        return build(read(path), 3, tmp_path / "run")

    return make


@pytest.mark.parametrize(("xl", "texts"), [(False, False), (True, True)])
@torch.no_grad()
def test_finetuning_learns_from_them_as_from_the_pictures(
    shards: Path,
    tmp_path: Path,
    objective: Callable[..., Finetuning],
    tiny_xl: Pipeline,
    tiny: Pipeline,
    xl: bool,
    texts: bool,
) -> None:
    (tiny_xl if xl else tiny).save(tmp_path / "base")
    base = str(tmp_path / "base")
    write_shard(tmp_path / "00000.tar", 0, 5)
    expected = objective(f'pictures = "{tmp_path}"', "[text]\ncached = true\n" if xl else "", base)
    list(encode(tmp_path, out := tmp_path / "out", path=base, device="cpu", texts=texts))
    ours = objective(f'latents = "{out}"', base=base)
    for step in range(2):
        ((_, loss, _),), ((_, other, _),) = ours.losses(step), expected.losses(step)
        assert loss.item() == pytest.approx(other.item(), rel=1e-4)
        assert ours.keys(step, WHOLE) == expected.keys(step, WHOLE)
    (_, described, _) = ours.batches.items.make(0)
    assert ("tokens" in described) is texts
    assert ("sizes" in described) is xl


def test_a_unet_learns_from_nothing_by_what_was_encoded(workshop: Any, shards: Path, tmp_path: Path) -> None:
    """Its text encoder is told apart by its weights: CLIP's own, which the exported model holds too."""
    whole = workshop.trained("diffusion") / "export"
    list(encode(shards, out := tmp_path / "latents", path=whole, device="cpu", texts=True))
    text = (
        workshop.recipe("diffusion")
        .read_text()
        .replace("pool = 20", f'latents = "{out}"')
        .replace("steps = 6", "steps = 2")
    )
    (path := tmp_path / "unet.toml").write_text(text)
    with pytest.warns(match="beside latents in .data. of the recipe nothing is heard of subset$"):
        assert diffusion.build(read(path), 3, tmp_path / "run").batches.items.make(1)[1].keys() == {"tokens"}
    path.write_text(text.replace('subset = "instruments"\n', ""))
    *_, last = run(path, tmp_path / "run")
    assert 0 < last.metrics["loss"] < 10
    assert (tmp_path / "run/export/model_index.json").is_file()


def test_a_text_encoder_that_learns_sees_captions(
    shards: Path, tmp_path: Path, objective: Callable[..., Finetuning], model: str
) -> None:
    list(encode(shards, tmp_path / "out", path=model, device="cpu", texts=True))
    (_, described, _) = objective(f'latents = "{tmp_path / "out"}"', "[text]\npace = 0.5\n").batches.items.make(0)
    assert described.keys() == {"caption"}


def test_wrong_folders_get_one_line(
    tiny: Pipeline, model: str, shards: Path, tmp_path: Path, objective: Callable[..., Finetuning]
) -> None:
    list(encode(shards, out := tmp_path / "out", path=model, device="cpu"))
    digest = encoder_digest(tiny.autoencoder)
    with pytest.raises(ReverieError, match=r"was encoded by another autoencoder than the recipe's"):
        open_encoded(out, "another")
    with pytest.raises(ReverieError, match=r"was encoded by a model of another family"):
        open_encoded(out, digest, sized=True)
    with pytest.raises(ReverieError, match=r"nothing was encoded into .*make it by `reverie encode SHARDS -o"):
        open_encoded(shards, digest)
    for beside in ("buckets = 8", 'caption = "a bear"'):
        with pytest.raises(ReverieError, match=r"latents in \[data\] are encoded already; leave out other examples"):
            objective(f'latents = "{out}"\n{beside}')
    (tmp_path / "other").mkdir()
    write_shard(tmp_path / "other/7.tar", 0, 1)
    with pytest.raises(
        ReverieError, match=r"holds what was encoded of other shards \(00000_stats.json\); give another"
    ):
        list(encode(tmp_path / "other", out, path=model, device="cpu"))
    with pytest.raises(ReverieError, match="no shards in"):
        list(encode(out, tmp_path / "more", path=model, device="cpu"))
    with pytest.raises(ReverieError, match="`size` 33 is not possible; give a multiple of"):
        list(encode(shards, tmp_path / "more", path=model, device="cpu", size=33))
    (out / "00000.jsonl").write_text("")
    with pytest.raises(ReverieError, match=r"00000_stats.json' and what it tells of cannot be read"):
        open_encoded(out, digest)


def test_encode_says_what_it_did(
    model: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny: Pipeline
) -> None:
    arguments = ["encode", str(shards), "-o", str(tmp_path / "out"), "--model", model, "--device", "cpu", "--texts"]
    assert cli.run(arguments) == 0
    said = capsys.readouterr()
    assert said.out == f"8 pictures of 2 shards encoded in {tmp_path / 'out'}\n"
    assert "1 of 4 pictures cannot be read or encoded, and are left out: at byte" in said.err
    stats = json.loads((tmp_path / "out" / f"00001{encoded.STATS}").read_text())
    assert stats["texts"] == encoders_digest(tiny.text_encoders)
    assert cli.run([*arguments[:4], "--model", str(tmp_path / "none")]) == 2
    assert cli.run(arguments[:-1]) == 0
    assert not [*(tmp_path / "out").glob(f"*{encoded.TEXTS}")]
    capsys.readouterr()
    (shards / "00001.tar").write_bytes(b"no tar" * 200)
    assert cli.run(arguments[:-1]) == 2
    assert "1 of 2 shards gave no pictures; the others are encoded" in capsys.readouterr().err
    assert {path.name[:5] for path in (tmp_path / "out").glob("0*")} == {"00000"}


def test_no_shards_are_told_before_torch_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "reverie.train.encode", None)
    assert cli.run(["encode", str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 2
    assert "no shards in" in capsys.readouterr().err


def test_what_gives_nothing_is_told_and_the_rest_is_encoded(
    tiny: Pipeline, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "shards").mkdir()
    write_shard(folder / "0.tar", 0, 2)
    write_shard(folder / "1.tar", 2, 2, damaged=[2, 3])
    (folder / "2.tar").write_bytes(b"no tar" * 200)
    arguments = ["encode", str(folder), "-o", str(tmp_path / "out"), "--model", model, "--device", "cpu"]
    assert cli.run(arguments) == 2
    said = capsys.readouterr()
    assert said.out.startswith("2 pictures of 3 shards encoded")
    assert "2 of 2 pictures cannot be read or encoded" in said.err
    assert re.search("the shard .*2.tar is damaged or compressed: .*; the shard is left out", said.err)
    assert "2 of 3 shards gave no pictures; the others are encoded" in said.err
    list(encode(folder / "1.tar", tmp_path / "out-1", path=model, device="cpu"))
    list(encode(folder / "0.tar", tmp_path / "out-0", path=model, device="cpu", texts=True))
    digests = encoder_digest(tiny.autoencoder), encoders_digest(tiny.text_encoders)
    (row,) = open_encoded(tmp_path / "out-0", *digests).values()
    assert row.has_texts
    for path in (tmp_path / "out").glob("0*"):
        path.rename(tmp_path / "out-0" / path.name.replace("0", "5", 1))
    (row,) = open_encoded(tmp_path / "out-0", *digests).values()
    assert len(row) == 4
    assert not row.has_texts  # as some shards were encoded without
