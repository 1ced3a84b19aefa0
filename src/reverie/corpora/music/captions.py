"""Captions of music clips, in English and in Chinese: the lead always; style, tempo, mode and drums often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from reverie.corpora.music.clips import clip_at
from reverie.corpora.music.instruments import INSTRUMENTS
from reverie.corpora.music.score import MusicClip
from reverie.corpora.music.styles import STYLES

CHINESE_SHARE = 0.3
SLOW, FAST = 90, 120  # beats a minute, below and above which a tempo is called so
TEMPO_WORDS = {"slow": "慢速", "medium": "中速", "fast": "快速"}
MODE_WORDS = {"major": "大调", "minor": "小调"}
ENGLISH = ("solo", "with", "and", "drums", "no", "bpm")
CHINESE = ("独奏", "和", "有鼓", "无鼓", "鼓", "拍", "每分钟")
STYLE_SHARE, MODE_SHARE, NO_DRUMS_SHARE, SOLO_SHARE = 0.85, 0.5, 0.4, 0.7
BPM_SHARE, WORD_SHARE = 0.55, 0.3  # of captions that give the tempo as a number, or as a word


def caption(clip: MusicClip, rng: np.random.Generator, chinese_share: float = CHINESE_SHARE) -> str:
    """Tell a clip in one of the two languages."""
    return (chinese if rng.random() < chinese_share else english)(clip, rng)


def english(clip: MusicClip, rng: np.random.Generator) -> str:
    """Tell a clip in English: at most 14 words, such as "jazz saxophone with piano and drums, 112 bpm, minor"."""
    lead, *others = (_pick(INSTRUMENTS[name].en, rng) for name in clip.instruments)
    style = _pick(clip.manner.en, rng) if rng.random() < STYLE_SHARE else ""
    if clip.bass and not clip.chords and rng.integers(2):  # who leads is named first, or after a bass
        players = f"{others[0]} and {lead}{' with drums' if clip.has_drums else ''}"
    else:
        beside = others + ["drums"] * clip.has_drums
        players = f"{lead} with {_enumerate(beside)}" if beside else lead
    if clip.is_solo and rng.random() < SOLO_SHARE:
        players += " solo"
    no_drums = not clip.has_drums and rng.random() < NO_DRUMS_SHARE
    details = [*_tempo(clip, rng, "{} bpm", tempo_word(clip.tempo)), *[clip.mode] * (rng.random() < MODE_SHARE)]
    return ", ".join([f"{style} {players}".strip(), *["no drums"] * no_drums, *details])


def chinese(clip: MusicClip, rng: np.random.Generator) -> str:
    """Tell a clip in Chinese, such as "放克贝斯和萨克斯，有鼓，每分钟112拍"."""
    lead, *others = (_pick(INSTRUMENTS[name].zh, rng) for name in clip.instruments)
    style = _pick(clip.manner.zh, rng) if rng.random() < STYLE_SHARE else ""
    bass_first = bool(clip.bass) and not clip.chords and rng.integers(2)
    players = "和".join([*others, lead] if bass_first else [lead, *others])
    if clip.is_solo and rng.random() < SOLO_SHARE:
        players += "独奏"
    drums = ["有鼓"] if clip.has_drums else ["无鼓"] * (rng.random() < NO_DRUMS_SHARE)
    form = ("每分钟{}拍", "{}拍")[rng.integers(2)]
    details = [
        *_tempo(clip, rng, form, TEMPO_WORDS[tempo_word(clip.tempo)]),
        *[MODE_WORDS[clip.mode]] * (rng.random() < MODE_SHARE),
    ]
    return "，".join([style + players, *drums, *details])


def clip_caption(seed: int, index: int, variant: int = 0) -> str:
    """Tell clip `index` of the stream `seed` in words; every `variant` tells it anew."""
    return caption(clip_at(seed, index), telling(seed, index, variant))


def telling(seed: int, index: int, variant: int = 0) -> np.random.Generator:
    """Return the random numbers that choose the words for clip `index` of the stream `seed`."""
    return np.random.default_rng((seed, index, 2, variant))


def captions(count: int, seed: int = 0) -> Iterator[str]:
    """Tell the first clips of a stream, to train a tokenizer on."""
    return (clip_caption(seed, index) for index in range(count))


def vocabulary() -> list[str]:
    """Return all words of the captions, sorted: the single words of English, the whole terms of Chinese."""
    names = [(it.en, it.zh) for it in INSTRUMENTS.values()] + [(it.en, it.zh) for it in STYLES.values()]
    words = {word for en, _ in names for name in en for word in name.split()}
    terms = {term for _, zh in names for term in zh}
    details = TEMPO_WORDS | MODE_WORDS
    return sorted(words | terms | {*ENGLISH, *CHINESE, *details, *details.values()})


def tempo_word(tempo: int) -> str:
    """Call a tempo slow, medium or fast."""
    return "slow" if tempo < SLOW else "fast" if tempo > FAST else "medium"


def _tempo(clip: MusicClip, rng: np.random.Generator, form: str, word: str) -> list[str]:
    """Tell the tempo as a number, as a word or not at all."""
    chance = rng.random()
    return [form.format(clip.tempo)] if chance < BPM_SHARE else [word] * (chance < BPM_SHARE + WORD_SHARE)


def _enumerate(names: Sequence[str]) -> str:
    """Write "a", "a and b" or "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _pick(names: tuple[str, ...], rng: np.random.Generator) -> str:
    return names[rng.integers(len(names))]
