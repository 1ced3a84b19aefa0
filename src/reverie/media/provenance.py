"""Marks by which a picture says that a model made it: an invisible watermark, and a manifest signed by C2PA.

The watermark is a text in the singular values of a picture's blocks (DWT-DCT-SVD). The luma's Haar wavelet transform
leaves a picture of half the size, LL; each of its 4 x 4 blocks, 8 x 8 pixels as JPEG cuts them, carries one bit in its
largest singular value, which is moved to the nearest value that stands for the bit (quantisation index modulation: Chen
and Wornell 2001). An orthonormal DCT of a block, D B D^T, has the same singular values and is moved by the same change,
so the transform that gives the method its middle name needs no computing.

The manifest needs the extra `c2pa`. Source: C2PA specification 2.1 (c2pa.org); the action "c2pa.created" and IPTC's
digital source type for pictures that a trained model made.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from reverie.errors import ReverieError
from reverie.files import atomic_write, reason_of
from reverie.media.pictures import DAMAGED, FORMATS, unreadable

BLOCK = 8  # pixels
STEP = 36.0  # from one value that stands for a bit to the next that does; a level of the luma in a flat block is 8
COPIES = 2  # of every bit at least; small texts get more
CHECK_BYTES = 4
MOST_BYTES = 60  # of text: every length that is tried is one more chance to read what is not there
PASSES = 4  # rounding to eight bits and clipping take some of a change back; each pass makes up for it
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in JPEG
CLIPPING_COST = 4.0  # how much rather a block is changed by one unit more than clipped by one


def write_watermark(picture: Image.Image, text: str) -> Image.Image:
    """Return the picture with a text in it, unseen; transparency and `.info` are kept.

    Raises ReverieError where the text is empty or longer, in UTF-8, than the picture has room for.
    """
    message, most = text.encode(), watermark_room(picture)
    if not 0 < len(message) <= most:
        raise ReverieError(
            f"a watermark of {len(message)} bytes does not fit a picture of {picture.width} x {picture.height} pixels; "
            + (f"give a text of 1 to {most}" if most else "give one of at least 96 x 96")
        )
    whole = picture.convert("RGBA") if picture.has_transparency_data else picture
    pixels = np.asarray(whole.convert("RGB"), dtype=np.float64)
    marked = Image.fromarray(embed_bits(pixels, _frame(message, _count(picture))).astype(np.uint8))
    if whole.mode == "RGBA":
        marked.putalpha(whole.getchannel("A"))
    marked.info.update({name: value for name, value in picture.info.items() if name != "transparency"})
    return marked


def read_watermark(picture: Image.Image | str | Path) -> str:
    """Return the text that `write_watermark` left in a picture, perhaps since saved as JPEG; best from the file itself.

    Every bit is the majority of its copies, and a checksum tells the text from chance. Raises ReverieError where there
    is none, or too much of it was lost.
    """
    plane = _luma(picture) if isinstance(picture, Image.Image) else _luma_of_file(Path(picture))
    votes = extract_votes(plane)
    votes = np.where(_whitening(votes.size), -votes, votes)
    for length in range(1, _room(votes.size) + 1):
        bits = 8 * (length + CHECK_BYTES)
        copies = -(-votes.size // bits)
        tally = np.pad(votes, (0, copies * bits - votes.size)).reshape(copies, bits).sum(axis=0)
        frame = np.packbits(tally > 0).tobytes()
        if frame == _with_checksum(frame[:length]):
            return frame[:length].decode(errors="replace")
    raise ReverieError("this picture holds no watermark of reverie's, or it was changed too much since")


def watermark_room(picture: Image.Image) -> int:
    """Return how many bytes of text a picture can carry: 12 at 128 x 128 pixels, at most 60."""
    return _room(_count(picture))


def embed_bits(pixels: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Return whole levels of 0 to 255, [h, w, 3], whose blocks carry bits, row by row.

    Red, green and blue are changed by the same amount, which changes the luma alone.
    """
    values, direction = _decompose(pixels @ LUMA)
    wanted = _nearest(pixels, values, direction, bits)
    for _ in range(PASSES):
        values, direction = _decompose(pixels @ LUMA)
        pixels = (pixels + _to_pixels((wanted - values[:, 0])[:, None, None] * direction, pixels)).round().clip(0, 255)
    return pixels


def extract_votes(luma: np.ndarray) -> np.ndarray:
    """Return a vote a block, row by row: 1 for a clear 1, -1 for a clear 0, about 0 where it is hard to tell."""
    values = np.linalg.svd(_blocks(luma), compute_uv=False)
    return -np.cos(2 * np.pi * (values[:, 0] / STEP - 0.25))


def _luma(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=np.float64) @ LUMA


def _luma_of_file(file: Path) -> np.ndarray:
    """Read a file's luma; a JPEG's as it is stored, since the way to RGB clips it beside saturated colours."""
    try:
        with Image.open(file) as picture:
            if picture.format == "JPEG":
                picture.draft("L", picture.size)
                return np.asarray(picture.convert("L"), dtype=np.float64)
            return _luma(picture)
    except DAMAGED as error:
        raise ReverieError(f"cannot read '{file}': {unreadable(error)}") from error


