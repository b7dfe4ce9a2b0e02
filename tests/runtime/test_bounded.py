"""Files that hold anything end in one sentence: no waiting, no memory without end, no other exception."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.bounded import open_regular, parse_json, read_bounded, read_json
from sonic.errors import InputError

ADVICE = "write it again"


def sentence(text: str | bytes, **bounds: int) -> str:
    with pytest.raises(InputError) as caught:
        parse_json(text, "file.json", InputError, ADVICE, **bounds)
    message = str(caught.value)
    assert message.startswith("file.json cannot be read (") and message.endswith("); write it again")
    assert "\n" not in message and len(message) < 300
    return message


@pytest.mark.parametrize(
    "text, reason",
    [
        (b"", "it is not JSON"),
        (b'{"a": 1', "it is not JSON"),
        (b"\xff\xfe{}", "not text in UTF-8"),
        (b"\xef\xbb\xbf{}", "it is not JSON"),
        (b'{"a": Infinity}', "Infinity is no JSON number"),
        (b"[-Infinity, NaN]", "-Infinity is no JSON number"),
        (b"[1e999]", "the number '1e999' is too large"),
        (b"[" + b"9" * 5000 + b"]", "Exceeds the limit"),
        (b'{"a": 1, "b": 2, "a": 3}', "the entry 'a' occurs twice"),
        (b'["\\ud800"]', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b"[" * 33 + b"]" * 33, "nested deeper than 32 levels"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "nested deeper than 32 levels"),
        (b"[" * 1_000_000, "nested deeper than 32 levels"),
        (b'{"' + b"x" * 100_000 + b'": 1, "' + b"x" * 100_000 + b'": 1}', "occurs twice"),
    ],
)
def test_what_is_refused(text: bytes, reason: str) -> None:
    assert reason in sentence(text)


def test_depth_is_counted_from_the_outermost() -> None:
    assert parse_json("[{}]", "file", InputError, maximum_depth=2) == [{}]
    sentence("[[{}]]", maximum_depth=2)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_reads_what_json_writes(value: object) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        assert parse_json(text.encode(), "file", InputError) == value


@given(st.binary() | st.text(alphabet='[]{}":,\\u0123d8eE.+-tfn ').map(str.encode))
def test_anything_is_a_value_or_a_sentence(text: bytes) -> None:
    try:
        parse_json(text, "file.json", InputError)
    except InputError as error:
        assert "\n" not in str(error)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe, folder, link, address = (tmp_path / name for name in ("pipe", "folder", "link", "socket"))
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        for path, reason in (
            (pipe, "it is a named pipe, not a regular file"),
            (folder, "it is a folder, not a regular file"),
            (link, "it is a device, not a regular file"),
            (address, "No such device or address"),
            (tmp_path / "absent", "No such file or directory"),
            (Path("a\0b"), "null byte"),
        ):
            with pytest.raises(InputError, match=reason):
                read_json(path, InputError, ADVICE)


def test_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(list(range(10))))
    assert read_json(path, InputError, limit_bytes=path.stat().st_size) == list(range(10))
    with pytest.raises(InputError, match="it is larger than 29 bytes"):
        read_json(path, InputError, limit_bytes=29)
    with pytest.raises(OSError, match="larger than 5 bytes"):
        read_bounded(path, 5)


def test_links_can_be_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        os.close(open_regular("link", dir_fd=folder))
        os.close(open_regular("file", dir_fd=folder, follow=False))
        with pytest.raises(OSError, match="symbolic links"):
            open_regular("link", dir_fd=folder, follow=False)
    finally:
        os.close(folder)
