"""The parent's side: what it does with a decoder that crashes, hangs, lies or cannot be started."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from sonic.errors import SonicError
from sonic.sandbox import process
from sonic.sandbox.process import Budget, decode, sandbox_report
from sonic.sandbox.protocol import Refusal, readable

SEND = """
import os, signal, struct, sys, time
def send(kind, body):
    os.write(1, struct.pack(">cI", kind, len(body)) + body)
"""
USUAL, SHORT = Budget(), Budget(seconds=0.3, memory_bytes=100_000_000)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> object:
    """Puts a program in the decoder's place and reads what it sends, at most 1000 bytes."""

    def run(code: str, budget: Budget = USUAL) -> bytes:
        monkeypatch.setattr(process, "_BOOTSTRAP", SEND + code)
        before = set(psutil.Process().children(recursive=True))
        try:
            with open(os.devnull, "rb") as file, decode("picture", {}, file, budget) as decoding:
                return b"".join(decoding.data(1000))
        finally:
            assert set(psutil.Process().children(recursive=True)) <= before

    return run


def test_data_arrive(decoder) -> None:
    assert decoder("send(b'H', b'{}'); send(b'D', b'abc'); send(b'D', b'd'); send(b'Z', b'{}')") == b"abcd"


@pytest.mark.parametrize(
    "code",
    [
        "send(b'D', b'abc')",  # no header
        "send(b'H', b'[1]')",
        "send(b'H', b'{')",
        "os.write(1, b'H' + b'\\xff' * 4 + b'{')",  # 4 GB of header
        "send(b'H', b'{}'); send(b'D', bytes(1001))",  # more than was announced
        "send(b'H', b'{}'); send(b'H', b'{}')",
        "send(b'H', b'{}'); send(b'D', b'abc'); sys.exit(3)",
        "pass",
    ],
)
def test_liars_are_found(decoder, code: str) -> None:
    with pytest.raises(SonicError, match="the process that decodes inputs") as caught:
        decoder(code)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "its decoder failed .SIGSEGV"),
        ("send(b'H', b'{}'); os.abort()", "its decoder failed .SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "memory runs out"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "more than 60 s"),
        ("send(b'E', 'is \\x1b[2J bad\\u202e\\n!'.encode())", r"is \?\[2J bad\? !$"),
    ],
)
def test_the_end_of_a_decoder_becomes_a_sentence(decoder, code: str, sentence: str) -> None:
    with pytest.raises(Refusal, match=sentence):
        decoder(code)


@pytest.mark.parametrize("code", ["time.sleep(600)", "send(b'H', b'{}'); time.sleep(600)"])
def test_a_decoder_that_hangs_is_killed(decoder, code: str) -> None:
    started = time.monotonic()
    with pytest.raises(Refusal, match="takes more than 0.3 s"):
        decoder(code, SHORT)
    assert time.monotonic() - started < 60


def test_what_is_not_read_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        process, "_BOOTSTRAP", SEND + "send(b'H', b'{}')\nwhile True: send(b'D', bytes(2**20))"
    )
    before = set(psutil.Process().children())
    with open(os.devnull, "rb") as file, decode("sound", {}, file, Budget()) as decoding:
        assert next(decoding.data(2**30))
    assert set(psutil.Process().children()) <= before


def test_a_decoder_sees_no_variables_and_no_open_files(
    decoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PASSWORD", "secret")
    with open(tmp_path / "other", "wb") as other:
        os.set_inheritable(other.fileno(), True)
        seen = decoder(
            "found = ' '.join(os.environ) + '|' + ' '.join(os.listdir('/proc/self/fd'))\n"
            "send(b'H', b'{}'); send(b'D', found.encode()); send(b'Z', b'{}')"
        ).decode()
    variables, descriptors = seen.split("|")
    assert "PASSWORD" not in variables and "HOME" not in variables
    assert len(descriptors.split()) <= 4  # standard input, output and error, and the folder that is listed


def test_a_python_whose_name_is_out_of_reach_still_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of another user, in a folder that this one may not enter."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "possible" in sandbox_report()


@pytest.mark.parametrize("executable", [os.devnull, ""])
def test_a_decoder_that_cannot_start(monkeypatch: pytest.MonkeyPatch, executable: str) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr("os.access", lambda *_: True)  # so that it is tried
    with (
        pytest.raises(SonicError, match="decode"),
        open(os.devnull, "rb") as file,
        decode("picture", {}, file, Budget()),
    ):
        pass


def test_errors_in_this_process_arrive_too() -> None:
    settings = {"format": "PNG", "maximum_pixels": 1, "maximum_scans": 1}
    with (
        pytest.raises(Refusal, match="damaged PNG"),
        open(__file__, "rb") as file,
        decode("picture", settings, file, Budget(confined=False)),
    ):
        pass


def test_texts_from_a_decoder_are_one_short_line() -> None:
    assert readable("a\nb\x07\t" + "c" * 1000).startswith("a b? ccc")
    assert len(readable("c" * 1000)) == 400
