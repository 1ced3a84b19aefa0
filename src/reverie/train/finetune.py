"""Fine-tuning of a whole model, or of a LoRA, on pictures of the user's or on music.

The U-Net learns as `diffusion` says. The text encoder may learn with it, at a pace of its own, and new words first.
Prior preservation, pictures of the class beside those of the instance, is DreamBooth's (Ruiz et al. 2022, 3.2).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Int64, Num
from PIL import Image
from torch import Tensor, nn

from reverie.adapters.ip_adapter import cross_attentions
from reverie.checkpoints.load import Components
from reverie.checkpoints.save import write_tensors
from reverie.data.loader import WHOLE, Batches, BatchPart
from reverie.errors import RequestWarning, ReverieError, warn
from reverie.media.pictures import grid
from reverie.models.controlnet import ControlNet
from reverie.models.ip_adapter import IPAdapter
from reverie.progress import Progress
from reverie.requests.parts import ControlInput, IPAdapterInput
from reverie.runtime.transform import pick_device
from reverie.train import begun, control, inversion, ip_adapter, lora, texts
from reverie.train.checkpoint import latest
from reverie.train.diffusion import DiffusionObjective
from reverie.train.encoded import Encoded
from reverie.train.examples import Examples
from reverie.train.folders import notes
from reverie.train.inputs import (
    HELD_OUT,
    PRIOR,
    FinetuneDataSettings,
    FinetuneTextSettings,
    check_cached,
    load_base,
    open_examples,
    open_streams,
    preview_prompts,
    relearn,
)
from reverie.train.latents import Pool, fill, open_pool
from reverie.train.loop import UNMEASURED, RunSettings
from reverie.train.lora_files import export
from reverie.train.losses import DenoisingSettings
from reverie.train.parallel import is_first
from reverie.train.recipe import OBJECTIVES, check_apart, folder_of, read, section
from reverie.train.texts import ENCODINGS, number_captions
from reverie.train.vocabulary import extend, grow_

TEXT = "text"  # how the names of text encoders begin among what learns
WORDS = "words.json"  # in the folder of a run: the new ones
READ = 4000  # captions that are looked through for new words


@dataclass(frozen=True)
class FinetuneLossSettings(DenoisingSettings):
    """Choose the loss: all noise levels count alike, where nothing is said."""

    weighting: str = "uniform"


class Finetuning(DiffusionObjective):
    """Train a model's own weights."""

    text_pace = 1.0

    def paces(self) -> dict[nn.Parameter, float]:
        """Return the text encoders'."""
        towers = [network for name, network in self.networks.items() if name.startswith(TEXT)]
        return {parameter: self.text_pace for tower in towers for parameter in tower.parameters()}


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


class ControlFinetuning(Finetuning):
    """Train a ControlNet beside a model that stays as it is."""

    hints: control.Hints

    @property
    def control(self) -> ControlNet:
        """Return what learns."""
        (network,) = self.networks.children()
        assert isinstance(network, ControlNet)
        return network

    def predict(self, x: Float[Tensor, "b c h w"], t: Num[Tensor, " b"], captions: Any) -> Float[Tensor, "b c h w"]:
        """Return what the U-Net predicts, led by the hints."""
        conditioning = self.encode({name: value for name, value in captions.items() if name != "hint"})
        given = (t, conditioning.tokens, conditioning.pooled, conditioning.sizes)
        residuals = control.steer(self.control, captions["hint"], x, *given)
        return self.components.unet(x, *given, residuals=residuals)

    def samples(self) -> Image.Image:
        """Show hints of the first pictures, each beside what is drawn by it."""
        numbers = (place % len(self.hints.pictures) for place in range(len(self.shown.prompts)))
        hints = [Image.fromarray(self.hints.hint(number).transpose(1, 2, 0)) for number in numbers]
        with TemporaryDirectory() as folder:
            self.export(Path(folder))
            pairs = [
                (hint, self.picture(prompt, controls=[ControlInput(model=folder, image=hint)]))
                for prompt, hint in zip(self.shown.prompts, hints, strict=True)
            ]
        return grid([picture for pair in pairs for picture in pair], columns=self.shown.columns)

    def export(self, folder: Path) -> None:
        """Write the ControlNet, for `--control`."""
        control.export(self.control, folder)


