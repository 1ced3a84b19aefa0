"""Fine-tuning of a whole model, or of a LoRA, on pictures of the user's or on music.

The U-Net learns as `diffusion` says. The text encoder may learn with it, at a pace of its own, and new words first.
Prior preservation, pictures of the class beside those of the instance, is DreamBooth's (Ruiz et al. 2022, 3.2).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Int64
from PIL import Image
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from reverie import system
from reverie.checkpoints.load import Components
from reverie.corpora.captions import DEFAULT_ONLY
from reverie.corpora.concepts import concepts
from reverie.corpora.scenes import ANYWHERE, CANVAS, PAIR_SHARE, SIZE_WORDS
from reverie.data.loader import Batches
from reverie.errors import RequestWarning, ReverieError, warn
from reverie.progress import Progress
from reverie.requests.references import BUNDLED_NAME
from reverie.sound.spectrogram import SpectrogramParams
from reverie.system import Conditioning
from reverie.train import begun, inversion, lora, texts
from reverie.train.diffusion import DiffusionObjective, SampleSheet
from reverie.train.examples import Augmentation, Examples, Pictures, Scenes, Wording
from reverie.train.folders import notes, open_pictures
from reverie.train.latents import LATENTS, Item, Mixed, Stream, fill, latent_pool
from reverie.train.loop import CHECKPOINT, RunSettings, device_of
from reverie.train.lora_files import export
from reverie.train.losses import DenoisingSettings
from reverie.train.parallel import is_first
from reverie.train.recipe import OBJECTIVES, Share, folder_of, read, section
from reverie.train.sources import ExampleSource
from reverie.train.texts import ENCODINGS, Describe, Description, number_captions, read_kept, read_plainly, sizes_of
from reverie.train.vocabulary import extend, grow_

PICTURES, SUFFIX = "latents", ".safetensors"
PRIOR = "prior"  # how files of latents of the class begin
TEXT = "text"  # how the names of text encoders begin among what learns
WORDS = "words.json"  # in the folder of a run: the new ones
SHOWN, COLUMNS = 8, 4  # captions on the contact sheet
READ = 4000  # captions that are looked through for new words


@dataclass(frozen=True)
class ModelSettings:
    """Name the model to start from, and an autoencoder to put in place of its own."""

    base: str = BUNDLED_NAME  # what `reverie.load` takes
    autoencoder: str = ""


@dataclass(frozen=True, kw_only=True)
class FinetuneDataSettings(ExampleSource):
    """Choose the examples, `batch` a step."""

    size: NonNegativeInt = 0  # of pictures, in pixels; 0 takes the model's
    batch: PositiveInt = 4
    dropout: Share = 0.1  # share of captions left empty, for classifier-free guidance
    workers: NonNegativeInt = 0
    buckets: NonNegativeInt = 0  # pictures keep their shapes, with sides of so many pixels' multiples; 0 cuts squares
    masks: str = ""  # folder of masks, named as their pictures: what is white counts
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


@dataclass(frozen=True)
class FinetuneLossSettings(DenoisingSettings):
    """Choose the loss: all noise levels count alike, where nothing is said."""

    weighting: str = "uniform"


@dataclass(frozen=True, eq=False)
class Alternating:
    """Serve batches of two streams in turn."""

    first: Callable[[int], Item]
    second: Callable[[int], Item]
    batch: int

    def __call__(self, index: int) -> Item:
        """Return item `index`."""
        number, offset = divmod(index, self.batch)
        return (self.first, self.second)[number % 2](number // 2 * self.batch + offset)


class Finetuning(DiffusionObjective):
    """Train a model's own weights."""

    text_pace = 1.0

    def paces(self) -> dict[nn.Parameter, float]:
        """Return the text encoders'."""
        towers = [network for name, network in self.networks.items() if name.startswith(TEXT)]
        return {parameter: self.text_pace for tower in towers for parameter in tower.parameters()}

    def encode(self, captions: Mapping[str, Any]) -> Conditioning:
        """Return what the U-Net is told by the batch's descriptions, see `texts`."""
        given = {name: value.to(device_of(self.networks)) for name, value in captions.items() if name != "caption"}
        return replace(super().encode(captions["caption"]), **given) if "caption" in captions else Conditioning(**given)


