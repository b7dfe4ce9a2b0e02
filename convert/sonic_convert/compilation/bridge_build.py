"""Builds the library between TVM's programs and the Arm Compute Library (ACL) from its sources in `bridge/`.

    build_bridge(Path("libsonic_acl.so"), sysroot.compiler)     # for an ARM machine
    build_bridge(Path("libsonic_acl.so"))                       # on one

When it is loaded, the library registers functions such as `sonic.acl.convolution2d` with TVM-FFI.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sonic.errors import InputError, OutputError

_SOURCES = Path(__file__).parent / "bridge"
# Integer accumulators are converted to float in place, which strict aliasing would not allow.
_FLAGS = ("-std=c++17", "-O3", "-fno-strict-aliasing", "-fPIC", "-shared", "-fvisibility=hidden", "-s")
_ACL_PACKAGE = "the Arm Compute Library 24.11 or newer (Debian's libarm-compute-dev)"


def build_bridge(output: Path, compiler: Sequence[str] = ("g++",)) -> Path:
    """Compile the bridge. An existing file is replaced in one step; an error leaves it as it is.

    Args:
        output: the shared library's file.
        compiler: the command of a C++17 compiler for aarch64 that finds the Arm Compute Library.

    Returns:
        `output`.

    Raises:
        InputError: the compiler, the Arm Compute Library or TVM-FFI is missing or unsuitable.
        OutputError: `output` cannot be written.
    """
    headers = _ffi_headers()
    machine = _run(compiler, ["-dumpmachine"]).strip()
    if not machine.startswith("aarch64"):
        raise InputError(f"the compiler {compiler[0]} makes programs for '{machine}', not for aarch64")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror}); choose another place") from error
    with folder as name:
        library = _compile(Path(name), compiler, headers)
        try:
            os.replace(library, output)
        except OSError as error:
            raise OutputError(
                f"{output} cannot be written ({error.strerror}); choose another place"
            ) from error
    return output


def _ffi_headers() -> Path:
    # Not imported: that loads its compiled part, which is not needed here and takes a while.
    spec = importlib.util.find_spec("tvm_ffi")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        headers = Path(folder) / "include"
        if (headers / "tvm/ffi/function.h").is_file():
            return headers
    raise InputError("TVM-FFI's headers are missing; install apache-tvm-ffi")


def _compile(folder: Path, compiler: Sequence[str], headers: Path) -> Path:
    # The target's libtvm_ffi.so belongs to a Python package there. An empty library of that name makes the
    # bridge depend on it.
    stub, library = folder / "libtvm_ffi.so", folder / "bridge.so"
    _run(
        compiler,
        ["-shared", f"-Wl,-soname,{stub.name}", "-o", str(stub), "-nostdlib", "-x", "c++", os.devnull],
    )
    sources = sorted(str(path) for path in _SOURCES.glob("*.cpp"))
    _run(compiler, [*_FLAGS, f"-I{headers}", *sources, "-o", str(library),
                    "-larm_compute", f"-L{folder}", "-Wl,--no-as-needed", "-ltvm_ffi"])  # fmt: skip
    return library


def run_compiler(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler; the caller has to check the exit code and the output.

    Raises:
        InputError: the command cannot be run.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise InputError(
            f"the compiler {command[0]} cannot be run ({error.strerror}); install g++ for aarch64"
        ) from error


def _run(compiler: Sequence[str], arguments: Sequence[str]) -> str:
    """Run the compiler; returns its standard output."""
    done = run_compiler([*compiler, *arguments])
    if done.returncode == 0:
        return done.stdout
    if "arm_compute/" in done.stderr and "No such file" in done.stderr or "-larm_compute" in done.stderr:
        raise InputError(
            f"the compiler {compiler[0]} does not find {_ACL_PACKAGE}; install it for the target"
        )
    lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
    raise InputError(
        f"the compiler {compiler[0]} fails: {lines[0].strip() if lines else 'it does not say why'}"
    )
