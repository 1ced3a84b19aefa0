"""What a recipe for fine-tuning starts from and learns from: the base model, rows of examples, streams of latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from reverie import system
from reverie.checkpoints.load import Components
from reverie.corpora.captions import DEFAULT_ONLY
from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import ANYWHERE, CANVAS, PAIR_SHARE, SIZE_WORDS
from reverie.diffusion.denoiser import PREDICTIONS
from reverie.errors import ReverieError, choose
from reverie.requests.references import BUNDLED_NAME
from reverie.sound.spectrogram import SpectrogramParams
from reverie.train.diffusion import SampleSheet, preview
from reverie.train.encoded import Description, Encoded, open_encoded
from reverie.train.examples import Augmentation, Examples, Pictures, Scenes, Wording
from reverie.train.folders import hold_out, open_pictures
from reverie.train.latents import LATENTS, Beside, Item, Mixed, Pool, Stream, encoder_digest, mix, open_pool
from reverie.train.recipe import Share, section
from reverie.train.sources import ExampleSource
from reverie.train.texts import (
    ENCODINGS,
    Describe,
    encoders_digest,
    number_captions,
    read_kept,
    read_plainly,
    sizes_of,
)

PICTURES, SUFFIX = "latents", ".safetensors"
PRIOR, HELD_OUT = "prior", "held-out"  # how files of latents begin, of the class and of what is not learned from


@dataclass(frozen=True)
class ModelSettings:
    """Name the model to start from, and an autoencoder to put in place of its own."""

    base: str = BUNDLED_NAME  # what `reverie.load` takes
    autoencoder: str = ""
    prediction: str = ""  # what the U-Net learns to predict from now on, a key of PREDICTIONS; "" is as before
    zero_terminal_snr: bool = False  # stretches the schedule so that it ends in noise alone, which eps cannot predict

    def __post_init__(self) -> None:
        """Raise ReverieError for unknown names."""
        choose("prediction in [model]", self.prediction or "eps", PREDICTIONS)


@dataclass(frozen=True, kw_only=True)
class FinetuneDataSettings(ExampleSource):
    """Choose the examples, `batch` a step."""

    size: NonNegativeInt = 0  # of pictures, in pixels; 0 takes the model's
    batch: PositiveInt = 4
    latents: str = ""  # folder of what `reverie encode` made, in place of a collection
    dropout: Share = 0.1  # share of captions left empty, for classifier-free guidance
    workers: NonNegativeInt = 0
    buckets: NonNegativeInt = 0  # pictures keep their shapes, with sides of so many pixels' multiples; 0 cuts squares
    masks: str = ""  # folder of masks, named as their pictures: what is white counts
    held_out: Share | str = 0.0  # share of the pictures, or a folder of others, whose loss is measured and not learned
    show: tuple[str, ...] = ()  # prompts on the contact sheet; the first captions if not given


@dataclass(frozen=True)
class SceneSettings:
    """Choose emoji scenes to go on with, in place of a collection: `count` of them, see `corpora.scenes.draw_scene`."""

    count: NonNegativeInt = 0
    seed: NonNegativeInt = 0  # of the scenes; 0 takes the run's
    subset: str = "everyday"
    known: str = ""  # a subset that the model knows already; the other things come `often` times as often
    often: PositiveInt = 1
    pair_share: Share = PAIR_SHARE
    scatter: NonNegativeInt = ANYWHERE
    sizes: tuple[str, ...] = SIZE_WORDS
    bare: NonNegativeInt = DEFAULT_ONLY
    default_share: Share = 0.25
    tint_share: Share = 0.0  # of the lone things are told by a colour

    def open(self, seed: int, size: int = CANVAS) -> Scenes:
        """Return the scenes, drawn at `size` pixels."""
        known = {thing.emoji for thing in concepts(self.known)} if self.known else set()
        things = concepts(self.subset)
        new = tuple(thing for thing in things if thing.emoji not in known) if known else ()
        return Scenes(
            things + new * (self.often - 1),
            seed,
            self.count,
            pair_share=self.pair_share,
            scatter=self.scatter,
            sizes=self.sizes,
            bare=self.bare,
            default_share=self.default_share,
            tint_share=self.tint_share,
            scale=size // CANVAS,
        )


@dataclass(frozen=True)
class FinetuneTextSettings:
    """Choose how the text encoder learns."""

    pace: NonNegativeFloat = 0.0  # its learning rate, in times the run's; 0 leaves it frozen
    words: NonNegativeInt = 0  # how many tokens its vocabulary grows by
    cached: bool = False  # encodes all captions ahead, once; the text encoders must be frozen


@dataclass(frozen=True)
class PriorSettings:
    """Choose pictures of the class that every other item of a batch is drawn from; `weight` is their share's."""

    pictures: str = ""
    caption: str = ""  # of those that have none of their own
    weight: NonNegativeFloat = 1.0


