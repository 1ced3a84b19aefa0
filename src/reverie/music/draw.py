"""From a request to music: latents denoised in windows, all of them decoded, and given their phases; and films to it.

In a film a keyframe stands on every downbeat, and the sound moves the pictures between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.animation.draw import Frame, animate
from reverie.animation.path import lora_tags
from reverie.animation.timeline import DRIVES, SECONDS
from reverie.codecs.image import ImageCodec, to_pictures
from reverie.codecs.spectrograms import LIGHT, add_tags, from_greys
from reverie.diffusion.denoiser import Denoise
from reverie.diffusion.guidance import hold_known
from reverie.diffusion.samplers import pick_sampler
from reverie.diffusion.step import Sigmas
from reverie.errors import ReverieError
from reverie.generate.conditioning import adapter_notes, follow_recommended
from reverie.generate.modified import Modification, in_turn, modify
from reverie.generate.notes import model_limits
from reverie.generate.sample import SAME, noise_levels, sample
from reverie.media.pictures import REQUEST
from reverie.media.sound import Sound
from reverie.music.plan import MusicPlan, plan
from reverie.music.sections import Recording, decode_levels
from reverie.music.windows import ClipNoise, Given, Ground, Way, denoiser, encode_stops, lay_ground, read_given
from reverie.progress import Progress
from reverie.requests.base import MAX_SEED, steps_taken
from reverie.requests.films import Animation, Keyframe
from reverie.requests.music import Film, Music
from reverie.requests.pictures import TextToImage
from reverie.requests.records import texts
from reverie.requests.references import SoundFile
from reverie.sound.spectrogram import SpectrogramParams
from reverie.system import StableDiffusion


@dataclass(frozen=True, eq=False)
class MusicStep(Progress):
    """A step of a request's playing, of `total` over all its clips.

    `latents` are the sampler's present guess of the clip at work, clean and scaled. `clip` is what the step finished:
    None, but in the last step of each clip.
    """

    latents: Float[Tensor, "1 c h w"]
    clip: Recording | None = None


@dataclass(frozen=True, eq=False)
class ClipRun:
    """Hold everything that the clips of a request share."""

    system: StableDiffusion
    music: Music
    plan: MusicPlan
    images: ImageCodec
    shared: TextToImage
    way: Way
    ground: Ground | None
    sigmas: Sigmas

    @property
    def last(self) -> int:
        """Return the last stop's number."""
        return len(self.way.settings) - 1

    def clip_places(self) -> list[float]:
        """Return where on the way each clip is."""
        if self.music.walk is None:
            return [self.music.place]
        return [k * self.last / (self.plan.clips - 1) for k in range(self.plan.clips)]

    def window_places(self) -> list[float]:
        """Return where on the way the middle of each window is."""
        if self.music.walk is None:
            return [self.music.place] * len(self.plan.windows)
        return [self.last * self.plan.part(centre) for centre in self.plan.windows.centres]

    def noise(self, single: Music) -> ClipNoise:
        """Return the noise of one clip of the count."""
        seeds = [stop.seed or 0 for stop in single.stops]
        shape = self.images.latent_shape(self.shared.width or 0, self.shared.height or 0)
        return ClipNoise(seeds, shape, self.plan, self.clip_places(), self.system.device)

    def begin(self) -> Float[Tensor, "1 c h w"] | None:
        """Return the clean latents that are noised to begin with; None begins with noise alone."""
        strength = self.way.at(self.music.place).strength
        return self.ground.latents if self.ground is not None and strength < 1 else None

    def denoiser(self, noise: ClipNoise) -> Denoise:
        """Build the denoiser: in windows, each told what holds there, and held where the mask is dark."""
        places = self.window_places()
        settings = {place: self.way.at(place) for place in set(places)}
        windows = (self.plan.windows, [settings[place] for place in places])
        denoise = denoiser(self.system, self.shared, self.sigmas, *windows)
        cells = None if self.ground is None else self.ground.cells(self.plan.factor)
        if self.ground is None or cells is None:
            return denoise
        below = math.inf if self.begin() is not None else self.sigmas[0].item() * (1 - SAME)
        return hold_known(denoise, cells, self.ground.latents, noise.initial(), below)


