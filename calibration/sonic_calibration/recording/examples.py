"""Portraits with speech: what a calibration generates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sonic.engines.base import Observer
from sonic.errors import InputError
from sonic.media.video import Video
from sonic.model import SonicModel
from sonic.progress import NoProgress

BUILT_IN = Path(__file__).parents[1] / "examples"
_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_SOUNDS = {".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac"}


@dataclass(frozen=True)
class Example:
    """A portrait and a recording."""

    image: Path
    audio: Path


@dataclass(frozen=True)
class ClipSettings:
    """What is generated of an example; None for its own, or the bundle's."""

    duration_seconds: float | None = None
    resolution_pixels: int | None = None
    steps: int | None = None


WHOLE_CLIPS = ClipSettings()


def generate_example(
    model: SonicModel, example: Example, settings: ClipSettings, observer: Observer | None = None
) -> Video:
    """The video of an example, without telling of its stages."""
    return model.generate(
        example.image,
        example.audio,
        duration=settings.duration_seconds,
        min_resolution=settings.resolution_pixels,
        inference_steps=settings.steps,
        progress=NoProgress(),
        observer=observer,
    )


def read_examples(folder: Path) -> list[Example]:
    """Pair the pictures and the recordings of a folder.

    ``anna.png`` belongs to ``anna.wav``; where no names agree, the n-th picture gets the n-th recording
    in the order of their names, and the shorter list begins again.

    Raises:
        InputError: there is no such folder, or it lacks pictures or recordings.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise InputError(f"{folder}: the examples cannot be read ({error.strerror})") from error
    images = [path for path in paths if path.suffix.lower() in _IMAGES]
    sounds = [path for path in paths if path.suffix.lower() in _SOUNDS]
    for kind, found, suffixes in (("portrait", images, _IMAGES), ("recording", sounds, _SOUNDS)):
        if not found:
            raise InputError(
                f"{folder} holds no {kind}; put at least one there ({', '.join(sorted(suffixes))})"
            )
    by_name = {path.stem: path for path in sounds}
    paired = [Example(image, by_name[image.stem]) for image in images if image.stem in by_name]
    if paired:
        return paired
    count = max(len(images), len(sounds))
    return [Example(images[i % len(images)], sounds[i % len(sounds)]) for i in range(count)]