def _nearest(pixels: np.ndarray, values: np.ndarray, direction: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Choose a block's new largest singular value: of the two that stand for its bit, the one that costs less.

    A 0 is at 1/4 of a step past a whole one, a 1 at 3/4. A value below the second singular value would not be the
    largest, and one that clips would not be reached.
    """
    largest, second = values[:, 0], values[:, 1]
    offset = STEP * (0.25 + 0.5 * bits)
    below = np.floor((largest - offset) / STEP) * STEP + offset
    above = below + STEP
    costs = []
    for target in (below, above):
        change = _to_pixels((target - largest)[:, None, None] * direction, pixels)
        clipped = pixels + change - (pixels + change).clip(0, 255)
        lost = np.abs(_blocks(clipped @ LUMA)).mean(axis=(1, 2)) * 4
        costs.append(np.abs(target - largest) + CLIPPING_COST * lost)
    costs[0][below < second + STEP / 4] = np.inf
    return np.where(costs[0] <= costs[1], below, above)


def _decompose(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the singular values of LL's blocks, and the matrix of unit norm that belongs to each one's largest."""
    u, values, vt = np.linalg.svd(_blocks(luma))
    return values, u[:, :, :1] * vt[:, :1, :]


def _blocks(plane: np.ndarray) -> np.ndarray:
    """Cut the Haar transform's LL of a plane [h, w] into blocks [n, 4, 4]; what is left over at the edges is let be."""
    down, across = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    cut = plane[: down * BLOCK, : across * BLOCK].reshape(down, 4, 2, across, 4, 2)
    return (cut.sum(axis=(2, 5)) / 2).transpose(0, 2, 1, 3).reshape(-1, 4, 4)


def _to_pixels(blocks: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Turn LL's blocks [n, 4, 4] back into a plane [h, w, 1] for pixels, all other parts of the transform being 0."""
    height, width = pixels.shape[:2]
    down, across = height // BLOCK, width // BLOCK
    ll = blocks.reshape(down, across, 4, 4).transpose(0, 2, 1, 3).reshape(4 * down, 4 * across)
    plane = (ll / 2).repeat(2, axis=0).repeat(2, axis=1)
    return np.pad(plane, ((0, height - BLOCK * down), (0, width - BLOCK * across)))[:, :, None]


def _count(picture: Image.Image) -> int:
    return (picture.width // BLOCK) * (picture.height // BLOCK)


def _room(count: int) -> int:
    return min(MOST_BYTES, max(0, count // (8 * COPIES) - CHECK_BYTES))


def _frame(message: bytes, count: int) -> np.ndarray:
    """Spread a message and its checksum over `count` blocks, again and again."""
    bits = np.unpackbits(np.frombuffer(_with_checksum(message), dtype=np.uint8))
    return np.resize(bits, count) ^ _whitening(count)


def _with_checksum(message: bytes) -> bytes:
    return message + zlib.crc32(message).to_bytes(CHECK_BYTES, "big")


def _whitening(count: int) -> np.ndarray:
    """Flip half of the bits in a fixed order, so that a flat picture does not read as a long run of one bit."""
    digest = hashlib.shake_256(b"reverie watermark 1").digest(count // 8 + 1)
    return np.unpackbits(np.frombuffer(digest, dtype=np.uint8))[:count]


Sign = Callable[[Path, str], None]
"""Sign a picture file in place, which is to have a name (whose suffix says the format)."""

CERTIFICATES, KEY = "cert.pem", "key.pem"
MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def signer(folder: Path) -> Sign:
    """Return what signs files with the credentials of a folder: cert.pem, the chain from the signer's on, and key.pem.

    The format follows the suffix (.png, .jpg, .webp), and a signed file takes the place of the unsigned one when it is
    whole. Raises ReverieError, before any file is touched, where the extra is not installed or the credentials do not
    sign.
    """
    credentials = _credentials(folder)

    def write(source: BinaryIO, target: BinaryIO, name: str) -> None:
        import c2pa

        mime = f"image/{FORMATS[Path(name).suffix.lower()].lower()}"
        try:
            c2pa.Builder(_manifest(name)).sign(c2pa.Signer.from_info(credentials), mime, source, target)
        except c2pa.C2paError as error:
            raise _refusal(folder, error) from error

    def sign(path: Path, name: str) -> None:
        with atomic_write(path) as signed, path.open("rb") as source, signed.open("w+b") as target:
            write(source, target, name)

    trial = io.BytesIO()
    Image.new("RGB", (8, 8)).save(trial, "PNG")
    trial.seek(0)
    write(trial, io.BytesIO(), "trial.png")
    return sign


def _credentials(folder: Path) -> Any:
    """Read the certificates and the key, and try them."""
    try:
        import c2pa
    except ImportError:
        raise ReverieError("signing needs the extra: pip install 'reverie[c2pa]'") from None
    try:
        chain, key = ((folder / name).read_bytes() for name in (CERTIFICATES, KEY))
    except OSError as error:
        raise ReverieError(
            f"'{folder}' should hold {CERTIFICATES} and {KEY} to sign with: {reason_of(error)}"
        ) from error
    try:
        credentials = c2pa.C2paSignerInfo(_algorithm(key), chain, key, None)
        c2pa.Signer.from_info(credentials)
    except (c2pa.C2paError, ValueError, TypeError) as error:
        raise _refusal(folder, error) from error
    return credentials


def _algorithm(key: bytes) -> bytes:
    """Name the signature that a private key makes, as C2PA calls it. Raises ValueError for a key of another kind."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private = load_pem_private_key(key, password=None)
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.key_size in (256, 384):
        return f"es{private.key_size}".encode()
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    if isinstance(private, rsa.RSAPrivateKey):
        return b"ps256"
    raise ValueError("the key is of a kind that C2PA does not know; make one on the curve P-256")


def _refusal(folder: Path, error: Exception) -> ReverieError:
    return ReverieError(f"the credentials in '{folder}' do not sign: {' '.join(str(error).split())}")


def _manifest(title: str) -> str:
    action = {"action": "c2pa.created", "digitalSourceType": MADE_BY_A_MODEL}
    return json.dumps(
        {
            "claim_generator_info": [{"name": "reverie", "version": version("reverie")}],
            "title": title,
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
        }
    )
