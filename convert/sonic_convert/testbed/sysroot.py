"""An aarch64 machine in a folder, without root or ARM hardware: userland, emulator and cross compiler.

    sysroot = make_sysroot(default_cache(), NoProgress())
    subprocess.run([*sysroot.compiler, "-std=c++17", "gemm.cpp", "-o", "gemm", "-larm_compute"], check=True)
    subprocess.run(emulated(sysroot, ["gemm"], cpu="cortex-a53"), check=True)

Everything comes from the machine's own mirror of Debian and from pip's package index; see
:mod:`sonic_convert.testbed.debian_packages` for the former.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

import sonic
from sonic.errors import InputError
from sonic.progress import Progress
from sonic.storage.files import replace_file
from sonic_convert.testbed.debian_packages import (
    PackageSet,
    finish,
    host_architecture,
    is_unpacked,
    start,
    unpack,
)

TARGET_SUITE = "trixie"
# The oldest release whose compiler and emulator are new enough, as programs run with any C library newer than
# their own. Its emulator is the last of Debian's that takes plugins (later ones are linked statically).
HOST_SUITE = "bookworm"
TRIPLET = "aarch64-linux-gnu"
TVM_VERSION = "0.27.0.post1"
# In the order in which they are loaded.
TVM_LIBRARIES = ("tvm/lib/libtvm_runtime.so", "tvm/lib/libtvm_runtime_extra.so")
# trixie's C library is 2.41; wheels for any older one run with it.
_PLATFORMS = [*(f"manylinux_2_{minor}_aarch64" for minor in range(41, 16, -1)), "manylinux2014_aarch64"]
# From this version on, programs see the emulated processor in /proc/cpuinfo.
_OLDEST_EMULATOR = (8, 1)
# Variables meant for this machine's programs, which the emulated ones must not see.
_HIDDEN = ("LD_LIBRARY_PATH", "LD_PRELOAD", "OPENBLAS_CORETYPE", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Sysroot:
    """Where everything is.

    Attributes:
        cache: the folder that holds all of it.
        root: the aarch64 userland: Debian with Python, the Arm Compute Library, and headers of C and C++.
        site: Python packages for aarch64: the runtime's dependencies, tvm_ffi and libraries of TVM's runtime.
        python: the interpreter inside `root`.
        emulator: command of the emulator.
        plugin_emulator: command of an emulator that takes plugins; the same version everywhere, so that
            numbers of instructions can be compared.
        compiler: command of g++ for aarch64, with the flags that it needs to build against `root`.
    """

    cache: Path
    root: Path
    site: Path
    python: Path
    emulator: tuple[str, ...]
    plugin_emulator: tuple[str, ...]
    compiler: tuple[str, ...]


def default_cache() -> Path:
    """$SONIC_SYSROOT, or sonic-arm/sysroot in the user's folder for caches.

    Raises:
        InputError: the user has no home.
    """
    named = os.environ.get("SONIC_SYSROOT")
    if named:
        return Path(named).absolute()
    try:
        return platformdirs.user_cache_path("sonic-arm", appauthor=False) / "sysroot"
    except RuntimeError as error:
        raise InputError(f"there is no folder for caches ({error}); set SONIC_SYSROOT") from error


def make_sysroot(cache: Path, progress: Progress) -> Sysroot:
    """Fill `cache` with what is missing there; takes minutes the first time and a second later.

    A compiler and an emulator on PATH are used in place of downloaded ones (the emulator from 8.1 on). Two
    processes may call this at the same time: the second waits.

    Args:
        cache: a folder, made if necessary; 0.9 GB in the end.
        progress: shows the stages.

    Raises:
        InputError: this system has no apt and dpkg, or something can't be downloaded.
    """
    cache = cache.absolute()
    if set(str(cache)) & set('",:\n'):
        raise InputError(f"{cache} has a quote, comma or colon, which apt or qemu can't take; choose another")
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{cache} cannot be made ({error.strerror}); choose another") from error
    host = host_architecture()
    with _locked(cache):
        root = unpack(PackageSet(
            "root", TARGET_SUITE, "arm64",
            ("base-files", "python3", "libarm-compute-dev", "libc6-dev", "libstdc++-14-dev"),
        ), cache, progress)  # fmt: skip
        python = _python(root)
        site = _unpack_wheels(cache, python.name.removeprefix("python"), progress)
        compiler = _compiler(cache, root, host, progress)
        emulator = _emulator(cache, host, progress)
        plugin_emulator = _plugin_emulator(cache, host, progress)
        sysroot = Sysroot(cache, root, site, python, emulator, plugin_emulator, compiler)
        _write_processor(sysroot)
    return sysroot


def emulated(
    sysroot: Sysroot,
    arguments: Sequence[str | Path],
    cpu: str = "neoverse-n1",
    threads: int | None = None,
    environment: Mapping[str, str] | None = None,
    plugin: str | Path | None = None,
) -> list[str]:
    """The command line that runs an aarch64 program; it cannot start further programs.

    Args:
        sysroot: what it runs in; paths are looked up there first, then on this machine.
        arguments: the program's path and its arguments.
        cpu: a processor that qemu knows, such as "cortex-a53" or "neoverse-n1" ("neoverse-v1" and
            "neoverse-n2" without plugins only). Programs that use SVE are emulated about fifteen times
            more slowly; "neoverse-v1,sve=off" turns it off.
        threads: of OpenMP and OpenBLAS; None lets them choose.
        environment: variables added to this process's. The sysroot's packages follow its PYTHONPATH.
        plugin: a plugin's file, with ",name=value" for its options; selects the emulator that takes plugins.

    Raises:
        InputError: a variable has a comma, which qemu takes as its end.
    """
    variables = dict(environment or {})
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [variables.get("PYTHONPATH"), str(sysroot.site)]))
    # An emulated program cannot start the process that decodes inputs.
    variables.setdefault("SONIC_SANDBOX", "0")
    # Keeps the other interpreter's bytecode out of the runtime's folder.
    variables.setdefault("PYTHONPYCACHEPREFIX", str(sysroot.cache / "bytecode"))
    if threads is not None:
        variables |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    emulator = sysroot.plugin_emulator if plugin else sysroot.emulator
    command = [*emulator, "-L", str(sysroot.root), "-cpu", cpu]
    if plugin:
        command += ["-plugin", str(plugin)]
    for name in _HIDDEN:
        command += ["-U", name]
    for name, value in variables.items():
        if "," in value:
            raise InputError(f"{name} is '{value}', but qemu cannot take a comma in a variable")
        command += ["-E", f"{name}={value}"]
    return [*command, *map(str, arguments)]


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _python(root: Path) -> Path:
    """The interpreter that Debian's python3 links to; its name has the version."""
    return root / "usr/bin" / os.readlink(root / "usr/bin/python3")


