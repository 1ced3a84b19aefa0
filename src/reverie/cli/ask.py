"""From flags to requests: the request that the flags of `reverie image`, `animate` and `music` mean.

Requests are imported when one is asked for: pydantic takes longer than a command's --help may.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from reverie.cli.flags import (
    AdapterFlags,
    FilmFlags,
    FrameFlags,
    FurtherFlags,
    InitFlags,
    PathFlags,
    PictureAdapterFlags,
    PictureFlags,
    PlayingFlags,
    SoundFlags,
    SourceFlags,
    WayFlags,
)
from reverie.cli.options import parse_size
from reverie.errors import ReverieError
from reverie.files import find_path

if TYPE_CHECKING:
    from reverie.requests.films import Animation
    from reverie.requests.music import Film, Music
    from reverie.requests.parts import Hires, Refiner, Region, Variation
    from reverie.requests.pictures import TextToImage

Fields = dict[str, Any]

FIELDS = {"lora": "loras", "embedding": "embeddings", "lora_dir": "folders", "region": "regions"}
"""The fields of flags that may be given several times."""

SIDES = ("left", "right", "top", "bottom")
MASKING = ("mask", "mask_blur", "only_masked", "padding", "fill")
SOUND, FILM = ("audio", "a sound that moves a film"), ("init_video", "a film to draw over")
SOURCES = {"drive": SOUND, "smooth": SOUND, "strength": FILM}
"""Flags of a film that say nothing without another one."""
SEEDS = 2**32  # that a film without one can come to


def fields_of(*flags: object) -> Fields:
    """Return what was given, as the requests' fields."""
    options = {name: value for group in flags for name, value in vars(group).items()}
    chosen = {name: value for name, value in options.items() if not (value is None or value is False or value == ())}
    if (size := chosen.pop("size", None)) is not None:
        chosen["width"], chosen["height"] = parse_size(size)
    return {FIELDS.get(name, name): PARSERS.get(name, lambda text: text)(value) for name, value in chosen.items()}


def ask_picture(
    prompt: str,
    drawing: PictureFlags = PictureFlags(),
    init: InitFlags = InitFlags(),
    adapters: PictureAdapterFlags = PictureAdapterFlags(),
    further: FurtherFlags = FurtherFlags(),
) -> TextToImage:
    """Make the request for pictures. Raises ReverieError for values out of range and for what does not fit."""
    from reverie.requests.parts import ControlInput, IPAdapterInput
    from reverie.requests.pictures import ImageToImage, Inpaint, Outpaint, TextToImage

    shared = {"prompt": prompt, **fields_of(drawing, adapters), **_further(further)}
    if controls := shared.pop("control", ()):
        shared["controls"] = tuple(ControlInput.of(parse_fields(text, "control")) for text in controls)
    if seen := shared.pop("ip_adapter", ()):
        shared["ip_adapters"] = tuple(IPAdapterInput.of(parse_ip_adapter(text)) for text in seen)
    picture = fields_of(init)
    if init.init is None:
        for name in sorted(picture):
            flag = name.replace("_", "-")
            raise ReverieError(f"--{flag} is about a picture to start from; give one with --init")
        return TextToImage(**shared)
    if (borders := picture.pop("outpaint", None)) is not None:
        return Outpaint.of({**shared, **picture, **parse_borders(borders)})
    if picture.keys() & set(MASKING):
        return Inpaint(**shared, **picture)
    request = ImageToImage(**shared, **picture)
    return Inpaint(**shared, **picture) if request.init.transparent else request


def _further(flags: FurtherFlags) -> Fields:
    """Return the fields of variations, a second pass, a refiner, seamless edges and SDXL's sizes."""
    fields = fields_of(flags)
    parts = ("subseed", "subseed_strength", "seed_size", "hires", "refiner")
    whole = {name: value for name, value in fields.items() if not name.startswith(parts)}
    return whole | {"variation": _variation(flags), "hires": _hires(flags), "refiner": _refiner(flags)}


def _variation(flags: FurtherFlags) -> Variation | None:
    from reverie.requests.parts import Variation

    width, height = parse_size(flags.seed_size) if flags.seed_size is not None else (None, None)
    fields = _without_none(seed=flags.subseed, strength=flags.subseed_strength, width=width, height=height)
    if flags.subseed is not None and flags.subseed_strength is None:
        raise ReverieError(
            "--subseed says which other noise to go towards; say with --subseed-strength how far, 0 to 1"
        )
    return Variation(**fields) if fields else None


def _hires(flags: FurtherFlags) -> Hires | None:
    from reverie.requests.parts import Hires

    fields = _without_none(upscaler=flags.hires_upscaler, steps=flags.hires_steps, strength=flags.hires_strength)
    if flags.hires is None:
        if fields:
            raise ReverieError(f"--hires-{min(fields)} is about a second pass; ask for one with --hires 2")
        return None
    if re.fullmatch(r"\d+(\.\d*)?", flags.hires):
        return Hires(scale=float(flags.hires), **fields)
    width, height = parse_size(flags.hires)
    return Hires(width=width, height=height, **fields)