def stream(system: StableDiffusion, music: Music) -> Iterator[MusicStep]:
    """Play a request's clips and yield every step; closing the generator stops the work.

    Clip k is the one that the seeds + k alone give: they are drawn one after another, the windows of each together.
    Drawings of one model take turns, see `generate.modified`. Raises ReverieError, before any work, for a model that
    draws no spectrograms and for sounds that cannot be read.
    """
    params, music = hearing(system), follow_recommended(system, music)
    given = read_given(music, params)
    laid = plan(music, params, system.codec.factor, None if given is None else given.samples)
    shared, coders = _shared_request(music, laid), (system.autoencoder.encoder, system.autoencoder.decoder)
    changes = modify(system, shared, edges=(coders, laid.axes))
    return in_turn(changes, partial(_play, system, music, shared, laid, given))


def hearing(system: StableDiffusion) -> SpectrogramParams:
    """Return how a model hears: as it says, else as Riffusion's does.

    Raises ReverieError for one whose pictures are no spectrograms of that.
    """
    params = system.spectrogram or SpectrogramParams()
    if system.spectrogram is None and system.size != params.mels:
        raise ReverieError(
            f"the model '{system.name}' draws pictures {system.size} pixels high, and Riffusion's spectrograms have "
            f"{params.mels} bands; give a model of music"
        )
    return params


def _play(
    system: StableDiffusion,
    music: Music,
    shared: TextToImage,
    laid: MusicPlan,
    given: Given | None,
    _: Modification,
) -> Iterator[MusicStep]:
    notes = (*adapter_notes(system, music), *model_limits(music, system))
    run = _prepare_run(system, music, shared, laid, given)
    done, total = 0, music.count * (len(run.sigmas) - 1)
    sampler = pick_sampler(music.sampler, system.schedule, music.eta)
    for index in range(music.count):
        single = music.only(index)
        noise = run.noise(single)
        for step in sample(run.denoiser(noise), run.sigmas, noise, sampler, run.begin()):
            last = step.index == step.total - 1
            clip, done = _finish(run, single, step.x) if last else None, done + 1
            yield MusicStep(done, total, "steps", step.denoised, clip, notes=notes)
            notes = ()


def _prepare_run(
    system: StableDiffusion, music: Music, shared: TextToImage, laid: MusicPlan, given: Given | None
) -> ClipRun:
    """Make ready what a request's clips share, while its changes to the model are active."""
    images = system.codec.without_tiles() if laid.axes else system.codec
    way = encode_stops(system, music.stops, shared)
    strength = 1.0 if given is None else way.at(music.place).strength
    sigmas = noise_levels(system, shared)[-steps_taken(music.steps, strength) - 1 :]
    under = None if given is None else lay_ground(given, laid, images)
    return ClipRun(system, music, laid, images, shared, way, under, sigmas)


def _shared_request(music: Music, laid: MusicPlan) -> TextToImage:
    """Return what all windows have in common, as the request for a picture; its prompt is the LoRAs alone."""
    return TextToImage(
        **music.sampling_fields(),
        prompt=lora_tags([stop.prompt for stop in music.stops]),
        width=laid.width * laid.factor,
        height=laid.params.mels,
    )


@torch.no_grad()
def _finish(run: ClipRun, single: Music, latents: Float[Tensor, "1 c h w"]) -> Recording:
    """Decode latents, lay back what the mask keeps, and sound the spectrogram to its exact length."""
    laid, params = run.plan, run.plan.params
    greys = decode_levels(run.images, latents)
    if run.ground is not None:
        greys = run.ground.lay_back(greys)
    greys = laid.sounded_columns(greys)
    samples = laid.to_sound(from_greys(greys, params))
    if single.stereo and not params.stereo:
        samples = laid.to_stereo(samples)
    picture = add_tags(to_pictures(greys[None] / (LIGHT / 2) - 1)[0], params)
    sound = Sound(samples.cpu(), params.sample_rate).normalised()
    picture.info[REQUEST] = texts(single, run.system.name)[REQUEST]
    return Recording(sound.samples, sound.rate, picture, single, run.system.name)


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