def _requirements() -> list[str]:
    """The runtime's dependencies according to its pyproject.toml."""
    path = Path(sonic.__file__).parents[1] / "pyproject.toml"
    try:
        with path.open("rb") as file:
            return list(tomllib.load(file)["project"]["dependencies"])
    except OSError as error:
        raise InputError(f"{path} cannot be read; the sources of the runtime are needed") from error


def _unpack_wheels(cache: Path, version: str, progress: Progress) -> Path:
    """The folder with Python packages for aarch64 and that version of Python."""
    folder = cache / "site"
    requirements = [*_requirements(), "apache-tvm-ffi"]
    described = json.dumps([version, requirements, TVM_VERSION, TVM_LIBRARIES])
    digest = hashlib.sha256(described.encode()).hexdigest()
    if is_unpacked(folder, digest):
        return folder
    if importlib.util.find_spec("pip") is None:
        raise InputError(f"{sys.executable} has no pip, which downloads packages for aarch64; install pip")
    target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={version}",
              *(f"--platform={platform}" for platform in _PLATFORMS)]  # fmt: skip
    partial, wheels = start(folder), cache / "wheels"
    with progress.stage("site: packages", 2) as advance:
        # This interpreter's bytecode would be useless to the other.
        _pip(["install", "--no-compile", f"--target={partial}", *target, *requirements])
        advance()
        # Only the runtime's libraries are needed, not the compiler (95 MB packed, 280 MB unpacked).
        _pip(["download", "--no-deps", f"--dest={wheels}", *target, f"apache-tvm=={TVM_VERSION}"])
        (wheel,) = wheels.glob(f"apache_tvm-{TVM_VERSION}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if ".dist-info/licenses/" in name]
            archive.extractall(partial, [*TVM_LIBRARIES, *names])
        advance()
    finish(partial, folder, digest)
    shutil.rmtree(wheels)
    return folder


def _pip(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR:").strip() if errors else "no reason given"
        raise InputError(f"pip cannot get packages for aarch64 ({reason}); check the network and pip's index")


def _compiler(cache: Path, root: Path, host: str, progress: Progress) -> tuple[str, ...]:
    """The command of g++ with its flags."""
    name, package = f"{TRIPLET}-g++", f"g++-{TRIPLET}"
    (libraries,) = (root / "usr/lib/gcc" / TRIPLET).iterdir()
    # The root's own libraries come before those of a compiler with an older libc or libstdc++.
    flags = (f"--sysroot={root}", f"-L{root}/usr/lib/{TRIPLET}", f"-L{libraries}")
    on_path = shutil.which(name)
    if on_path is not None:
        return (on_path, *flags)
    folder = unpack(PackageSet(
        "compiler", HOST_SUITE, host, (package,),
        # This machine has a C library, which a second one must not shadow; the target's is in the root.
        ("libc6", "libc6-arm64-cross", "libc6-dev-arm64-cross", "linux-libc-dev-arm64-cross"),
    ), cache, progress)  # fmt: skip
    return ("env", f"LD_LIBRARY_PATH={_libraries(folder)}", str(folder / "usr/bin" / name), *flags)


def _emulator(cache: Path, host: str, progress: Progress) -> tuple[str, ...]:
    """The command of an emulator that shows the emulated processor in /proc/cpuinfo."""
    for name in ("qemu-aarch64", "qemu-aarch64-static"):
        on_path = shutil.which(name)
        if on_path is not None and _emulator_version(on_path) >= _OLDEST_EMULATOR:
            return (on_path,)
    # Statically linked, so that it needs nothing else from its release.
    only = "usr/bin/qemu-aarch64"
    wanted = PackageSet("emulator", TARGET_SUITE, host, ("qemu-user",), only=only)
    return (str(unpack(wanted, cache, progress) / only),)


def _emulator_version(path: str) -> tuple[int, int]:
    done = subprocess.run([path, "--version"], capture_output=True, text=True)
    match = re.search(r"version (\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _plugin_emulator(cache: Path, host: str, progress: Progress) -> tuple[str, ...]:
    """The command of an emulator that takes plugins, with its own libraries and loader."""
    folder = unpack(PackageSet("plugin-emulator", HOST_SUITE, host, ("qemu-user",)), cache, progress)
    (loader,) = folder.glob("lib/*-linux-gnu/ld-linux*.so.*")
    return (str(loader), "--library-path", _libraries(folder), str(folder / "usr/bin/qemu-aarch64"))


def _libraries(folder: Path) -> str:
    return os.pathsep.join(
        str(path) for lib in ("usr/lib", "lib") for path in sorted((folder / lib).glob("*-linux-gnu*"))
    )


def _write_processor(sysroot: Sysroot) -> None:
    """Give the root a /proc/cpuinfo for the emulator that takes plugins.

    Without it programs would see this machine's, and ONNX Runtime's wheel crashes where it finds no ARM
    processor there. The other emulator shows the emulated processor and never reads this file.
    """
    path = sysroot.root / "proc/cpuinfo"
    if path.exists():
        return
    read = emulated(sysroot, [sysroot.python, "-c", "print(open('/proc/cpuinfo').read())"])
    done = subprocess.run(read, capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip()[-200:]
        raise InputError(f"{sysroot.python} does not run under {sysroot.emulator[0]} ({reason})")
    replace_file(path, lambda partial: partial.write_text(done.stdout))
