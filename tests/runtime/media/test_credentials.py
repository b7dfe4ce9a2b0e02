from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from sonic.errors import InputError, OutputError
from sonic.media.credentials import CredentialOptions, Credentials, open_credentials
from sonic.media.video import save_video
from sonic.watermark.payload import Watermark
from sonic.watermark.reading import read_watermark

c2pa = pytest.importorskip("c2pa")
FRAMES = np.full((5, 128, 128, 3), 120, np.uint8)


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> CredentialOptions:
    """A root of trust that nobody trusts, and a signer's certificate from it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    folder = tmp_path_factory.mktemp("signing")
    names = [
        x509.Name(
            [
                x509.NameAttribute(x509.NameOID.COMMON_NAME, name),
                x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Test"),
            ]
        )
        for name in ("root", "signer")
    ]
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in names]
    now, certificates = datetime.now(UTC), []
    for name, key, is_root in zip(names, keys, (True, False), strict=True):
        builder = (
            x509.CertificateBuilder(names[0], name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_root, None), critical=True)
            .add_extension(
                x509.KeyUsage(True, False, False, False, False, is_root, is_root, False, False), critical=True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False
            )
        )
        if not is_root:
            usage = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(usage, critical=False)
        certificates.append(builder.sign(keys[0], hashes.SHA256()))
    chain = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in reversed(certificates))
    (folder / "chain.pem").write_bytes(chain)
    key_pem = keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(key_pem)
    return CredentialOptions(c2pa_certificate=folder / "chain.pem", c2pa_key=folder / "key.pem")


def test_a_signed_video_says_that_a_model_made_it(signing: CredentialOptions, tmp_path: Path) -> None:
    path, mark = tmp_path / "a.mp4", Watermark(1, 2, 3)
    save_video(FRAMES, path, frame_rate_hz=25, watermark=mark, credentials=open_credentials(signing))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]
    read = json.loads(c2pa.Reader(str(path)).json())
    (manifest,) = read["manifests"].values()
    (actions,) = (
        entry["data"]["actions"]
        for entry in manifest["assertions"]
        if entry["label"].startswith("c2pa.actions")
    )
    (action,) = actions
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert manifest["title"] == "a.mp4" and manifest["claim_generator_info"][0]["name"] == "sonic"
    failures = {entry["code"] for entry in read["validation_results"]["activeManifest"]["failure"]}
    assert failures == {"signingCredential.untrusted"}  # the content is as it was signed
    assert read_watermark(path).detection.watermark == mark


def test_a_changed_video_is_noticed(signing: CredentialOptions, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    save_video(FRAMES, path, frame_rate_hz=25, credentials=open_credentials(signing))
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    read = json.loads(c2pa.Reader(str(path)).json())
    codes = {entry["code"] for entry in read["validation_results"]["activeManifest"]["failure"]}
    assert "assertion.bmffHash.mismatch" in codes


def test_without_a_certificate_nothing_is_signed() -> None:
    assert open_credentials(CredentialOptions()) is None


def test_bad_certificates_are_one_sentence(signing: CredentialOptions, tmp_path: Path) -> None:
    text = tmp_path / "text.pem"
    text.write_text("hello")
    for certificate, key, sentence in (
        (signing.c2pa_certificate, None, "need both c2pa_certificate and c2pa_key"),
        (signing.c2pa_certificate, tmp_path / "none.pem", "none.pem: the file cannot be read"),
        (signing.c2pa_certificate, text, "text.pem: this should be an unencrypted private key"),
        (text, signing.c2pa_key, "text.pem: the certificate cannot sign content credentials"),
    ):
        with pytest.raises(InputError, match=sentence):
            open_credentials(CredentialOptions(c2pa_certificate=certificate, c2pa_key=key))


def test_a_video_that_cannot_be_signed_is_not_left(signing: CredentialOptions, tmp_path: Path) -> None:
    good = open_credentials(signing)
    bad = Credentials(good.certificate, good.key, "ps256")
    with pytest.raises(OutputError, match=r"a\.mp4: the content credentials cannot be signed"):
        save_video(FRAMES, tmp_path / "a.mp4", frame_rate_hz=25, credentials=bad)
    assert not list(tmp_path.iterdir())
