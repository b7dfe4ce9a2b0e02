"""What a watermark survives: ``python -m sonic_convert.bench.watermark --seconds 2 --seconds 10``.

Still pictures in which a head moves are stand-ins for generated clips. Each is written with `save_video`,
marked, then decoded, changed, encoded again and read. The result is a table in Markdown: how many standard
deviations the mark stands out, or a dash where it was not found or said something else.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import chain
from pathlib import Path

import av
import click
import numpy as np
import skimage.data
from PIL import Image
from scipy import ndimage

from sonic.media.video import VideoStream, save_video
from sonic.watermark.code import CHECK_BITS, decode
from sonic.watermark.detection import detect
from sonic.watermark.embedding import Embedder
from sonic.watermark.payload import Watermark
from sonic.watermark.reading import read_watermark
from sonic_convert.drawing.demo_portrait import draw_portrait

_MARK = Watermark(bundle=0xABCDE, hour=60_000, job=123_456)
_RATE_HZ = 25
_LOOP_FRAMES = 50
Picture = np.ndarray
Change = Callable[[Picture], Picture]


@dataclass(frozen=True)
class Attack:
    """What is done to a marked file.

    Attributes:
        name: as the table says it.
        change: of each frame, uint8 (height, width, 3).
        codec, options: FFmpeg's, one pair for each time that it is encoded.
        keep: the frames that are kept, by number: 0, 1 or more times.
    """

    name: str
    change: Change = lambda picture: picture
    encodings: tuple[tuple[str, str], ...] = (("libx264", "crf=23"),)
    keep: Callable[[int], int] = lambda index: 1


def _h264(*factors: int) -> tuple[tuple[str, str], ...]:
    return tuple(("libx264", f"crf={factor}") for factor in factors)


def _scaled(width: float, height: float | None = None) -> Change:
    def change(picture: Picture) -> Picture:
        sides = picture.shape[1] * width, picture.shape[0] * (height or width)
        return np.asarray(
            Image.fromarray(picture).resize((_even(sides[0]), _even(sides[1])), Image.Resampling.BICUBIC)
        )

    return change


def _even(side: float) -> int:
    return 2 * round(side / 2)


def _cropped(fraction: float) -> Change:
    def change(picture: Picture) -> Picture:
        height, width = picture.shape[:2]
        tall, wide = _even(height * (1 - fraction)), _even(width * (1 - fraction))
        top, left = (height - tall) // 3, 2 * (width - wide) // 3  # not in the middle
        return np.ascontiguousarray(picture[top : top + tall, left : left + wide])

    return change


def _after(*changes: Change) -> Change:
    def change(picture: Picture) -> Picture:
        for one in changes:
            picture = one(picture)
        return picture

    return change


def _levels(gain: float, offset: float, gamma: float) -> Change:
    values = 255 * np.clip(np.arange(256) / 255 * gain + offset, 0, 1) ** gamma
    table = values.round().astype(np.uint8)
    return lambda picture: table[picture]


def _noisy(deviation: float) -> Change:
    draw = np.random.default_rng(1)

    def change(picture: Picture) -> Picture:
        return np.clip(picture + draw.normal(0, deviation, picture.shape), 0, 255).astype(np.uint8)

    return change


def _blurred(deviation: float) -> Change:
    return lambda picture: ndimage.gaussian_filter(picture, (deviation, deviation, 0))


def _turned(degrees: float) -> Change:
    return lambda picture: np.asarray(Image.fromarray(picture).rotate(degrees, Image.Resampling.BICUBIC))


ATTACKS = (
    Attack("as written (crf 18)", encodings=()),
    Attack("crf 23", encodings=_h264(23)),
    Attack("crf 28", encodings=_h264(28)),
    Attack("half size, crf 23", _scaled(0.5)),
    Attack("half size, crf 28", _scaled(0.5), _h264(28)),
    Attack("crop 10 %, crf 23", _cropped(0.1)),
    Attack("crop 10 %, crf 28", _cropped(0.1), _h264(28)),
    Attack("crop 10 %, enlarged again, crf 23", _after(_cropped(0.1), _scaled(1 / 0.9))),
    Attack("half size, crop 10 %, crf 28", _after(_scaled(0.5), _cropped(0.1)), _h264(28)),
    Attack("encoded twice, crf 23 and 28", encodings=_h264(23, 28)),
    Attack("first second cut off", keep=lambda index: int(index >= _RATE_HZ)),
    Attack("30 frames a second", keep=lambda index: 2 if index % 5 == 4 else 1),
    Attack("every second frame dropped", keep=lambda index: index % 2),
    Attack("three quarters of the size", _scaled(0.75)),
    Attack("MPEG-4 (qscale 5)", encodings=(("mpeg4", "q=5"),)),
    Attack("HEVC (crf 28)", encodings=(("libx265", "crf=28"),)),
    Attack("VP9 (crf 36)", encodings=(("libvpx-vp9", "crf=36"),)),
    Attack("brighter, more contrast, gamma", _levels(1.15, 0.03, 0.9)),
    Attack("blurred (deviation of 1.5 pixels)", _blurred(1.5)),
    Attack("noise (deviation of 8 levels)", _noisy(8)),
    Attack("mirrored", lambda picture: np.ascontiguousarray(picture[:, ::-1])),
    Attack("crf 35", encodings=_h264(35)),
    Attack("a third of the size", _scaled(1 / 3)),
    Attack("crop 50 %", _cropped(0.5)),
    Attack("5 % wider", _scaled(1.05, 1)),
    Attack("turned by 0.5 degrees", _turned(0.5)),
    Attack("turned by 2 degrees", _turned(2)),
)


@cache
def still(name: str, side: int) -> Picture:
    """A square picture, RGB: "drawn" (smooth), or one of scikit-image's, such as "astronaut"."""
    if name == "drawn":
        picture = draw_portrait(3, (side, side))
    else:
        picture = Image.fromarray(getattr(skimage.data, name)())
        short = min(picture.size)
        left, top = (picture.width - short) // 2, (picture.height - short) // 2
        picture = picture.crop((left, top, left + short, top + short)).resize((side, side))
    return np.asarray(picture)


