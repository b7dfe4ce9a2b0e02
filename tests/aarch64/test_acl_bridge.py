"""The library that connects TVM's programs with ACL, on emulated processors; see `check_acl_bridge.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sonic_convert.compilation.bridge_build import build_bridge
from sonic_convert.testbed.sysroot import Sysroot

pytestmark = pytest.mark.aarch64

CHECKER = Path(__file__).parent / "check_acl_bridge.py"
CALL = """
import ctypes, sys
import numpy as np, tvm_ffi
ctypes.CDLL(sys.argv[1])
function = tvm_ffi.get_global_func("sonic.acl." + sys.argv[2])
tvm_ffi.get_global_func("sonic.acl.set_threads")(1)
random = np.random.default_rng(0)
shapes = [tuple(map(int, shape.split("x"))) for shape in sys.argv[3].split(",")]
tensors = [tvm_ffi.from_dlpack(random.standard_normal(shape, dtype=np.float32)) for shape in shapes]
more = eval(sys.argv[4])
for _ in range(int(sys.argv[5])):
    function(*tensors[:-1], *more, tensors[-1])
"""


@pytest.fixture(scope="session")
def bridge(sysroot: Sysroot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bridge(tmp_path_factory.mktemp("bridge") / "libsonic_acl.so", sysroot.compiler)


# cortex-a53 has no int8 dot products, neoverse-v1 has int8 matrix multiplication.
@pytest.mark.parametrize("cpu", ["neoverse-n1", "cortex-a53", "neoverse-v1"])
@pytest.mark.parametrize("check", ["convolutions", "products", "attention", "integers"])
def test_results(run_python: Callable[..., str], bridge: Path, check: str, cpu: str) -> None:
    run_python(CHECKER, bridge, check, cpu=cpu, threads=1)


@pytest.mark.parametrize("check", ["threads", "callers", "keys", "errors", "memory"])
def test_calls(run_python: Callable[..., str], bridge: Path, check: str) -> None:
    run_python(CHECKER, bridge, check, threads=1)


@pytest.fixture(scope="session")
def count_call(
    sysroot: Sysroot, bridge: Path, count_instructions: Callable[..., int]
) -> Callable[..., float]:
    """Instructions of one call with tensors of these shapes (such as '8x3,3x5,...'), the output last."""

    def count(name: str, shapes: str, more: tuple[object, ...], calls: int = 4) -> float:
        few, many = (
            count_instructions([sysroot.python, "-c", CALL, bridge, name, shapes, repr(more), number])
            for number in (2, 2 + calls)
        )
        return (many - few) / calls

    return count


def test_small_calls_cost_little(count_call: Callable[..., float]) -> None:
    assert count_call("linear", "1x16,16x16,16,1x16", ("key",), calls=500) < 30_000


def test_short_attention_of_many(count_call: Callable[..., float]) -> None:
    """256 batch items, 4 heads, 25 queries and keys of width 32: 10 million multiplications of 4 lanes."""
    shape = "256x25x128"
    assert count_call("attention", ",".join([shape] * 4), (4, 0.2)) < 4 * 10.3e6


def test_winograds_method_needs_less_than_half(count_call: Callable[..., float]) -> None:
    shapes, more = "1x16x16x64,64x3x3x64,64,1x16x16x64", ("key", 1, 1, 1, 1, 1, 1)
    product = count_call("gemm_convolution2d", shapes, more)
    assert count_call("convolution2d", shapes, more) < 0.45 * product
    assert product < 1.6 * 16 * 16 * 64 * 64 * 9 / 4
