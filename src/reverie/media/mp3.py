"""MP3 streams: their frames counted, their length written where decoders look for it, and ID3v2 tags in UTF-8.

Sources: ISO 11172-3, 2.4.2.3 (frame header); the Xing header as LAME writes it (mp3 info tag revision 1); id3.org,
ID3v2.4.0 structure and native frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# kbit/s of layer III by bitrate index 1 to 14: of MPEG 1, and of MPEG 2 and 2.5.
_KBITS = (
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_RATES = (44_100, 48_000, 32_000)
_MARKS = (b"Xing", b"Info")
_FRAMES = {
    "title": b"TIT2",
    "artist": b"TPE1",
    "album": b"TALB",
    "copyright": b"TCOP",
    "software": b"TSSE",
    "date": b"TDRC",
    "license": b"TOWN",
    "tracknumber": b"TRCK",
    "genre": b"TCON",
    "comment": b"COMM",
}


class Header(NamedTuple):
    """What a frame's four bytes say: how many bytes it has, and where a Xing header stands in a frame like it."""

    size: int
    mark: int


def with_length(data: bytes) -> tuple[bytes, float]:
    """Return an MP3 stream whose Xing header tells how many frames there are, and the share of those it told of before.

    Without one decoders guess the length of a variable bitrate from its first frame; one that is there is wrong where
    the file was cut off (a share below 1) or joined from several. What is no MP3 of layer III comes back as it is.
    """
    first, count = _count(data)
    header = _header(data, first)
    if header is None:
        return data, 1.0
    mark = first + header.mark
    if data[mark : mark + 4] in _MARKS and data[mark + 7] & 1:
        announced = int.from_bytes(data[mark + 8 : mark + 12], "big")
        size = (len(data) - first).to_bytes(4, "big") if data[mark + 7] & 2 else data[mark + 12 : mark + 16]
        mended = b"".join([data[: mark + 8], (count - 1).to_bytes(4, "big"), size, data[mark + 16 :]])
        return mended, (count - 1) / max(1, announced)
    index = 5  # 64 or 40 kbit/s: room for a Xing header at every rate
    head = bytes([0xFF, data[first + 1] | 1, index << 4 | data[first + 2] & 0x0C, data[first + 3]])
    made = _header(head, 0)
    assert made is not None
    frame = bytearray(made.size)
    frame[:4] = head
    frame[made.mark : made.mark + 12] = b"Xing\0\0\0\1" + count.to_bytes(4, "big")
    return b"".join([data[:first], frame, data[first:]]), 1.0


def without_junk(data: bytes) -> bytes:
    """Return an MP3 stream without what stands before its first frame; nothing where there is none."""
    first, count = _count(data)
    return data[first:] if count else b""


def id3(texts: Mapping[str, str]) -> bytes:
    """Return an ID3v2.4 tag of texts in UTF-8, by libsndfile's names (title, comment, ...); nothing for none."""
    frames = b""
    for name, text in texts.items():
        prefix = b"\3eng\0" if name == "comment" else b"\3"  # UTF-8; a comment has a language and a description
        body = prefix + text.encode()
        frames += _FRAMES[name] + _syncsafe(len(body)) + b"\0\0" + body
    return b"ID3\4\0\0" + _syncsafe(len(frames)) + frames if frames else b""


def is_mp3(head: bytes) -> bool:
    """Tell by its first bytes whether a file is an MP3: an ID3v2 tag, or a frame of layer III."""
    return head.startswith(b"ID3") or _header(head, 0) is not None


def _syncsafe(number: int) -> bytes:
    """Write a number in four bytes of seven bits."""
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def _count(data: bytes) -> tuple[int, int]:
    """Return where the first frame begins, and how many there are; what is between frames is passed over."""
    place, first, count = _after_id3(data), 0, 0
    while (place := data.find(b"\xff", place)) >= 0:
        header = _header(data, place)
        follows = header and (_header(data, place + header.size) or place + header.size >= len(data))
        if header is None or not (count or follows):  # a first frame that none follows is chance
            place = _after_id3(data, place) if data[place : place + 3] == b"ID3" else place + 1
            continue
        first, count = first if count else place, count + 1
        place += header.size
    return first, count


def _after_id3(data: bytes, place: int = 0) -> int:
    """Return where an ID3v2 tag ends that begins at a place."""
    if data[place : place + 3] != b"ID3" or len(data) < place + 10:
        return place
    size = sum(byte << shift for byte, shift in zip(data[place + 6 : place + 10], (21, 14, 7, 0), strict=True))
    return place + 10 + size


def _header(data: bytes, place: int) -> Header | None:
    """Read a frame's header; None where there is none of layer III."""
    head = data[place : place + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:  # eleven bits of sync, and the layer
        return None
    version, index, sampling = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3  # version 3: MPEG 1, 2: 2, 0: 2.5
    if version == 1 or sampling == 3 or not 0 < index < 15:
        return None
    rate = _RATES[sampling] >> {3: 0, 2: 1, 0: 2}[version]
    kbits = _KBITS[version != 3][index - 1]
    size = (144_000 if version == 3 else 72_000) * kbits // rate + (head[2] >> 1 & 1)
    mono, crc = head[3] >> 6 == 3, 0 if head[1] & 1 else 2
    side = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}[version == 3, mono]
    return Header(size, 4 + crc + side)
