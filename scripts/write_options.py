"""Write what repeats the requests' fields: the command line's flags, and the options of the methods for editors.

Run it after a field was added or its description changed: `python scripts/write_options.py`. A test compares the files
with what it would write.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args, get_origin

from reverie.requests.base import Frozen, SampledRequest
from reverie.requests.films import Animation
from reverie.requests.music import Film, Music
from reverie.requests.parts import Hires, Refiner, Variation
from reverie.requests.pictures import ImageToImage, Inpaint, Outpaint, TextToImage
from reverie.requests.references import FileReference
from reverie.requests.samplers import SAMPLERS, SCHEDULES

SOURCE = Path(__file__).parents[1] / "src/reverie"
SINGULAR = {
    "loras": "lora",
    "embeddings": "embedding",
    "folders": "lora_dir",
    "controls": "control",
    "ip_adapters": "ip_adapter",
    "regions": "region",
    "keyframes": "keyframe",
}
SIZES = ("width", "scale")  # fields whose flag is WIDTHxHEIGHT, or such a text among others
SAMPLED = (
    *("negative", "seed", "steps", "guidance", "sampler", "schedule", "timesteps", "sigmas", "eta"),
    *(
        "discard_penultimate",
        "guidance_rescale",
        "guidance_interval",
        "perturbed_guidance",
        "cfg_pp",
        "freeu",
        "cache_steps",
        "merge_tokens",
        "threshold",
    ),
)


class Text(NamedTuple):
    """A flag that is no field: its help and type."""

    help: str
    type: str = "str"


class Group(NamedTuple):
    """A class of flags: its title in the help, and the flags by name, each a field of a class or a text."""

    name: str
    title: str | None
    says: str
    flags: dict[str, tuple[type[Frozen], str] | Text]
    base: str = ""


def of(request: type[Frozen], *fields: str, **named: str) -> dict[str, tuple[type[Frozen], str] | Text]:
    """Return flags for fields; width and height are one flag, `size`."""
    flags = {SINGULAR.get(field, "size" if field == "width" else field): (request, field) for field in fields}
    return {**flags, **{flag: (request, field) for flag, field in named.items()}}


GROUPS = (
    Group("SampledFlags", None, "How every request is sampled.", of(SampledRequest, *SAMPLED)),
    Group(
        "AdapterFlags",
        "Adapt the model",
        "What is added to the model and to its prompt.",
        of(SampledRequest, "loras", "embeddings", "folders", "clip_skip"),
    ),
    Group(
        "PictureFlags", None, "How pictures are drawn.", of(TextToImage, "width", "count", "regions"), "SampledFlags"
    ),
    Group(
        "InitFlags",
        "Start from a picture",
        "The picture that a drawing starts from.",
        of(Inpaint, "init", "strength", "image_guidance", "mask", "mask_blur", "only_masked", "padding", "fill")
        | {
            "init": Text(
                "picture to draw anew, or a folder of them; transparent parts are painted, the rest stays", "Path"
            )
        }
        | {"outpaint": Text("continue the picture beyond its edges by so many pixels: 64, or left=64,bottom=32")},
    ),
    Group(
        "PictureAdapterFlags",
        "Adapt the model",
        "What is added to the model of pictures.",
        of(TextToImage, "controls", "ip_adapters"),
        "AdapterFlags",
    ),
    Group(
        "FurtherFlags",
        "Go further",
        "Variations, a second pass, a refiner, seamless edges and SDXL's sizes.",
        of(TextToImage, "vary", "noise_level", "depth")
        | of(Variation, subseed="seed", subseed_strength="strength", seed_size="width")
        | of(Hires, hires="scale", hires_upscaler="upscaler", hires_steps="steps", hires_strength="strength")
        | of(Refiner, refiner="model", refiner_switch="switch")
        | of(TextToImage, "rng", "zero_negative", "tile", "tile_size", "original_size", "crop", "target_size")
        | of(TextToImage, "negative_original_size", "negative_crop", "negative_target_size"),
    ),
    Group(
        "PathFlags",
        "Choose the path",
        "What a film goes through, how and how fast.",
        of(Animation, "keyframes")
        | {"storyboard": Text("TOML or JSON file of keyframes and fields of the film; flags go before it", "Path")}
        | of(Animation, "frames", "seconds", "fps", "anchor", "in_between", "interpolation", "easing", "pace")
        | of(Animation, "ping_pong", "loop"),
    ),
    Group("FrameFlags", None, "How the frames are drawn.", of(Animation, "width", "tile", "regions"), "SampledFlags"),
    Group(
        "SourceFlags",
        "Start from pictures and sound",
        "The pictures and the sound that a film starts from.",
        of(Animation, "init_video", "strength", "inversion", "fit", "audio", "drive", "smooth"),
    ),
    Group(
        "PlayingFlags",
        None,
        "How music is played.",
        of(Music, "seconds", "bpm", "beats", "loop", "stereo", "count"),
        "SampledFlags",
    ),
    Group("WayFlags", "Go from prompt to prompt", "Where the music goes.", of(Music, "to", "alpha", "walk")),
    Group(
        "SoundFlags",
        "Start from a sound",
        "The sound that the music starts from.",
        of(Music, "init", "strength", "mask"),
    ),
    Group(
        "FilmFlags",
        "Draw a film to it",
        "The film to the music.",
        {"film": Text("film with the music as its sound (.mp4, .webm), whose pictures move on the beat", "Path")}
        | of(Film, film_prompt="prompts", film_model="model", film_size="width")
        | of(Film, film_fps="fps", film_steps="steps", film_move="move"),
    ),
)


def flags_text() -> str:
    """Return cli/flags.py."""
    head = '''
    """The flags of `reverie image`, `animate` and `music`, by groups; what is not given is None.

    Written by scripts/write_options.py from the fields of the requests; do not edit.
    """

    from __future__ import annotations

    from dataclasses import dataclass
    from pathlib import Path

    from cyclopts import Parameter

    from reverie.cli.options import Flag, Several, Whole
    '''
    return textwrap.dedent(head).strip() + "\n" + "".join(map(_group, GROUPS))


def _group(group: Group) -> str:
    title = f', group="{group.title}"' if group.title else ""
    lines = ["", "", f'@Parameter(name="*"{title})', "@dataclass(frozen=True, kw_only=True)"]
    lines += [f"class {group.name}{f'({group.base})' if group.base else ''}:", f'    """{group.says}"""', ""]
    for name, entry in group.flags.items():
        lines += _flag(name, entry)
    return "\n".join(lines) + "\n"


def _flag(name: str, entry: tuple[type[Frozen], str] | Text) -> list[str]:
    """Return the lines of a flag: its type and default, and what it is as a docstring, which cyclopts shows."""
    if isinstance(entry, Text):
        kind, default, help = f"{entry.type} | None", "None", entry.help
    else:
        field = entry[0].model_fields[entry[1]]
        kind = "str" if entry[1] in SIZES else _type(field.annotation)
        help = field.description or ""
        if _is_said(field.default) and "if not given" not in help and kind != "Flag":
            help += (
                f"; {field.default:g} if not given"
                if isinstance(field.default, float)
                else f"; {field.default} if not given"
            )
        default = {"Flag": "False", "Several": "()"}.get(kind, "None")
        kind = kind if default != "None" else f"{kind} | None"
    assert help, f"the field of --{name} has no description"
    help = re.sub(r"`(\w+)`", lambda field: "--" + field[1].replace("_", "-"), help)
    first = help if re.match(r"\w+[_,]", help) else help[0].upper() + help[1:]  # names stay as they are
    return [f"    {name}: {kind} = {default}", f'    """{first}."""']


def _is_said(default: object) -> bool:
    return isinstance(default, str | int | float) and default not in ("", "none")


def _type(annotation: Any) -> str:
    """Return the type of a field's flag."""
    inner = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) is Literal:
        return "str"
    if get_origin(annotation) is tuple:
        return "Several" if inner[-1] is Ellipsis and _type(inner[0]) == "str" else "str"
    if len(inner) >= 1:  # Annotated, or one that may be None
        return _type(inner[0])
    if isinstance(annotation, type) and issubclass(annotation, FileReference):
        return "Path"
    return {int: "Whole", float: "float", bool: "Flag"}.get(annotation, "str")


