"""What a model cannot do well of a request, words that it was never taught and sizes far from its own; others' sums.

A small model draws something for every word; without a note, "a cat" from a model that knows no cat is a piano. The
notes stop nothing. The models that a request names beside the one that draws are written down by their SHA-256, and
compared with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from reverie.adapters.control import control_files
from reverie.adapters.ip_adapter import image_prompt_files
from reverie.checkpoints.load import Components, Known
from reverie.generate.prompt import BREAK
from reverie.requests.adapter_files import files_sum
from reverie.requests.base import SampledRequest
from reverie.requests.films import Animation
from reverie.requests.music import Film, Music, tempos
from reverie.requests.parts import UPSCALER_NAMES
from reverie.requests.pictures import TextToImage
from reverie.requests.references import recorded_name
from reverie.system import StableDiffusion, model_files

FAR = 1.5  # times the side of the pictures that a model learned from, or a part as small
NEAREST = 3
# What captions are made of beside the names of things, and what people put around them.
GLUE = frozenset("a an the of on in at by to with and or me my please some one".split())  # noqa: SIM905
PLAIN = GLUE | frozenset(
    """next left right above below top under over beside near behind front background ground picture photo image drawing
    painting emoji icon draw small large big little red orange yellow green cyan blue purple pink brown gray grey black
    white
    背景上的 背景 旁边 左边 右边 上面 下面 上方 下方 红色 橙色 黄色 绿色 青色 蓝色 紫色 粉色 棕色 灰色 黑色 白色 一只
    一朵 一棵 一辆 一架 一艘 一把 一件 一个 画 图片 图 照片 小 大 的 在 和 上 一 与 跟""".split()  # noqa: SIM905
)
PLAIN_MUSIC = GLUE | frozenset(
    "music song tune track piece melody sound clip loop play playing 音乐 歌曲 曲子 旋律 演奏 的 和 与".split()  # noqa: SIM905
)
ADDED = re.compile(r"<[^>]*>")  # a LoRA brings words of its own, which no list knows
CHINESE = re.compile("[\u3400-\u9fff]+")
LETTERS = "(?:(?![\u3400-\u9fff])[^\\W\\d_])+"  # of any other script
WORD = re.compile(rf"{LETTERS}(?:[-’']{LETTERS})*")
TEMPO = "tempo"


def model_limits(request: SampledRequest, model: Components) -> tuple[str, ...]:
    """Return what should be told before a request is drawn or played, a sentence each."""
    if not model.known:
        return ()
    if isinstance(request, Music):
        return (*_words(request, model, PLAIN_MUSIC), *_tempo(request, model))
    size = _size(request, model) if isinstance(request, TextToImage | Animation) else ()
    return (*_words(request, model, PLAIN), *size)


def unknown_words(prompt: str, known: Sequence[Known], plain: Collection[str] = PLAIN) -> list[str]:
    """Return the words of a prompt that are neither names of known things nor plain words, in their order.

    Names are found longest first, and in the plural; a part of a name is none: "dog" is not known by "hot dog".

    >>> unknown_words("a hot dog and two dogs", [Known("🌭", ("hot dog",), ("热狗",))])
    ['two', 'dogs']
    """
    text = BREAK.sub(" ", prompt).lower()
    words = WORD.findall(text)
    names = _names(tuple(known))
    longest = max((len(name) for name in names), default=1)
    found: list[str] = []
    i = 0
    while i < len(words):
        fits = (n for n in range(min(longest, len(words) - i), 0, -1) if _is_name(words[i : i + n], names))
        length = next(fits, 0)
        if not length and words[i] not in plain:
            found.append(words[i])
        i += length or 1
    for run in CHINESE.findall(text):
        found += _unknown_zh(run, sorted({*plain, *(name for thing in known for name in thing.zh)}, key=len)[::-1])
    return list(dict.fromkeys(found))


@lru_cache(maxsize=8)  # of live drawings each asks anew
def _names(known: tuple[Known, ...]) -> set[tuple[str, ...]]:
    """Return the words of each English name."""
    return {tuple(WORD.findall(name.lower())) for thing in known for name in thing.en} - {()}


def nearest(word: str, known: Sequence[Known]) -> list[str]:
    """Return names of known things that a word has to do with, or that are spelled much like it; the best first."""
    singular = _singulars(word)
    akin = [thing.en[0] for thing in known if not singular.isdisjoint(thing.keywords)]
    names = {name.lower(): name for thing in known for name in (*thing.en, *thing.zh)}
    alike = [names[name] for name in get_close_matches(word, names, NEAREST, 0.75)]
    return list(dict.fromkeys(akin + alike))[:NEAREST]


def _words(request: SampledRequest, model: Components, plain: Collection[str]) -> Iterator[str]:
    """Tell of words that a model never learned; adapters bring words that no list knows."""
    prompts = request.prompts
    if request.loras or request.embeddings or any(map(ADDED.search, prompts)):
        return
    unknown = dict.fromkeys(word for prompt in prompts for word in unknown_words(prompt, model.known, plain))
    if not unknown:
        return
    phrases = []
    for word in unknown:
        near = nearest(word, model.known)
        phrases.append(f"'{word}'" + (f" (nearest: {', '.join(near)})" if near else ""))
    kinds = Counter(thing.kind for thing in model.known)
    counts = ", ".join(f"{count} {kind}s" for kind, count in kinds.items())
    names = ", ".join(thing.en[-1] for thing in model.known[:: max(1, len(model.known) // 6)][:6])
    yield f"{model.name} has not learned {', '.join(phrases)}; it knows {counts}, such as {names}"


def _tempo(music: Music, model: Components) -> Iterator[str]:
    """Tell of tempos that a model never learned: it plays near to one that it did."""
    learned = sorted({tempo for thing in model.known if thing.kind == TEMPO for tempo in tempos(thing.en[0])})
    asked = tempos(*music.prompts) if music.bpm is None else [music.bpm]
    if learned and (others := [tempo for tempo in dict.fromkeys(asked) if tempo not in learned]):
        known = ", ".join(f"{tempo:g}" for tempo in learned)
        near = [min(learned, key=lambda tempo: abs(tempo - other)) for other in others]
        unknown = ", ".join(f"{other:g} bpm (nearest: {one:g})" for other, one in zip(others, near, strict=True))
        yield f"{model.name} has not learned {unknown}, and may play another; it knows {known} bpm"


def _size(request: TextToImage | Animation, model: Components) -> Iterator[str]:
    """Tell of sizes far from a small model's own; of other models it is known what they do there."""
    trained = model.unet.config.sample_size * model.autoencoder.factor
    width, height = request.width or trained, request.height or trained
    if max(width, height) > FAR * trained or min(width, height) < trained / FAR:
        yield f"{model.name} learned from pictures of {trained} pixels; at {width}x{height} things may repeat"


