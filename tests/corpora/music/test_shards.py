"""Do shards of music hold what was composed, in a layout that is read back?"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reverie.cli.app import run
from reverie.corpora.music.captions import clip_caption
from reverie.corpora.music.clips import clip_at
from reverie.corpora.music.shards import write
from reverie.corpora.music.synth import SECONDS, render
from reverie.data.sounds import open_sounds
from reverie.errors import ReverieError
from reverie.media import sound

pytestmark = pytest.mark.usefixtures("synthesizer")
SEED, COUNT = 5, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, synthesizer: None) -> Path:
    """Give three clips, written by the command."""
    pytest.importorskip("soundfile", reason="needs the extra `sound`")
    folder = tmp_path_factory.mktemp("music")
    assert run(["data", "music", "-o", str(folder), "--count", str(COUNT), "--seed", str(SEED)]) == 0
    return folder


def test_shards_are_read_back(folder: Path) -> None:
    found = open_sounds(folder, SECONDS, sound.duration, sound.read)
    assert len(found) == COUNT
    for index in range(COUNT):
        heard = found.sound(index)
        assert heard.rate == 16_000
        assert np.abs(heard.samples.numpy() - render(clip_at(SEED, index))).max() <= 2**-15  # 16 bits
        assert found.caption(index) == clip_caption(SEED, index)


def test_the_description_says_what_plays(folder: Path) -> None:
    with tarfile.open(folder / "00000.tar") as tar:
        keys = [f"00000000{place}" for place in range(COUNT)]
        assert tar.getnames() == [f"{key}.{extension}" for key in keys for extension in ("flac", "txt", "json")]
        for index, key in enumerate(keys):
            told, clip = json.load(tar.extractfile(f"{key}.json")), clip_at(SEED, index)
            assert (told["key"], told["caption"]) == (key, clip_caption(SEED, index))
            assert (told["style"], told["tempo"], told["mode"]) == (clip.style, clip.tempo, clip.mode)
            assert (told["tonality"], told["drums"]) == (clip.key, clip.has_drums)
            assert tuple(told["instruments"]) == clip.instruments
            assert clip.lead in told["caption_en"].replace("sax ", "saxophone ") or clip.lead == "saxophone"
            assert not told["caption_zh"].isascii()


def raw(samples: NDArray[np.float32], rate: int) -> bytes:
    return samples.tobytes()


def test_the_same_call_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert [event.done for event in write(tmp_path / name, raw, count=2, seed=1)] == [1, 2]
    assert (tmp_path / "one/00000.tar").read_bytes() == (tmp_path / "two/00000.tar").read_bytes()


def test_another_font_is_another_corpus(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ReverieError, match="holds other shards"):
        list(write(folder, raw, count=COUNT, seed=SEED, font=tmp_path / "other.sf2"))
    with pytest.raises(ReverieError, match="cannot read the sound font"):
        list(write(tmp_path / "new", raw, count=1, seed=SEED, font=tmp_path / "none.sf2"))
    assert not list((tmp_path / "new").iterdir())
