"""Signatures of bundles: by whose key, and over every file."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from manifests import change_values

from sonic.bundle.manifest import MANIFEST_NAME
from sonic.bundle.signing import sign_bundle
from sonic.bundle.store import PACKAGED_BUNDLES, open_bundle
from sonic.bundle.trust import TrustOptions
from sonic.cli.main import main
from sonic.engines.tvm import check_trusted
from sonic.errors import BundleError, InputError

pytest.importorskip("model_signing")
pytest.importorskip("OpenSSL")


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mine.pem, mine.pub, other.pem, other.pub as docs/guides/trust.md makes them; and certificates."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the keys")
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other", "root"):
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private)
        openssl("ec", "-in", private, "-pubout", "-out", public)
    for root in ("root", "other"):
        openssl("req", "-x509", "-new", "-key", folder / f"{root}.pem", "-days", "30", "-subj", f"/CN={root}",
                "-out", folder / f"{root}.crt")  # fmt: skip
    openssl("req", "-new", "-key", folder / "mine.pem", "-subj", "/CN=mine", "-out", folder / "mine.csr")
    (folder / "usage").write_text("keyUsage=digitalSignature\n")
    signed = ("-CA", folder / "root.crt", "-CAkey", folder / "root.pem", "-days", "30")
    output = ("-extfile", folder / "usage", "-out", folder / "mine.crt")
    openssl("x509", "-req", "-in", folder / "mine.csr", *signed, *output)
    return folder


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGED_BUNDLES / "sonic-tiny", tmp_path / "bundle"))


@pytest.fixture
def signed(directory: Path, keys: Path) -> Path:
    sign_bundle(open_bundle(directory), keys / "mine.pem")
    return directory


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def reseal(directory: Path) -> None:
    change_values(directory, lambda values: values.update(name="another"))


def test_the_command_signs_and_asks_for_the_signature(directory: Path, keys: Path) -> None:
    done = run("sign", directory, "--key", keys / "mine.pem")
    assert done.exit_code == 0 and "model.sig: signed 23 files" in done.output, done.output
    assert run("info", directory, "--key", keys / "mine.pub").exit_code == 0
    wrong = run("info", directory, "--key", keys / "other.pub")
    assert (
        wrong.exit_code == 2 and "model.sig is no signature of this bundle by a trusted key" in wrong.output
    )


def test_the_signature_is_in_the_standards_format(signed: Path, keys: Path) -> None:
    """The command of the OpenSSF's package accepts it, with its own reading of the files."""
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", "verify", "key", str(signed), "--signature",
         str(signed / "model.sig"), "--public_key", str(keys / "mine.pub")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_connection_is_opened(directory: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    sign_bundle(open_bundle(directory), keys / "mine.pem")
    open_bundle(directory, TrustOptions(key=keys / "mine.pub"))


def test_every_file_is_covered(signed: Path, keys: Path) -> None:
    trust = TrustOptions(key=keys / "mine.pub")
    open_bundle(signed, trust)
    for path in ("unet/model.onnx", "golden/speech.wav", "mel_filters.npy"):
        content = (signed / path).read_bytes()
        (signed / path).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleError, match=f"{path} was changed"):
            open_bundle(signed, trust)
        (signed / path).write_bytes(content)
    reseal(signed)  # the digest in the manifest is right, but the manifest is another
    open_bundle(signed)
    with pytest.raises(BundleError, match=r"no signature of this bundle.*Hash mismatch for 'manifest\.json'"):
        open_bundle(signed, trust)


def test_a_file_with_another_digest_in_a_new_manifest(signed: Path, keys: Path) -> None:
    content = (signed / "mel_filters.npy").read_bytes()[:-4] + b"\0\0\0\1"
    (signed / "mel_filters.npy").write_bytes(content)
    change_values(
        signed, lambda v: v["assets"]["mel_filters"].update(sha256=hashlib.sha256(content).hexdigest())
    )
    open_bundle(signed)
    with pytest.raises(BundleError, match="no signature of this bundle"):
        open_bundle(signed, TrustOptions(key=keys / "mine.pub"))


