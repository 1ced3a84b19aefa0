"""Random access to the clips of a captioned collection of sounds; long files are cut into clips of one length.

How a sound file is read is given: `codecs.sound` has the functions, which stands to the right of this room.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from reverie.data.captioned import Content, Located, locate

SOUNDS = ("wav", "flac", "ogg", "mp3")
Cut = TypeVar("Cut")


class CaptionedSounds(Generic[Cut]):
    """Read clips of `seconds` from a collection of files, numbered from 0; those of one file follow each other.

    A file gives as many clips as fit, and one more where half a clip or more is left, which silence fills up; a file
    that is shorter gives one. `duration` says how many seconds a file lasts, `cut` reads from a second on, so long.
    """

    def __init__(
        self,
        found: Located,
        seconds: float,
        duration: Callable[[Content], float],
        cut: Callable[[Content, float, float], Cut],
    ) -> None:
        self.found, self.seconds, self.cut = found, seconds, cut
        counts = [max(1, int(duration(found.content(index)) / seconds + 0.5)) for index in range(len(found))]
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def identity(self) -> list[object]:
        """Return which files it is made of, when they were last changed, and how they are cut."""
        return [self.seconds, *self.found.identity]

    def caption(self, index: int) -> str:
        """Return the caption of the file that a clip is cut from."""
        return self.found.caption(self._place(index)[0])

    def sound(self, index: int) -> Cut:
        """Read a clip. Raises ReverieError, naming its file, where it cannot be read."""
        file, clip = self._place(index)
        return self.cut(self.found.content(file), clip * self.seconds, self.seconds)

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of the file, and of the clip in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = int(np.searchsorted(self.ends, index, side="right"))
        return file, index - (int(self.ends[file - 1]) if file else 0)


def open_sounds(
    path: str | Path,
    seconds: float,
    duration: Callable[[Content], float],
    cut: Callable[[Content, float, float], Cut],
    default: str = "",
) -> CaptionedSounds[Cut]:
    """Open a folder of shards, one shard, a folder of sounds with captions, or a list of them (`located.locate`).

    A sound of a folder that has no caption has the `default`, or is left out where that is empty. Raises ReverieError
    where there is no captioned sound, or one, a list or a shard is damaged.
    """
    return CaptionedSounds(locate(path, "sounds", SOUNDS, default), seconds, duration, cut)