@cache
def loop(name: str, side: int) -> list[Picture]:
    """Two seconds of a still picture whose middle nods and whose mouth moves; they may be repeated."""
    picture = still(name, side).astype(np.float32)
    down, right = np.mgrid[:side, :side].astype(np.float32) / side
    head = np.exp(-(((down - 0.45) / 0.23) ** 2) - ((right - 0.5) / 0.18) ** 2)
    mouth = np.exp(-(((down - 0.6) / 0.07) ** 2) - ((right - 0.5) / 0.1) ** 2)
    frames = []
    for index in range(_LOOP_FRAMES):
        turn = 2 * np.pi * index / _LOOP_FRAMES
        lower = (0.009 * np.sin(turn) * head + 0.012 * abs(np.sin(4 * turn)) * mouth) * side
        along = 0.01 * np.sin(turn + 1) * head * side
        places = [down * side + lower, right * side + along]
        planes = [ndimage.map_coordinates(picture[..., i], places, order=1, mode="nearest") for i in range(3)]
        frames.append(np.stack(planes, -1).round().astype(np.uint8))
    return frames


def write_marked(path: Path, name: str, side: int, frame_count: int) -> None:
    """Write a marked clip as `sonic generate` would."""
    frames = loop(name, side)
    stream = (frames[index % len(frames)] for index in range(frame_count))
    shape = (frame_count, side, side, 3)
    save_video(VideoStream(stream, shape, _RATE_HZ, None, _MARK), path)  # type: ignore[arg-type]


