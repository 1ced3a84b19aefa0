"""FluidSynth: notes played by the sampled instruments of a sound font, in process.

Only what the corpus needs is bound: parts are played at once and come apart, dry. Source: FluidSynth 2's headers
fluidsynth/synth.h, settings.h and sfont.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_void_p
from ctypes.util import find_library
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reverie.errors import ReverieError

FONTS = (Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"), Path("/usr/share/sounds/sf2/TimGM6mb.sf2"))
BLOCK = 64  # samples that fluidsynth computes at once: a note starts with the next block
SLOWEST, FASTEST = 8_000, 96_000  # Hz that it computes at
BANK, DRUM_BANK, DRUMS = 0, 128, 1  # of sound fonts; fluid_midi_channel_type's CHANNEL_TYPE_DRUM
PAN, MIDDLE = 10, 64  # the MIDI controller, 0 to 127
LOG_LEVELS = 5  # all silenced: what fails is told by an exception
GLIB_LEVELS = ~3  # G_LOG_LEVEL_MASK
GlibHandler = ctypes.CFUNCTYPE(None, c_char_p, c_int, c_char_p, c_void_p)
FAILED = -1
# Dry: the notes of a clip are what a model shall learn. Nothing else calls in, so nothing is locked.
SETTINGS = {"lock-memory": 0, "threadsafe-api": 0, "reverb.active": 0, "chorus.active": 0, "polyphony": 96}
SIGNATURES: dict[str, tuple[Any, ...]] = {  # what is returned, then the arguments
    "new_fluid_settings": (c_void_p,),
    "fluid_settings_setint": (c_int, c_void_p, c_char_p, c_int),
    "fluid_settings_setnum": (c_int, c_void_p, c_char_p, c_double),
    "fluid_set_log_function": (c_void_p, c_int, c_void_p, c_void_p),
    "new_fluid_synth": (c_void_p, c_void_p),
    "delete_fluid_synth": (None, c_void_p),
    "fluid_synth_sfload": (c_int, c_void_p, c_char_p, c_int),
    "fluid_synth_get_sfont_by_id": (c_void_p, c_void_p, c_int),
    "fluid_synth_add_sfont": (c_int, c_void_p, c_void_p),
    "fluid_synth_remove_sfont": (c_int, c_void_p, c_void_p),
    "fluid_synth_set_channel_type": (c_int, c_void_p, c_int, c_int),
    "fluid_synth_program_select": (c_int, c_void_p, c_int, c_int, c_int, c_int),
    "fluid_synth_cc": (c_int, c_void_p, c_int, c_int, c_int),
    "fluid_synth_noteon": (c_int, c_void_p, c_int, c_int, c_int),
    "fluid_synth_noteoff": (c_int, c_void_p, c_int, c_int),
    "fluid_synth_nwrite_float": (c_int, c_void_p, c_int, *[POINTER(POINTER(c_float))] * 4),
}


class Key(NamedTuple):
    """Press a key from one sample to another, at a velocity of 1 to 127."""

    start: int
    end: int
    pitch: int
    velocity: int


@dataclass(frozen=True)
class InstrumentPart:
    """Give one instrument what it plays; `pan` goes from 0, left, to 127. Of a drum kit each key is a drum."""

    program: int
    keys: tuple[Key, ...]
    is_kit: bool = False
    pan: int = MIDDLE


def default_font() -> Path:
    """Return the first sound font of FONTS that is installed. Raises ReverieError where none is."""
    found = next(filter(Path.is_file, FONTS), None)
    if found is None:
        raise ReverieError("no sound font; install the Debian package fluid-soundfont-gm, or name a .sf2 file")
    return found


def play(font: Path, rate: int, length: int, parts: Sequence[InstrumentPart]) -> NDArray[np.float32]:
    """Play parts at once for `length` samples: (parts, 2, length), each part alone; one thread at a time.

    Raises ReverieError where fluidsynth or the font is missing, or the font has not the instruments.
    """
    library, blocks = _library(), -(-length // BLOCK)
    played = np.zeros((len(parts), 2, blocks * BLOCK), np.float32)
    with _synth(font, rate, len(parts)) as (synth, number):
        for channel, part in enumerate(parts):
            library.fluid_synth_set_channel_type(synth, channel, DRUMS if part.is_kit else 0)
            bank = DRUM_BANK if part.is_kit else BANK
            if library.fluid_synth_program_select(synth, channel, number, bank, part.program) == FAILED:
                raise ReverieError(f"the sound font {font} has no program {part.program} in bank {bank}; name another")
            library.fluid_synth_cc(synth, channel, PAN, part.pan)
        now = 0
        for block, is_start, channel, key in _events(parts):
            if block >= blocks:
                break
            _write(synth, played, now * BLOCK, (block - now) * BLOCK)
            now = block
            if is_start:
                library.fluid_synth_noteon(synth, channel, key.pitch, key.velocity)
            else:
                library.fluid_synth_noteoff(synth, channel, key.pitch)
        _write(synth, played, now * BLOCK, (blocks - now) * BLOCK)
    return played[..., :length]


def _events(parts: Sequence[InstrumentPart]) -> list[tuple[int, bool, int, Key]]:
    """Sort what is pressed and let go by its block; what ends in a block ends before what starts in it."""
    events = []
    for channel, part in enumerate(parts):
        for key in part.keys:
            start = round(key.start / BLOCK)
            events.append((start, True, channel, key))
            events.append((max(start + 1, round(key.end / BLOCK)), False, channel, key))
    return sorted(events)


def _write(synth: int, played: NDArray[np.float32], start: int, count: int) -> None:
    """Compute the next samples into place: fluidsynth takes an array of pointers for each side."""
    if count:
        sides = []
        for side in range(2):
            places = [part[side, start:].ctypes.data_as(POINTER(c_float)) for part in played]
            sides.append((POINTER(c_float) * len(places))(*places))
        _library().fluid_synth_nwrite_float(synth, count, *sides, None, None)


@contextmanager
def _synth(font: Path, rate: int, parts: int) -> Iterator[tuple[int, int]]:
    """Make a synthesizer that has played nothing yet, which alone makes it repeat to the bit, and lend it the font.

    Yields it and the font's number in it. Resetting a used one leaves released notes sounding (FluidSynth 2.3).
    """
    library = _library()
    loaded = _load(font)
    synth = library.new_fluid_synth(_settings(rate, parts))
    try:
        yield synth, library.fluid_synth_add_sfont(synth, loaded)
    finally:
        library.fluid_synth_remove_sfont(synth, loaded)
        library.delete_fluid_synth(synth)


@cache
def _settings(rate: int, parts: int) -> int:
    if not SLOWEST <= rate <= FASTEST:
        raise ReverieError(f"fluidsynth does not compute at {rate} Hz; {SLOWEST} to {FASTEST} Hz are possible")
    library = _library()
    settings = library.new_fluid_settings()
    for name, value in (SETTINGS | {"audio-channels": parts, "audio-groups": parts}).items():
        library.fluid_settings_setint(settings, f"synth.{name}".encode(), value)
    library.fluid_settings_setnum(settings, b"synth.sample-rate", rate)
    return settings


@cache
def _load(font: Path) -> int:
    """Load a sound font once; it stays in memory, on the shelf of a synthesizer that plays nothing."""
    library = _library()
    shelf = library.new_fluid_synth(library.new_fluid_settings())
    with _glib_silenced():
        number = library.fluid_synth_sfload(shelf, str(font).encode(), 0)
    if number == FAILED:
        raise ReverieError(f"cannot read the sound font {font}; name a .sf2 file, such as FluidR3_GM.sf2")
    return library.fluid_synth_get_sfont_by_id(shelf, number)


@contextmanager
def _glib_silenced() -> Iterator[None]:
    """Silence libinstpatch, which fluidsynth asks where it cannot read a font, and which complains through GLib."""
    name = find_library("glib-2.0")
    if name is None:
        yield
        return
    glib, silent = ctypes.CDLL(name), GlibHandler(lambda *_: None)
    glib.g_log_set_handler.argtypes = (c_char_p, c_int, GlibHandler, c_void_p)
    number = glib.g_log_set_handler(None, GLIB_LEVELS, silent, None)
    try:
        yield
    finally:
        glib.g_log_remove_handler(None, number)


@cache
def _library() -> ctypes.CDLL:
    name = find_library("fluidsynth")
    if name is None:
        raise ReverieError("playing music needs fluidsynth 2; install the Debian package libfluidsynth3")
    library = ctypes.CDLL(name)
    for function, (returned, *arguments) in SIGNATURES.items():
        getattr(library, function).restype, getattr(library, function).argtypes = returned, arguments
    for level in range(LOG_LEVELS):
        library.fluid_set_log_function(level, None, None)
    return library
