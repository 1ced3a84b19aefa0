"""Do signed pictures say who made them, and show when they were changed? Read back by the c2pa library itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

c2pa = pytest.importorskip("c2pa", reason="needs the extra c2pa")

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

from reverie.errors import ReverieError  # noqa: E402
from reverie.media.pictures import open_picture, save  # noqa: E402
from reverie.media.provenance import signer  # noqa: E402


def name(text: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, text), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "test")]
    )


def usage(*, signs_certificates: bool) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    unused = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=not signs_certificates, key_cert_sign=signs_certificates, **unused)


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a root and a certificate under it, as C2PA's profile asks (specification 2.1, section 14.5)."""
    folder, now = tmp_path_factory.mktemp("signer"), datetime.now(UTC)
    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    certificates = []
    for who, key, is_root in (("leaf", leaf, False), ("root", root, True)):
        builder = (
            x509.CertificateBuilder(name("root"), name(who), key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=10))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
            .add_extension(usage(signs_certificates=is_root), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False)
        )
        if not is_root:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, critical=False)
        certificates.append(builder.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "cert.pem").write_bytes(b"".join(certificates))
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(leaf.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
    return folder


def picture() -> Image.Image:
    made = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    made.info["parameters"] = "a bear"
    return made


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_signed_picture_says_who_made_it(credentials: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bear{suffix}"
    save(picture(), path)
    before = open_picture(path)
    save(picture(), path, sign=signer(credentials))
    report = json.loads(c2pa.Reader(str(path)).json())
    manifest = report["manifests"][report["active_manifest"]]
    assert manifest["claim_generator_info"][0]["name"] == "reverie"
    assert "trainedAlgorithmicMedia" in json.dumps(manifest["assertions"])
    codes = {status["code"] for status in report.get("validation_status", [])}
    assert codes <= {"signingCredential.untrusted"}, "a root of our own is all that may be wrong"
    after = open_picture(path)
    assert after.tobytes() == before.tobytes()
    assert after.info["parameters"] == "a bear"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_change_shows(credentials: Path, tmp_path: Path) -> None:
    path = tmp_path / "bear.png"
    save(picture(), path, sign=signer(credentials))
    data = bytearray(path.read_bytes())
    data[data.rindex(b"IDAT") + 40] ^= 1
    path.write_bytes(data)
    codes = {status["code"] for status in json.loads(c2pa.Reader(str(path)).json())["validation_status"]}
    assert "assertion.dataHash.mismatch" in codes


def test_credentials_that_do_not_sign(credentials: Path, tmp_path: Path) -> None:
    with pytest.raises(ReverieError, match=r"should hold cert.pem and key.pem"):
        signer(tmp_path)
    (tmp_path / "cert.pem").write_bytes((credentials / "cert.pem").read_bytes())
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(ReverieError, match="do not sign"):
        signer(tmp_path)


def test_an_expired_certificate_is_refused_before_there_is_anything_to_sign(credentials: Path, tmp_path: Path) -> None:
    leaf, root = x509.load_pem_x509_certificates((credentials / "cert.pem").read_bytes())
    key = serialization.load_pem_private_key((credentials / "key.pem").read_bytes(), password=None)
    past = datetime.now(UTC) - timedelta(days=9)
    builder = x509.CertificateBuilder(root.subject, leaf.subject, leaf.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(past).not_valid_after(past + timedelta(days=2))
    for extension in leaf.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    expired = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (tmp_path / "cert.pem").write_bytes(expired + root.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes((credentials / "key.pem").read_bytes())
    with pytest.raises(ReverieError, match="do not sign"):
        signer(tmp_path)
