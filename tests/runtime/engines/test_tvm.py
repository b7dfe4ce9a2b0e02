"""Compiled bundles, as far as they go without an ARM machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from manifests import write_values

from sonic.bundle.bundle import Bundle
from sonic.bundle.manifest import FileInfo
from sonic.bundle.manifest_file import read_manifest
from sonic.bundle.store import open_bundle
from sonic.cli.main import main
from sonic.engines import tvm as tvm_engine
from sonic.engines.base import Parallelism
from sonic.engines.onnx import OnnxRuntimeSession
from sonic.engines.registry import make_engine
from sonic.engines.tvm import BRIDGE, Program, Specialisation, StoredWeight, TvmEngine, TvmSession, choose
from sonic.engines.tvm_files import PROGRAM, ProgramFolder
from sonic.engines.watched import Call, WatchedEngine
from sonic.errors import BundleError, InputError
from sonic.options import RunOptions

TARGET = {
    "name": "kunpeng920", "triple": "aarch64-linux-gnu", "processor": "tsv110",
    "features": ["asimd", "asimddp", "asimdhp"],
}  # fmt: skip
Shapes = dict[str, tuple[int, ...]]


def program_of(*shapes: Shapes, row_axes: Mapping[str, int] | None = None) -> Program:
    """Of the inputs x and z and the outputs y and s, for those shapes."""
    programs = tuple(Specialisation(f"{index:03d}/program.so", each) for index, each in enumerate(shapes))
    return Program(("x", "z"), ("y", "s"), (), "000/weights.bin", ("key",), programs, dict(row_axes or {}))


# Choosing a program

FIXED = program_of({"x": (1, 3, 64, 64), "z": (5,)}, {"x": (2, 3, 64, 64), "z": (5,)})
ROWS = program_of({"x": (1, 25, 4), "z": (1, 8)}, row_axes={"x": 1, "y": 1, "s": 2})


def test_shapes_that_were_compiled() -> None:
    assert choose(FIXED, {"x": (1, 3, 64, 64), "z": (5,)}) == (FIXED.specialisations[0], None)
    assert choose(FIXED, {"x": (2, 3, 64, 64), "z": (5,)}) == (FIXED.specialisations[1], None)
    assert choose(ROWS, {"x": (1, 25, 4), "z": (1, 8)}) == (ROWS.specialisations[0], None)


@pytest.mark.parametrize("count", [1, 24, 26, 1000])
def test_any_number_of_rows(count: int) -> None:
    assert choose(ROWS, {"x": (1, count, 4), "z": (1, 8)}) == (ROWS.specialisations[0], 25)


@pytest.mark.parametrize(
    ("program", "shapes"),
    [
        (FIXED, {"x": (3, 3, 64, 64), "z": (5,)}),
        (FIXED, {"x": (1, 3, 64, 64), "z": (6,)}),
        (FIXED, {"x": (1, 3, 64), "z": (5,)}),
        (ROWS, {"x": (1, 7, 5), "z": (1, 8)}),
        (ROWS, {"x": (1, 7, 4), "z": (2, 8)}),
        (ROWS, {"x": (2, 7, 4), "z": (1, 8)}),
        (ROWS, {"x": (7, 4), "z": (1, 8)}),
        (program_of(), {"x": (1,), "z": (1,)}),
    ],
)
def test_shapes_that_were_not_compiled(program: Program, shapes: Shapes) -> None:
    assert choose(program, shapes) is None


def test_the_same_shapes_go_before_rows() -> None:
    program = program_of(
        {"x": (1, 25, 4), "z": (1,)}, {"x": (1, 7, 4), "z": (1,)}, row_axes={"x": 1, "y": 1, "s": 1}
    )
    assert choose(program, {"x": (1, 7, 4), "z": (1,)}) == (program.specialisations[1], None)


# program.json


def test_a_program_survives_json(tmp_path: Path) -> None:
    weights = (StoredWeight("key", "int8", (3, 4), 0), StoredWeight("other", "float32", (), 64))
    program = replace(ROWS, weights=weights)
    (tmp_path / PROGRAM).write_text(json.dumps(asdict(program)))
    assert Program.read(tmp_path / PROGRAM) == program


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("keys"),
        lambda values: values.update(weights=[{"key": "a"}]),
        lambda values: values.update(weights=["a"]),
        lambda values: values.update(weights=[{"key": "a", "dtype": "int8", "shape": [1], "offset": "x"}]),
        lambda values: values["specialisations"][0].update(shapes=[1, 2]),
        lambda values: values["specialisations"][0].update(shapes={"x": 5}),
        lambda values: values.update(row_axes=["x"]),
        lambda values: values.update(inputs=None),
    ],
)
def test_malformed_programs(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(json.dumps(asdict(ROWS)))
    change(values)
    path = tmp_path / PROGRAM
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match=f"{path} cannot be read .*; compile the bundle again"):
        Program.read(path)


@pytest.mark.parametrize("content", [None, "", "[]", "{", "\0"])
def test_what_is_no_program(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / PROGRAM).write_text(content)
    with pytest.raises(BundleError, match="cannot be read .*; compile the bundle again"):
        Program.read(tmp_path / PROGRAM)


# Sessions, with a machine that is none


class Machine:
    """Computes 2 x + sum(z) and, for every row, its sum; remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def __getitem__(self, name: str) -> Callable[..., list[np.ndarray]]:
        assert name == "main"
        return self.run

    def run(self, x: Any, z: Any, *weights: Any) -> list[np.ndarray]:
        rows, addend = np.from_dlpack(x), np.from_dlpack(z)
        assert rows.flags.c_contiguous and addend.flags.c_contiguous
        self.seen.append(np.array(rows))
        factor: Any = np.from_dlpack(weights[0]) if weights else 2
        return [factor * rows + addend.sum(), rows.sum(-1)[:, None]]


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that the bridge was told to forget."""
    keys: list[str] = []
    functions = {"sonic.acl.forget": keys.extend}
    monkeypatch.setattr(tvm_engine, "function", functions.__getitem__)
    return keys


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(tvm_engine, "_load", lambda library, source: made)
    return made


@pytest.fixture
def opened(tmp_path: Path, forgotten: list[str], machine: Machine) -> Callable[..., TvmSession]:
    def make(program: Program) -> TvmSession:
        (tmp_path / PROGRAM).write_text(json.dumps(asdict(program)))
        return TvmSession("audio2token", ProgramFolder(tmp_path))

    return make


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(("count", "calls"), [(25, 1), (1, 1), (24, 1), (26, 2), (50, 2), (61, 3)])
def test_rows_run_in_parts(
    opened: Callable[..., TvmSession], machine: Machine, count: int, calls: int
) -> None:
    """The last part is filled up, and what came of that is left out."""
    x, z = normal(1, count, 4), normal(1, 8)
    found = opened(ROWS).run({"x": x, "z": z})
    assert list(found) == ["y", "s"]
    np.testing.assert_array_equal(found["y"], 2 * x + z.sum())
    np.testing.assert_array_equal(found["s"], x.sum(-1)[:, None])
    assert [seen.shape for seen in machine.seen] == [(1, 25, 4)] * calls
    rest = count - 25 * (calls - 1)
    np.testing.assert_array_equal(machine.seen[-1][:, rest - 1 :], np.repeat(x[:, -1:], 26 - rest, 1))


def test_results_outlive_the_machines_memory(opened: Callable[..., TvmSession], machine: Machine) -> None:
    session = opened(ROWS)
    x, z = normal(1, 25, 4), normal(1, 8)
    kept = np.zeros((1, 25, 4), np.float32)
    machine.run = lambda *_: [kept, np.zeros((1, 1, 25), np.float32)]  # type: ignore[method-assign]
    found = session.run({"x": x, "z": z})["y"]
    kept += 1  # as the next call does
    assert (found == 0).all()


def test_inputs_need_not_be_contiguous(opened: Callable[..., TvmSession]) -> None:
    x = normal(4, 25, 1).transpose(2, 1, 0)
    z = normal(1, 16)[:, ::2]
    np.testing.assert_array_equal(opened(ROWS).run({"x": x, "z": z})["y"], 2 * x + z.sum())


def test_weights_are_mapped(tmp_path: Path, opened: Callable[..., TvmSession]) -> None:
    (tmp_path / "000").mkdir()
    weight = normal(4)
    (tmp_path / "000/weights.bin").write_bytes(bytes(64) + weight.tobytes())
    program = replace(ROWS, weights=(StoredWeight("key", "float32", (4,), 64),))
    x, z = normal(1, 25, 4), normal(1, 8)
    np.testing.assert_array_equal(opened(program).run({"x": x, "z": z})["y"], weight * x + z.sum())


def test_an_observer_sees_whole_calls(opened: Callable[..., TvmSession]) -> None:
    calls: list[Call] = []
    x, z = normal(1, 30, 4), normal(1, 8)
    engine: Any = SimpleNamespace(bundle=None, open=lambda submodel, parallelism: opened(ROWS))
    with WatchedEngine(engine, calls.append).open("audio2token") as session:
        outputs = session.run({"x": x, "z": z}, window=3)
    (call,) = calls
    assert call.submodel == "audio2token" and call.tags == {"window": 3}
    np.testing.assert_array_equal(call.inputs["x"], x)
    assert call.outputs.keys() == outputs.keys() and call.outputs["y"] is outputs["y"]


def test_other_shapes_are_told(opened: Callable[..., TvmSession]) -> None:
    expected = (
        r"was compiled for inputs of the shapes \(1, 3, 64, 64\); \(2, 3, 64, 64\), not for "
        r"\(1, 3, 128, 64\); compile it for this size too .*--size"
    )
    with pytest.raises(BundleError, match=expected):
        opened(FIXED).run({"x": normal(1, 3, 128, 64), "z": normal(5)})


def test_the_end_of_a_session(opened: Callable[..., TvmSession], forgotten: list[str]) -> None:
    with opened(ROWS) as session:
        session.run({"x": normal(1, 25, 4), "z": normal(1, 8)})
        assert forgotten == []
    assert forgotten == ["key"]
    with pytest.raises(RuntimeError, match="the session of 'audio2token' is closed"):
        session.run({"x": normal(1, 25, 4), "z": normal(1, 8)})
    del session
    assert forgotten == ["key"]  # once
    dropped = opened(ROWS)
    del dropped
    assert forgotten == ["key", "key"]


def test_a_library_that_tvm_cannot_load(
    tmp_path: Path, forgotten: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "000").mkdir()
    (tmp_path / "000/program.so").write_text("no library")
    (tmp_path / PROGRAM).write_text(json.dumps(asdict(ROWS)))
    with (
        TvmSession("audio2token", ProgramFolder(tmp_path)) as session,
        pytest.raises(BundleError, match="cannot be loaded by TVM .*; compile the bundle again") as caught,
    ):
        session.run({"x": normal(1, 25, 4), "z": normal(1, 8)})
    assert "000/program.so" in str(caught.value) and "\n" not in str(caught.value)


# Engines


@pytest.fixture
def compiled(small, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle, which says that it was compiled; its graphs are still ONNX."""
    bundle = open_bundle(
        Path(shutil.copytree(small.bundle, tmp_path_factory.mktemp("compiled") / "bundle")),
        check_digests=False,
    )
    (bundle.directory / "libsonic_acl.so").touch()
    assets = {**bundle.manifest.assets, BRIDGE: FileInfo("libsonic_acl.so", 0, "")}
    manifest = replace(bundle.manifest, engine="tvm", target=TARGET, assets=assets)
    return Bundle(bundle.directory, manifest, check_digests=False, runs_code=True)