@dataclass(frozen=True, eq=False)
class Alternating:
    """Serve batches of two streams in turn."""

    streams: tuple[Stream | Mixed, Stream | Mixed]
    batch: int

    def key(self, index: int) -> str:
        """Name the example of item `index`."""
        stream, place = self._draw(index)
        return stream.key(place)

    def _draw(self, index: int) -> tuple[Stream | Mixed, int]:
        """Return the stream that an item is of, and which of its items."""
        number, offset = divmod(index, self.batch)
        return self.streams[number % 2], number // 2 * self.batch + offset

    def __call__(self, index: int) -> Item:
        """Return item `index`."""
        stream, place = self._draw(index)
        return stream(place)


@dataclass(frozen=True, eq=False)
class Streams:
    """Hold what is learned from, the pictures of its class, and what is held out, each in parts of one size."""

    own: list[Stream] = field(default_factory=list)
    of_class: list[Stream] = field(default_factory=list)
    held_out: list[Stream] = field(default_factory=list)

    def serve(self, batch: int, seed: int) -> Callable[[int], Item]:
        """Return the endless stream of what is learned from, and of its class in turn where there is one."""
        own = mix(self.own, batch, seed)
        return Alternating((own, mix(self.of_class, batch, seed)), batch) if self.of_class else own


def open_streams(
    sections: dict[str, Any],
    base: Components,
    opened: Mapping[str, Examples],
    seed: int,
    out: Path,
    show: Callable[[Examples, Path], Beside] | None = None,
    pool: Pool = open_pool,
) -> Streams:
    """Return the examples of a recipe as streams of latents, which `pool` makes where they are not there yet.

    `show` says for a row of examples, and the file of its latents, what is told of each beside its caption.
    """
    data, prior = section(sections, "data", FinetuneDataSettings), section(sections, "prior", PriorSettings)
    read: Callable[[str], Description] = read_plainly
    if check_cached(sections):
        read = read_kept(base, number_captions(opened.values()), out / ENCODINGS)
    streams = Streams()
    for name, examples in opened.items():
        if isinstance(examples, Encoded):
            stream = Stream(examples, examples.latents, seed, data.dropout, tell=examples.describe(read))
        else:
            kept, latents = pool(base.autoencoder, examples, out / name, data.workers)
            described = Describe(read, sizes_of(base, kept))
            stream = Stream(kept, latents, seed, data.dropout, tell=described)
            stream = replace(stream, masked=latents.shape[1] > base.unet.config.out_channels)
            stream = replace(stream, beside=show(kept, out / name) if show else None)
        if name.startswith(HELD_OUT):
            streams.held_out.append(replace(stream, dropout=0.0))
        elif name.startswith(PRIOR):
            streams.of_class.append(replace(stream, weight=prior.weight))
        else:
            streams.own.append(stream)
    return streams


def check_cached(sections: dict[str, Any]) -> bool:
    """Tell whether captions are encoded ahead. Raises ReverieError where text encoders learn meanwhile."""
    text = section(sections, "text", FinetuneTextSettings)
    if text.cached and (text.pace or "inversion" in sections):
        raise ReverieError("cached in [text] keeps what frozen text encoders give; leave out pace and [inversion]")
    return text.cached


def load_base(sections: dict[str, Any]) -> Components:
    """Load the model to start from, all of it frozen. Raises ReverieError where its U-Net sees pictures as well."""
    model, data = section(sections, "model", ModelSettings), section(sections, "data", FinetuneDataSettings)
    loaded = system.load(model.base, device="cpu", dtype="float32", vae=model.autoencoder or None, fast=False)
    base = Components(**vars(replace(loaded, known=())))  # it learns other things
    if base.unet.config.in_channels != base.autoencoder.config.latent_channels or base.image_encoder is not None:
        raise ReverieError(f"{base.name} sees more than a prompt; start from a plain model of its family")
    for network in (base.unet, base.autoencoder, *base.text_encoders):
        network.requires_grad_(False)
    if data.pictures or "scenes" in sections:
        return base
    given = section(sections, "spectrogram", SpectrogramParams)
    return replace(base, spectrogram=given if "spectrogram" in sections else base.spectrogram or given)


