"""Content credentials (C2PA): a signed statement in a video's file that it was generated.

    credentials = open_credentials(CredentialOptions(c2pa_certificate="chain.pem", c2pa_key="key.pem"))
    save_video(video, "output.mp4", credentials=credentials)

The certificate and its key are the user's. Nothing is fetched or sent: no time stamps, no remote manifests.
The package is an extra, imported only where a certificate is given.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from PIL import Image

from sonic.errors import InputError, OutputError
from sonic.schema import Option, PathLike, Validated

_TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": False}}
# RFC 7518's names of the algorithms that go with a curve.
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


@dataclass(frozen=True, kw_only=True)
class CredentialOptions(Validated):
    """With what to sign the file of a video; both or neither.

    Raises:
        InputError: a value is of another type.
    """

    c2pa_certificate: Annotated[
        PathLike | None,
        Option(
            "Sign content credentials with this certificate chain (PEM, the signer's first)", default="none"
        ),
    ] = None
    c2pa_key: Annotated[
        PathLike | None, Option("The certificate's private key (PEM, not encrypted)", default="none")
    ] = None


UNSIGNED = CredentialOptions()


@dataclass(frozen=True)
class Credentials:
    """A certificate chain and its key, ready to sign.

    Attributes:
        certificate, key: PEM.
        algorithm: as C2PA names it, such as "es256".
    """

    certificate: bytes
    key: bytes = field(repr=False)
    algorithm: str

    def sign(self, source: Path, target: Path, title: str) -> None:
        """Write a copy of an MP4 file with a signed statement that a model made it.

        The time and random numbers are part of a signature, so its bytes differ every time.

        Args:
            source: the file.
            target: where to write.
            title: the name by which the video will be known.

        Raises:
            OutputError: the file cannot be signed.
        """
        try:
            with open(source, "rb") as read, open(target, "w+b") as write:
                self._sign(read, write, "video/mp4", title)
        except _library().C2paError as error:
            raise OutputError(f"{title}: the content credentials cannot be signed ({error})") from error

    def try_out(self) -> None:
        """Sign a picture of one pixel in memory.

        Raises:
            C2paError: certificate or key cannot sign.
        """
        picture = BytesIO()
        Image.new("RGB", (1, 1)).save(picture, "PNG")
        picture.seek(0)
        self._sign(picture, BytesIO(), "image/png", "")

    def _sign(self, read: BinaryIO, write: BinaryIO, kind: str, title: str) -> None:
        c2pa = _library()
        sonic = {"name": "sonic", "version": _version()}
        action = {"action": "c2pa.created", "digitalSourceType": _TRAINED, "softwareAgent": sonic}
        manifest = {
            "title": title,
            "format": kind,
            "claim_generator_info": [sonic],
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
        }
        context = c2pa.Context(settings=c2pa.Settings.from_dict(_OFFLINE))
        info = c2pa.C2paSignerInfo(self.algorithm.encode(), self.certificate, self.key, None)
        builder = c2pa.Builder(json.dumps(manifest), context)
        builder.sign(c2pa.Signer.from_info(info), kind, read, write)


def credentials_available() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("c2pa") is not None


def open_credentials(options: CredentialOptions) -> Credentials | None:
    """Read certificate and key, and make sure that they can sign; None if neither is given.

    Raises:
        InputError: only one is given, a file cannot be used, or the extra is not installed.
    """
    certificate, key = options.c2pa_certificate, options.c2pa_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InputError("content credentials need both c2pa_certificate and c2pa_key, or neither")
    c2pa = _library()
    secret = _read(key)
    credentials = Credentials(_read(certificate), secret, _algorithm(key, secret))
    try:
        credentials.try_out()
    except c2pa.C2paError as error:
        raise InputError(
            f"{certificate}: the certificate cannot sign content credentials ({error}); it should be a PEM "
            f"chain, the signer's first, that belongs to {key}"
        ) from error
    return credentials


def _version() -> str:
    try:
        return metadata.version("sonic-runtime")
    except metadata.PackageNotFoundError:  # run from its source
        return "unknown"


def _library() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise InputError(
            "content credentials need another package: pip install 'sonic-runtime[c2pa]'"
        ) from error
    return c2pa


def _read(path: PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror})") from error


def _algorithm(path: PathLike, key: bytes) -> str:
    """The signature algorithm that goes with a private key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in _CURVES:
        return _CURVES[private.curve.name]
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    raise InputError(f"{path}: this should be an unencrypted private key in PEM: EC, RSA or Ed25519")
