"""C2PA: sign a picture file with a manifest that says what made it, with the extra `c2pa`.

Source: C2PA specification 2.1 (c2pa.org); the action "c2pa.created" and IPTC's digital source type for pictures that a
trained model made.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from reverie.errors import ReverieError
from reverie.files import atomic_write, reason_of
from reverie.media.pictures import FORMATS

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
