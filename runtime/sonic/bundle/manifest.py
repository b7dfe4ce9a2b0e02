"""A bundle's ``manifest.json`` as frozen dataclasses.

Example:

    manifest = read_manifest(Path("bundles/sonic-base"))
    manifest.submodels["unet"].inputs[0].shape     # ("batch", "frames", 8, "height", "width")

How it becomes a file, with a digest of itself, is in :mod:`sonic.bundle.manifest_file`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any

from annotated_types import Interval, Len
from pydantic import AfterValidator, StringConstraints

from sonic.bundle.constants import Constants
from sonic.bundle.files import IGNORED_NAMES
from sonic.bundle.presets import UNTUNED, SpeedPresets
from sonic.bundle.work import Work
from sonic.errors import BundleError
from sonic.records import TOLERANT, read_record

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "model.sig"
#: The engine whose bundles hold graphs and weights only; those of others hold machine code.
GRAPH_ENGINE = "onnxruntime"
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


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text[:60]!r} holds characters that cannot be printed")
    return text


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts:
        raise ValueError(f"{path!r} points outside the folder")
    if not parts or PurePosixPath(path).as_posix() != path or "\\" in path:
        raise ValueError(f"{path!r} should be a plain relative path, with slashes")
    if not IGNORED_NAMES.isdisjoint(parts) or path in (MANIFEST_NAME, SIGNATURE_NAME):
        raise ValueError(f"{path!r} cannot be a file of a bundle's submodels")
    return path


_Text = Annotated[str, StringConstraints(max_length=1_000), AfterValidator(_printable)]
_Path = Annotated[str, StringConstraints(max_length=400), AfterValidator(_printable), AfterValidator(_inside)]
_Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
_Bytes = Annotated[int, Interval(ge=0, le=1 << 48)]
_Size = Annotated[int, Interval(ge=0, le=1 << 31)]
_Relative = Annotated[float, Interval(ge=0, le=1e3)]
_Decibels = Annotated[float, Interval(ge=-1e3, le=1e3)]
_Pixel = Annotated[float, Interval(ge=-1e5, le=1e5)]


@dataclass(frozen=True)
class FileInfo:
    """A file: its path relative to the bundle (for a source: to the checkpoint), size and SHA-256."""

    __pydantic_config__ = TOLERANT

    path: _Path
    bytes: _Bytes
    sha256: _Sha256


@dataclass(frozen=True)
class TensorInfo:
    """An input or output; a dynamic axis has a name in place of a size."""

    __pydantic_config__ = TOLERANT

    name: _Text
    dtype: _Text
    shape: Annotated[tuple[_Size | _Text, ...], Len(0, 8)]


@dataclass(frozen=True)
class SubmodelInfo:
    """One network: its files (the first is the graph), interface, precision, ONNX opset and work.

    `work` is None in bundles made by a version that did not count it.
    """

    __pydantic_config__ = TOLERANT

    name: _Text
    precision: _Text
    opset: Annotated[int, Interval(ge=1, le=1_000)]
    files: Annotated[tuple[FileInfo, ...], Len(1, 1_000)]
    inputs: Annotated[tuple[TensorInfo, ...], Len(1, 100)]
    outputs: Annotated[tuple[TensorInfo, ...], Len(1, 100)]
    work: Work | None = None

    def __post_init__(self) -> None:
        """Check that the work is stated in the axes of the inputs.

        Raises:
            ValueError: it is not.
        """
        axes = {axis for tensor in self.inputs for axis in tensor.shape}
        if self.work is not None and (unknown := sorted(self.work.axes - axes)):
            raise ValueError(f"its work names the axis {unknown[0][:60]!r}, which no input has")

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
    call_shapes: tuple[dict[_Text, tuple[_Size, ...]], ...]
    relative_l2: _Relative
    tolerance: _Relative


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
    face_box: tuple[_Pixel, _Pixel, _Pixel, _Pixel]
    resolution_pixels: Annotated[int, Interval(ge=64, le=4_096)]
    steps: Annotated[int, Interval(ge=1, le=1_000)]
    psnr_db: _Decibels
    minimum_psnr_db: _Decibels


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

    name: _Text
    engine: _Text
    license: _Text
    producer: dict[_Text, _Text]
    sources: tuple[FileInfo, ...]
    submodels: dict[_Text, SubmodelInfo]
    assets: dict[_Text, FileInfo]
    constants: Constants
    parity: dict[str, Any]
    quantization: dict[str, Any] = field(default_factory=dict)
    verification: VerificationInfo | None = None
    target: dict[str, Any] = field(default_factory=dict)
    speeds: SpeedPresets = UNTUNED
    schema_version: int = SCHEMA_VERSION

    @property
    def machine_code(self) -> bool:
        """Whether the bundle holds machine code, which loading it runs."""
        return self.engine != GRAPH_ENGINE

    @property
    def files(self) -> tuple[FileInfo, ...]:
        """Every file of the bundle except the manifest itself, and its signature."""
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
            "machine_code": self.machine_code,
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
        if type(version) is not int or version != SCHEMA_VERSION:
            raise BundleError(
                f"{source}: schema version is {ascii(version)[:60]}, but this runtime reads "
                f"{SCHEMA_VERSION}; convert the checkpoint again, or install the runtime that made the bundle"
            )
        # Submodels are a list in the file, but keyed by name here; the constants have checks of their own.
        constants = Constants.from_json(values.get("constants", {}), source)
        listed = values.get("submodels", [])
        named = {
            item["name"]: item
            for item in (listed if isinstance(listed, list) else [])
            if isinstance(item, dict) and isinstance(item.get("name"), str)
        }
        if not isinstance(listed, list) or len(named) != len(listed):
            raise BundleError(
                f"{source}: 'submodels' should be a list of objects with different names; {_ADVICE}"
            )
        text = json.dumps(values | {"submodels": named, "constants": constants.to_json()})
        manifest = read_record(cls, text, source, BundleError, _ADVICE)
        missing = [name for name in SUBMODEL_NAMES if name not in manifest.submodels]
        if missing:
            raise BundleError(
                f"{source}: submodels {missing} are missing; convert the whole checkpoint again"
            )
        _check_entries(manifest, source)
        if values.get("machine_code", manifest.machine_code) is not manifest.machine_code:
            raise BundleError(
                f"{source}: 'machine_code' should be {str(manifest.machine_code).lower()} for the engine "
                f"'{manifest.engine}'; {_ADVICE}"
            )
        return manifest


def _check_entries(manifest: Manifest, source: str) -> None:
    """Check what concerns several entries.

    Raises:
        BundleError: a file is listed twice, or what a compiled bundle is for is malformed.
    """
    paths = [file.path for file in manifest.files]
    if len(set(paths)) != len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise BundleError(f"{source}: the file {twice} is listed twice; {_ADVICE}")
    features = manifest.target.get("features", [])
    named = [value for key, value in manifest.target.items() if key != "features"]
    if not isinstance(features, list) or not all(isinstance(one, str) for one in (*features, *named)):
        raise BundleError(
            f"{source}: 'target' should hold names, and in 'features' a list of names; {_ADVICE}"
        )
