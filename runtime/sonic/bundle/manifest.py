"""A bundle's ``manifest.json`` as frozen dataclasses.

Example:

    manifest = read_manifest(Path("bundles/sonic-base"))
    manifest.submodels["unet"].inputs[0].shape     # ("batch", "frames", 8, "height", "width")
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator

from sonic.bundle.constants import Constants
from sonic.bundle.presets import UNTUNED, SpeedPresets
from sonic.bundle.work import Work
from sonic.errors import BundleError
from sonic.records import TOLERANT, read_record

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
SUBMODEL_NAMES = (
    "audio_encoder",
    "audio2token",
    "audio2bucket",
    "image_encoder",
    "vae_encoder",
    "vae_decoder",
    "unet",
    "frame_interpolator",
    "face_detector",
)
_ADVICE = "an entry is missing or malformed; convert the checkpoint again"


def mask_input(level: int) -> str:
    """The name of the UNet's input for the face mask at one of its resolution levels; 0 is the finest."""
    return f"mask_{level}"


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} points outside the folder")
    return path


@dataclass(frozen=True)
class FileInfo:
    """A file: its path relative to the bundle (for a source: to the checkpoint), size and SHA-256."""

    __pydantic_config__ = TOLERANT

    path: Annotated[str, AfterValidator(_inside)]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorInfo:
    """An input or output; a dynamic axis has a name in place of a size."""

    __pydantic_config__ = TOLERANT

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class SubmodelInfo:
    """One network: its files (the first is the graph), interface, precision, ONNX opset and work.

    `work` is None in bundles made by a version that did not count it.
    """

    __pydantic_config__ = TOLERANT

    name: str
    precision: str
    opset: int
    files: tuple[FileInfo, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    work: Work | None = None

    @property
    def bytes(self) -> int:
        """Size on disk in bytes."""
        return sum(file.bytes for file in self.files)

    @property
    def mask_levels(self) -> int:
        """The number of resolution levels at which it takes the face mask; 0 except for the UNet."""
        names = {tensor.name for tensor in self.inputs}
        return next(level for level in range(len(names) + 1) if mask_input(level) not in names)


@dataclass(frozen=True)
class GoldenSubmodel:
    """PyTorch's outputs for inputs that a submodel was given while the golden clip was generated.

    Attributes:
        file: the inputs and outputs; see :class:`sonic.verification.golden.GoldenVectors`.
        call_shapes: the distinct sets of input shapes in the clip's calls, for which an engine with fixed
            shapes has to be compiled.
        relative_l2: this bundle's relative L2 difference from PyTorch when it was made.
        tolerance: the largest relative L2 difference that passes.
    """

    __pydantic_config__ = TOLERANT

    file: FileInfo
    call_shapes: tuple[dict[str, tuple[int, ...]], ...]
    relative_l2: float
    tolerance: float


@dataclass(frozen=True)
class GoldenClip:
    """A short clip as PyTorch generates it.

    Attributes:
        portrait, speech: its inputs.
        expected: the initial noise and the frames; see :class:`sonic.verification.golden.ExpectedClip`.
        face_box: x1, y1, x2, y2 of the face in the portrait's pixels; the detector is not run.
        resolution_pixels, steps: the clip's options.
        psnr_db: the PSNR of this bundle's frames against PyTorch's when it was made.
        minimum_psnr_db: the lowest PSNR that passes.
    """

    __pydantic_config__ = TOLERANT

    portrait: FileInfo
    speech: FileInfo
    expected: FileInfo
    face_box: tuple[float, float, float, float]
    resolution_pixels: int
    steps: int
    psnr_db: float
    minimum_psnr_db: float


@dataclass(frozen=True)
class VerificationInfo:
    """What :mod:`sonic.verification.verify` needs to compare a bundle with PyTorch, without PyTorch."""

    __pydantic_config__ = TOLERANT

    submodels: dict[str, GoldenSubmodel]
    clip: GoldenClip

    @property
    def files(self) -> tuple[FileInfo, ...]:
        """The golden files."""
        clip = self.clip
        vectors = (submodel.file for submodel in self.submodels.values())
        return (*vectors, clip.portrait, clip.speech, clip.expected)

    def to_json(self) -> dict[str, Any]:
        """The entry of ``manifest.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], source: str) -> VerificationInfo:
        """Read the dictionary written by :meth:`to_json`; `source` is named in errors.

        Raises:
            BundleError: an entry is missing or malformed.
        """
        return read_record(cls, json.dumps(values), source, BundleError, _ADVICE)

    def __post_init__(self) -> None:
        """Put the submodels in the order of `SUBMODEL_NAMES`; a file may list them in another.

        Raises:
            ValueError: one is missing.
        """
        missing = [name for name in SUBMODEL_NAMES if name not in self.submodels]
        if missing:
            raise ValueError(f"it has no '{missing[0]}'")
        object.__setattr__(self, "submodels", {name: self.submodels[name] for name in SUBMODEL_NAMES})


@dataclass(frozen=True)
class Manifest:
    """Everything a runtime knows about a bundle.

    `quantization` describes how a bundle of a precision other than fp32 was made; it is empty in others.
    `verification` is None in bundles made by a version without golden vectors. `target` describes the
    processors that a compiled bundle is for: its "name", "triple", "processor" and the "features" that Linux
    must list for them; it is empty in others. `speeds` are the presets that `sonic-convert tune` found, or
    those for bundles that were not tuned.
    """

    __pydantic_config__ = TOLERANT

    name: str
    engine: str
    license: str
    producer: dict[str, str]
    sources: tuple[FileInfo, ...]
    submodels: dict[str, SubmodelInfo]
    assets: dict[str, FileInfo]
    constants: Constants
    parity: dict[str, Any]
    quantization: dict[str, Any] = field(default_factory=dict)
    verification: VerificationInfo | None = None
    target: dict[str, Any] = field(default_factory=dict)
    speeds: SpeedPresets = UNTUNED
    schema_version: int = SCHEMA_VERSION

    @property
    def files(self) -> tuple[FileInfo, ...]:
        """Every file of the bundle except the manifest itself."""
        graphs = (file for submodel in self.submodels.values() for file in submodel.files)
        golden = self.verification.files if self.verification else ()
        return (*graphs, *self.assets.values(), *golden)

    def to_json(self) -> dict[str, Any]:
        """The dictionary that ``manifest.json`` holds."""
        submodels = [asdict(s) | {"bytes": s.bytes} for s in self.submodels.values()]
        return {
            "schema_version": self.schema_version,
            "name": self.name,
            "engine": self.engine,
            "license": self.license,
            "producer": self.producer,
            "sources": [asdict(source) for source in self.sources],
            "submodels": submodels,
            "assets": {name: asdict(file) for name, file in self.assets.items()},
            "constants": self.constants.to_json(),
            "parity": self.parity,
            "quantization": self.quantization,
            "speeds": self.speeds.to_json(),
            **({"verification": self.verification.to_json()} if self.verification else {}),
            **({"target": self.target} if self.target else {}),
        }

    @classmethod
    def from_json(cls, values: Any, source: str) -> Manifest:
        """Read the dictionary written by :meth:`to_json`; `source` is named in errors.

        Raises:
            BundleError: another schema version, or a missing or malformed entry.
        """
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{source}: schema version is {version!r}, but this runtime reads {SCHEMA_VERSION}; "
                "convert the checkpoint again, or install the runtime that made the bundle"
            )
        # Submodels are a list in the file, but keyed by name here; the constants have checks of their own.
        constants = Constants.from_json(values.get("constants", {}), source)
        listed = values.get("submodels", [])
        named = {item.get("name"): item for item in listed if isinstance(item, dict)}
        text = json.dumps(values | {"submodels": named, "constants": constants.to_json()})
        manifest = read_record(cls, text, source, BundleError, _ADVICE)
        missing = [name for name in SUBMODEL_NAMES if name not in manifest.submodels]
        if missing:
            raise BundleError(
                f"{source}: submodels {missing} are missing; convert the whole checkpoint again"
            )
        return manifest


def read_manifest(directory: Path) -> Manifest:
    """Read ``manifest.json`` of a bundle directory.

    Raises:
        BundleError: it is missing, not JSON, or does not describe a bundle.
    """
    path = directory / MANIFEST_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(
            f"{directory} holds no {MANIFEST_NAME}, so it is not a bundle; make one with "
            "'sonic-convert convert CHECKPOINT BUNDLE'"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); copy or convert the bundle again") from error
    return Manifest.from_json(values, str(path))
