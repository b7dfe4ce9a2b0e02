"""The test bed itself: it emulates the right processors and runs C++ and Python."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sonic.bundle.store import PACKAGED_BUNDLES
from sonic.progress import NoProgress
from sonic_convert.testbed.sysroot import TVM_LIBRARIES, Sysroot, default_cache, emulated, make_sysroot

pytestmark = pytest.mark.aarch64

CPU_FEATURES = """
import platform
from sonic.host import cpu_features
print(platform.machine(), *cpu_features())
"""
LOAD_TVM = """
import ctypes, sys, tvm_ffi
for library in sys.argv[1:]:
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
print(len(tvm_ffi.registry.list_global_func_names()))
"""


def test_it_is_made_once(sysroot: Sysroot) -> None:
    stamp = sysroot.root / ".stamp"
    before = stamp.stat().st_mtime_ns
    assert make_sysroot(default_cache(), NoProgress()) == sysroot
    assert stamp.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("cpu", "has", "has_not"),
    [
        ("cortex-a53", {"asimd"}, {"asimddp", "asimdhp", "atomics"}),
        ("neoverse-n1", {"asimd", "asimddp", "asimdhp", "atomics"}, {"sve", "bf16", "i8mm"}),
        ("neoverse-v1", {"asimddp", "sve", "bf16", "i8mm"}, {"sve2"}),
    ],
)
def test_the_runtime_sees_the_emulated_processor(
    run_python: Callable[..., str], cpu: str, has: set[str], has_not: set[str]
) -> None:
    machine, *features = run_python("-c", CPU_FEATURES, cpu=cpu).split()
    assert machine == "aarch64"
    assert has <= set(features) and not has_not & set(features)


def test_tvms_runtime_loads(run_python: Callable[..., str], sysroot: Sysroot) -> None:
    libraries = [sysroot.site / name for name in TVM_LIBRARIES]
    assert int(run_python("-c", LOAD_TVM, *libraries)) > 100


@pytest.mark.parametrize("cpu", ["cortex-a53", "neoverse-n1"])
def test_the_compute_library_multiplies_matrices(
    sysroot: Sysroot, cross_compile: Callable[..., Path], cpu: str
) -> None:
    program = cross_compile("gemm.cpp", "-larm_compute")
    done = subprocess.run(emulated(sysroot, [program], cpu), capture_output=True, text=True, check=True)
    product = np.array([line.split() for line in done.stdout.splitlines()], float)
    left = np.arange(3)[:, None] + 0.5 * np.arange(4)
    right = np.arange(4)[:, None] * np.arange(5) - 2.0
    np.testing.assert_allclose(product, left @ right, rtol=1e-6)


def test_instructions_are_counted(
    cross_compile: Callable[..., Path], count_instructions: Callable[..., int]
) -> None:
    """A hundred more products always add the same number of instructions, up to the start of threads."""
    program = cross_compile("gemm.cpp", "-larm_compute")
    first, second, third = (count_instructions([program, runs]) for runs in (1, 101, 201))
    assert third - second == pytest.approx(second - first, rel=0.02)
    # 60 multiplications, four or more per instruction, plus ACL's scheduling.
    assert 100 < (second - first) / 100 < 20_000


def test_onnxruntime_runs_where_instructions_are_counted(
    sysroot: Sysroot, count_instructions: Callable[..., int]
) -> None:
    """The wheel crashes if the emulator shows it the host's /proc/cpuinfo, which it does by default."""
    script = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1])"
    model = PACKAGED_BUNDLES / "sonic-tiny/audio2bucket/model.onnx"
    assert count_instructions([sysroot.python, "-c", script, model]) > 1e8
