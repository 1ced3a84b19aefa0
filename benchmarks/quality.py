"""How good are the bundled models? Measures them on scenes and prompts outside the training seeds, beside the goals.

Writes quality.md, quality.json, pictures.jsonl (what each drawn picture was asked for and seen as) and contact sheets.
Pictures are drawn by the library's own sampler, several prompts to a batch: quicker than one by one, and the same but
for rounding. What is missing (a model, the judge) is named, and its figures are left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

import reverie
from figures import (
    Drawn,
    Figure,
    Judge,
    Prompt,
    PromptSet,
    found,
    ground_colour,
    image_features,
    load_network,
    markdown,
    name_features,
    nearest,
    prompt_sets,
    psnr,
    scenes,
    share,
    spread,
    write,
)
from reverie.checkpoints.load import load_autoencoder, load_clip
from reverie.codecs.image import ImageCodec
from reverie.corpora.captions import chinese, english
from reverie.corpora.concepts import Concept, concepts
from reverie.corpora.drawings import FOLDER as DRAWINGS
from reverie.corpora.drawings import drawing
from reverie.corpora.scenes import CANVAS, Scene, glyph, render
from reverie.diffusion.noise import Noise
from reverie.diffusion.samplers import pick_sampler
from reverie.generate.conditioning import steady
from reverie.generate.sample import guided_denoiser, noise_levels, sample
from reverie.media.pictures import grid, save
from reverie.train.autoencoder import require_kl
from sheets import chinese_font, contact_sheet

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "src" / "reverie" / "assets"
SCENES = 200
PAIRS = 100
QUICK = 20
CPU_BATCH, GPU_BATCH = 8, 64
CHINESE_BEHIND = 5  # points that Chinese prompts may lie behind English ones


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure the quality of the models beside the goals.")
    parser.add_argument("--model", type=Path, default=ASSETS / "bundled", help="folder in diffusers' layout")
    parser.add_argument("--autoencoder", type=Path, help="folder of the autoencoder (MODEL/vae)")
    parser.add_argument("--clip", type=Path, default=ASSETS / "clip", help="folder in transformers' layout")
    parser.add_argument("--judge", type=Path, default=ROOT / "benchmarks" / "judge", help="folder of the classifier")
    parser.add_argument("--subset", default="common", help="the concepts that the models were trained on")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a picture")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance (what the model recommends)")
    parser.add_argument("--device", default="auto", help="where pictures are drawn")
    parser.add_argument("--limit", type=int, help="at most so many scenes or prompts for each figure")
    parser.add_argument("--quick", action="store_true", help=f"the same as --limit {QUICK}")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "quality", help="folder for tables and sheets")
    options = parser.parse_args()
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit {options.limit} measures nothing; give 1 or more")
    options.limit = options.limit or (QUICK if options.quick else None)
    options.autoencoder = options.autoencoder or options.model / "vae"
    return options


def main() -> int:
    """Measure all figures, telling each on stderr as it comes; return the exit status."""
    options, start = arguments(), time.monotonic()
    figures: list[Figure] = []
    left_out: list[str] = []
    sections: Sequence[Callable[[argparse.Namespace, Sequence[Concept]], Iterator[Figure]]]
    sections = (autoencoder_figures, clip_figures, judge_figures, drawing_figures)
    try:
        things = concepts(options.subset)
        for section in sections:
            figures += told(section(options, things), left_out)
    except reverie.ReverieError as error:
        print(error, file=sys.stderr)
        return 2
    settings = {
        "concepts": len(things),
        "steps": options.steps,
        "guidance": "none" if options.guidance is None else f"{options.guidance:g}",
        "limit": options.limit or "none",
        "minutes": f"{(time.monotonic() - start) / 60:.1f}",
    }
    files = write(figures, settings, left_out, options.out)
    print(markdown(figures, settings, left_out))
    print("written to", *files)
    return 0


def told(section: Iterator[Figure], left_out: list[str]) -> Iterator[Figure]:
    """Pass figures through and name each on stderr; what a section lacks ends it and goes to `left_out`."""
    try:
        for figure in section:
            print(f"{figure.name}: {figure.value:.1f} {figure.unit} of {figure.count}", file=sys.stderr, flush=True)
            yield figure
    except FileNotFoundError as error:
        left_out.append(str(error))
        print(f"left out: {error}", file=sys.stderr)


def present(file: Path, what: str) -> Path:
    """Return the folder of a file that a model must have. Raises FileNotFoundError, with what it is for."""
    if not file.is_file():
        folder = file.parent.relative_to(ROOT) if file.is_relative_to(ROOT) else file.parent
        raise FileNotFoundError(f"{what}, for there is no {file.name} in {folder}")
    return file.parent


def pictures_of(shown: Sequence[Scene], side: int = CANVAS) -> list[Image.Image]:
    """Render scenes at a size, above 128 pixels from vector drawings where there are any."""
    scale = max(1, side // CANVAS)
    picture_of = drawing if scale > 1 and (DRAWINGS / "icons.json").is_file() else glyph
    return [Image.fromarray(render(scene, scale, picture_of)) for scene in shown]


def reconstructed(options: argparse.Namespace, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Send pictures through the autoencoder, one by one."""
    codec = ImageCodec(load_autoencoder(options.autoencoder).eval())
    rebuilt: list[Image.Image] = []
    indices = track(range(1, len(pictures) + 1), "through the autoencoder")
    for number in indices:
        rebuilt += codec.pictures(codec.encode(pictures[number - 1 : number]))
    return rebuilt


