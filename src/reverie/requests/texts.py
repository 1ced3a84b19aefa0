"""The texts that a picture, a film or a sound carries beside its content, whichever program wrote them.

A PNG has text chunks; JPEG and WebP have EXIF and XMP; films and sounds have tags; and some programs hide their text in
the lowest bits of the pixels. All come back in one mapping, by the names that they have, or would have, in a PNG.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree

from PIL import ExifTags, Image

from reverie.errors import ReverieError
from reverie.files import reason_of
from reverie.media.encoder import COMMENT
from reverie.media.footage import DEMUXERS as FILM_DEMUXERS
from reverie.media.footage import FILMS
from reverie.media.pictures import DAMAGED, FORMATS, PARAMETERS, REQUEST

SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".m4a", ".aac", ".aiff", ".aif", ".mka", ".wma")
# The character code that opens a UserComment (EXIF 2.3, 4.6.5).
CODES = {b"ASCII\0\0\0": "utf-8", b"UNICODE\0": "utf-16-be", b"JIS\0\0\0\0\0": "shift_jis", bytes(8): "utf-8"}
XMP_TEXTS = {
    "{http://ns.adobe.com/xap/1.0/}CreatorTool": "CreatorTool",
    "{http://ns.adobe.com/exif/1.0/}UserComment": "UserComment",
    "{https://github.com/leejet/stable-diffusion.cpp/ns/1.0/}parameters": PARAMETERS,
}
# The signatures of texts in the lowest bits (sd-webui-stealth-pnginfo; NovelAI's novelai-image-metadata/nai_meta.py).
STEALTH = {
    b"stealth_pnginfo": ("A", False),
    b"stealth_pngcomp": ("A", True),
    b"stealth_rgbinfo": ("RGB", False),
    b"stealth_rgbcomp": ("RGB", True),
}
DEMUXERS = f"{FILM_DEMUXERS},flac,wav,mp3,aac,aiff,asf"
LONGEST = 1 << 24  # bytes of a hidden text, and of what it unpacks to

Kind = Literal["picture", "film", "sound"]


class Carrier(NamedTuple):
    """What a file carries: its kind, its texts by name, and of a picture or film the width and height in pixels."""

    kind: Kind
    texts: dict[str, str]
    size: tuple[int, int] | None = None


def read_carrier(file: Image.Image | str | Path) -> Carrier:
    """Read the texts of a picture, a film, a sound, or a folder of frames (those of the first).

    Raises ReverieError where there is no such file, it is damaged, or it is of another kind.
    """
    if isinstance(file, Image.Image):
        return Carrier("picture", picture_texts(file), file.size)
    path = Path(file)
    if path.is_dir():
        frames = sorted(one for one in path.iterdir() if one.suffix.lower() in FORMATS and one.is_file())
        if not frames:
            raise ReverieError(f"no pictures in '{path}'; a film's folder holds {', '.join(FORMATS)}")
        path = frames[0]
    suffix = path.suffix.lower()
    if suffix in FILMS:
        return _film(path)
    if suffix in SOUNDS:
        return Carrier("sound", _tags(path))
    with _open(path) as picture:
        return Carrier("picture", picture_texts(picture), picture.size)


def picture_texts(picture: Image.Image) -> dict[str, str]:
    """Collect a picture's texts by name: chunks, EXIF, XMP, a GIF's comment, and what its lowest bits hide."""
    texts = {name: value for name, value in picture.info.items() if isinstance(name, str) and isinstance(value, str)}
    comment = picture.info.get(COMMENT)
    if isinstance(comment, bytes):  # of a GIF, which may hold our JSON, or a JPEG
        texts |= _with_ours({COMMENT: comment.decode(errors="replace")})
    texts |= {name: text for name, text in _exif_texts(picture).items() if text}
    for name, text in _xmp_texts(picture).items():
        texts.setdefault(name, text)
    for name, text in _private_chunks(picture).items():
        texts.setdefault(name, text)
    if PARAMETERS not in texts and (hidden := _hidden_text(picture)):
        texts[PARAMETERS] = hidden
    return texts


def _exif_texts(picture: Image.Image) -> dict[str, str]:
    """Read UserComment (in EXIF's own directory, or the main one: Fooocus), ImageDescription, and ComfyUI's tags."""
    exif = picture.getexif()
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    texts: dict[str, str] = {}
    comment = inner.get(ExifTags.Base.UserComment, exif.get(ExifTags.Base.UserComment))
    if isinstance(comment, bytes | str):
        texts[PARAMETERS] = decode_comment(comment)
    for value in exif.values():
        if not isinstance(value, str):
            continue
        for name in ("prompt", "workflow"):  # ComfyUI's WebP: "prompt:{...}" under tags of cameras
            if value.startswith(f"{name}:"):
                texts.setdefault(name, value.removeprefix(f"{name}:"))
    description = exif.get(ExifTags.Base.ImageDescription)
    if isinstance(description, str) and description.startswith("{"):
        texts[REQUEST] = description
    return texts


def decode_comment(comment: bytes | str) -> str:
    """Decode a UserComment by the eight bytes that open it (EXIF 2.3, 4.6.5)."""
    if isinstance(comment, str):
        return comment.strip("\0 ")
    encoding = CODES.get(comment[:8])
    if encoding is None:
        return comment.decode(errors="replace").strip("\0 ")
    body = comment[8:]
    if encoding == "utf-16-be" and body[1::2].count(0) > body[::2].count(0):
        encoding = "utf-16-le"  # which is wrong, and done
    return body.decode(encoding, errors="replace").strip("\0 ")


def _xmp_texts(picture: Image.Image) -> dict[str, str]:
    """Read the properties of XMP that generators use: Draw Things' and stable-diffusion.cpp's."""
    packet = picture.info.get("XML:com.adobe.xmp") or picture.info.get("xmp")
    if not isinstance(packet, bytes | str):
        return {}
    packet = packet.encode() if isinstance(packet, str) else packet
    start, end = packet.find(b"<x:xmpmeta"), packet.rfind(b"</x:xmpmeta>")
    if start < 0 or b"<!" in packet[start:end]:  # an entity may unpack to gigabytes
        return {}
    try:
        root = ElementTree.fromstring(packet[start : end + len(b"</x:xmpmeta>")])
    except ElementTree.ParseError:
        return {}
    texts = {}
    for element in root.iter():
        for tag, name in XMP_TEXTS.items():
            if element.tag == tag:
                texts[name] = "".join(element.itertext()).strip()
            elif tag in element.attrib:
                texts[name] = element.attrib[tag]
    return texts


def _private_chunks(picture: Image.Image) -> dict[str, str]:
    """Read the `comf` chunks behind the pixels of ComfyUI's animated PNG: name, zero, text."""
    path = getattr(picture, "filename", "")
    if picture.format != "PNG" or not path or not getattr(picture, "is_animated", False):
        return {}
    texts = {}
    with suppress(OSError), Path(path).open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"comf" and length < LONGEST:
                name, _, text = file.read(length).partition(b"\0")
                texts[name.decode("latin-1")] = text.decode("latin-1")
                file.seek(4, 1)
            else:
                file.seek(length + 4, 1)
    return texts


def _hidden_text(picture: Image.Image) -> str:
    """Read a text from the lowest bits of alpha, or of red, green and blue, column by column, or return ""."""
    if picture.mode not in ("RGB", "RGBA", "LA") or picture.width * picture.height < 8 * 19:
        return ""
    for bands in ("A", "RGB"):
        if not set(bands) <= set(picture.getbands()):
            continue
        few = picture.crop((0, 0, min(picture.width, 120 // picture.height + 1), picture.height))
        signature = _lowest_bits(few, bands)(0, 15)
        if STEALTH.get(signature, ("", False))[0] == bands:
            bits = _lowest_bits(picture, bands)
            length = int.from_bytes(bits(15, 19)) // 8
            data = bits(19, 19 + min(length, LONGEST))
            with suppress(OSError, EOFError, zlib.error):
                unpacked = gzip.decompress(data) if STEALTH[signature][1] else data
                return unpacked[:LONGEST].decode(errors="replace")
    return ""


def _lowest_bits(picture: Image.Image, bands: str) -> Any:
    """Return a function that gives bytes `start` to `end` of those that the lowest bits of the columns spell."""
    import numpy as np

    turned = picture.transpose(Image.Transpose.TRANSPOSE)
    flat = np.stack([np.asarray(turned.getchannel(band)).reshape(-1) for band in bands], axis=-1).reshape(-1)
    return lambda start, end: np.packbits(flat[start * 8 : end * 8] & 1).tobytes()


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            if not getattr(picture, "is_animated", False):
                picture.load()  # text chunks may stand behind the pixels
            yield picture
    except DAMAGED as error:
        reason = reason_of(error) if getattr(error, "errno", None) else "not a picture, or damaged"
        raise ReverieError(f"cannot read '{path}': {reason}") from error


def _film(path: Path) -> Carrier:
    with _demux(path) as film:
        video = film.streams.video
        size = (video[0].width, video[0].height) if video else None
        return Carrier("film", _lower(film.metadata), size)


def _tags(path: Path) -> dict[str, str]:
    """Read a sound's tags, of the file and of its stream (where Opus has them)."""
    with suppress(ImportError):
        import soundfile

        # Opened here, and so told by content alone: libsndfile searches what is called .mp3, and writes to stderr.
        with suppress(soundfile.LibsndfileError, OSError), path.open("rb") as file, soundfile.SoundFile(file) as sound:
            texts = {name: text for name, text in sound.copy_metadata().items() if text}
            if REQUEST in (texts := _with_ours(texts)):
                return texts
    with _demux(path) as sound:
        streams = [_lower(stream.metadata) for stream in sound.streams.audio]
        return {name: text for one in (_lower(sound.metadata), *streams) for name, text in one.items()}


@contextmanager
def _demux(path: Path) -> Iterator[Any]:
    try:
        import av
    except ImportError as error:
        raise ReverieError(f"reading '{path}' needs PyAV; install it with: pip install 'reverie[film]'") from error
    if not path.is_file():
        raise ReverieError(f"cannot read '{path}': there is no such file")
    try:
        options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
        with av.open(str(path), options=options, metadata_errors="replace") as film:
            yield film
    except av.error.FFmpegError as error:
        raise ReverieError(f"cannot read '{path}': no film or sound that is known, or damaged") from error


def _lower(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags with names in lower case, as some containers write them in capitals; ours under its own name."""
    return _with_ours({name.lower(): text for name, text in tags.items()})


def _with_ours(texts: dict[str, str]) -> dict[str, str]:
    """Add our JSON under its own name, where the comment is it, or is JSON that is cut."""
    if REQUEST in texts or not (comment := texts.get(COMMENT, "")).startswith("{"):
        return texts
    try:
        data = json.loads(comment)
    except (ValueError, RecursionError):
        data = {"kind": None}
    return texts | ({REQUEST: comment} if data.keys() & {"kind", "model", "request"} else {})


def json_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that a text is, or None where it is none; some writers end it as C ends texts."""
    try:
        data = json.loads(text.rstrip("\0"))
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None