OPTIONS = (
    ("SampledOptions", SampledRequest, ()),
    ("TextToImageOptions", TextToImage, ("prompt",)),
    ("ImageToImageOptions", ImageToImage, ("init",)),
    ("InpaintOptions", Inpaint, ("mask",)),
    ("OutpaintOptions", Outpaint, ("init",)),
    ("AnimationOptions", Animation, ("keyframes",)),
    ("MusicOptions", Music, ("prompt",)),
)
LIKE = {
    "Picture": "PictureLike",
    "SoundInput": "SoundLike",
    "SoundFile": "str | Path",
    "FilmFile": "str | Path",
    "ModelName": "str",
    "SamplerName": "SamplerLike",
    "ScheduleName": "ScheduleLike",
    "Seed": "int | None",
    "Pixels": "int",
    "Border": "int",
    "Strength": "float",
    "Level": "float",
    "Fraction": "float",
    "Guidance": "float",
    "Interval": "tuple[float, float]",
    "FreeU": "tuple[float, float, float, float]",
    "Size": "tuple[int, int]",
    "Corner": "tuple[int, int]",
    "Stop": "StopLike",
}


def options_text() -> str:
    """Return requests/options.py."""
    head = '''
    """The options of the methods of a `Pipeline`, and of the requests' constructors, for type checkers and editors.

    Written by scripts/write_options.py from the fields of the requests; do not edit.
    """

    from __future__ import annotations

    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

    from PIL import Image

    if TYPE_CHECKING:
        from reverie.media.sound import Sound
        from reverie.requests.films import Drive, EasingName, Fit, Interpolation, InversionName, Keyframe, Pace
        from reverie.requests.music import Stop
        from reverie.requests.parts import (
            ControlInput,
            Hires,
            IPAdapterInput,
            Refiner,
            Region,
            Variation,
            VariedPicture,
        )
        from reverie.requests.pictures import Fill, Rng, Tile
        from reverie.requests.references import Picture, SoundInput

    PictureLike: TypeAlias = "Picture | Image.Image | str | Path"
    SoundLike: TypeAlias = "SoundInput | Sound | Image.Image | str | Path"
    KeyframeLike: TypeAlias = "Keyframe | Mapping[str, Any] | str"
    StopLike: TypeAlias = "Stop | Mapping[str, Any] | str"
    '''
    names = _names("SamplerLike", SAMPLERS) + _names("ScheduleLike", SCHEDULES)
    return textwrap.dedent(head).strip() + "\n" + names + "".join(_options(*one) for one in OPTIONS)