def on(monkeypatch: pytest.MonkeyPatch, machine: str, *features: str) -> None:
    """As if this were another processor."""
    monkeypatch.setattr(tvm_engine.platform, "machine", lambda: machine)
    monkeypatch.setattr(tvm_engine, "cpu_features", lambda: frozenset(features))


def test_another_architecture(compiled: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "x86_64", "avx512f")
    expected = r"was compiled for aarch64 \(kunpeng920\), but this machine is x86_64; use the bundle"
    with pytest.raises(BundleError, match=expected):
        make_engine(compiled)


def test_a_processor_without_a_feature(compiled: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "aarch64", "asimd", "fp", "asimddp")
    with pytest.raises(BundleError, match="needs asimdhp; this CPU has asimd, asimddp, fp; .*generic-armv8"):
        make_engine(compiled)
    on(monkeypatch, "arm64")
    with pytest.raises(BundleError, match="needs asimd, asimddp, asimdhp; "):
        make_engine(compiled)


def test_bfloat16_is_not_there(compiled: Bundle) -> None:
    with pytest.raises(InputError, match="no products in bfloat16; leave the option out"):
        make_engine(compiled, RunOptions(bfloat16=True))


@pytest.mark.parametrize(("missing", "package"), [("tvm_ffi", "apache-tvm-ffi"), ("tvm", "apache-tvm")])
def test_tvm_is_missing(
    compiled: Bundle, monkeypatch: pytest.MonkeyPatch, missing: str, package: str
) -> None:
    on(monkeypatch, "aarch64", *TARGET["features"])
    original = tvm_engine.importlib.util.find_spec
    monkeypatch.setattr(
        tvm_engine.importlib.util, "find_spec", lambda name: None if name == missing else original(name)
    )
    monkeypatch.setattr(tvm_engine.os, "environ", {})
    expected = rf"needs TVM's runtime \(the package {package}\); install it with: pip install 'sonic-runtime"
    with pytest.raises(BundleError, match=expected):
        make_engine(compiled)


