"""What the tests of composed music share: a synthesizer where there is one, and what a spectrogram tells."""

from __future__ import annotations

from ctypes.util import find_library

import pytest

from reverie.corpora.music.fluidsynth import FONTS


@pytest.fixture(scope="session")
def synthesizer() -> None:
    """Skip where nothing can be played."""
    if find_library("fluidsynth") is None:
        pytest.skip("needs Debian's libfluidsynth3")
    if not any(font.is_file() for font in FONTS):
        pytest.skip("needs a sound font: Debian's fluid-soundfont-gm or timgm6mb-soundfont")
    pytest.importorskip("soxr", reason="needs the extra `sound`")
