"""Running submodels that were compiled for one aarch64 processor with TVM and the Arm Compute Library.

A compiled submodel is a folder: ``program.json``, the weights in one file, and a shared library for every
set of input shapes that it was compiled for. A submodel that runs once per clip and takes inputs of any shape
may stay an ONNX graph, which ONNX Runtime runs. The bundle includes the functions ``sonic.acl.*``, a bridge
to the Arm Compute Library (`libarm_compute.so`, a system package); TVM's runtime comes with
``pip install sonic-runtime[tvm]``. TVM's compiler is never imported.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import platform
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from pydantic import StringConstraints

from sonic.bounded import parse_json
from sonic.bundle.bundle import Bundle
from sonic.bundle.trust import TRUSTED_KEYS
from sonic.engines.base import Arrays, Parallelism, Session
from sonic.engines.onnx import OnnxRuntimeEngine
from sonic.engines.tvm_files import PROGRAM, CheckedProgram, ProgramFolder, checked_copy
from sonic.errors import BundleError, InputError, first_line
from sonic.host import cpu_count, cpu_features
from sonic.options import AUTOMATIC, RunOptions
from sonic.records import TOLERANT, read_record

BRIDGE = "acl_bridge"  # the asset's name in a bundle
_CPU = 1  # DLPack's device type
_POOLED = 2  # TVM's number for the allocator that keeps memory between calls
_Size = Annotated[int, Interval(ge=0, le=1 << 31)]
_INSTALL = "install it with: pip install 'sonic-runtime[tvm]'"


@dataclass(frozen=True)
class StoredWeight:
    """Where an array is in the weights file; its offset is in bytes."""

    __pydantic_config__ = TOLERANT

    key: str
    dtype: Annotated[str, StringConstraints(pattern="^(bool|u?int(8|16|32|64)|float(16|32|64))$")]
    shape: tuple[_Size, ...]
    offset: Annotated[int, Interval(ge=0, le=1 << 48)]


@dataclass(frozen=True)
class Specialisation:
    """A shared library, and the input shapes that it was compiled for, by input."""

    __pydantic_config__ = TOLERANT

    library: str
    shapes: dict[str, tuple[_Size, ...]]


@dataclass(frozen=True)
class Program:
    """What ``program.json`` says.

    Attributes:
        inputs, outputs: names, in the compiled function's order.
        weights: the function's parameters after the inputs.
        weights_file: the file that holds them.
        keys: the keys under which the bridge caches what it prepares from the weights.
        specialisations: one for each set of input shapes.
        row_axes: the axis of each input and output along which rows are independent. A submodel with such
            axes takes any number of rows, in chunks of the number that it was compiled for.
    """

    __pydantic_config__ = TOLERANT

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[StoredWeight, ...]
    weights_file: str
    keys: tuple[str, ...]
    specialisations: tuple[Specialisation, ...]
    row_axes: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> Program:
        """Read the file.

        Raises:
            BundleError: it cannot be read.
        """
        return cls.of(ProgramFolder(path.parent).read_program(), str(path))

    @classmethod
    def of(cls, content: bytes, source: str) -> Program:
        """Read the file's content; `source` is named in errors.

        Raises:
            BundleError: it is malformed.
        """
        parse_json(content, source, BundleError, "compile the bundle again")
        return read_record(cls, content, source, BundleError, "compile the bundle again")


class TvmEngine:
    """Runs a compiled bundle.

    Args:
        bundle: the checked bundle.
        run: threads where a submodel is opened for one call at a time, by default one for every core;
            bfloat16 is refused, as Debian's Arm Compute Library has no kernels for it.

    Raises:
        BundleError: nobody who is trusted signed the bundle, this machine cannot run it, or TVM's runtime or
            the Arm Compute Library is missing.
        InputError: bfloat16 was asked for.
    """

    def __init__(self, bundle: Bundle, run: RunOptions = AUTOMATIC) -> None:
        if run.bfloat16:
            raise InputError("compiled bundles have no products in bfloat16; leave the option out")
        check_trusted(bundle)
        check_processor(bundle)
        self.bundle = bundle
        self._alone = Parallelism(1, run.threads or cpu_count())
        if BRIDGE not in bundle.manifest.assets:
            raise BundleError(f"{bundle.directory} has no asset '{BRIDGE}'; compile the bundle again")
        path = bundle.manifest.assets[BRIDGE].path
        with checked_copy(bundle, path) as bridge:
            load_libraries(bridge, bundle.directory / path)
        self._graphs = OnnxRuntimeEngine(bundle, run)

    def open(self, submodel: str, parallelism: Parallelism | None = None) -> Session:
        """Load a submodel; the threads of its calls are those of all compiled submodels that are open.

        Raises:
            BundleError: a file cannot be loaded.
        """
        if self.bundle.graph_path(submodel).name != PROGRAM:
            return self._graphs.open(submodel, parallelism)
        set_threads((parallelism or self._alone).threads_of_a_call, self._alone.threads)
        return TvmSession(submodel, CheckedProgram(self.bundle, submodel))


class TvmSession:
    """A compiled submodel whose weights are memory-mapped; threads may share it."""

    def __init__(self, submodel: str, files: ProgramFolder) -> None:
        self._submodel, self._files, self._folder = submodel, files, files.folder
        self._program = Program.of(files.read_program(), str(files.folder / PROGRAM))
        self._weights: list[Any] | None = _map_weights(files, self._program)
        self._machines: dict[str, list[Any]] = {}
        self._lock = Lock()
        # Runs even if the session is dropped without leaving its ``with`` block.
        self._forget = weakref.finalize(self, _forget, self._program.keys)

    def run(self, inputs: Mapping[str, np.ndarray], **tags: object) -> Arrays:
        """Compute every output from every input.

        Raises:
            BundleError: the bundle was compiled for other shapes.
        """
        if self._weights is None:
            raise RuntimeError(f"the session of '{self._submodel}' is closed")
        feeds = {name: np.ascontiguousarray(inputs[name]) for name in self._program.inputs}
        chosen = choose(self._program, {name: array.shape for name, array in feeds.items()})
        if chosen is None:
            compiled = "; ".join(str(_main_shape(s.shapes)) for s in self._program.specialisations)
            raise BundleError(
                f"{self._folder} was compiled for inputs of the shapes {compiled}, not for "
                f"{_main_shape({name: array.shape for name, array in feeds.items()})}; compile it for this "
                "size too (sonic-convert compile --size), or ask for one that it has"
            )
        specialisation, rows = chosen
        if rows is None:
            return self._call(specialisation, feeds)
        axes = self._program.row_axes
        count = next(array.shape[axes[name]] for name, array in feeds.items() if name in axes)
        parts: list[Arrays] = []
        for start in range(0, count, rows):
            indices = np.minimum(np.arange(start, start + rows), count - 1)
            part = {n: np.take(a, indices, axes[n]) if n in axes else a for n, a in feeds.items()}
            parts.append(self._call(specialisation, part))
        return {
            name: np.take(
                np.concatenate([part[name] for part in parts], axes[name]), np.arange(count), axes[name]
            )
            for name in self._program.outputs
        }

    def _call(self, specialisation: Specialisation, feeds: Arrays) -> Arrays:
        from tvm_ffi import from_dlpack

        assert self._weights is not None
        arguments = [from_dlpack(feeds[name]) for name in self._program.inputs]
        with self._machine(specialisation.library) as machine:
            results = machine["main"](*arguments, *self._weights)
            outputs = [np.array(np.from_dlpack(result)) for result in results]
        return dict(zip(self._program.outputs, outputs, strict=True))

    @contextmanager
    def _machine(self, library: str) -> Iterator[Any]:
        """A TVM virtual machine that no other thread is using."""
        with self._lock:
            idle = self._machines.setdefault(library, [])
            machine = idle.pop() if idle else None
        if machine is None:
            with self._files.library(library) as copy:
                machine = _load(copy, self._folder / library)
        try:
            yield machine
        finally:
            with self._lock:
                idle.append(machine)

    def __enter__(self) -> TvmSession:
        return self

    def __exit__(self, *error: Any) -> None:
        self._machines.clear()
        self._weights = None
        self._forget()


def choose(
    program: Program, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Specialisation, int | None] | None:
    """Choose the specialisation for inputs of the given shapes.

    Returns:
        The specialisation, and None if its shapes match exactly, or its number of rows if only that differs
        and the inputs have to be split into chunks; None if there is no such specialisation.
    """
    by_rows: tuple[Specialisation, int | None] | None = None
    for specialisation in program.specialisations:
        if all(specialisation.shapes[name] == tuple(shape) for name, shape in shapes.items()):
            return specialisation, None
        rows = None
        for name, shape in shapes.items():
            compiled, axis = specialisation.shapes[name], program.row_axes.get(name)
            rest = [size for index, size in enumerate(compiled) if index != axis]
            if axis is not None:
                rows = compiled[axis]
            if rest != [size for index, size in enumerate(shape) if index != axis]:
                rows = None
                break
        if rows is not None:
            by_rows = (specialisation, rows)
    return by_rows


def _main_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The most informative shape: that of the largest input."""
    return max(shapes.values(), key=lambda shape: int(np.prod(shape)))


