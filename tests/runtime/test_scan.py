"""The scanner's protocol with scanners that misbehave; tests/services has a real one."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

import sonic
from sonic.cli.main import main
from sonic.options import BatchOptions
from sonic.scan import check_scanner, scan_files

ASSETS = Path(__file__).parents[2] / "convert/sonic_convert/assets"


@contextmanager
def scanner(folder: Path, answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """A server that reads a whole file of the protocol and answers what a function says."""
    path = folder / "clamd.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, connection.makefile("rb") as stream:
                    command = b""
                    while not command.endswith(b"\0"):
                        command += stream.read(1)
                    content = b""
                    if command == b"zINSTREAM\0":
                        while size := struct.unpack("!L", stream.read(4))[0]:
                            content += stream.read(size)
                    connection.sendall(answer(content))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_the_whole_file_is_sent(tmp_path: Path) -> None:
    content = os.urandom(1_000_003)
    (tmp_path / "file").write_bytes(content)
    seen: list[bytes] = []
    with scanner(tmp_path, lambda sent: seen.append(sent) or b"stream: OK\0") as address:
        scan_files(address, [tmp_path / "file"])
    assert seen == [content]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"stream: Worm FOUND\0", "the virus scanner found Worm in it"),
        (b"stream: OK FOUND\0", "found OK in it"),
        (b"", "answers ''"),
        (b"OK\0", "answers 'OK'"),
        (b"stream: O", "answers 'stream: O'"),
        (b"stream: Can't allocate memory ERROR\0", "Can't allocate memory"),
        (b"INSTREAM size limit exceeded. ERROR\0", "larger than the scanner takes"),
        (b"x" * 100_000, "answers 'xxx"),
    ],
)
def test_whatever_is_not_clean_is_refused(tmp_path: Path, answer: bytes, sentence: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with scanner(tmp_path, lambda _: answer) as address:
        with pytest.raises(sonic.InputError, match=sentence) as caught:
            scan_files(address, [tmp_path / "file"])
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("address", ["unix:///nonexistent/clamd.sock", "tcp://127.0.0.1:1"])
def test_a_scanner_that_cannot_be_reached_refuses_everything(address: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    for ask in (lambda: scan_files(address, [tmp_path / "file"]), lambda: check_scanner(address)):
        with pytest.raises(sonic.InputError, match="cannot be reached"):
            ask()
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(json.dumps({"image": "a.png", "audio": "a.wav", "output": "a.mp4"}))
    result = CliRunner().invoke(main, ["batch", str(jobs), "--bundle=sonic-tiny", f"--scan={address}"])
    assert result.exit_code == 2 and "cannot be reached" in result.output
    assert not (tmp_path / "jobs.report.jsonl").exists()


@pytest.mark.parametrize(
    "address",
    ["", "clamd", "tcp://", "tcp://host", "tcp://host:0", "tcp://host:99999", "tcp://host:1/path",
     "unix://host/path", "unix://", "unix:relative", "http://host:1", "tcp://u@host:1", "unix:///a\0b"],
)  # fmt: skip
def test_what_is_no_address_is_one_sentence(address: str) -> None:
    with pytest.raises(sonic.InputError, match="scan is .*should be the address of clamd"):
        BatchOptions(scan=address)


def test_nothing_is_decoded_before_it_is_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sonic.load_model("sonic-tiny", check_digests=False)
    scanned: list[bytes] = []
    decoded: list[int] = []
    for name in ("load_portrait", "load_speech", "load_noise"):
        original = getattr(sonic.generation, name)
        monkeypatch.setattr(
            f"sonic.generation.{name}",
            lambda *given, original=original: decoded.append(len(scanned)) or original(*given),
        )
    image, audio = ASSETS / "portrait.png", ASSETS / "speech.wav"
    noise = tmp_path / "noise.npy"
    noise.write_bytes(b"no noise")
    with (
        scanner(tmp_path, lambda sent: scanned.append(sent) or b"stream: OK\0") as address,
        pytest.raises(sonic.InputError, match="not a .npy file"),
    ):
        model.generate(image, audio, noise=noise, scan=address, duration=0.5, min_resolution=64)
    assert scanned == [path.read_bytes() for path in (image, audio, noise)] and decoded == [3, 3, 3]


def test_a_job_cannot_switch_the_scan_off(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(json.dumps({"image": "a.png", "audio": "a.wav", "output": "a.mp4", "scan": None}))
    result = CliRunner().invoke(main, ["batch", str(jobs), "--bundle=sonic-tiny"])
    assert result.exit_code == 2 and "'scan' is unknown" in result.output
