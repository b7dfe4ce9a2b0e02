"""The bundles of a release: every precision, for x86-64 and aarch64, each packed into one file.

ONNX graphs of fp32 and fp16 are the same for both, and so are the bytes of their archives. INT8 differs: the
dot products of x86-64 take unsigned activations, those of aarch64 signed ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sonic.archives.members import SUFFIX
from sonic.archives.pack import pack
from sonic.bundle.manifest import MANIFEST_NAME, Manifest
from sonic.bundle.manifest_file import read_manifest
from sonic.bundle.store import sha256_of
from sonic.errors import InputError
from sonic.progress import Progress
from sonic_calibration.recording.examples import BUILT_IN
from sonic_calibration.recording.recordings import RecordingOptions
from sonic_convert.checkpoint.layout import Variant
from sonic_convert.compilation.compile import CompileOptions, compile_bundle
from sonic_convert.compilation.targets import find_target
from sonic_convert.compilation.toolchain import find_compiler
from sonic_convert.conversion import convert
from sonic_convert.export.stages import run_stage
from sonic_convert.quantization.pipeline import ReducedPrecision, reduce_bundle
from sonic_convert.quantization.plan import find_plan
from sonic_convert.quantization.qdq import QdqOptions
from sonic_convert.quantization.quantize import QuantizationOptions

PRECISIONS = ("fp32", "fp16", "int8")
MACHINES = {"x86_64": "x86", "aarch64": "aarch64"}
"""The names of machines, as the system has them, with those of `QdqOptions.isa`."""


@dataclass(frozen=True)
class BundleOptions:
    """Which bundles a release has.

    Attributes:
        checkpoint: a folder, or the name of one that comes with the package.
        name: what the bundles' names begin with.
        precisions: of `PRECISIONS`.
        targets: servers that the most compact bundle is compiled for as well.
        variant: which weights of the VAE and the image encoder are read.
        examples: portraits and speech that INT8 is calibrated with.
        recording: how much of them.
    """

    checkpoint: Path
    name: str
    precisions: tuple[str, ...] = PRECISIONS
    targets: tuple[str, ...] = ()
    variant: Variant = "auto"
    examples: Path = BUILT_IN
    recording: RecordingOptions = field(default_factory=RecordingOptions)

    def __post_init__(self) -> None:
        unknown = [one for one in self.precisions if one not in PRECISIONS]
        if unknown or not self.precisions:
            raise InputError(
                f"the precisions are {', '.join(self.precisions)}, but should be of {', '.join(PRECISIONS)}"
            )


@dataclass(frozen=True)
class Packed:
    """One bundle of a release.

    Attributes:
        archive: the file.
        machine: which processors it is for, such as "x86_64".
        precision: of `PRECISIONS`.
        manifest: the bundle's.
    """

    archive: Path
    machine: str
    precision: str
    manifest: Manifest

    @cached_property
    def sha256(self) -> str:
        """The archive's digest."""
        return sha256_of(self.archive)


def build_bundles(options: BundleOptions, work: Path, seconds: int, progress: Progress) -> list[Packed]:
    """Convert, quantize and pack; what is finished in the work folder is taken from there.

    Args:
        options: which bundles.
        work: for intermediate results, bundles and archives.
        seconds: the time in the archives.
        progress: shows the stages.

    Raises:
        InputError: the checkpoint or an example cannot be used.
        OutputError: a bundle cannot be written.
    """
    packed = []
    for bundle, machines, precision in _made(options, work, progress):
        for machine in machines:
            name = f"{bundle.name}-{machine}{SUFFIX}"
            archive = _packed(bundle, work / "archives" / name.removesuffix(SUFFIX), name, seconds, progress)
            packed.append(Packed(archive, machine, precision, read_manifest(bundle)))
    return packed


def _made(
    options: BundleOptions, work: Path, progress: Progress
) -> Iterator[tuple[Path, Sequence[str], str]]:
    """Every bundle, the machines it is for, and its precision."""
    bundles, stages = work / "bundles", work / "stages"
    full = bundles / f"{options.name}-fp32"
    convert(options.checkpoint, full, options.variant, stages / "fp32", progress)
    smallest = full
    if "fp32" in options.precisions:
        yield full, tuple(MACHINES), "fp32"
    if "fp16" in options.precisions:
        half = bundles / f"{options.name}-fp16"
        reduction = ReducedPrecision(QuantizationOptions(find_plan("fp16")))
        reduce_bundle(full, half, reduction, stages / "fp16", progress)
        smallest = half
        yield half, tuple(MACHINES), "fp16"
    if "int8" in options.precisions:
        calibration = stages / "int8-x86_64" / "calibration.npz"
        for machine, isa in MACHINES.items():  # one calibration serves both; the first makes it
            eighth = bundles / machine / f"{options.name}-int8"
            reduction = ReducedPrecision(
                QuantizationOptions(find_plan("int8"), QdqOptions(isa=isa)),
                options.recording,
                options.examples,
                calibration if machine != "x86_64" else None,
            )
            reduce_bundle(full, eighth, reduction, stages / f"int8-{machine}", progress)
            smallest = eighth
            yield eighth, (machine,), "int8"
    for target in options.targets:
        precision = smallest.name.removeprefix(f"{options.name}-")
        compiled = bundles / f"{smallest.name}-{target}"
        compile_bundle(
            smallest, compiled, CompileOptions(find_target(target)), find_compiler(None),
            stages / compiled.name, progress,
        )  # fmt: skip
        yield compiled, ("aarch64",), precision


def _packed(bundle: Path, folder: Path, name: str, seconds: int, progress: Progress) -> Path:
    """The archive of a bundle, packed again only if the bundle is another one."""

    def produce(partial: Path) -> dict[str, Any]:
        pack(bundle, partial / name, progress, seconds)
        return {}

    run_stage(folder, [sha256_of(bundle / MANIFEST_NAME), str(seconds)], produce)
    return folder / name
