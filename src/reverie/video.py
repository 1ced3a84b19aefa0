"""Films written and read: `reverie.video.write(frames, "film.mp4", fps)`, and what else concerns film files."""

from reverie.media.footage import Footage, carried, evenly, read
from reverie.media.video import check, recording, write

__all__ = ["Footage", "carried", "check", "evenly", "read", "recording", "write"]
