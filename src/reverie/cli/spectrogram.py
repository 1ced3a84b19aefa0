"""`reverie spectrogram` and `reverie sound`: a sound as the picture of its spectrogram, and the reverse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reverie.cli.options import Flag, Output, say
from reverie.cli.progress import show_progress
from reverie.files import check_distinct

Stereo = Annotated[bool | None, Parameter(negative="--mono", show_default=False)]


def spectrogram(
    file: Path, /, *, output: Output, stereo: Stereo = None, small: Flag = False, axes: Flag = False
) -> None:
    """Turn a sound into a picture of its spectrogram, as Riffusion's, which `reverie sound` turns back.

    Parameters
    ----------
    file
        A sound: .wav, .flac, .ogg or .mp3.
    output
        Where the picture goes: .png, which is exact, .jpg or .webp.
    stereo
        Draw left in green and right in blue; --mono draws the mean of both; if not given, as the sound is.
    small
        Draw as the bundled music model does, 128 bands up to 8 kHz at 16,000 Hz, instead of as Riffusion does.
    axes
        Draw for people: in colours, with seconds and Hertz. Such a picture does not turn back.
    """
    from reverie.jobs.outputs import check_writable

    check_writable([output], [file])
    from reverie.codecs.spectrograms import plot, to_picture
    from reverie.media import sound
    from reverie.media.pictures import save
    from reverie.music.sections import mel_of_sound
    from reverie.sound.spectrogram import SMALL, SpectrogramParams

    given = sound.read(file)
    params = SMALL if small else SpectrogramParams()
    params = replace(params, stereo=given.channels > 1 if stereo is None else stereo)
    draw = plot if axes else to_picture
    save(draw(mel_of_sound(given, params), params), output)
    say(str(output))


def sound(file: Path, /, *, output: Output, small: Flag = False, loop: Flag = False) -> None:
    """Turn a picture of a spectrogram into a sound, whose peak is at -1 dBFS.

    Parameters
    ----------
    file
        A picture of a spectrogram, made here or by Riffusion.
    output
        Where the sound goes: .wav, .flac, .ogg or .mp3.
    small
        Take a picture that does not tell as one of the bundled music model, instead of as one of Riffusion.
    loop
        Let the end go on at the beginning.
    """
    from reverie.media import sound as sounds

    check_distinct([output], [file])
    sounds.check_writable(output)
    import torch

    from reverie.codecs.spectrograms import from_picture
    from reverie.media.pictures import open_picture
    from reverie.music.sections import sounding
    from reverie.sound.spectrogram import SMALL, Circle, Line, SpectrogramParams

    mel, params = from_picture(open_picture(file), SMALL if small else SpectrogramParams())
    events = sounding(mel, params, Circle if loop else Line)
    pieces = [piece.x for piece in show_progress(events)]
    sounds.write(sounds.Sound(torch.cat(pieces, dim=-1), params.sample_rate).normalised(), output)
    say(str(output))
