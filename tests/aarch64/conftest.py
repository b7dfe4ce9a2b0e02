"""Fixtures of an emulated aarch64 machine, which is created once and reused."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sonic.errors import InputError
from sonic.progress import ConsoleProgress
from sonic_convert.bench.instructions import build_plugin
from sonic_convert.bench.instructions import count_instructions as count_instructions_of
from sonic_convert.testbed.debian_packages import find_mirror, host_architecture
from sonic_convert.testbed.sysroot import Sysroot, default_cache, emulated, make_sysroot

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RUN_SECONDS = 900  # far more than any program needs; ends those that hang


@pytest.fixture(scope="session")
def sysroot() -> Sysroot:
    """The test bed; the tests are skipped if the Debian packages to create it from are not available."""
    try:
        host_architecture()
        find_mirror()
    except InputError as error:
        pytest.skip(f"no aarch64 test bed: {error}")
    return make_sysroot(default_cache(), ConsoleProgress())


@pytest.fixture(scope="session")
def cross_compile(sysroot: Sysroot, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles a C++17 source of this folder for aarch64 with extra arguments; returns the program."""
    folder = tmp_path_factory.mktemp("compiled")

    def compile_source(name: str, *arguments: str) -> Path:
        program = folder / Path(name).stem
        flags = ["-std=c++17", "-O2", "-Wall", "-Werror"]
        command = [*sysroot.compiler, *flags, str(HERE / name), "-o", str(program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return program

    return compile_source


@pytest.fixture(scope="session")
def count_instructions(sysroot: Sysroot, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """Runs an aarch64 program with arguments; returns the number of instructions that it executed.

    To count those of a single function, subtract two runs that call it a different number of times. The start
    and waiting of pool threads adds some thousand instructions of noise.
    """
    try:
        plugin = build_plugin(tmp_path_factory.mktemp("plugin"))
    except InputError as error:
        pytest.skip(str(error))

    def count(arguments: Sequence[str | Path], cpu: str = "neoverse-n1") -> int:
        return count_instructions_of(sysroot, arguments, plugin, cpu)

    return count


@pytest.fixture(scope="session")
def run_python(sysroot: Sysroot) -> Callable[..., str]:
    """Runs the emulated Python, which can import the runtime, with arguments; returns its standard output."""

    def run(*arguments: str | Path, cpu: str = "neoverse-n1", threads: int | None = None) -> str:
        environment = {"PYTHONPATH": str(ROOT / "runtime")}
        command = emulated(sysroot, [sysroot.python, *arguments], cpu, threads, environment)
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
