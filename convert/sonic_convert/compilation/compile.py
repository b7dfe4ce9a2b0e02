"""Compiles a bundle of ONNX graphs for a kind of aarch64 server.

Example:

    compile_bundle(
        Path("bundles/sonic-base"),
        Path("bundles/sonic-kunpeng"),
        CompileOptions(find_target("kunpeng920")),
        compiler,
    )
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sonic.bundle.bundle import Bundle
from sonic.bundle.manifest import FileInfo, Manifest, SubmodelInfo
from sonic.bundle.store import file_info, open_bundle
from sonic.engines.tvm import BRIDGE, Program, Specialisation, StoredWeight
from sonic.engines.tvm_files import PROGRAM
from sonic.errors import InputError
from sonic.progress import NoProgress, Progress
from sonic_convert.bundle_writer import (
    check_target,
    copy_files,
    copy_graph,
    making,
    new_bundle,
    write_manifest,
)
from sonic_convert.compilation import bridge_build
from sonic_convert.compilation.build import build
from sonic_convert.compilation.lowering import lower
from sonic_convert.compilation.sizes import COMPILED, Picture, shapes_of
from sonic_convert.compilation.targets import Target
from sonic_convert.export.stages import run_stage
from sonic_convert.export.submodels import Programs

COMPILER_VERSION = 4  # raise it when a change of the code changes the programs
_ALIGNMENT_BYTES = 64
_LIBRARY, _WEIGHTS = "program.so", "weights.bin"


@dataclass(frozen=True)
class CompileOptions:
    """What a bundle is compiled for.

    Attributes:
        target: the servers.
        pictures: sizes of videos; empty for the bundle's own resolution, square. The size of the golden clip,
            with which a server verifies the bundle, is always added.
        use_library: False leaves everything to TVM, to see what the Arm Compute Library gains.
    """

    target: Target
    pictures: tuple[Picture, ...] = ()
    use_library: bool = True


def compile_bundle(
    source: Path,
    target: Path,
    options: CompileOptions,
    compiler: Sequence[str],
    work: Path | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Compile a bundle; finished programs are taken from the work folder.

    Args:
        source: a bundle of ONNX graphs.
        target: the bundle to write.
        options: for which servers and sizes.
        compiler: command of a C++ compiler for the target, with the Arm Compute Library's headers.
        work: folder of finished programs; TARGET.work by default.
        progress: shows the programs.

    Raises:
        InputError: the source cannot be compiled, or the compiler fails.
        OutputError: the bundle cannot be written.
    """
    progress = progress or NoProgress()
    check_target(target)
    bundle = open_bundle(source)
    if bundle.manifest.engine != "onnxruntime":
        raise InputError(
            f"{source} is for the engine '{bundle.manifest.engine}'; compile the bundle of ONNX graphs that "
            "it was made from"
        )
    pictures = _pictures(bundle, options)
    plans = {name: _sizes(programs, bundle, pictures) for name, programs in COMPILED.items()}
    with making(target, work) as work_folder:
        folders = {name: work_folder / name for name in plans}
        with progress.stage("compile", sum(map(len, plans.values()))) as advance:
            for name, sizes in plans.items():
                compile_submodel(bundle, name, sizes, options, compiler, folders[name], advance)
        return _write(bundle, target, options, compiler, folders)


def _pictures(bundle: Bundle, options: CompileOptions) -> list[Picture]:
    constants = bundle.manifest.constants
    side = constants.portrait.default_resolution_pixels
    pictures = [*(options.pictures or (Picture(side, side),))]
    multiple = constants.portrait.size_multiple_pixels
    for picture in pictures:
        if picture.height % multiple or picture.width % multiple or not picture.height * picture.width:
            raise InputError(
                f"the size {picture.width}x{picture.height} cannot be generated; both should be multiples of "
                f"{multiple}"
            )
    if bundle.manifest.verification is not None:
        clip = bundle.manifest.verification.clip
        pictures.append(Picture(clip.resolution_pixels, clip.resolution_pixels))
    return list(dict.fromkeys(pictures))


def _sizes(programs: Programs, bundle: Bundle, pictures: list[Picture]) -> list[dict[str, int]]:
    found: list[dict[str, int]] = []
    for picture in pictures:
        wanted = programs.sizes(bundle.manifest.constants, picture.height, picture.width)
        found += [sizes for sizes in wanted if sizes not in found]
    return found