def _refiner(flags: FurtherFlags) -> Refiner | None:
    from reverie.requests.parts import Refiner

    if flags.refiner is not None:
        return Refiner(model=flags.refiner, **_without_none(switch=flags.refiner_switch))
    if flags.refiner_switch is not None:
        raise ReverieError("--refiner-switch is about a refiner; give one with --refiner")
    return None


def _without_none(**fields: object) -> Fields:
    return {name: value for name, value in fields.items() if value is not None}


def ask_film(
    prompts: Sequence[str],
    path: PathFlags = PathFlags(),
    drawing: FrameFlags = FrameFlags(),
    adapters: AdapterFlags = AdapterFlags(),
    source: SourceFlags = SourceFlags(),
) -> Animation:
    """Make the request for a film. Raises ReverieError for values out of range and for what does not fit."""
    from reverie.media import footage
    from reverie.requests.films import Animation

    fields = fields_of(path, drawing, adapters, source)
    keyframes, board = fields.pop("keyframe", ()), fields.pop("storyboard", None)
    ways = {"prompts": prompts, "--keyframe": keyframes, "--storyboard": board}
    if len(named := [name for name, value in ways.items() if value]) > 1:
        raise ReverieError(f"{named[0]} and {named[1]} both say what the film shows; give one of them")
    asked: Fields = {"keyframes": [*prompts, *keyframes]}
    if board is not None:
        from reverie.requests import storyboard

        asked = storyboard.read(board)
    for one, other in (("frames", "seconds"), ("seconds", "frames")):
        if one in fields:  # goes before the other one of a storyboard
            asked.pop(other, None)
    asked |= fields
    for name, (source_name, source_is) in SOURCES.items():
        if name in fields and source_name not in asked:
            flag = source_name.replace("_", "-")
            raise ReverieError(f"--{name} is about {source_is}; give one with --{flag}")
    if not asked["keyframes"]:
        raise ReverieError("nothing to show; give two prompts, --keyframe or --storyboard")
    if "init_video" in asked and "fps" not in asked and (rate := footage.read(asked["init_video"]).fps):
        asked["fps"] = rate
    return Animation.of({**asked, "seed": asked["seed"] if "seed" in asked else seed_of(asked)})


