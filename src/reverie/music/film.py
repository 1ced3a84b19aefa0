"""Films to music: a keyframe stands on every downbeat, and the sound moves the pictures between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reverie.animation.beat import DRIVES
from reverie.animation.draw import Frame, animate
from reverie.animation.timeline import SECONDS
from reverie.music.sections import Recording
from reverie.requests.base import MAX_SEED
from reverie.requests.films import Animation, Keyframe
from reverie.requests.music import Film, Music
from reverie.requests.references import SoundFile
from reverie.system import StableDiffusion

# The sound itself is given to the drawing beside the request.
HEARD = SoundFile.model_construct(sha256="")


def frames(system: StableDiffusion, clip: Recording, film: Film = Film()) -> Iterator[Frame]:
    """Draw the film to a clip and yield its frames; it lasts as long as the clip. See `animation.draw.animate`."""
    return animate(system, animation(clip.request, clip.seconds, film), heard=clip if film.move in DRIVES else None)


def animation(music: Music, seconds: float, film: Film) -> Animation:
    """Return the film to music that lasts so long, as a request for pictures."""
    count = max(2, round(seconds * film.fps))
    paced: dict[str, object] = {"audio": HEARD} if film.move in DRIVES else {"easing": film.move}
    if film.move in DRIVES:
        paced["drive"] = film.move
    return Animation.of(
        {
            "keyframes": _keyframes(music, film, count),
            "negative": film.negative,
            "seed": film.seed if film.seed is not None else music.seed,
            "fps": film.fps,
            "seconds": count / film.fps,
            "steps": film.steps,
            "guidance": film.guidance,
            "width": film.width,
            "height": film.height,
            "loop": music.loop,
            **paced,
        }
    )


def _keyframes(music: Music, film: Film, count: int) -> list[Keyframe]:
    """Put a keyframe on the frame nearest to each downbeat, and on the last where the film does not loop.

    The prompt is the one whose place on the way is nearest; each keyframe takes the next seed.
    """
    bar = (music.bar or SECONDS) * film.fps
    frames = [round(k * bar) for k in range(1 + int((count - 1) / bar))]
    if not music.loop and count - 1 > frames[-1]:
        frames.append(count - 1)
    first = film.seed if film.seed is not None else music.seed
    prompts = film.prompts or prompts_of(music)
    last = len(prompts) - 1
    return [
        Keyframe(prompt=prompts[round(last * frame / count)], seed=(first + k) % (MAX_SEED + 1), time=frame / film.fps)
        for k, frame in enumerate(frames)
    ]


def prompts_of(music: Music) -> Sequence[str]:
    """Return the prompts that the music passes: all of a walk's, else the nearest to where it stands."""
    prompts = [music.prompt, *(stop.prompt for stop in music.to)]
    return prompts if music.walk is not None else prompts[round(music.place) :][:1]