def check_trusted(bundle: Bundle) -> None:
    """Make sure that somebody who is trusted made a bundle's machine code.

    Raises:
        BundleError: nobody is known to have.
    """
    if not bundle.runs_code:
        raise BundleError(
            f"{bundle.directory} holds machine code, and no trusted key has signed it; give the public key "
            f"of its maker (--key, or a folder of keys in ${TRUSTED_KEYS}), or --trust, if you made it"
        )


def check_processor(bundle: Bundle) -> None:
    """Compare what a compiled bundle needs with what this processor has.

    Raises:
        BundleError: the bundle cannot run on this processor.
    """
    target = bundle.manifest.target
    machine = platform.machine()
    if machine not in ("aarch64", "arm64"):
        raise BundleError(
            f"{bundle.directory} was compiled for aarch64 ({target.get('name')}), but this machine is "
            f"{machine}; use the bundle that it was compiled from"
        )
    features = cpu_features()
    missing = [name for name in target.get("features", []) if name not in features]
    if missing:
        raise BundleError(
            f"{bundle.directory} needs {', '.join(missing)}; this CPU has {', '.join(sorted(features))}; "
            "compile the bundle for a target without it (sonic-convert compile --target generic-armv8)"
        )


def load_libraries(bridge: Path, source: Path) -> None:
    """Load TVM's runtime and a bundle's bridge to the Arm Compute Library into this process.

    Args:
        bridge: the library.
        source: where it comes from, for errors.

    Raises:
        BundleError: one is missing.
    """
    if importlib.util.find_spec("tvm_ffi") is None:
        raise BundleError(f"{source} needs TVM's runtime (the package apache-tvm-ffi); {_INSTALL}")
    import tvm_ffi  # noqa: F401 (loads libtvm_ffi, which the others need)

    package = importlib.util.find_spec("tvm")
    folders = [] if package is None else [Path(place) for place in package.submodule_search_locations or ()]
    runtime = next((p for f in folders if (p := f / "lib/libtvm_runtime.so").is_file()), None)
    if runtime is None:
        raise BundleError(f"{source} needs TVM's runtime (the package apache-tvm); {_INSTALL}")
    # TVM reads this when its first parallel loop runs. Its threads must not spin while they wait for the next
    # loop: the Arm Compute Library's threads need the processors meanwhile.
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")
    ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    try:
        ctypes.CDLL(str(bridge), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BundleError(
            f"{source} cannot be loaded ({error}); it needs the Arm Compute Library of Debian 13 or Ubuntu "
            "24.04 (apt-get install libarm-compute43), or to be built on this machine"
        ) from error


def set_threads(threads: int, limit: int | None = None) -> None:
    """Set how many threads TVM's loops and the Arm Compute Library use in this process.

    Args:
        threads: of a call.
        limit: the most that will be set in this process; by default, as many.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(limit or threads))
    function("runtime.config_threadpool")(1, threads)
    function("sonic.acl.set_threads")(threads)


def function(name: str) -> Any:
    """Look up a function that TVM's runtime or the bridge has registered."""
    from tvm_ffi import get_global_func

    return get_global_func(name)


def _forget(keys: Sequence[str]) -> None:
    """Let the bridge free what it prepared from a submodel's weights."""
    function("sonic.acl.forget")(list(keys))


def _load(library: Path, source: Path) -> Any:
    from tvm_ffi import load_module

    try:
        machine = load_module(str(library))["vm_load_executable"]()
        machine["vm_initialization"](_CPU, 0, _POOLED)
    except Exception as error:  # TVM's errors share no base class
        raise BundleError(
            f"{source} cannot be loaded by TVM ({first_line(error)}); compile the bundle again"
        ) from error
    return machine


def _map_weights(files: ProgramFolder, program: Program) -> list[Any]:
    """The arrays of the weights file, memory-mapped, so that the system can evict pages not in use.

    Raises:
        BundleError: the file was changed, or holds less than the program says.
    """
    from tvm_ffi import from_dlpack

    if not program.weights:
        return []
    # Copy-on-write: DLPack has no read-only arrays, and nothing writes to these.
    memory = files.map_weights(program.weights_file)
    arrays = []
    for weight in program.weights:
        size = math.prod(weight.shape) * np.dtype(weight.dtype).itemsize
        if weight.offset + size > memory.size:
            raise BundleError(
                f"{files.folder / program.weights_file} ends before '{weight.key}'; compile the bundle again"
            )
        part = memory[weight.offset : weight.offset + size].view(weight.dtype).reshape(weight.shape)
        arrays.append(from_dlpack(np.asarray(part)))
    return arrays