def seed_of(fields: Fields) -> int:
    """Derive a seed from all else that was asked, so that a film without one can go on."""
    text = json.dumps(fields, sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % SEEDS


def ask_music(
    prompt: str,
    playing: PlayingFlags = PlayingFlags(),
    way: WayFlags = WayFlags(),
    sound: SoundFlags = SoundFlags(),
    adapters: AdapterFlags = AdapterFlags(),
) -> Music:
    """Make the request for music. Raises ReverieError for values out of range and for what does not fit."""
    from reverie.requests.music import Music

    if sound.init is None and sound.strength is not None:
        raise ReverieError("--strength is about a sound to start from; give one with --init")
    return Music.of({"prompt": prompt, **fields_of(playing, way, sound, adapters)})


def ask_film_of_music(flags: FilmFlags) -> Film | None:
    """Make the request for the film to music that the flags mean; None where they ask for none."""
    from reverie.requests.music import Film

    fields = {name.removeprefix("film_"): value for name, value in fields_of(flags).items()}
    if fields.pop("film", None) is None:
        for name in fields:
            raise ReverieError(f"--film-{name} is about a film to the music; ask for one with --film film.mp4")
        return None
    if "size" in fields:
        fields["width"], fields["height"] = parse_size(fields.pop("size"))
    if "prompt" in fields:
        fields["prompts"] = fields.pop("prompt")
    return Film.of(fields)


def parse_borders(text: str) -> dict[str, int]:
    """Read pixels for all sides, or left=64,bottom=32. Raises ReverieError for anything else."""
    if text.isdecimal():
        return dict.fromkeys(SIDES, int(text))
    if "=" not in text:
        raise ReverieError(f"--outpaint '{text}' is not possible; write 64, or left=64,right=64,top=32,bottom=32")
    borders = parse_fields(text, "outpaint")
    for side, pixels in borders.items():
        if side not in SIDES or not pixels.isdecimal():
            raise ReverieError(f"'{side}={pixels}' is no border; write 64, or left=64,right=64,top=32,bottom=32")
    return {side: int(pixels) for side, pixels in borders.items()}


def parse_interval(text: str) -> tuple[float, float]:
    """Read START,END. Raises ReverieError for anything else."""
    try:
        start, end = (float(part) for part in text.split(","))
    except ValueError:
        raise ReverieError(f"--guidance-interval '{text}' is not possible; write START,END such as 0.2,0.8") from None
    return start, end


def parse_freeu(text: str) -> tuple[float, ...]:
    """Read four numbers. Raises ReverieError for anything else."""
    try:
        first, second, third, fourth = (float(part) for part in text.split(","))
    except ValueError:
        raise ReverieError(f"--freeu '{text}' is not possible; write b1,b2,s1,s2 such as 1.5,1.6,0.9,0.2") from None
    return first, second, third, fourth


def parse_numbers(text: str) -> tuple[float, ...]:
    """Read NUMBER,NUMBER,... Raises ReverieError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ReverieError(f"'{text}' are no levels of noise; write numbers such as 999,749,499,249") from None


def parse_axes(texts: Sequence[str]) -> dict[str, list[str]]:
    """Read NAME=VALUE,VALUE of each axis; a value that holds a comma stands in quotes. Raises ReverieError."""
    axes: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not (name and equals) or name in axes:
            raise ReverieError(f"--axis '{text}' is not possible; write NAME=VALUE,VALUE, each name once")
        axes[name] = [value.strip() for value in next(csv.reader([values], skipinitialspace=True), [])]
    return axes


def parse_varied(texts: Sequence[str]) -> tuple[Fields, ...]:
    """Read FILE or FILE:WEIGHT of each; a colon before what is no number belongs to the name."""
    parts = [re.fullmatch(r"(.+?)(?::([-+]?\d*\.?\d+(?:e[-+]?\d+)?))?", text, re.DOTALL) for text in texts]
    return tuple({"image": part[1], **({"weight": float(part[2])} if part[2] else {})} for part in parts if part)


def parse_fields(text: str, flag: str, several: Sequence[str] = ()) -> Fields:
    """Read name=value,name=value; those that may be given several times become lists.

    Raises ReverieError where a part has no name, and for another that is given twice.
    """
    fields: Fields = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals):
            raise ReverieError(f"--{flag} '{text}' is not possible; write name=value,name=value")
        if name in several:
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise ReverieError(f"--{flag} '{text}' gives {name} twice; give it once")
        else:
            fields[name] = value
    return fields


def parse_ip_adapter(text: str) -> Fields:
    """Read the fields of an IP-Adapter, whose picture may be several. Raises ReverieError where there is none."""
    fields = parse_fields(text, "ip-adapter", ("image",))
    if "image" not in fields:
        raise ReverieError(f"--ip-adapter '{text}' names no picture; write image=FILE into it")
    images = fields.pop("image")
    return {**fields, "images": images}


def parse_region(text: str) -> Fields:
    """Read PLACE=PROMPT or PLACE:WEIGHT=PROMPT, and a negative prompt.

    Raises ReverieError where the place is neither a box nor a mask.
    """
    from reverie.requests.parts import BOX_FORMS, read_box

    ends = [at for at, sign in enumerate(text) if sign == "="]  # a mask's name may hold some, and a prompt too
    places = [re.fullmatch(r"(.+?)(?::(\d*\.?\d+))?", text[:end], re.DOTALL) for end in ends]
    pairs = [(*found.groups(), text[end + 1 :]) for found, end in zip(places, ends, strict=True) if found]
    if not pairs:
        raise ReverieError(f"--region '{text}' is not possible; write PLACE=PROMPT such as 'left=a bear'")
    place, weight, prompt = next((pair for pair in pairs if _is_file(pair[0])), pairs[0])
    prompt, *negative = re.split(r"(?:^|\s+)@negative(?:\s+|$)", prompt, maxsplit=1)
    fields = {
        "prompt": prompt,
        **({"weight": weight} if weight else {}),
        **({"negative": negative[0]} if negative else {}),
    }
    if _is_file(place):
        return {**fields, "mask": place}
    try:
        return {**fields, "box": read_box(place)}
    except ReverieError:
        raise ReverieError(
            f"--region '{text}' names no part of a picture; write {BOX_FORMS}, or the file of a mask"
        ) from None


def _is_file(text: str) -> bool:
    path = find_path(text)
    return path is not None and path.is_file()


def parse_regions(texts: Sequence[str]) -> tuple[Region, ...]:
    """Read each of several regions; see `parse_region`."""
    from reverie.requests.parts import Region

    return tuple(Region.of(parse_region(text)) for text in texts)


SIZES = ("original_size", "crop", "target_size", "negative_original_size", "negative_crop", "negative_target_size")
PARSERS: dict[str, Callable[[Any], Any]] = {
    "guidance_interval": parse_interval,
    "freeu": parse_freeu,
    "vary": parse_varied,
    "region": parse_regions,
    **dict.fromkeys(("timesteps", "sigmas"), parse_numbers),
    **dict.fromkeys(SIZES, parse_size),
}
"""How the flags that are read from a text are."""