def compile_submodel(
    bundle: Bundle,
    name: str,
    plan: list[dict[str, int]],
    options: CompileOptions,
    compiler: Sequence[str],
    folder: Path,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Compile one submodel for sizes of its axes: a folder for every program, and their ``program.json``.

    Args:
        bundle: of ONNX graphs.
        name: the submodel.
        plan: sizes of its dynamic axes, an entry for every program.
        options: for which servers.
        compiler: links the programs.
        folder: for the programs; those that are there already are not compiled again.
        advance: called after every program.

    Raises:
        InputError: the graph cannot be compiled, or the compiler fails.
    """
    info = bundle.manifest.submodels[name]
    digests = [file.sha256 for file in info.files]
    made_of = [
        *digests, str(COMPILER_VERSION), version("apache-tvm"), repr(options.target),
        str(options.use_library), *compiler,
    ]  # fmt: skip
    graph = bundle.graph_path(name)
    model = onnx.load(str(graph), load_external_data=False)
    parts: list[tuple[Path, dict[str, Any]]] = []
    for index, sizes in enumerate(plan):
        shapes = shapes_of(info, sizes)

        def produce(
            partial: Path, shapes: dict[str, tuple[int, ...]] = shapes, is_first: bool = not index
        ) -> dict[str, Any]:
            lowered = lower(model, shapes, graph.parent, options.use_library)
            executable = build(lowered, options.target.tvm_target())
            executable.export_library(str(partial / _LIBRARY), fcompile=_linker(compiler))
            weights = _weights_layout(lowered.weights)
            if is_first:  # all programs of a submodel have the same weights
                _store(partial / _WEIGHTS, weights, lowered.weights)
            return {
                "inputs": lowered.inputs, "outputs": lowered.outputs, "shapes": shapes,
                "weights": [asdict(weight) for weight in weights], "keys": lowered.keys,
                "library_calls": lowered.library_calls,
            }  # fmt: skip

        gc.collect()  # TVM's objects form reference cycles: 17 GB became 11 GB at the published size
        part = folder / f"{index:03d}"
        facts = run_stage(part, [*made_of, json.dumps(shapes, sort_keys=True)], produce).facts
        parts.append((part, facts))
        advance()
    _join(folder, info, COMPILED[name].independent_axis, parts)


def _join(
    folder: Path, info: SubmodelInfo, independent_axis: str, parts: list[tuple[Path, dict[str, Any]]]
) -> None:
    """Write ``program.json`` for all programs of a submodel, which share their weights."""
    first = parts[0][1]
    weights = [StoredWeight(w["key"], w["dtype"], tuple(w["shape"]), w["offset"]) for w in first["weights"]]
    for part, facts in parts[1:]:
        if [w["key"] for w in facts["weights"]] != [weight.key for weight in weights]:
            raise InputError(f"{part}: the programs of one submodel have other weights; remove {folder}")
    program = Program(
        tuple(first["inputs"]),
        tuple(first["outputs"]),
        tuple(weights),
        f"{parts[0][0].name}/{_WEIGHTS}",
        tuple(dict.fromkeys(key for _, facts in parts for key in facts["keys"])),
        tuple(
            Specialisation(
                f"{part.name}/{_LIBRARY}", {name: tuple(size) for name, size in facts["shapes"].items()}
            )
            for part, facts in parts
        ),
        {
            tensor.name: tensor.shape.index(independent_axis)
            for tensor in (*info.inputs, *info.outputs)
            if independent_axis in tensor.shape
        },
    )
    (folder / PROGRAM).write_text(json.dumps(asdict(program), indent=1) + "\n", encoding="utf-8")


def _weights_layout(arrays: Mapping[str, np.ndarray]) -> list[StoredWeight]:
    """The position of every array in the weights file."""
    layout, end = [], 0
    for key, array in arrays.items():
        offset = end + -end % _ALIGNMENT_BYTES
        layout.append(StoredWeight(key, array.dtype.name, array.shape, offset))
        end = offset + array.nbytes
    return layout


def _store(path: Path, layout: Sequence[StoredWeight], arrays: Mapping[str, np.ndarray]) -> None:
    """Write the weights file."""
    with path.open("wb") as file:
        for weight in layout:
            file.write(b"\0" * (weight.offset - file.tell()))
            file.write(np.ascontiguousarray(arrays[weight.key]).data)


def _linker(compiler: Sequence[str]) -> Callable[..., None]:
    """The function that TVM calls to link object files."""

    def link(output: str, objects: Sequence[str], options: Sequence[str] | None = None, **_: Any) -> None:
        command = [*compiler, "-shared", "-fPIC", "-o", output, *objects, *(options or ())]
        done = bridge_build.run_compiler(command)
        if done.returncode:
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise InputError(
                f"the compiler {compiler[0]} cannot link a program ({reason}); check its installation"
            )

    return link


def _write(
    bundle: Bundle,
    target: Path,
    options: CompileOptions,
    compiler: Sequence[str],
    folders: dict[str, Path],
) -> Manifest:
    before = bundle.manifest
    with new_bundle(target) as partial:
        submodels = {}
        for name, info in before.submodels.items():
            if name in folders:
                files = copy_program(folders[name], partial / name, partial)
            else:
                files = copy_graph(bundle.graph_path(name), partial / name, partial)
            submodels[name] = replace(info, files=files)
        others = [*before.assets.values(), *(before.verification.files if before.verification else ())]
        copy_files(others, bundle.directory, partial)
        bridge = bridge_build.build_bridge(partial / "libsonic_acl.so", compiler)
        manifest = replace(
            before,
            name=target.name,
            engine="tvm",
            submodels=submodels,
            assets={**before.assets, BRIDGE: file_info(bridge, partial)},
            producer={**before.producer, "apache-tvm": version("apache-tvm")},
            target={
                "name": options.target.name, "triple": options.target.triple,
                "processor": options.target.processor, "features": list(options.target.features),
            },
        )  # fmt: skip
        write_manifest(partial, manifest)
    return manifest


def copy_program(folder: Path, target: Path, bundle: Path) -> tuple[FileInfo, ...]:
    """Copy what `compile_submodel` wrote to a folder of a bundle; returns its files, the program first."""
    program = Program.read(folder / PROGRAM)
    names = [PROGRAM, *(specialisation.library for specialisation in program.specialisations)]
    if program.weights:
        names.append(program.weights_file)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    return tuple(file_info(target / name, bundle) for name in names)