def test_the_kernel_library_is_missing(compiled: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "aarch64", *TARGET["features"])
    environment: dict[str, str] = {}
    monkeypatch.setattr(tvm_engine.os, "environ", environment)

    def load(path: str, mode: int = 0) -> None:
        if path.endswith("libsonic_acl.so"):
            raise OSError("libarm_compute.so.43: cannot open shared object file")

    monkeypatch.setattr(tvm_engine.ctypes, "CDLL", load)
    with pytest.raises(BundleError, match="cannot be loaded .libarm_compute.*; it needs the Arm Compute"):
        make_engine(compiled)
    assert environment == {"TVM_THREAD_POOL_SPIN_COUNT": "0"}  # as TVM's runtime is to find it


def test_an_engine_tells_its_threads(
    compiled: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was compiled; what was not goes to ONNX Runtime."""
    on(monkeypatch, "aarch64", *TARGET["features"])
    environment: dict[str, str] = {}
    monkeypatch.setattr(tvm_engine.os, "environ", environment)
    monkeypatch.setattr(tvm_engine, "load_libraries", lambda bridge, source: None)
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(tvm_engine, "function", lambda name: lambda *numbers: calls.append((name, *numbers)))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / PROGRAM).write_text(json.dumps(asdict(ROWS)))
    submodels = dict(compiled.manifest.submodels)
    size = (tmp_path / "unet" / PROGRAM).stat().st_size
    submodels["unet"] = replace(submodels["unet"], files=(FileInfo(f"unet/{PROGRAM}", size, ""),))
    (tmp_path / "libsonic_acl.so").touch()
    shutil.copytree(compiled.directory / "face_detector", tmp_path / "face_detector")
    bundle = Bundle(
        tmp_path, replace(compiled.manifest, submodels=submodels), check_digests=False, runs_code=True
    )
    engine = TvmEngine(bundle, RunOptions(threads=3))
    detector = engine.open("face_detector")
    assert isinstance(detector, OnnxRuntimeSession) and not calls
    with engine.open("unet") as unet:
        assert isinstance(unet, TvmSession)
        assert environment == {"TVM_NUM_THREADS": "3"}
        assert calls == [("runtime.config_threadpool", 1, 3), ("sonic.acl.set_threads", 3)]
    assert calls[-1] == ("sonic.acl.forget", ["key"])
    calls.clear()
    with engine.open("unet", Parallelism(4, 9)):
        assert calls == [("runtime.config_threadpool", 1, 2), ("sonic.acl.set_threads", 2)]
        assert environment == {"TVM_NUM_THREADS": "3"}


def test_an_observer_of_graphs(compiled: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "aarch64", *TARGET["features"])
    monkeypatch.setattr(tvm_engine.os, "environ", {})
    monkeypatch.setattr(tvm_engine, "load_libraries", lambda bridge, source: None)
    calls: list[Call] = []
    engine = WatchedEngine(make_engine(compiled), calls.append)
    shapes = {tensor.name: tensor.shape for tensor in compiled.manifest.submodels["audio2token"].inputs}
    ((name, shape),) = shapes.items()
    with engine.open("audio2token") as session:
        session.run({name: normal(*(2 if size == "frames" else int(size) for size in shape))})
    assert [call.submodel for call in calls] == ["audio2token"]


def test_the_command_says_that_this_is_another_machine(
    small, portrait: Path, short_wav: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, "x86_64")
    bundle = Path(shutil.copytree(small.bundle, tmp_path / "compiled"))
    values = replace(read_manifest(bundle), engine="tvm", target=TARGET).to_json()
    write_values(bundle, values)
    result = CliRunner().invoke(
        main,
        ["generate", "--bundle", str(bundle), "--image", str(portrait), "--audio", str(short_wav), "--output",
         str(tmp_path / "video.mp4"), "--trust"],
    )  # fmt: skip
    assert result.exit_code == 2, result.output
    (error,) = result.output.strip().splitlines()
    assert error.startswith("error: ") and "was compiled for aarch64 (kunpeng920)" in error
    assert not (tmp_path / "video.mp4").exists()


def test_tvm_is_left_alone_without_a_compiled_bundle() -> None:
    code = """
import sys
import sonic, sonic.cli.main, sonic.engines.tvm, sonic.verification.verify
with sonic.load_model("sonic-tiny").engine.open("audio2bucket"):
    print(sorted({name.partition(".")[0] for name in sys.modules} & {"tvm", "tvm_ffi", "torch", "onnx"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