class IPAdapterFinetuning(Finetuning):
    """Train an IP-Adapter beside a model that stays as it is."""

    looking: ip_adapter.Shown

    @property
    def adapter(self) -> IPAdapter:
        """Return what learns."""
        (network,) = self.networks.children()
        assert isinstance(network, IPAdapter)
        return network

    def losses(self, step: int, part: BatchPart = WHOLE) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Yield the error of the prediction; in the first steps, how far pictures are from what captions are."""
        if step >= self.looking.settings.align:
            yield from super().losses(step, part)
            return
        _, described, _ = self.batches(step, part)
        with torch.no_grad():
            said = self.encode(described["said"]).tokens
        seen = self.adapter(described["seen"].to(said))
        attentions = [attention for attention, _ in cross_attentions(self.components.unet)]
        loss = ip_adapter.apart(attentions, seen, said)
        yield "unet", loss, {"loss": loss.item()}

    def predict(self, x: Float[Tensor, "b c h w"], t: Num[Tensor, " b"], captions: Any) -> Float[Tensor, "b c h w"]:
        """Return what the U-Net predicts, which sees pictures beside the text, or in its place.

        Its attentions gather so until pictures are drawn: on the way back layers may be computed again.
        """
        described = {name: value for name, value in captions.items() if name not in ("seen", "said")}
        conditioning, seen = self.encode(described), self.adapter(captions["seen"].to(x))
        gather = ip_adapter.gather_instead if self.adapter.image_proj.instead else ip_adapter.gather_both
        self.gather_alone()
        for (attention, _), keys_values in zip(cross_attentions(self.components.unet), seen, strict=True):
            attention.attend = partial(gather, keys_values)
        return self.components.unet(x, t, conditioning.tokens, conditioning.pooled, conditioning.sizes)

    def after_step(self) -> None:
        """Let go of what the step computed."""
        self.gather_alone()

    def gather_alone(self) -> None:
        """Let attentions gather from the text alone again."""
        for attention, _ in cross_attentions(self.components.unet):
            attention.__dict__.pop("attend", None)

    def samples(self) -> Image.Image:
        """Show the first pictures, each beside what is drawn by it alone, and by it and a prompt."""
        self.gather_alone()
        examples, drawn = self.looking.examples, list[Image.Image]()
        with TemporaryDirectory() as folder:
            write_tensors(self.adapter.state_dict(), file := Path(folder) / "adapter.safetensors")
            parts = {"model": str(file), "encoder": self.looking.settings.encoder}
            for place, prompt in enumerate(self.shown.prompts):
                picture = Image.fromarray(examples.picture(place % len(examples))[..., :3])
                seen = [IPAdapterInput(**parts, images=(picture,))]
                drawn += [picture, *(self.picture(text, ip_adapters=seen) for text in ("", prompt))]
        return grid(drawn, columns=3 * (self.shown.columns // 2))

    def export(self, folder: Path) -> None:
        """Write the IP-Adapter and its vision tower, for `--ip-adapter`."""
        ip_adapter.export(self.adapter, self.looking.sight.tower, folder)


def build(sections: dict[str, Any], seed: int, out: Path, pool: Pool = open_pool) -> Finetuning:
    """Build the objective from a recipe's tables, on the latents that `pool` makes."""
    data, text = section(sections, "data", FinetuneDataSettings), section(sections, "text", FinetuneTextSettings)
    products, word, hints, seen = (kind.settings_of(sections) for kind in (lora, inversion, control, ip_adapter))
    base = load_base(sections)
    opened = open_examples(sections, base, seed)
    check(sections, base, opened)
    base = relearn(sections, base)
    show = ip_adapter.look(seen) if seen else control.show_hints(hints) if hints else None
    streams = open_streams(sections, base, opened, seed, out, show, pool)
    first = streams.own[0]
    for stream in (*streams.own, *streams.held_out):
        if isinstance(stream.beside, ip_adapter.Shown):
            stream.beside.make()
    components = _with_words(base, first_captions(opened), text, out)
    torch.manual_seed(seed)
    if word.word:
        networks = nn.ModuleDict({"word": inversion.install(components.text_encoders, components.tokenizers, word)})
        kind: type[Finetuning] = InversionFinetuning
    elif hints:
        networks, kind = nn.ModuleDict({"control": control.begin(base, hints)}), ControlFinetuning
    elif seen:
        assert isinstance(first.beside, ip_adapter.Shown)
        adapter = ip_adapter.begin(seen, base, first.beside.sight.tower)
        networks, kind = nn.ModuleDict({"ip_adapter": adapter}), IPAdapterFinetuning
    else:
        networks, kind = _learning(components, text, products), LoRAFinetuning if products.rank else Finetuning
    objective = kind(
        components,
        networks,
        Batches(streams.serve(data.batch, seed), data.batch, data.workers),
        section(sections, "loss", FinetuneLossSettings),
        seed,
        preview_prompts(data, first, base.autoencoder.factor),
    )
    objective.text_pace, objective.held_out = text.pace, streams.held_out
    if isinstance(objective, InversionFinetuning):
        objective.inversion = word
    if isinstance(objective, LoRAFinetuning):
        objective.lora = products
    if isinstance(objective, ControlFinetuning) and isinstance(first.beside, control.Hints):
        objective.hints = first.beside
    if isinstance(objective, IPAdapterFinetuning) and isinstance(first.beside, ip_adapter.Shown):
        objective.looking = first.beside
    return objective


