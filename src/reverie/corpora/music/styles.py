"""Styles of music: metre and feel, patterns of drums, bass and chords, harmonies and instruments.

A pattern is one bar in equal steps, as in a tracker: "X" is played loud, "x" softer, "-" holds on, "." is silent. A
bass plays the tone of the chord that its figure names: 1 the root, 3, 5, and 8 the root an octave up. Melodies and
basses sound on every beat, and on some of what lies between, so that the tempo can be heard without drums.
"""

from __future__ import annotations

from dataclasses import dataclass

KICK, STICK, SNARE, CLAP, HAT, PEDAL, OPEN, RIDE = 36, 37, 38, 39, 42, 44, 46, 51  # General MIDI's keys of a drum kit
STRAIGHT, SWUNG = 1 / 2, 2 / 3
ACOUSTIC, POWER, ELECTRONIC, JAZZ = 0, 16, 24, 32  # programs of drum kits


@dataclass(frozen=True)
class Style:
    """Describe a style; `feel` is where in a beat its second half starts, where a beat has two steps."""

    en: tuple[str, ...]
    zh: tuple[str, ...]
    major: tuple[str, ...]  # chords in Roman numerals, one a bar
    minor: tuple[str, ...]
    kit: int
    drums: dict[int, str]
    bass: tuple[str, ...]
    chords: str
    melody: tuple[str, ...]
    comping: tuple[str, ...]  # instruments for chords
    basses: tuple[str, ...]
    metre: int = 4  # beats in a bar
    feel: float = STRAIGHT

    @property
    def name(self) -> str:
        """Return what it is called by in STYLES and in captions."""
        return self.en[0]