class LoRAFinetuning(Finetuning):
    """Train small changes beside a model's weights."""

    lora = lora.LoRASettings()

    def export(self, folder: Path) -> None:
        """Write the LoRA, named after the run, for `--lora FILE`."""
        export(self.networks.items(), self.components, self.lora, folder)


class InversionFinetuning(Finetuning):
    """Train the vectors of a new word."""

    inversion = inversion.InversionSettings()

    def tokens(self, captions: Sequence[str]) -> list[Int64[Tensor, "b l"]]:
        """Return the tokens of captions, those of the new word among them."""
        parts = zip(self.components.text_encoders, self.components.tokenizers, strict=True)
        return [inversion.encode(captions, *part, self.inversion) for part in parts]

    def samples(self) -> Image.Image:
        """Draw the prompts that are to be shown, with the word as its file says it."""
        with TemporaryDirectory() as folder:
            self.export(Path(folder))
            return self.draw(embeddings=[folder])

    def export(self, folder: Path) -> None:
        """Write the word, a file that is named after it, for `--embedding FILE`."""
        folder.mkdir(parents=True, exist_ok=True)
        word = self.inversion.word
        inversion.save(self.networks["word"].parameters(), word, folder / f"{word}.safetensors")


def build(sections: dict[str, Any], seed: int, out: Path) -> Finetuning:
    """Build the objective from a recipe's tables."""
    data, text = section(sections, "data", FinetuneDataSettings), section(sections, "text", FinetuneTextSettings)
    products, word = lora.settings_of(sections), inversion.settings_of(sections)
    base = load_base(sections)
    opened = open_examples(sections, base, seed)
    check(sections, base, opened)
    own, of_class = open_streams(sections, base, opened, seed, out)
    serve = mix(own, data.batch, seed)
    if of_class:
        serve = Alternating(serve, mix(of_class, data.batch, seed), data.batch)
    components = _with_words(base, first_captions(opened), text, out)
    torch.manual_seed(seed)
    if word.word:
        networks = nn.ModuleDict({"word": inversion.install(components.text_encoders, components.tokenizers, word)})
    else:
        networks = _learning(components, text, products)
    objective = (InversionFinetuning if word.word else LoRAFinetuning if products.rank else Finetuning)(
        components,
        networks,
        Batches(serve, data.batch, data.workers),
        section(sections, "loss", FinetuneLossSettings),
        seed,
        preview_prompts(data, own[0], base.autoencoder.factor),
    )
    objective.text_pace = text.pace
    if isinstance(objective, InversionFinetuning):
        objective.inversion = word
    if isinstance(objective, LoRAFinetuning):
        objective.lora = products
    return objective


def check(sections: dict[str, Any], base: Components, opened: Mapping[str, Examples]) -> None:
    """Raise ReverieError for what a recipe cannot learn of the examples that it opened."""
    text = section(sections, "text", FinetuneTextSettings)
    products, word = lora.settings_of(sections), inversion.settings_of(sections)
    section(sections, "loss", FinetuneLossSettings)
    check_cached(sections)
    if word.word and (products.rank or "text" in sections):
        raise ReverieError("[inversion] learns one word and nothing else; leave out [lora] and [text]")
    if word.word:
        inversion.check_captions(first_captions(opened), base.text_encoders[0], base.tokenizers[0], word)
    if text.words and (products.rank or not text.pace or len(base.text_encoders) > 1):
        raise ReverieError(
            "new words = ... in [text] are learned by SD 1's or 2's text encoder itself; give pace, and no [lora]"
        )
    for network in _learners(base, text).values() if products.rank else ():
        lora.pick_layers(network, products)


def first_captions(opened: Mapping[str, Examples]) -> list[str]:
    """Return the first READ captions of what is learned from, but for the pictures of its class."""
    own = [examples for name, examples in opened.items() if not name.startswith(PRIOR)]
    return list(islice((each.caption(index, 0) for each in own for index in range(len(each))), READ))