def decoded(path: Path) -> Iterator[Picture]:
    """The frames of a file, RGB."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def encoded(frames: Iterator[Picture], path: Path, codec: str, option: str) -> None:
    """Write frames with one of FFmpeg's encoders."""
    key, value = option.split("=")
    options = (
        {"crf": value} if key == "crf" else {"flags": "+qscale", "global_quality": str(118 * int(value))}
    )
    if codec == "libvpx-vp9":
        options |= {"b": "0", "deadline": "realtime", "cpu-used": "8"}
    if codec == "libx265":
        options |= {"preset": "fast", "x265-params": "log-level=none"}
    first = next(frames)
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=Fraction(_RATE_HZ), options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in chain([first], frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def attacked(attack: Attack, marked: Path, folder: Path) -> Path:
    """The file after an attack."""
    source = marked
    for number, (codec, option) in enumerate(attack.encodings):
        changed = (
            attack.change(picture) if number == 0 else picture
            for index, picture in enumerate(decoded(source))
            for _ in range(attack.keep(index) if number == 0 else 1)
        )
        target = folder / f"{number}.mkv"
        encoded(changed, target, codec, option)
        source = target
    return source


def psnr_db(name: str, side: int) -> float:
    """The least PSNR of a marked frame, as RGB, with the one that is not marked."""
    height = width = side
    embedder, worst = Embedder(_MARK, height, width), np.inf
    for picture in loop(name, side):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=1, dst_color_range=1
        )
        before = frame.to_ndarray(format="rgb24")
        plane = frame.planes[0]
        embedder.apply(np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)[:, :width])
        error = np.square(before.astype(float) - frame.to_ndarray(format="rgb24")).mean()
        worst = min(worst, 10 * np.log10(255**2 / error))
    return worst


def milliseconds_a_frame(side: int) -> float:
    """The median time of marking one frame."""
    embedder, luma, times = Embedder(_MARK, side, side), still("astronaut", side)[..., 1].copy(), []
    embedder.apply(luma)
    for _ in range(200):
        started = time.perf_counter()
        embedder.apply(luma)
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))


def false_positives(trials: int) -> str:
    """How often the decoder finds a word in noise, and the whole search in pictures that are not marked."""
    draw = np.random.default_rng(7)
    words = sum(decode(draw.normal(size=512)) is not None for _ in range(trials))
    searched = found = 0
    for name in ("drawn", "astronaut", "chelsea", "coffee"):
        mean = np.mean(loop(name, 512), axis=(0, 3))
        for _ in range(max(1, trials // 800)):
            top, left = draw.integers(0, 120, 2)
            height, width = draw.integers(300, 390, 2)
            found += detect(mean[top : top + height, left : left + width]) is not None
            searched += 1
    bound = 32 / 2**CHECK_BITS
    return (
        f"{words} of {trials} noises decoded (at most {bound:.1g} each expected), "
        f"{found} of {searched} crops of pictures without a mark gave one"
    )


@click.command()
@click.option("--seconds", type=int, multiple=True, default=(2,), help="Lengths of clips.")
@click.option("--content", multiple=True, default=("drawn", "astronaut", "chelsea", "coffee"))
@click.option("--side", type=int, default=512, show_default=True, help="Pixels along each side.")
@click.option("--only", multiple=True, help="Words that the names of attacks contain.")
@click.option("--trials", type=int, default=0, help="Also decode so many noises.")
def main(
    seconds: tuple[int, ...], content: tuple[str, ...], side: int, only: tuple[str, ...], trials: int
) -> None:
    """Print what a watermark survives, as a table in Markdown."""
    click.echo(f"marking a frame of {side} x {side}: {milliseconds_a_frame(side):.2f} ms")
    for name in content:
        click.echo(f"PSNR of {name}: {psnr_db(name, side):.1f} dB")
    if trials:
        click.echo(false_positives(trials))
    clips = [(name, length) for length in seconds for name in content]
    click.echo("| attack | " + " | ".join(f"{name} {length} s" for name, length in clips) + " |")
    click.echo("|---" * (len(clips) + 1) + "|")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name, length in clips:
            write_marked(folder / f"{name}-{length}.mp4", name, side, length * _RATE_HZ)
        for attack in ATTACKS:
            if only and not any(word in attack.name for word in only):
                continue
            cells = []
            for name, length in clips:
                reading = read_watermark(attacked(attack, folder / f"{name}-{length}.mp4", folder))
                found = reading.detection
                cells.append(f"{found.deviations:.0f}" if found and found.watermark == _MARK else "-")
            click.echo(f"| {attack.name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