def side_of(autoencoder: Path) -> int:
    """Return the side in pixels of the pictures that an autoencoder was trained on."""
    return require_kl(load_autoencoder(autoencoder)).config.sample_size


def autoencoder_figures(options: argparse.Namespace, things: Sequence[Concept]) -> Iterator[Figure]:
    """Measure how near held-out scenes come back from the autoencoder: the mean over pictures of each one's PSNR."""
    present(options.autoencoder / "config.json", "the autoencoder's figures")
    for held_out in (False, True):
        shown = scenes(things, spread(range(SCENES), options.limit), held_out=held_out)
        pictures = pictures_of(shown, side_of(options.autoencoder))
        rebuilt = reconstructed(options, pictures)
        values = [psnr(np.asarray(real), np.asarray(made)) for real, made in zip(pictures, rebuilt, strict=True)]
        mean = sum(values) / len(values)
        if held_out:
            yield Figure("autoencoder, mean PSNR of scenes with a held-out pair", mean, len(values), "dB")
            continue
        yield Figure("autoencoder, mean PSNR of held-out scenes", mean, len(values), "dB", 25, 28)
        cells = zip(pictures, rebuilt, values, shown, strict=True)
        beside = [(grid([real, made], 2), f"{described(scene)}\n{value:.1f} dB") for real, made, value, scene in cells]
        keep(contact_sheet(beside[: 3 * 8], columns=3), options.out / "reconstructions.png")


def clip_figures(options: argparse.Namespace, things: Sequence[Concept]) -> Iterator[Figure]:
    """Measure how often CLIP finds a lone object's name among all names of all concepts, in either language."""
    present(options.clip / "config.json", "CLIP's figures")
    parts = load_clip(options.clip)
    clip = parts.clip.eval()
    for title, tell in (("English", english), ("Chinese", chinese)):
        names, emoji = name_features(clip, parts.tokenizer, things, tell)
        for held_out in (False, True):
            shown = scenes(things, spread(range(SCENES), options.limit), pair_share=0, held_out=held_out)
            seen = [emoji[index] for index in nearest(image_features(clip, pictures_of(shown)), names)]
            hits = [found(scene, [one]) for scene, one in zip(shown, seen, strict=True)]
            where = "held-out object-colour pairs" if held_out else "held-out scenes"
            name = f"CLIP zero-shot, top-1 of {len(emoji)} {title} names, {where}"
            yield Figure(name, share(hits), len(hits), goal=None if held_out else 90)


def load_judge(options: argparse.Namespace, things: Sequence[Concept], what: str) -> Judge:
    """Load the judge. Raises ReverieError where it does not know all the concepts."""
    network, names = load_network(present(options.judge / "config.json", what))
    if unknown := [thing.en[0] for thing in things if thing.emoji not in names]:
        told = f"{unknown[0]!r} and {len(unknown) - 1} more" if len(unknown) > 1 else repr(unknown[0])
        raise reverie.ReverieError(
            f"the judge in {options.judge} does not know {told}; choose another --subset or judge"
        )
    return Judge(network, names)


def judge_figures(options: argparse.Namespace, things: Sequence[Concept]) -> Iterator[Figure]:
    """Measure the measures: how the judge and the colour test do on real scenes, bare and through the autoencoder."""
    judge = load_judge(options, things, "the judge's own figures")
    kinds = (("one object", "judge's top-1", 0.0, SCENES), ("two objects", "both found", 1.0, PAIRS))
    for kind, verdict, pair_share, count in kinds:
        shown = scenes(things, spread(range(count), options.limit), pair_share=pair_share)
        pictures = pictures_of(shown)
        yield from real_figures(f"real scenes, {kind}", verdict, judge, shown, pictures)
        if (options.autoencoder / "config.json").is_file():
            pictures = pictures_of(shown, side_of(options.autoencoder))
            rebuilt = reconstructed(options, pictures)
            yield from real_figures(f"through the autoencoder, {kind}", verdict, judge, shown, rebuilt)