def _is_name(words: Sequence[str], names: set[tuple[str, ...]]) -> bool:
    return any((*words[:-1], last) in names for last in _singulars(words[-1]))


def _singulars(word: str) -> set[str]:
    """Return a word and what it may be the plural of."""
    found = {word}
    for ending, singular in (("ies", "y"), ("ves", "f"), ("es", ""), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            found.add(word[: -len(ending)] + singular)
    return found


def _unknown_zh(run: str, names: Sequence[str]) -> list[str]:
    """Return what is left of a run of Chinese characters without known words, the longest of which go first."""
    for name in names:
        run = run.replace(name, " ")
    return run.split()


def with_sum(system: StableDiffusion, film: Film) -> tuple[Film, tuple[str, ...]]:
    """Return how a film is drawn to music with the sum of its model, and a note where that was another file."""
    if film.model is None:
        return film, ()
    name, sum = recorded_name(film.model), files_sum(model_files(film.model, system.dtype))
    return film.replace(sha256=sum), tuple(differences({name: sum}, {name: film.sha256 or sum}))


def with_sums(system: StableDiffusion, request: TextToImage) -> tuple[TextToImage, tuple[str, ...]]:
    """Return a request that knows the sums of its adapters, refiner and upscaler, and notes where one was another."""
    files = {control.model: control_files(control.model, system.dtype) for control in request.controls}
    for adapter in request.ip_adapters:
        files |= image_prompt_files(adapter)
    if request.refiner is not None:
        files[request.refiner.model] = model_files(request.refiner.model, system.dtype)
    if request.hires is not None and request.hires.upscaler not in UPSCALER_NAMES:
        files[request.hires.upscaler] = [Path(request.hires.upscaler)]
    found = {recorded_name(name): files_sum(listed) for name, listed in files.items()}
    before = dict(request.sums)
    return request.replace(sums={**before, **found}) if found else request, tuple(differences(found, before))


def differences(found: Mapping[str, str], before: Mapping[str, str]) -> Iterator[str]:
    """Say which models, by name with their sums, are not those that were written down."""
    for name, sum in found.items():
        if before.get(name, sum) != sum:
            yield f"'{name}' is not the model that it was: its SHA-256 is {sum} and was {before[name]}"