def _names(title: str, names: tuple[str, ...]) -> str:
    """Write names out, which an editor offers; those of other programs are taken too."""
    lines = "".join(f'        "{name}",\n' for name in names)
    return f"{title}: TypeAlias = (\n    Literal[\n{lines}    ]\n    | str\n)\n"


def _options(name: str, request: type[Frozen], without: tuple[str, ...]) -> str:
    names: dict[type[Frozen], str] = {known: title for title, known, _ in OPTIONS}
    parent = cast("type[Frozen]", request.__bases__[0])
    base = names.get(parent, "TypedDict")
    inherited = set(parent.model_fields) if base != "TypedDict" else set()
    left_out = f" but {' and '.join(without)}" if without else ""
    says = f'    """The fields of `{request.__name__}`{left_out}."""'
    fields = {field: kind for field, kind in _annotations(request).items() if field not in {*without, *inherited}}
    head = ["", "", f"class {name}({base}, total=False):", says, ""]
    return "\n".join([*head, *(f"    {field}: {kind}" for field, kind in fields.items())]) + "\n"


def _annotations(request: type[Frozen]) -> dict[str, str]:
    """Return the fields' annotations as they stand in the source, in the words of whoever gives them."""
    found: dict[str, str] = {}
    for base in reversed(request.__mro__):
        if not (issubclass(base, Frozen) and base is not Frozen):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node in body.body:
            if isinstance(node, ast.AnnAssign) and (name := ast.unparse(node.target)) in base.model_fields:
                found[name] = _given_as(ast.unparse(node.annotation))
    return found


def _given_as(annotation: str) -> str:
    annotated = re.fullmatch(r"Annotated\[(.*), \w+\(.*\)\]", annotation)
    text = re.sub(r"[A-Z]\w+", lambda name: LIKE.get(name[0], name[0]), annotated[1] if annotated else annotation)
    text = re.sub(r"tuple\[(\w+), \.\.\.\]", r"Sequence[\1]", text)
    text = text.replace("Sequence[StopLike]", "StopLike | Sequence[StopLike]")
    return " | ".join(dict.fromkeys(text.split(" | ")))


FILES = {SOURCE / "cli/flags.py": flags_text, SOURCE / "requests/options.py": options_text}

if __name__ == "__main__":
    for path, text in FILES.items():
        path.write_text(text(), encoding="utf-8")