def real_figures(
    title: str, verdict: str, judge: Judge, shown: Sequence[Scene], pictures: Sequence[Image.Image]
) -> Iterator[Figure]:
    """Measure what the judge finds in pictures of known scenes, and their grounds."""
    hits = [found(scene, ranking) for scene, ranking in zip(shown, judge(pictures), strict=True)]
    grounds = [scene.colour == ground_colour(picture) for scene, picture in zip(shown, pictures, strict=True)]
    yield Figure(f"{title}, {verdict}", share(hits), len(hits))
    yield Figure(f"{title}, background colour", share(grounds), len(grounds))


def drawing_figures(options: argparse.Namespace, things: Sequence[Concept]) -> Iterator[Figure]:
    """Measure drawn pictures: are the objects found, and is the ground, where the prompt names it, the one named?"""
    present(options.model / "model_index.json", "the figures of drawn pictures")
    judge = load_judge(options, things, "the figures of drawn pictures")
    model = reverie.load(options.model, device=options.device)
    options.guidance = model.guidance if options.guidance is None else options.guidance
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "pictures.jsonl").open("w", encoding="utf-8") as records:
        english_share = 0.0
        for group in prompt_sets(things, PAIRS):
            asked = spread(group.prompts, options.limit)
            pictures = draw(model, asked, options)
            drawn = [Drawn(*row) for row in zip(asked, pictures, judge(pictures), strict=True)]
            objects, *ground = drawn_figures(group, drawn)
            if group.key == "concepts":
                english_share = objects.value
            elif group.key == "chinese":
                objects = replace(objects, goal=english_share - CHINESE_BEHIND)
            yield from (objects, *ground)
            records.writelines(one.record(group.key) + "\n" for one in drawn)
            shown = drawn[:: group.every if options.limit is None else 1]
            keep(contact_sheet([(one.picture, label(one, things)) for one in shown]), options.out / f"{group.key}.png")


def drawn_figures(group: PromptSet, drawn: Sequence[Drawn]) -> Iterator[Figure]:
    """Measure one set of prompts: the objects found, and the grounds where any prompt names one."""
    hits = [one.right for one in drawn]
    yield Figure(f"{group.title}, {group.verdict}", share(hits), len(hits), goal=group.goal, gpu_goal=group.gpu_goal)
    grounds = [one.ground == one.prompt.scene.colour for one in drawn if one.prompt.names_ground]
    if grounds:
        name = f"{group.title}, named background colour right"
        yield Figure(name, share(grounds), len(grounds), goal=group.ground_goal)


def draw(model: reverie.Pipeline, asked: Sequence[Prompt], options: argparse.Namespace) -> list[Image.Image]:
    """Draw a picture of each prompt from the prompt's own seed."""
    asked_of_all = reverie.TextToImage(seed=0, steps=options.steps, guidance=options.guidance)
    request = asked_of_all.with_recommended(model.recommended.fields())
    sigmas, shape = noise_levels(model, request), model.codec.latent_shape(model.size, model.size)
    size = CPU_BATCH if model.device.type == "cpu" else GPU_BATCH
    empty = model.encode_negative([""])
    pictures: list[Image.Image] = []
    starts = track(range(0, len(asked), size), "drawing")
    for start in starts:
        batch = asked[start : start + size]
        positive = model.encode_prompt([prompt.text for prompt in batch])
        denoise = guided_denoiser(model, request, steady(positive, empty.repeat(len(batch))), sigmas)
        noise = Noise([prompt.seed for prompt in batch], shape, model.device)
        *_, last = sample(denoise, sigmas, noise, pick_sampler(request.sampler, model.schedule, request.eta))
        pictures += model.codec.pictures(last.x)
    return pictures


def described(scene: Scene) -> str:
    """Name what stands in a scene, in English."""
    return " and ".join(placed.concept.en[0] for placed in scene.objects) + f" on {scene.colour}"


def label(one: Drawn, things: Sequence[Concept]) -> str:
    """Tell a picture's prompt (in English where no font can show it), and what the judge saw where that differs."""
    legible = chinese_font() is not None or max(one.prompt.text) < "\N{CJK RADICAL REPEAT}"
    text = one.prompt.text if legible else f"[zh] {described(one.prompt.scene)}"
    if one.right:
        return text
    names = {thing.emoji: thing.en[0] for thing in things}
    return f"{text}\nseen as {' and '.join(names.get(emoji, emoji) for emoji in one.seen)}"


def keep(sheet: Image.Image, path: Path) -> None:
    """Write a contact sheet, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(sheet, path)


if __name__ == "__main__":
    sys.exit(main())