def test_no_signature(directory: Path, keys: Path) -> None:
    with pytest.raises(BundleError, match="is not signed: it holds no model.sig; sign it with 'sonic sign"):
        open_bundle(directory, TrustOptions(key=keys / "mine.pub"))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 1_000, b'{"verificationMaterial": {"publicKey": 3}}',
     b'{"mediaType": "x", "verificationMaterial": {}, "dsseEnvelope": {}}', b" " * (5 << 20)],
)  # fmt: skip
def test_signatures_that_are_junk(directory: Path, keys: Path, content: bytes) -> None:
    (directory / "model.sig").write_bytes(content)
    with pytest.raises(BundleError, match="model.sig") as caught:
        open_bundle(directory, TrustOptions(key=keys / "mine.pub"))
    assert "\n" not in str(caught.value)
    open_bundle(directory)  # nobody asked


def test_a_changed_signature(signed: Path, keys: Path) -> None:
    values = json.loads((signed / "model.sig").read_text())
    values["dsseEnvelope"]["signatures"][0]["sig"] = (
        values["dsseEnvelope"]["signatures"][0]["sig"][:-8] + "AAAAAAA="
    )
    (signed / "model.sig").write_text(json.dumps(values))
    with pytest.raises(BundleError, match="no signature of this bundle"):
        open_bundle(signed, TrustOptions(key=keys / "mine.pub"))


def test_certificates(directory: Path, keys: Path) -> None:
    sign_bundle(open_bundle(directory), keys / "mine.pem", keys / "mine.crt", [keys / "root.crt"])
    open_bundle(directory, TrustOptions(certificate=keys / "root.crt"))
    with pytest.raises(BundleError, match="no signature of this bundle"):
        open_bundle(directory, TrustOptions(certificate=keys / "other.crt"))
    with pytest.raises(BundleError, match="no signature of this bundle"):
        open_bundle(directory, TrustOptions(key=keys / "other.pub"))
    with pytest.raises(InputError, match="cannot sign .The public key from the certificate does not match"):
        sign_bundle(open_bundle(directory), keys / "other.pem", keys / "mine.crt")


def test_keys_that_are_none(directory: Path, keys: Path, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("hello")
    for key, expected in ((junk, "no key or certificate in PEM"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(InputError, match=expected):
            sign_bundle(open_bundle(directory), key)
    with pytest.raises(InputError, match="cannot sign .*openssl ecparam"):
        sign_bundle(open_bundle(directory), keys / "mine.pub")
    sign_bundle(open_bundle(directory), keys / "mine.pem")
    with pytest.raises(InputError, match="cannot be used"):
        open_bundle(directory, TrustOptions(key=keys / "mine.pem"))


def test_the_extra_is_named(directory: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonic.bundle.signing.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'sonic-runtime\[sign\]'"):
        sign_bundle(open_bundle(directory), keys / "mine.pem")


def compiled(directory: Path) -> Path:
    """Say that it is compiled."""
    target = {"name": "any", "triple": "aarch64-linux-gnu", "processor": "generic", "features": []}
    change_values(directory, lambda v: v.update(engine="tvm", machine_code=True, target=target))
    return directory


def test_machine_code_runs_only_for_those_who_are_trusted(
    directory: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(directory)
    monkeypatch.delenv("SONIC_TRUSTED_KEYS", raising=False)
    with pytest.raises(BundleError, match="holds machine code, and no trusted key has signed it"):
        check_trusted(open_bundle(directory))
    check_trusted(open_bundle(directory, TrustOptions(trust=True)))
    sign_bundle(open_bundle(directory), keys / "mine.pem")
    with pytest.raises(BundleError, match="no trusted key has signed it"):
        check_trusted(open_bundle(directory))  # signed, but by whom?
    check_trusted(open_bundle(directory, TrustOptions(key=keys / "mine.pub")))
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    monkeypatch.setenv("SONIC_TRUSTED_KEYS", str(trusted))
    shutil.copy(keys / "other.pub", trusted)
    with pytest.raises(BundleError, match="no signature of this bundle by a trusted key"):
        open_bundle(directory)
    shutil.copy(keys / "mine.pub", trusted)
    check_trusted(open_bundle(directory))
    monkeypatch.setenv("SONIC_TRUSTED_KEYS", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"\$SONIC_TRUSTED_KEYS is .*none, which cannot be read"):
        open_bundle(directory)


def test_info_says_that_it_is_machine_code(directory: Path) -> None:
    assert "machine code" not in run("info", directory).output
    assert "machine code" in run("info", compiled(directory)).output
    assert json.loads((directory / MANIFEST_NAME).read_text())["machine_code"] is True