def open_streams(
    sections: dict[str, Any], base: Components, opened: Mapping[str, Examples], seed: int, out: Path
) -> tuple[list[Stream], list[Stream]]:
    """Open the latents of what is learned from, and of the pictures of its class, each in parts of one size."""
    data, prior = section(sections, "data", FinetuneDataSettings), section(sections, "prior", PriorSettings)
    read: Callable[[str], Description] = read_plainly
    if check_cached(sections):
        read = read_kept(base, number_captions(opened.values()), out / ENCODINGS)
    streams: tuple[list[Stream], list[Stream]] = ([], [])
    for name, examples in opened.items():
        latents, of_class = latent_pool(base.autoencoder, examples, out / name, data.workers), name.startswith(PRIOR)
        masked = latents.shape[1] > base.unet.config.out_channels
        weight, describe = prior.weight if of_class else 1.0, Describe(read, sizes_of(base, examples))
        streams[of_class].append(Stream(examples, latents, seed, data.dropout, weight, describe, masked))
    return streams


def mix(streams: Sequence[Stream], batch: int, seed: int) -> Callable[[int], Item]:
    """Return one stream of several, batch by batch; in a pass the pictures of each come as often as it says."""
    if len(streams) == 1:
        return streams[0]
    repeats = [stream.examples.repeats if isinstance(stream.examples, Pictures) else 1 for stream in streams]
    counts = [-(-len(stream.latents) * times // batch) for stream, times in zip(streams, repeats, strict=True)]
    return Mixed(streams, counts, batch, seed)


def prepare(path: Path, out: Path | None = None, objective: str = "finetune") -> Iterator[Progress]:
    """Make the latents that the run of a recipe for fine-tuning, or for distillation, learns from; yield how far it is.

    Of several processes the first makes them. Raises ReverieError, before anything is written, where the recipe has
    another objective, and where the objective cannot learn what it asks for.
    """
    sections = read(path)
    if sections["objective"] != objective:
        raise ReverieError(f"the recipe {path} is for `reverie train`: its objective is {sections['objective']!r}")
    if not is_first():
        return
    settings, data = section(sections, "run", RunSettings), section(sections, "data", FinetuneDataSettings)
    base, folder = load_base(sections), folder_of(path, out)
    autoencoder = base.autoencoder.to(system.pick_device(settings.device))
    rows = open_examples(sections, base, settings.seed)
    import_module(OBJECTIVES[objective][0]).check(sections, base, rows)
    for note in notes(data.pictures, data.caption) if data.pictures else ():
        warn(note, RequestWarning, stacklevel=2)
    if not (folder / CHECKPOINT).exists():
        folder.mkdir(parents=True, exist_ok=True)
        begun.write(folder, begun.deciding(sections, asdict(settings)))
    for name, examples in rows.items():
        yield from fill(autoencoder, examples, folder / name, data.workers)
    if objective == "finetune" and check_cached(sections):
        for tower in base.text_encoders:
            tower.to(autoencoder.device)
        yield from texts.fill(base, number_captions(rows.values()), folder / ENCODINGS)


def check_cached(sections: dict[str, Any]) -> bool:
    """Tell whether captions are encoded ahead. Raises ReverieError where text encoders learn meanwhile."""
    text = section(sections, "text", FinetuneTextSettings)
    if text.cached and (text.pace or "inversion" in sections):
        raise ReverieError("cached in [text] keeps what frozen text encoders give; leave out pace and [inversion]")
    return text.cached


def load_base(sections: dict[str, Any]) -> Components:
    """Load the model to start from, all of it frozen."""
    model, data = section(sections, "model", ModelSettings), section(sections, "data", FinetuneDataSettings)
    loaded = system.load(model.base, device="cpu", dtype="float32", vae=model.autoencoder or None, fast=False)
    base = Components(**vars(replace(loaded, known=())))  # it learns other things
    for network in (base.unet, base.autoencoder, *base.text_encoders):
        network.requires_grad_(False)
    if data.pictures or "scenes" in sections:
        return base
    given = section(sections, "spectrogram", SpectrogramParams)
    return replace(base, spectrogram=given if "spectrogram" in sections else base.spectrogram or given)


def open_examples(sections: dict[str, Any], base: Components, seed: int) -> dict[str, Examples]:
    """Open what is learned from, by the file of its latents."""
    data, prior = section(sections, "data", FinetuneDataSettings), section(sections, "prior", PriorSettings)
    scenes, params = section(sections, "scenes", SceneSettings), base.spectrogram or SpectrogramParams()
    varied = section(sections, "augment", Augmentation), section(sections, "captions", Wording)
    factor = base.autoencoder.factor
    size = data.size or base.unet.config.sample_size * factor
    if data.buckets % factor:
        raise ReverieError(f"buckets = {data.buckets} in [data] of the recipe; give a multiple of {factor}, such as 64")
    if scenes.count or data.named != ["pictures"]:
        if data.buckets or data.masks or {"augment", "captions"} & sections.keys():
            raise ReverieError("buckets, masks, [augment] and [captions] are for pictures = FOLDER in [data] alone")
        rows: dict[str, Examples] = {LATENTS: _open_made(data, scenes, seed, size, params)}
    else:
        found = open_pictures(data.pictures, data.caption, size, data.buckets, *varied, data.masks)
        rows = {_file(PICTURES, name): pictures for name, pictures in found.items()}
    if prior.pictures:
        found = open_pictures(prior.pictures, prior.caption, size, data.buckets, varied[0])
        rows |= {_file(PRIOR, name): pictures for name, pictures in found.items()}
    return rows


def _open_made(
    data: FinetuneDataSettings, scenes: SceneSettings, seed: int, size: int, params: SpectrogramParams
) -> Examples:
    return scenes.open(scenes.seed or seed, size) if scenes.count else data.open(seed, size, params)


def _file(kind: str, name: str) -> str:
    """Name the file of latents of a kind: that of all examples, or of those called `name`."""
    return f"{kind}-{name}{SUFFIX}" if name else f"{kind}{SUFFIX}"


def _with_words(base: Components, captions: Sequence[str], text: FinetuneTextSettings, out: Path) -> Components:
    """Give the text encoder new words, in a run that goes on those that it began with."""
    if not text.words:
        return base
    tokenizer, tower = base.tokenizers[0], base.text_encoders[0]
    extended = extend(tokenizer, captions, text.words)
    _hold(extended.merges[len(tokenizer.merges) :], out)
    grow_(tower, tokenizer, extended)
    return replace(base, tokenizers=(extended,))


def _hold(merges: Sequence[tuple[str, str]], out: Path) -> None:
    """Write down how a run's new words are made of old ones.

    Raises ReverieError where the run has begun with others: its checkpoint would fit them in size, and not in meaning.
    """
    path, words = out / WORDS, json.dumps(merges)
    if not (out / CHECKPOINT).exists() or not path.exists():
        path.write_text(words, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != words:
        raise ReverieError(f"the captions bring other new words than the run in {out} began with; choose another `out`")


def _learners(components: Components, text: FinetuneTextSettings) -> dict[str, nn.Module]:
    """Return the networks that learn, or beside whose weights something does."""
    networks: dict[str, nn.Module] = {"unet": components.unet}
    if text.pace:
        names = ("text_1", "text_2") if components.unet.config.takes_sizes else ("text",)
        networks |= zip(names[-len(components.text_encoders) :], components.text_encoders, strict=True)
    return networks


def _learning(components: Components, text: FinetuneTextSettings, products: lora.LoRASettings) -> nn.ModuleDict:
    """Return what learns: networks of the model, or thin matrices put beside their weights."""
    networks = _learners(components, text)
    if products.rank:
        return nn.ModuleDict({name: lora.install(network, products) for name, network in networks.items()})
    return nn.ModuleDict(networks).requires_grad_(True)


def preview_prompts(data: FinetuneDataSettings, stream: Stream, factor: int) -> SampleSheet:
    """Choose what is drawn to see how far it is: the prompts of a recipe, else the first captions."""
    prompts = data.show or [stream.examples.caption(index, 0) for index in range(min(SHOWN, len(stream.examples)))]
    height, width = (factor * side for side in stream.latents.shape[2:])
    return SampleSheet(prompts, width, height, COLUMNS)