def relearn(sections: dict[str, Any], base: Components) -> Components:
    """Return a model that is to predict something else, or on another schedule, as its recipe says.

    A schedule with zero terminal SNR is drawn with trailing timesteps, by us and by others, since no other spacing
    visits its end (Lin et al. 2305.08891, sections 3.1 to 3.3). Raises ReverieError where that cannot be learned.
    """
    model, config = section(sections, "model", ModelSettings), base.schedule_config
    changed = config if not model.prediction else replace(config, prediction=model.prediction)
    if model.zero_terminal_snr:
        changed = replace(changed, zero_terminal_snr=True, timestep_spacing="trailing")
        base = replace(base, recommended=replace(base.recommended, schedule="trailing"))
    if changed == config:
        return base
    if changed.zero_terminal_snr and changed.prediction not in ("v", "x0"):
        raise ReverieError(
            f"zero_terminal_snr in [model] ends in noise alone, of which prediction = {changed.prediction!r} tells "
            "nothing; give prediction = 'v' as well"
        )
    if {"lora", "inversion", "control", "ip_adapter"} & sections.keys():
        raise ReverieError(
            "prediction and zero_terminal_snr in [model] change the whole model; leave out [lora], [inversion], "
            "[control] and [ip_adapter]"
        )
    return replace(base, schedule_config=changed)


def open_examples(sections: dict[str, Any], base: Components, seed: int) -> dict[str, Examples]:
    """Open what is learned from, by the file of its latents."""
    data, prior = section(sections, "data", FinetuneDataSettings), section(sections, "prior", PriorSettings)
    scenes, params = section(sections, "scenes", SceneSettings), base.spectrogram or SpectrogramParams()
    varied = section(sections, "augment", Augmentation), section(sections, "captions", Wording)
    factor = base.autoencoder.factor
    size = data.size or base.unet.config.sample_size * factor
    if data.buckets % factor:
        raise ReverieError(f"buckets = {data.buckets} in [data] of the recipe; give a multiple of {factor}, such as 64")
    if data.latents:
        rows: dict[str, Examples] = {**_open_encoded(sections, base)}
    elif scenes.count or data.named != ["pictures"]:
        if data.buckets or data.masks or data.held_out or {"augment", "captions"} & sections.keys():
            raise ReverieError(
                "buckets, masks, held_out, [augment] and [captions] are for pictures = FOLDER in [data] alone"
            )
        rows = {LATENTS: _open_made(data, scenes, seed, size, params)}
    else:
        found = open_pictures(data.pictures, data.caption, size, data.buckets, *varied, data.masks)
        others: dict[str, Pictures] = {}
        if isinstance(data.held_out, str):
            own, apart = Path(data.pictures).resolve(), Path(data.held_out).resolve()
            if own.is_relative_to(apart) or apart.is_relative_to(own):
                raise ReverieError(
                    f"held_out = '{data.held_out}' in [data] holds pictures that are learned from; give a folder beside"
                )
            others = open_pictures(data.held_out, data.caption, size, data.buckets, masks=data.masks)
        elif data.held_out:
            found, others = hold_out(found, data.held_out, seed)
        rows = {_file(PICTURES, name): pictures for name, pictures in found.items()}
        rows |= {_file(HELD_OUT, name): pictures for name, pictures in others.items()}
    if prior.pictures:
        found = open_pictures(prior.pictures, prior.caption, size, data.buckets, varied[0])
        rows |= {_file(PRIOR, name): pictures for name, pictures in found.items()}
    return rows


def _open_encoded(sections: dict[str, Any], base: Components) -> dict[str, Encoded]:
    """Open what was encoded ahead; encodings of captions are for text encoders that stay as they are."""
    data, text = section(sections, "data", FinetuneDataSettings), section(sections, "text", FinetuneTextSettings)
    fixed = data.caption or data.size or data.buckets or data.masks or data.held_out
    if data.named or fixed or {"scenes", "augment", "captions", "control", "ip_adapter"} & sections.keys():
        raise ReverieError(
            "latents in [data] are encoded already; leave out other examples, size, buckets, masks, held_out, "
            "caption, [scenes], [augment], [captions], [control] and [ip_adapter]"
        )
    frozen = not (text.pace or "inversion" in sections)
    texts = encoders_digest(base.text_encoders) if frozen else ""
    rows = open_encoded(data.latents, encoder_digest(base.autoencoder), texts, base.unet.config.takes_sizes)
    return {_file(PICTURES, name): examples for name, examples in rows.items()}


def _open_made(
    data: FinetuneDataSettings, scenes: SceneSettings, seed: int, size: int, params: SpectrogramParams
) -> Examples:
    return scenes.open(scenes.seed or seed, size) if scenes.count else data.open(seed, size, params)


def _file(kind: str, name: str) -> str:
    """Name the file of latents of a kind: that of all examples, or of those called `name`."""
    return f"{kind}-{name}{SUFFIX}" if name else f"{kind}{SUFFIX}"


def preview_prompts(data: FinetuneDataSettings, stream: Stream, factor: int) -> SampleSheet:
    """Choose what is drawn to see how far it is: the prompts of a recipe, else the first captions."""
    sheet = preview(stream, factor)
    return replace(sheet, prompts=data.show) if data.show else sheet
