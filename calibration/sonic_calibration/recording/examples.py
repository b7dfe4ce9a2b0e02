"""Examples for calibration: portraits, each with a recording of speech."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from sonic.engines.watched import Observer
from sonic.errors import InputError
from sonic.media.video import Video
from sonic.model import SonicModel
from sonic.options import GenerationOptions
from sonic.progress import NoProgress

BUILT_IN = Path(__file__).parents[1] / "examples"
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_AUDIO_SUFFIXES = {".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac"}


@dataclass(frozen=True)
class Example:
    """The files of a portrait and of a recording."""

    image: Path
    audio: Path


def generate_example(
    model: SonicModel, example: Example, options: GenerationOptions, observer: Observer | None = None
) -> Video:
    """Generate the video of an example, without progress output; with the published sampler by default.

    Args:
        model: the loaded bundle.
        example: the portrait and the recording.
        options: of the clip.
        observer: is called with every call of a submodel.

    Raises:
        InputError: the example or an option cannot be used.
        BundleError: the bundle cannot be run.
    """
    resolved = options.resolved(model.constants)
    return model.generate(
        example.image, example.audio, **asdict(resolved), progress=NoProgress(), observer=observer
    )


def read_examples(folder: Path) -> list[Example]:
    """Pair the portraits and the recordings of a folder.

    ``anna.png`` is paired with ``anna.wav``; files without a counterpart are ignored. If no names match,
    the n-th portrait is paired with the n-th recording, sorted by name, and the shorter list is repeated.

    Raises:
        InputError: the folder cannot be read, or it lacks portraits or recordings.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise InputError(f"{folder}: the examples cannot be read ({error.strerror})") from error
    images = [path for path in paths if path.suffix.lower() in _IMAGE_SUFFIXES]
    sounds = [path for path in paths if path.suffix.lower() in _AUDIO_SUFFIXES]
    for kind, found, suffixes in (
        ("portrait", images, _IMAGE_SUFFIXES),
        ("recording", sounds, _AUDIO_SUFFIXES),
    ):
        if not found:
            raise InputError(
                f"{folder} holds no {kind}; put at least one there ({', '.join(sorted(suffixes))})"
            )
    sounds_by_name = {path.stem: path for path in sounds}
    pairs = [Example(image, sounds_by_name[image.stem]) for image in images if image.stem in sounds_by_name]
    if pairs:
        return pairs
    count = max(len(images), len(sounds))
    return [Example(images[i % len(images)], sounds[i % len(sounds)]) for i in range(count)]
