"""Instruments: programs of General MIDI, their names in English and Chinese, and their registers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Instrument:
    """Name an instrument: English and Chinese names, the usual one first, and its General MIDI program from 0.

    Melodies stay between the MIDI pitches `low` and `high`; middle C is 60.
    """

    en: tuple[str, ...]
    zh: tuple[str, ...]
    program: int
    low: int
    high: int

    @property
    def name(self) -> str:
        """Return what it is called by in INSTRUMENTS and in captions."""
        return self.en[0]


_ALL = (
    Instrument(("piano",), ("钢琴",), 0, 60, 79),
    Instrument(("harpsichord",), ("大键琴",), 6, 60, 79),
    Instrument(("music box",), ("八音盒",), 10, 76, 93),
    Instrument(("vibraphone",), ("颤音琴",), 11, 60, 79),
    Instrument(("marimba",), ("马林巴",), 12, 55, 74),
    Instrument(("xylophone",), ("木琴",), 13, 72, 91),
    Instrument(("organ",), ("管风琴",), 19, 57, 74),
    Instrument(("accordion",), ("手风琴",), 21, 62, 79),
    Instrument(("harmonica",), ("口琴",), 22, 64, 81),
    Instrument(("guitar",), ("吉他",), 24, 52, 71),
    Instrument(("electric guitar",), ("电吉他",), 27, 55, 74),
    Instrument(("distorted guitar",), ("失真吉他",), 30, 50, 67),
    Instrument(("bass",), ("贝斯",), 33, 33, 57),
    Instrument(("slap bass",), ("击弦贝斯",), 36, 33, 57),
    Instrument(("double bass",), ("低音提琴",), 32, 33, 57),
    Instrument(("violin",), ("小提琴",), 40, 64, 83),
    Instrument(("cello",), ("大提琴",), 42, 43, 60),
    Instrument(("strings",), ("弦乐",), 48, 57, 76),
    Instrument(("choir",), ("合唱",), 52, 55, 72),
    Instrument(("harp",), ("竖琴",), 46, 60, 81),
    Instrument(("trumpet",), ("小号",), 56, 60, 77),
    Instrument(("trombone",), ("长号",), 57, 48, 65),
    Instrument(("tuba",), ("大号",), 58, 36, 53),
    Instrument(("horn",), ("圆号",), 60, 50, 67),
    Instrument(("saxophone", "sax"), ("萨克斯",), 65, 55, 74),
    Instrument(("clarinet",), ("单簧管",), 71, 57, 76),
    Instrument(("oboe",), ("双簧管",), 68, 62, 79),
    Instrument(("flute",), ("长笛",), 73, 69, 88),
    Instrument(("panpipes",), ("排箫",), 75, 69, 86),
    Instrument(("synth",), ("合成器",), 81, 57, 76),
    Instrument(("sitar",), ("西塔琴",), 104, 52, 69),
    Instrument(("banjo",), ("班卓琴",), 105, 57, 76),
    Instrument(("koto",), ("筝",), 107, 60, 79),
    Instrument(("kalimba",), ("卡林巴",), 108, 64, 81),
    Instrument(("steelpan",), ("钢鼓",), 114, 62, 79),
)
INSTRUMENTS = {instrument.name: instrument for instrument in _ALL}
BASSES = ("bass", "slap bass", "double bass")
"""Those that play bass lines, alone too, and no melodies."""
