"""What is opened, the limits as settings of every interface, and files that point elsewhere."""

from __future__ import annotations

import io
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner

from sonic.cli.errors import printable
from sonic.cli.info import sandbox_facts
from sonic.cli.main import main
from sonic.errors import InputError
from sonic.media.audio import load_sound
from sonic.media.checks import open_input
from sonic.options import IntakeLimits
from sonic.resume import FileIdentity
from sonic.sandbox import seccomp


def test_what_is_opened_is_what_was_checked(tmp_path: Path) -> None:
    """A file that is replaced after it was opened is not read."""
    path = tmp_path / "a"
    path.write_bytes(b"first")
    with open_input(path, "a picture", 1) as file:
        path.unlink()
        path.write_bytes(b"second")
        assert file.read() == b"first"


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "link").symlink_to("a")
    with open_input(tmp_path / "link", "a picture", 1) as file:
        assert file.read() == b"first"


def test_a_pipe_that_takes_the_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first look at a path and opening it."""
    os.mkfifo(tmp_path / "a")
    monkeypatch.setattr("sonic.media.checks.check_regular_file", lambda path, wanted: None)
    with pytest.raises(InputError, match="not a regular file"), open_input(tmp_path / "a", "a picture", 1):
        pass


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_impossible_names(name: str) -> None:
    with (
        pytest.raises(InputError, match="give (the path of )?a picture"),
        open_input(Path(name), "a picture", 1),
    ):
        pass


def test_a_pipe_has_no_digest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(InputError, match="not a regular file"):
        FileIdentity.of(tmp_path / "a")


def test_limits_come_from_the_environment() -> None:
    assert IntakeLimits.from_environment({}) == IntakeLimits()
    variables = {"SONIC_SOUND_SECONDS": "7200", "SONIC_SANDBOX": "off", "SONIC_DECODE_SECONDS": ""}
    assert IntakeLimits.from_environment(variables) == IntakeLimits(sound_seconds=7200, sandbox=False)
    for name, value in (
        ("SONIC_SOUND_SECONDS", "1h"),
        ("SONIC_SANDBOX", "maybe"),
        ("SONIC_PICTURE_SCANS", "0"),
    ):
        with pytest.raises(InputError, match=f"{name} is '{value}', but should be"):
            IntakeLimits.from_environment({name: value})


@pytest.mark.parametrize("given", ["option", "variable", "both"])
def test_limits_are_options_of_commands(portrait: Path, short_wav: Path, given: str) -> None:
    """An option takes the place of its variable."""
    variables = {"variable": {"SONIC_PICTURE_MEGABYTES": "1"}, "both": {"SONIC_PICTURE_MEGABYTES": "64"}}
    large = portrait.with_name("large.png")
    large.write_bytes(portrait.read_bytes() + bytes(1_000_000))
    arguments = ["--image", large, "--audio", short_wav, "--output", portrait.with_name("v.mp4")]
    arguments += [] if given == "variable" else ["--picture-megabytes", 1]
    command = ["generate", "--bundle", "sonic-tiny", "--steps", 1, "--resolution", 64, *arguments]
    done = CliRunner().invoke(main, list(map(str, command)), env=variables.get(given))
    assert done.exit_code == 2 and "give a picture of at most 1 MB" in done.output


def test_jobs_cannot_set_limits(tmp_path: Path) -> None:
    job = '{"image": "a.png", "audio": "a.wav", "output": "a.mp4", "sandbox": false}'
    (tmp_path / "jobs.jsonl").write_text(job)
    command = ["batch", str(tmp_path / "jobs.jsonl"), "--bundle", "sonic-tiny"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2 and "'sandbox' is unknown" in done.output


def test_info_says_what_is_confined() -> None:
    facts = sandbox_facts(IntakeLimits(decode_seconds=7))
    assert facts["time, memory"].startswith("7 s, 800 MB")
    if seccomp.supported():
        assert "seccomp" in facts["confined by"]
        assert (facts["network"], facts["processes"]) == ("cannot be reached", "cannot start any")
    assert "switched off" in sandbox_facts(IntakeLimits(sandbox=False))["state"]


def test_names_cannot_control_a_terminal() -> None:
    assert printable("Zoë [red]\x1b[2J\u202e\n.png") == "Zoë [red]\\x1b[2J\\u202e\\n.png"


def test_a_file_named_in_a_recording_is_not_read(tmp_path: Path) -> None:
    """FFmpeg can follow a reference from one MP4 to another file: here it keeps to the file itself."""
    data = m4a(np.random.default_rng(0).integers(-9000, 9000, 16_000).astype(np.int16))
    (tmp_path / "inside.m4a").write_bytes(data)
    (tmp_path / "secret.pcm").write_bytes(bytes(range(256)) * 400)
    (tmp_path / "outside.m4a").write_bytes(referring_to(tmp_path / "secret.pcm", data))
    try:
        sound = load_sound(tmp_path / "outside.m4a")
    except InputError:
        return
    assert len(sound.samples) <= len(load_sound(tmp_path / "inside.m4a").samples)


def m4a(samples: np.ndarray) -> bytes:
    """int16 (n,), 16 kHz, as AAC."""
    file = io.BytesIO()
    with av.open(file, "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def referring_to(target: Path, data: bytes) -> bytes:
    """An M4A whose samples are said to be in another file."""
    inside = struct.pack(">I4sI", 12, b"url ", 1)
    body = struct.pack(">I", 0) + f"file://{target}".encode() + b"\0"
    outside = struct.pack(">I4s", 8 + len(body), b"url ") + body
    changed = bytearray(data.replace(inside, outside))
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = data.index(box) - 4
        size = int.from_bytes(data[place : place + 4], "big") + len(outside) - len(inside)
        changed[place : place + 4] = struct.pack(">I", size)
    return bytes(changed)
