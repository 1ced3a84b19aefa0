"""What comes of a request for music? A sound that knows its spectrogram, and what makes it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from reverie.media import pictures, sound
from reverie.media.sound import Sound
from reverie.requests.music import Music
from reverie.requests.writing import music_texts


@dataclass(frozen=True, eq=False, repr=False)
class Recording(Sound):
    """Hold a clip: a `Sound`, the picture of the spectrogram it came from, its request alone and the model's name."""

    picture: Image.Image
    request: Music
    model: str

    @property
    def texts(self) -> dict[str, str]:
        """Return the tags that its file carries."""
        return music_texts(self.request, self.model)

    def save(self, path: str | Path) -> None:
        """Write the sound (.wav, .flac, .ogg, .mp3) or the picture of its spectrogram, with its request inside."""
        if Path(path).suffix.lower() in pictures.FORMATS:
            pictures.save(self.picture, path)
        else:
            sound.write(self, path, texts=self.texts)
