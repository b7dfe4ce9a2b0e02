"""Having input files scanned for viruses by ClamAV's daemon before anything decodes them.

    scan_files("unix:///run/clamav/clamd.ctl", [Path("portrait.png")])

A file's bytes are sent to the daemon (its command INSTREAM), which therefore needs neither access to the file
nor the same machine. Whatever is not a clean bill is an error: a scanner that cannot be reached, too.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from sonic.bounded import open_regular
from sonic.errors import InputError
from sonic.storage.files import reason_of

_TIMEOUT_SECONDS = 60.0  # without an answer; ClamAV's own limit for one file is 120 s by default
_CHUNK_BYTES = 1 << 18
_LONGEST_ANSWER_BYTES = 4096
_ADVICE = "start it, or choose another address with --scan"

#: What an address should be, as errors and options say it.
WANTED = "the address of clamd, as tcp://HOST:PORT or unix:///PATH"


def check_address(address: str | None) -> str | None:
    """Make sure that a text is the address of a scanner.

    Raises:
        ValueError: it is not.
    """
    if address is not None:
        _parse(address)
    return address


def scan_files(address: str, paths: Iterable[Path]) -> None:
    """Have files scanned; what is not a regular file is left to those who read it.

    Args:
        address: ``tcp://host:port`` or ``unix:///path``.
        paths: the files.

    Raises:
        InputError: a file is infected or too large for the scanner, or the scanner cannot be reached.
    """
    for path in paths:
        try:
            file = os.fdopen(open_regular(path), "rb")
        except (OSError, ValueError):  # its reader says what is wrong with it
            continue
        with file:
            _scan(address, path, file)


def check_scanner(address: str) -> None:
    """Make sure that a scanner answers.

    Raises:
        InputError: it does not.
    """
    answer = _ask(address, b"zPING\0", None)
    if answer != "PONG":
        raise InputError(f"{address} answers {answer[:80]!r}, so it is not clamd; {_ADVICE}")


def _scan(address: str, path: Path, file: BinaryIO) -> None:
    answer = _ask(address, b"zINSTREAM\0", file)
    if answer.endswith(" FOUND"):
        name = answer.removeprefix("stream: ").removesuffix(" FOUND")
        raise InputError(f"{path} is refused: the virus scanner found {name[:100]} in it")
    if answer.startswith("INSTREAM size limit exceeded"):
        raise InputError(
            f"{path} cannot be scanned: it is larger than the scanner takes; give a smaller file, or raise "
            "StreamMaxLength in clamd.conf"
        )
    if answer != "stream: OK":
        raise InputError(f"{path} cannot be scanned: {address} answers {answer[:80]!r}; {_ADVICE}")


def _ask(address: str, command: bytes, file: BinaryIO | None) -> str:
    """Send a command, and a file if there is one; returns the answer."""
    try:
        with _connect(address) as connection:
            try:
                connection.sendall(command)
                if file is not None:
                    while chunk := file.read(_CHUNK_BYTES):
                        connection.sendall(struct.pack("!L", len(chunk)) + chunk)
                    connection.sendall(struct.pack("!L", 0))
            except (BrokenPipeError, ConnectionResetError):
                pass  # a file that is too large: the answer says so
            answer = b""
            while not answer.endswith(b"\0") and len(answer) < _LONGEST_ANSWER_BYTES:
                part = connection.recv(_LONGEST_ANSWER_BYTES)
                if not part:
                    break
                answer += part
    except OSError as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else reason_of(error)
        raise InputError(f"the virus scanner at {address} cannot be reached ({reason}); {_ADVICE}") from error
    return answer.rstrip(b"\0\n").decode("utf-8", "replace")


def _connect(address: str) -> socket.socket:
    place = _parse(address)
    if isinstance(place, tuple):
        return socket.create_connection(place, _TIMEOUT_SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_TIMEOUT_SECONDS)
        connection.connect(place)
    except BaseException:
        connection.close()
        raise
    return connection


def _parse(address: str) -> tuple[str, int] | str:
    """The host and port, or the path."""
    parts = urlsplit(address)
    if parts.query or parts.fragment or "@" in parts.netloc or "\0" in address:
        raise ValueError("it has parts that an address has not")
    if parts.scheme == "tcp" and parts.hostname and parts.port and not parts.path:
        return parts.hostname, parts.port
    if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
        return parts.path
    raise ValueError("it is no address")
