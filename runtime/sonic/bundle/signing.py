"""Signatures of bundles, in the format of the OpenSSF's model signing (the extra ``sonic-runtime[sign]``).

    sign_bundle(open_bundle(directory), Path("private.pem"))
    check_signature(directory, digests, [Path("public.pem")])

A signature is the file ``model.sig`` in the bundle. It lists the SHA-256 of every other file, the manifest
included, and the command `model_signing` reads it too. Signing and checking open no connection.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sonic.bounded import JSON_LIMIT_BYTES, parse_json, read_bounded
from sonic.bundle.bundle import Bundle
from sonic.bundle.files import IGNORED_NAMES, list_files, opened, read_all
from sonic.bundle.manifest import SIGNATURE_NAME
from sonic.errors import BundleError, InputError, first_line
from sonic.storage.files import replacing

_INSTALL = "install it with: pip install 'sonic-runtime[sign]'"
_KEY_LIMIT_BYTES = 1 << 20


def sign_bundle(
    bundle: Bundle,
    private_key: Path,
    certificate: Path | None = None,
    chain: Iterable[Path] = (),
) -> Path:
    """Sign a bundle's files; an older signature is replaced.

    Args:
        bundle: opened with its digests checked.
        private_key: an elliptic-curve key (P-256, P-384 or P-521), PEM, without a password.
        certificate: the certificate of that key, if the signature is to be checked with a certificate.
        chain: certificates between that one and its root, with the root.

    Returns:
        The signature's path.

    Raises:
        InputError: a key or certificate cannot be used, or model-signing is not installed.
        OutputError: the signature cannot be written.
    """
    signing = _library("signing")
    for path in (private_key, *([certificate] if certificate else []), *chain):
        _check_pem(path)
    config = signing.Config().set_hashing_config(_hashing(bundle.digests))
    try:
        if certificate is None:
            config.use_elliptic_key_signer(private_key=private_key)
        else:
            config.use_certificate_signer(
                private_key=private_key, signing_certificate=certificate, certificate_chain=list(chain)
            )
    except Exception as error:  # of several libraries, without a common base
        raise InputError(
            f"{private_key} cannot sign ({first_line(error)}); it should be an elliptic-curve key without a "
            "password, as this makes: openssl ecparam -name prime256v1 -genkey -noout -out private.pem"
        ) from error
    target = bundle.directory / SIGNATURE_NAME
    with tempfile.TemporaryDirectory() as scratch:
        partial = Path(scratch) / SIGNATURE_NAME
        config.sign(bundle.directory, partial)
        content = partial.read_bytes()
    with replacing(target, "the signature") as partial:
        partial.write_bytes(content)
    return target


def check_signature(
    directory: Path,
    digests: Mapping[str, str],
    keys: Iterable[Path] = (),
    certificate: Path | None = None,
) -> Path:
    """Check that one of the keys, or the certificate's holder, signed exactly these files.

    Args:
        directory: the bundle.
        digests: the SHA-256 (hexadecimal) of every file of the bundle, by path; the manifest's too.
        keys: public keys, one of which has to fit.
        certificate: a root certificate, in place of keys.

    Returns:
        The key or certificate that fits.

    Raises:
        BundleError: there is no signature, none of these made it, or it is of other files.
        InputError: a key or certificate cannot be used, or model-signing is not installed.
    """
    if SIGNATURE_NAME not in list_files(directory):
        raise BundleError(
            f"{directory} is not signed: it holds no {SIGNATURE_NAME}; sign it with 'sonic sign {directory} "
            "--key PRIVATE.pem', or get it from somebody who does"
        )
    verifying = _library("verifying")
    with opened(directory, SIGNATURE_NAME) as file:
        content = read_all(file.descriptor, JSON_LIMIT_BYTES)
    if len(content) > JSON_LIMIT_BYTES:
        raise BundleError(f"{directory / SIGNATURE_NAME} is larger than any signature; sign the bundle again")
    parse_json(content, str(directory / SIGNATURE_NAME), BundleError, "sign the bundle again")
    problems: list[Exception] = []
    with tempfile.TemporaryDirectory() as scratch:
        signature = Path(scratch) / SIGNATURE_NAME
        signature.write_bytes(content)
        for trusted in (certificate,) if certificate is not None else tuple(keys):
            config = verifying.Config().set_hashing_config(_hashing(digests))
            _check_pem(trusted)
            try:
                if certificate is not None:
                    config.use_certificate_verifier(certificate_chain=[trusted])
                else:
                    config.use_elliptic_key_verifier(public_key=trusted)
            except Exception as error:  # of several libraries, without a common base
                raise InputError(
                    f"{trusted} cannot be used ({first_line(error)}); it should be a public key of an "
                    "elliptic curve, or a certificate, in PEM format"
                ) from error
            try:
                config.verify(directory, signature)
            except Exception as error:  # a signature may be malformed in any way
                problems.append(error)
            else:
                return trusted
    reason = f" ({first_line(problems[0])})" if len(problems) == 1 else ""
    raise BundleError(
        f"{directory / SIGNATURE_NAME} is no signature of this bundle by a trusted key{reason}; get the "
        "bundle again, or give the public key of its signer"
    )


def _hashing(digests: Mapping[str, str]) -> Any:
    """How the library gets the digests of a bundle: those that its files are loaded by, not read again."""
    hashing, manifest = _library("hashing"), _library("manifest")

    class KnownDigests(hashing.Config):  # type: ignore[misc, name-defined, unused-ignore]
        def hash(self, model_path: Path, *, files_to_hash: object = None) -> Any:
            kind = manifest.SerializationType.from_args(
                {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": sorted([SIGNATURE_NAME, *IGNORED_NAMES]),
                }
            )
            items = [
                kind.new_item(path, manifest.hashing.Digest("sha256", bytes.fromhex(digest)))
                for path, digest in digests.items()
            ]
            return manifest.Manifest(model_path.resolve().name, items, kind)

    return KnownDigests()


def _library(module: str) -> Any:
    """A module of model-signing; imported here only, as it takes half a second.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("model_signing") is None or importlib.util.find_spec("OpenSSL") is None:
        raise InputError(f"signatures need the packages model-signing and pyopenssl; {_INSTALL}")
    logging.getLogger("model_signing").setLevel(logging.ERROR)
    return importlib.import_module(f"model_signing.{module}")


def _check_pem(path: Path) -> None:
    try:
        content = read_bounded(path, _KEY_LIMIT_BYTES)
    except OSError as error:
        raise InputError(f"{path}: the key or certificate cannot be read ({error.strerror})") from error
    if b"-----BEGIN " not in content:
        raise InputError(f"{path} is no key or certificate in PEM format, whose first line has '-----BEGIN'")
