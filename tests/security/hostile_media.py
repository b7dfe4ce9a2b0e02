"""Portraits and recordings that an attacker could hand in."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image
from security.hostile import HostileInput

import sonic

GOOD = Path(sonic.__file__).parent / "bundles/sonic-tiny/golden"


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG of one bit per pixel; all black, or with compressed data of its own."""
    rows = data or zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def face(kind: str, side: int = 256, **options: object) -> bytes:
    """The golden portrait in another format."""
    file = io.BytesIO()
    with Image.open(GOOD / "portrait.png") as picture:
        picture.convert("RGB").resize((side, side)).save(file, kind, **options)
    return file.getvalue()


def jpeg_of_scans(scans: int, side: int = 256) -> bytes:
    """A progressive JPEG whose last scan is there many times."""
    data = face("JPEG", side, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def flac_of_silence(rate_hz: int, seconds: int, stated: bool) -> bytes:
    """A stereo FLAC of constant blocks: 12 to 16 bytes for 65,535 samples of each channel."""
    block = 65_535
    samples = rate_hz * seconds if stated else 0
    about = struct.pack(">HH", block, block) + bytes(6)
    about += (rate_hz << 44 | 1 << 41 | 15 << 36 | samples).to_bytes(8, "big") + bytes(16)
    parts = [b"fLaC\x80" + len(about).to_bytes(3, "big") + about]
    for number in range(-(-rate_hz * seconds // block)):
        # sync and fixed block size; size in 16 bits, rate from above; two channels, 16 bits
        frame = b"\xff\xf8\x70\x18" + _utf8(number) + (block - 1).to_bytes(2, "big")
        frame += bytes([_crc(frame, 8, 0x07)]) + b"\0\x10\0\0\x10\0"  # two constant subframes of value 16
        parts.append(frame + _crc(frame, 16, 0x8005).to_bytes(2, "big"))
    return b"".join(parts)


def _utf8(number: int) -> bytes:
    return chr(number).encode("utf-8", "surrogatepass")


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    value, mask = 0, (1 << bits) - 1
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value >> (bits - 1) else 0)) & mask
    return value


def wav(
    samples: np.ndarray, rate_hz: int, *, code: int, channels: int = 1, stated: int | None = None
) -> bytes:
    """A WAV of any samples; `code` is 1 for integers and 3 for floats."""
    data = samples.tobytes()
    size = samples.itemsize
    header = struct.pack("<HHIIHH", code, channels, rate_hz, rate_hz * size * channels & 0xFFFFFFFF,
                         size * channels & 0xFFFF, 8 * size)  # fmt: skip
    length = len(data) if stated is None else stated
    return (
        b"RIFF" + struct.pack("<I", 36 + length & 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<I", 16) + header
        + b"data" + struct.pack("<I", length) + data
    )  # fmt: skip


def caf(channels: int) -> bytes:
    """A CAF of any number of channels."""
    about = struct.pack(">d4sIIIII", 48_000.0, b"lpcm", 0, 4, 1, channels, 16)
    data = bytes(4) + bytes(range(256)) * 400
    return (
        b"caff\0\x01\0\0desc" + struct.pack(">Q", len(about)) + about
        + b"data" + struct.pack(">Q", len(data)) + data
    )  # fmt: skip


def silent_video() -> bytes:
    """An MP4 without sound."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 64
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        container.mux([*stream.encode(picture), *stream.encode(None)])
    return file.getvalue()


def generate(folder: Path, image: Path | str, audio: Path | str) -> list[str]:
    """The arguments of a generation."""
    return [
        "sonic", "generate", "--bundle", "sonic-tiny", "--threads", "1", "--steps", "1",
        "--image", str(image), "--audio", str(audio), "--output", str(folder / "video.mp4"),
    ]  # fmt: skip


def picture(name: str, file: str, content: Callable[[], bytes], sentence: str) -> HostileInput:
    """A row whose portrait is a file of this content."""

    def command(folder: Path) -> list[str]:
        (folder / file).write_bytes(content())
        return generate(folder, folder / file, GOOD / "speech.wav")

    return HostileInput(name, "picture", command, sentence)


def sound(
    name: str, file: str, content: Callable[[], bytes], sentence: str, options: tuple[str, ...] = ()
) -> HostileInput:
    """A row whose recording is a file of this content."""

    def command(folder: Path) -> list[str]:
        (folder / file).write_bytes(content())
        return [*generate(folder, GOOD / "portrait.png", folder / file), *options]

    return HostileInput(name, "sound", command, sentence)


def pipe(folder: Path) -> list[str]:
    """A recording that is a FIFO nobody writes to."""
    os.mkfifo(folder / "speech.wav")
    return generate(folder, GOOD / "portrait.png", folder / "speech.wav")


def large(folder: Path) -> list[str]:
    """A portrait of 65 MB, nearly all of it a hole."""
    (folder / "a.png").write_bytes(face("PNG"))
    os.truncate(folder / "a.png", 65_000_001)
    return generate(folder, folder / "a.png", GOOD / "speech.wav")


def names(folder: Path) -> list[str]:
    """A file name of terminal escapes and Rich's markup."""
    path = folder / "[bold]\x1b[2J\u202e[red].png"
    path.write_bytes(b"no picture")
    return generate(folder, path, GOOD / "speech.wav")


def huge_avif() -> bytes:
    """An AVIF that says 60,000 x 60,000 pixels."""
    data = bytearray(face("AVIF"))
    place = data.index(b"ispe") + 8
    data[place : place + 8] = struct.pack(">II", 60_000, 60_000)
    return bytes(data)


_PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
_SVG = (
    '<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    '<svg xmlns="http://www.w3.org/2000/svg"><text>&x;</text></svg>'
)
_LIMIT = r"64 megapixels"
_NOT_READ = "which is not read; give a PNG, JPEG, WebP, HEIC or AVIF file"
_NO_SOUND = "cannot be decoded as sound"

ROWS: list[HostileInput] = [
    picture("a PNG of 30,000 x 30,000 pixels in 110 kB", "a.png", lambda: png(30_000, 30_000), _LIMIT),
    picture("a PNG whose header says 2^31 - 1 pixels on each side", "a.png",
            lambda: png(2**31 - 1, 2**31 - 1, zlib.compress(b"")), _LIMIT),
    picture("an AVIF whose header says 60,000 x 60,000 pixels", "a.avif", huge_avif,
            "a.avif (is|has)"),
    picture("a JPEG of 150 scans", "a.jpg", lambda: jpeg_of_scans(150), "more than 32 scans"),
    picture("a PNG that ends in the middle", "a.png", lambda: face("PNG")[:9000], "a.png is damaged"),
    picture("a JPEG that ends in the middle", "a.jpg", lambda: face("JPEG")[:4000], "a.jpg is damaged"),
    picture("a WebP that ends in the middle", "a.webp", lambda: face("WEBP")[:2000], "a.webp is damaged"),
    picture("an HTML page with a PNG behind it", "a.png",
            lambda: b"<html><script>1</script></html>" + face("PNG"), "an HTML document, " + _NOT_READ),
    picture("a ZIP archive with a JPEG behind it", "a.jpg",
            lambda: b"PK\x03\x04" + bytes(40) + face("JPEG"), "a ZIP archive, " + _NOT_READ),
    picture("an SVG that includes /etc/passwd", "a.svg", _SVG.encode, "SVG drawing, " + _NOT_READ),
    picture("a GIF", "a.gif", lambda: face("GIF"), "a GIF picture, " + _NOT_READ),
    picture("a TIFF named .png", "a.png", lambda: face("TIFF"), "a TIFF picture, " + _NOT_READ),
    picture("a Photoshop document", "a.psd", lambda: b"8BPS\0\x01" + bytes(500),
            "a Photoshop document, " + _NOT_READ),
    picture("a PostScript document", "a.eps", lambda: face("EPS"), "a PostScript document, " + _NOT_READ),
    picture("a portrait of zero bytes", "a.png", lambda: b"", "a.png is empty"),
    HostileInput("a portrait of 65 MB", "picture", large, "at most 64 MB"),
    HostileInput("the device /dev/zero as a portrait", "picture",
                 lambda folder: generate(folder, "/dev/zero", GOOD / "speech.wav"), "not a regular file"),
    HostileInput("a folder as a portrait", "picture",
                 lambda folder: generate(folder, folder, GOOD / "speech.wav"), "is a folder"),
    HostileInput("an address as a portrait", "picture",
                 lambda folder: generate(folder, "http://127.0.0.1:9/a.png", GOOD / "speech.wav"),
                 "does not exist"),
    HostileInput("a name of terminal escapes and markup", "picture", names,
                 r"\[bold\]\\x1b\[2J\\u202e\[red\]\.png is not"),
    sound("an HLS playlist of a local file", "a.wav",
          lambda: _PLAYLIST.format(GOOD / "speech.wav").encode(), _NO_SOUND),
    sound("an HLS playlist of an address", "a.m3u8",
          lambda: _PLAYLIST.format("http://127.0.0.1:9/a.ts").encode(), _NO_SOUND),
    sound("a concat script for FFmpeg", "a.ffconcat",
          lambda: f"ffconcat version 1.0\nfile '{GOOD / 'speech.wav'}'\n".encode(), _NO_SOUND),
    sound("a session description (SDP)", "a.sdp",
          lambda: b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
          _NO_SOUND),
    HostileInput("an address as a recording", "sound",
                 lambda folder: generate(folder, GOOD / "portrait.png", "http://127.0.0.1:9/a.wav"),
                 "does not exist"),
    HostileInput("FFmpeg's 'concat:' as a recording", "sound",
                 lambda folder: generate(folder, GOOD / "portrait.png", f"concat:{GOOD / 'speech.wav'}"),
                 "does not exist"),
    sound("a FLAC of an hour at 192 kHz in 190 kB", "a.flac",
          lambda: flac_of_silence(192_000, 3600, stated=True), "more than 700 MB of samples"),
    sound("the same FLAC without its length, where 200 MB may be decoded", "a.flac",
          lambda: flac_of_silence(192_000, 3600, stated=False), "more than 200 MB of samples",
          ("--decoded-megabytes", "200")),
    sound("a FLAC of a day", "a.flac", lambda: flac_of_silence(8000, 86_400, stated=True), "lasts 86400 s"),
    sound("a CAF of 1,000,000,000 channels", "a.caf", lambda: caf(10**9), "a.caf (cannot|holds|is)"),
    sound("a WAV of 65,535 channels", "a.wav",
          lambda: wav(np.ones(200_000, "<i2"), 16_000, code=1, channels=65_535),
          "a.wav (cannot|holds|is)"),
    sound("a WAV at 1 Hz", "a.wav", lambda: wav(np.full(1000, 4000, "<i2"), 1, code=1),
          "sample rate of 1 Hz"),
    sound("a WAV of NaN", "a.wav", lambda: wav(np.full(16_000, np.nan, "<f4"), 16_000, code=3),
          "not numbers"),
    sound("a WAV of zero samples that says 4 GB", "a.wav",
          lambda: wav(np.zeros(0, "<i2"), 16_000, code=1, stated=2**32 - 1), "a.wav (cannot|holds)"),
    sound("a video without sound", "a.mp4", silent_video, "holds no sound"),
    sound("a recording of random bytes", "a.mp3",
          lambda: np.random.default_rng(3).bytes(40_000), "a.mp3 (cannot|holds|is)"),
    HostileInput("a pipe as a recording", "sound", pipe, "not a regular file"),
    HostileInput("the device /dev/urandom as a recording", "sound",
                 lambda folder: generate(folder, GOOD / "portrait.png", "/dev/urandom"),
                 "not a regular file"),
]  # fmt: skip
