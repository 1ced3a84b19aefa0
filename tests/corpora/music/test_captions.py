"""Do captions in both languages name what sounds, in few words of a small vocabulary?"""

from __future__ import annotations

import re

import numpy as np
import pytest

from reverie.corpora.music.captions import (
    captions,
    chinese,
    clip_caption,
    english,
    tempo_word,
    vocabulary,
)
from reverie.corpora.music.clips import TEMPOS, clip_at
from reverie.corpora.music.instruments import INSTRUMENTS
from reverie.corpora.music.score import MusicClip

CLIPS = [clip_at(8, index) for index in range(250)]
ROOM = 24 - 2  # tokens of the text encoder, less the first and the last
MANNERS_ZH = {"funk": "放克", "jazz": "爵士", "rock": "摇滚", "bossa nova": "波萨诺瓦", "waltz": "华尔兹"}
MANNERS_ZH |= {"techno": "电子", "ballad": "抒情", "blues": "布鲁斯"}


def terms(text: str) -> list[str]:
    """Cut Chinese into the longest words of the vocabulary; what is in none stays a letter."""
    words = sorted(vocabulary(), key=len, reverse=True)
    return re.findall("|".join(map(re.escape, words)) + "|.", text)


def test_english_names_what_sounds() -> None:
    rng = np.random.default_rng(0)
    for clip in CLIPS:
        text = english(clip, rng)
        for name in clip.instruments:
            assert any(re.search(rf"\b{said}\b", text) for said in INSTRUMENTS[name].en)
        assert ("drums" in text and "no drums" not in text) == clip.has_drums
        assert not ("no drums" in text and clip.has_drums)
        assert "solo" not in text or clip.is_solo
        head, *details = text.split(", ") if not clip.chords else (text, *text.split(", ")[1:])
        assert any(said in head for said in INSTRUMENTS[clip.lead].en)
        for detail in details:
            if match := re.fullmatch(r"(\d+) bpm", detail):
                assert int(match[1]) == clip.tempo
            if detail in ("slow", "medium", "fast"):
                assert detail == {72: "slow", 84: "slow", 96: "medium", 112: "medium"}.get(clip.tempo, "fast")
            if detail in ("major", "minor"):
                assert detail == clip.mode


def test_chinese_names_what_sounds() -> None:
    rng = np.random.default_rng(0)
    for clip in CLIPS:
        said = terms(chinese(clip, rng))
        for name in clip.instruments:
            assert set(INSTRUMENTS[name].zh) & set(said)
        assert ("有鼓" in said) == clip.has_drums
        assert not ("无鼓" in said and clip.has_drums)
        assert "独奏" not in said or clip.is_solo
        assert not set(MANNERS_ZH.values()) & set(said) - {MANNERS_ZH[clip.style]}
        assert (
            not {"大调": "minor", "小调": "major"}.keys() & set(said)
            or {"major": "大调", "minor": "小调"}[clip.mode] in said
        )
        number = "".join(letter for letter in said if letter.isdigit())
        assert number in ("", str(clip.tempo))
        slow = {"慢速": (72, 84), "中速": (96, 112), "快速": (128, 144)}
        assert all(clip.tempo in slow[word] for word in said if word in slow)


def test_captions_are_short_and_of_the_vocabulary() -> None:
    rng, known = np.random.default_rng(1), set(vocabulary())
    for clip in CLIPS:
        text = english(clip, rng)
        assert len(text.split()) <= 14
        tokens = re.findall(r"[a-z]+|\d|,", text)
        assert "".join(tokens) == text.replace(" ", "")
        assert len(tokens) <= ROOM
        assert {token for token in tokens if token.isalpha()} <= known
        assert all(term in known or term.isdigit() or term == "，" for term in terms(chinese(clip, rng)))
    assert len(known) < 130


def test_who_leads_is_named_first_or_after_a_bass() -> None:
    clip = MusicClip("funk", 112, 0, "major", "saxophone", bass="slap bass", has_drums=True)
    rng = np.random.default_rng(0)
    said = {re.sub(r"^funk |, .*", "", english(clip, rng)).replace("sax ", "saxophone ") for _ in range(60)}
    assert said == {"saxophone with slap bass and drums", "slap bass and saxophone with drums"}
    clip = MusicClip("blues", 112, 0, "major", "piano", chords="guitar", bass="bass")
    for _ in range(40):
        text = english(clip, rng)
        assert text.index("piano") < text.index("guitar") < text.index(" bass")


@pytest.mark.parametrize("language", [english, chinese])
def test_everything_is_often_told(language: object) -> None:
    """Each in at least a third of the captions of a solo."""
    rng = np.random.default_rng(0)
    clip = MusicClip("jazz", 72, 9, "minor", "saxophone")
    texts = [language(clip, rng) for _ in range(300)]
    for word in ("jazz|swing|爵士", "solo|独奏", "minor|小调", "72", "no drums|无鼓"):
        assert 100 < sum(bool(re.search(word, text)) for text in texts) < 290
    assert sum(bool(re.search("slow|慢速", text)) for text in texts) > 60


def test_captions_are_pure() -> None:
    stream = list(captions(40, seed=6))
    assert stream == [clip_caption(6, index) for index in range(40)]
    assert 2 < sum(text.isascii() for text in stream) < 38  # both languages
    assert len({clip_caption(6, 0, variant) for variant in range(20)}) > 5


def test_words_for_tempos() -> None:
    assert [tempo_word(tempo) for tempo in TEMPOS] == ["slow", "slow", "medium", "medium", "fast", "fast"]