_ALL = (
    Style(
        en=("funk",),
        zh=("放克",),
        major=("I7 I7 IV7 I7", "I7 bVII I7 IV7"),
        minor=("i7 i7 IV7 i7", "i7 bVII i7 IV7"),
        kit=ACOUSTIC,
        drums={KICK: "X..x..x...x.....", SNARE: "....X..x....X...", HAT: "X.xxX.x.X.xxX.x."},
        bass=("1-.18.1-5-.51-3.", "1-.11-8-1-.35-5."),
        chords="X...x..x..x.x...",
        melody=("X-.xX-x.X-.xX-..", "X-x.X-.xX-x.X-.x"),
        comping=("electric guitar", "piano"),
        basses=("slap bass", "bass"),
    ),
    Style(
        en=("jazz", "swing"),
        zh=("爵士",),
        major=("Imaj7 vi7 ii7 V7", "Imaj7 ii7 V7 Imaj7"),
        minor=("i7 iiø7 V7 i7", "i7 iv7 V7 i7"),
        kit=JAZZ,
        drums={KICK: "x.......", PEDAL: "..X...X.", RIDE: "X.XxX.Xx"},
        bass=("1-3-5-8-", "8-5-3-5-"),
        chords="X-.x....",
        melody=("X-xxX-xx", "XxX-XxX-"),
        comping=("piano", "vibraphone", "guitar"),
        basses=("double bass", "bass"),
        feel=SWUNG,
    ),
    Style(
        en=("rock",),
        zh=("摇滚",),
        major=("I bVII IV I", "I IV V IV"),
        minor=("i bVI bVII i", "i bVII bVI bVII"),
        kit=POWER,
        drums={KICK: "X...XX..", SNARE: "..X...X.", HAT: "XxXxXxXx"},
        bass=("1-111-11", "1-111-15"),
        chords="X---X-X-",
        melody=("X-X-X-xx", "X-xxX-X-"),
        comping=("distorted guitar", "electric guitar"),
        basses=("bass", "slap bass"),
    ),
    Style(
        en=("bossa nova",),
        zh=("波萨诺瓦",),
        major=("Imaj7 II7 ii7 V7", "Imaj7 vi7 ii7 V7"),
        minor=("i7 iiø7 V7 i7", "i7 iv7 V7 i7"),
        kit=ACOUSTIC,
        drums={KICK: "X..xX..xX..xX..x", STICK: "x..x..x...x..x..", HAT: "X.x.X.x.X.x.X.x."},
        bass=("1-.15-.51-.15-.5",),
        chords="X--x--x---x-X---",
        melody=("X-.xX-x.X-.xX-..", "X-x.X-.xX-..X-.x"),
        comping=("guitar", "piano"),
        basses=("double bass", "bass"),
    ),
    Style(
        en=("waltz",),
        zh=("华尔兹",),
        major=("I V7 V7 I", "I IV V7 I"),
        minor=("i V7 V7 i", "i iv V7 i"),
        kit=ACOUSTIC,
        drums={KICK: "X.....", STICK: "..x.x.", PEDAL: "..x.x."},
        bass=("1-5-5-", "1-3-5-"),
        chords="..X-x-",
        melody=("X-x-xx", "X-xxx-"),
        comping=("accordion", "strings", "piano"),
        basses=("double bass", "tuba"),
        metre=3,
    ),
    Style(
        en=("techno",),
        zh=("电子",),
        major=("I I bVII IV", "I V vi IV"),
        minor=("i i bVI bVII", "i bVI bIII bVII"),
        kit=ELECTRONIC,
        drums={KICK: "X...X...X...X...", CLAP: "....X.......X...", OPEN: "..X...X...X...X.", HAT: "x.xxx.xxx.xxx.xx"},
        bass=("1.811.811.811.81",),
        chords="..X...X...X...X.",
        melody=("X.xxX.x.X.xxX.x.", "X.x.X.xxX.x.X.xx"),
        comping=("synth", "strings"),
        basses=("bass", "slap bass"),
    ),
    Style(
        en=("ballad",),
        zh=("抒情",),
        major=("I V vi IV", "I vi IV V"),
        minor=("i bVI bIII bVII", "i iv bVI V"),
        kit=ACOUSTIC,
        drums={KICK: "X...x...", STICK: "..X...X.", RIDE: "X.x.X.x."},
        bass=("1-1-5-5-", "1-5-8-5-"),
        chords="X---x---",
        melody=("X-X-X-X-", "X-X-X-xx"),
        comping=("piano", "guitar", "strings"),
        basses=("bass", "double bass"),
    ),
    Style(
        en=("blues",),
        zh=("布鲁斯",),
        major=("I7 I7 IV7 I7", "I7 IV7 I7 V7"),
        minor=("i7 i7 iv7 i7", "i7 iv7 i7 V7"),
        kit=ACOUSTIC,
        drums={KICK: "X...X...", SNARE: "..X...X.", RIDE: "XxXxXxXx"},
        bass=("1-113-35", "1-115-53"),
        chords="X-.xX-.x",
        melody=("X-XxX-Xx", "X-X-XxXx"),
        comping=("piano", "electric guitar"),
        basses=("bass", "double bass"),
        feel=SWUNG,
    ),
)
STYLES = {style.name: style for style in _ALL}


@dataclass(frozen=True)
class DrumHit:
    """Place a sign of a pattern: where it starts and how long it is held, in beats."""

    start: float
    length: float
    sign: str


def hits(pattern: str, metre: int, feel: float) -> list[DrumHit]:
    """Read a bar's pattern."""
    steps = len(pattern) // metre  # in a beat
    within = (0.0, feel) if steps == 2 else tuple(step / steps for step in range(steps))
    starts = [place // steps + within[place % steps] for place in range(len(pattern))] + [float(metre)]
    found = []
    for place, sign in enumerate(pattern):
        if sign not in ".-":
            rest = pattern[place + 1 :]
            end = place + 1 + len(rest) - len(rest.lstrip("-"))
            found.append(DrumHit(starts[place], starts[end] - starts[place], sign))
    return found