def check(sections: dict[str, Any], base: Components, opened: Mapping[str, Examples]) -> None:
    """Raise ReverieError for what a recipe cannot teach its base model by the examples that it opened."""
    text = section(sections, "text", FinetuneTextSettings)
    products, word = lora.settings_of(sections), inversion.settings_of(sections)
    section(sections, "loss", FinetuneLossSettings)
    check_cached(sections)
    relearn(sections, base)
    if word.word and (products.rank or "text" in sections):
        raise ReverieError("[inversion] learns one word and nothing else; leave out [lora] and [text]")
    if word.word:
        inversion.check_captions(first_captions(opened), base.text_encoders[0], base.tokenizers[0], word)
    if text.words and (products.rank or not text.pace or len(base.text_encoders) > 1):
        raise ReverieError(
            "new words = ... in [text] are learned by SD 1's or 2's text encoder itself; give pace, and no [lora]"
        )
    if hints := control.settings_of(sections):
        control.check(hints, base, opened.values())
    if ip_adapter.settings_of(sections):
        ip_adapter.check(opened.values())
    for network in _learners(base, text).values() if products.rank else ():
        lora.pick_layers(network, products)


def first_captions(opened: Mapping[str, Examples]) -> list[str]:
    """Return the first READ captions of what is learned from, but for the pictures of its class."""
    own = [examples for name, examples in opened.items() if not name.startswith((PRIOR, HELD_OUT))]
    return list(islice((each.caption(index, 0) for each in own for index in range(len(each))), READ))


def prepare(
    path: Path, out: Path | None = None, objective: str = "finetune", *, begin: bool = True
) -> Iterator[Progress]:
    """Make the latents that the run of a recipe for fine-tuning, or for distillation, learns from; yield how far it is.

    Of several processes the first makes them. To `begin` a run lets it be resumed from here on. Raises ReverieError,
    before anything is written, where the recipe has another objective, and where the objective cannot learn what it
    asks for.
    """
    sections = read(path)
    if sections["objective"] != objective:
        raise ReverieError(f"the recipe {path} is for `reverie train`: its objective is {sections['objective']!r}")
    if not is_first():
        return
    settings, data = section(sections, "run", RunSettings), section(sections, "data", FinetuneDataSettings)
    check_apart(sections, folder := folder_of(path, out))
    base = load_base(sections)
    autoencoder = base.autoencoder.to(pick_device(settings.device))
    rows = open_examples(sections, base, settings.seed)
    import_module(OBJECTIVES[objective][0]).check(sections, base, rows)
    if settings.patience and not any(name.startswith(HELD_OUT) for name in rows):
        raise ReverieError(UNMEASURED)
    for note in notes(data.pictures, data.caption) if data.pictures else ():
        warn(note, RequestWarning, stacklevel=2)
    if begin and latest(folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        begun.write(folder, begun.deciding(sections, asdict(settings)))
    for name, examples in rows.items():
        if not isinstance(examples, Encoded):
            yield from fill(autoencoder, examples, folder / name, data.workers)
    if objective == "finetune" and (seen := ip_adapter.settings_of(sections)):
        show = ip_adapter.look(seen, autoencoder.device)
        for name, examples in rows.items():
            kept, _ = open_pool(autoencoder, examples, folder / name)
            yield from show(kept, folder / name).fill()
    if objective == "finetune" and check_cached(sections):
        for tower in base.text_encoders:
            tower.to(autoencoder.device)
        yield from texts.fill(base, number_captions(rows.values()), folder / ENCODINGS)


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
    if latest(out) is None or not path.exists():
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
