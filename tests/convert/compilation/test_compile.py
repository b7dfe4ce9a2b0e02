"""Bundles are compiled without an ARM machine or its compiler; mistakes are told in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from sonic.bundle.bundle import Bundle
from sonic.bundle.manifest_file import read_manifest
from sonic.bundle.store import open_bundle
from sonic.engines.tvm import BRIDGE, Program, TvmSession
from sonic.engines.tvm_files import PROGRAM, ProgramFolder
from sonic.errors import InputError, OutputError
from sonic_convert.bundle_writer import write_manifest
from sonic_convert.cli.main import main
from sonic_convert.compilation import compile as module
from sonic_convert.compilation import toolchain
from sonic_convert.compilation.compile import CompileOptions, compile_bundle, compile_submodel
from sonic_convert.compilation.lowering import lower
from sonic_convert.compilation.sizes import COMPILED, Picture
from sonic_convert.compilation.targets import Target, find_target
from sonic_convert.export.submodels import Programs

AARCH64 = 183  # ELF's number of the machine
QUICK = ("audio2token", "audio2bucket")
KUNPENG = CompileOptions(find_target("kunpeng920"))
#: Tells its machine, and puts the last file that it is given, or what it was called with, where it should.
COMPILER = """#!/bin/sh
if [ "$1" = -dumpmachine ]; then echo aarch64-linux-gnu; exit; fi
all="$*"
while [ "$1" != -o ]; do shift; done
if [ -f "$3" ]; then cp "$3" "$2"; else echo "$all" > "$2"; fi
"""


def script(path: Path, content: str) -> tuple[str, ...]:
    path.write_text(content)
    path.chmod(0o755)
    return (str(path),)


@pytest.fixture
def compiler(tmp_path: Path) -> tuple[str, ...]:
    return script(tmp_path / "compiler", COMPILER)


@pytest.fixture(scope="module")
def bundle(small) -> Bundle:
    return open_bundle(small.bundle)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles small submodels only; the other ones stay graphs."""
    monkeypatch.setattr(module, "COMPILED", {name: COMPILED[name] for name in QUICK})


def aligned_arrays(folder: Path, program: Program) -> dict[str, np.ndarray]:
    data = (folder / program.weights_file).read_bytes()
    arrays = {}
    for weight in program.weights:
        assert weight.offset % 64 == 0
        array = np.frombuffer(data, weight.dtype, int(np.prod(weight.shape)), weight.offset)
        arrays[weight.key] = array.reshape(weight.shape)
    return arrays


def test_a_bundle_is_compiled(
    bundle: Bundle, tmp_path: Path, compiler: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_size = Programs(lambda constants, height, width: [{"frames": height // 64}], "frames")
    table = {"audio2token": by_size, "audio2bucket": COMPILED["audio2bucket"]}
    monkeypatch.setattr(module, "COMPILED", table)
    options = CompileOptions(find_target("graviton3"), (Picture(64, 128),))
    manifest = compile_bundle(bundle.directory, tmp_path / "arm", options, compiler)
    compiled = open_bundle(tmp_path / "arm")
    assert compiled.manifest == manifest
    assert manifest.engine == "tvm" and manifest.name == "arm"
    assert manifest.target == {
        "name": "graviton3", "triple": "aarch64-linux-gnu", "processor": "neoverse-v1",
        "features": ["asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve"],
    }  # fmt: skip
    before = bundle.manifest
    assert manifest.verification == before.verification and manifest.constants == before.constants
    assert set(manifest.assets) == {*before.assets, BRIDGE}
    assert manifest.producer.items() >= {**before.producer, "apache-tvm": "0.27.0.post1"}.items()
    for name, info in manifest.submodels.items():
        if name in table:
            assert compiled.graph_path(name).name == PROGRAM
        else:
            assert info == before.submodels[name]
    program = Program.read(compiled.graph_path("audio2token"))
    shapes = [each.shapes["audio_windows"][1] for each in program.specialisations]
    assert shapes == [1, 2]  # for the size that was asked for, and the golden clip's
    heads = Program.read(compiled.graph_path("audio2bucket"))
    assert heads.row_axes == {"audio_windows": 1, "buckets": 1}
    assert heads.inputs == ("audio_windows", "image_embedding") and heads.outputs == ("buckets",)
    for name in table:
        path, graph = compiled.graph_path(name), bundle.graph_path(name)
        program = Program.read(path)
        for each in program.specialisations:
            library = (path.parent / each.library).read_bytes()
            assert library[:4] == b"\x7fELF" and int.from_bytes(library[18:20], "little") == AARCH64
        lowered = lower(onnx.load(str(graph)), program.specialisations[0].shapes, graph.parent)
        stored = aligned_arrays(path.parent, program)
        assert list(stored) == list(lowered.weights) and program.keys == lowered.keys
        for key, array in lowered.weights.items():
            np.testing.assert_array_equal(stored[key], array)


def test_the_bundles_own_resolution_is_the_default(bundle: Bundle) -> None:
    side = bundle.manifest.constants.portrait.default_resolution_pixels
    assert module._pictures(bundle, KUNPENG) == [Picture(side, side)]
    options = replace(KUNPENG, pictures=(Picture(64, 64), Picture(side, side), Picture(64, 64)))
    assert module._pictures(bundle, options) == [Picture(64, 64), Picture(side, side)]
    options = replace(KUNPENG, pictures=(Picture(64, 192),))
    assert module._pictures(bundle, options) == [Picture(64, 192), Picture(side, side)]


def test_an_interrupted_compilation_goes_on(
    bundle: Bundle, tmp_path: Path, compiler: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = [{"frames": 2}, {"frames": 3}]
    folder = tmp_path / "work"
    original, asked = module.lower, []

    def interrupted(model: Any, shapes: Any, *more: Any) -> Any:
        asked.append(shapes["audio_windows"][1])
        if asked == [2, 3]:
            raise KeyboardInterrupt
        return original(model, shapes, *more)

    def compile(options: CompileOptions = KUNPENG) -> Program:
        compile_submodel(bundle, "audio2token", plan, options, compiler, folder)
        return Program.read(folder / PROGRAM)

    monkeypatch.setattr(module, "lower", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compile()
    assert [path.name for path in folder.iterdir()] == ["000"]  # nothing that is half done
    first = (folder / "000/program.so").stat().st_mtime_ns
    program = compile()
    assert asked == [2, 3, 3]
    assert (folder / "000/program.so").stat().st_mtime_ns == first
    monkeypatch.setattr(module, "lower", lambda *_: pytest.fail("is compiled again"))
    assert compile() == program
    assert len(program.specialisations) == 2
    # Another server's programs are others, and so are those of TVM alone.
    for options in (CompileOptions(find_target("generic-armv8")), replace(KUNPENG, use_library=False)):
        with pytest.raises(pytest.fail.Exception, match="is compiled again"):
            compile(options)


def test_programs_run(
    bundle: Bundle,
    tmp_path: Path,
    library: Any,
    expected_of: Callable[..., dict[str, np.ndarray]],
) -> None:
    """Linked for this machine and run by the runtime's session: weights from the file, rows in parts."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    here = Target("here", "x86-64", (), (), "x86_64-linux-gnu")
    if os.uname().machine in ("aarch64", "arm64"):
        here = find_target("generic-armv8")
    folder, plan = tmp_path / "work", [{"frames": 7}]
    compile_submodel(bundle, "audio2bucket", plan, CompileOptions(here), ["g++"], folder)
    copies = module.copy_program(folder, tmp_path / "bundle/audio2bucket", tmp_path / "bundle")
    assert [copy.path for copy in copies][0] == f"audio2bucket/{PROGRAM}"
    random = np.random.default_rng(0)
    shapes = {tensor.name: tensor.shape for tensor in bundle.manifest.submodels["audio2bucket"].inputs}
    with TvmSession("audio2bucket", ProgramFolder(tmp_path / "bundle/audio2bucket")) as session:
        for frames in (7, 1, 17):
            feeds = {
                name: random.standard_normal(
                    [frames if size == "frames" else int(size) for size in shape], np.float32
                )
                for name, shape in shapes.items()
            }
            found = session.run(feeds)["buckets"]
            wanted = expected_of(bundle.graph_path("audio2bucket"), feeds)["buckets"]
            assert found.shape == wanted.shape == (1, frames, 2, 1)
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        assert library.kept
    assert not library.kept  # what the library made of the weights goes with the session


# What is wrong


@pytest.fixture
def compiled_source(small, tmp_path: Path) -> Path:
    """A bundle that says that it is compiled already."""
    source = Path(shutil.copytree(small.bundle, tmp_path / "compiled"))
    write_manifest(source, replace(read_manifest(source), engine="tvm"))
    return source


def test_a_compiled_bundle_is_no_source(compiled_source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is for the engine 'tvm'; compile the bundle of ONNX graphs"):
        compile_bundle(compiled_source, tmp_path / "new", KUNPENG, ["none"])


@pytest.mark.parametrize("picture", [Picture(64, 100), Picture(100, 64), Picture(0, 64), Picture(64, 0)])
def test_sizes_that_cannot_be_generated(small, tmp_path: Path, picture: Picture) -> None:
    told = f"the size {picture.width}x{picture.height} cannot be generated; both should be multiples of 64"
    with pytest.raises(InputError, match=told):
        compile_bundle(small.bundle, tmp_path / "new", replace(KUNPENG, pictures=(picture,)), ["none"])
    assert not list(tmp_path.iterdir())


def test_what_is_no_bundle_is_not_replaced(small, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter").touch()
    with pytest.raises(OutputError, match="exists and is no bundle"):
        compile_bundle(small.bundle, tmp_path / "thesis", KUNPENG, ["none"])


def test_compilers_that_do_not_work(bundle: Bundle, tmp_path: Path, quick: None) -> None:
    def told(compiler: tuple[str, ...]) -> str:
        with pytest.raises(InputError) as caught:
            compile_bundle(bundle.directory, tmp_path / "arm", KUNPENG, compiler, tmp_path / "work")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "arm").exists()
        return str(caught.value)

    assert "the compiler no-such-compiler cannot be run" in told(("no-such-compiler",))
    fails = script(tmp_path / "fails", "#!/bin/sh\necho first >&2; echo 'ld: no space' >&2; exit 1\n")
    assert f"the compiler {fails[0]} cannot link a program (ld: no space)" in told(fails)
    silent = script(tmp_path / "silent", "#!/bin/sh\nexit 1\n")
    assert "(no message)" in told(silent)
    assert not list((tmp_path / "work/audio2token").iterdir())


def test_a_bridge_that_cannot_be_built_leaves_no_bundle(bundle: Bundle, tmp_path: Path, quick: None) -> None:
    content = COMPILER.replace("aarch64-linux-gnu", "x86_64-linux-gnu")
    with pytest.raises(InputError, match="makes programs for 'x86_64-linux-gnu', not for aarch64"):
        compile_bundle(bundle.directory, tmp_path / "arm", KUNPENG, script(tmp_path / "compiler", content))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arm.work", "compiler"]


def test_programs_with_other_weights_are_no_submodel(
    bundle: Bundle, tmp_path: Path, compiler: tuple[str, ...]
) -> None:
    def compile() -> None:
        plan = [{"frames": 2}, {"frames": 3}]
        compile_submodel(bundle, "audio2token", plan, KUNPENG, compiler, tmp_path / "work")

    compile()
    path = tmp_path / "work/001/stage.json"
    values = json.loads(path.read_text())
    values["facts"]["weights"].reverse()
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"programs of one submodel have other weights; remove {tmp_path}"):
        compile()


def error_of(*arguments: str | Path) -> str:
    """The one sentence of a command that fails."""
    result = CliRunner().invoke(main, ["compile", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.output
    *progress, error = result.output.strip().splitlines()  # on a slow machine, lines say how far it is
    assert error.startswith("error: ") and all(" after " in line for line in progress)
    return error


def test_the_command_says_what_is_wrong(
    small, compiled_source: Path, tmp_path: Path, compiler: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    assert "no target 'abacus'" in error_of(small.bundle, new, "--target", "abacus")
    wrong = error_of(small.bundle, new, "--target", "altra", "--size", "512")
    assert "the size '512' should be WIDTHxHEIGHT" in wrong
    assert "no bundle 'nowhere'" in error_of("nowhere", new, "--target", "altra")
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "x86_64")
    missing = error_of(small.bundle, new, "--target", "altra", "--cache", tmp_path / "cache")
    assert f"there is no sysroot in {tmp_path}/cache" in missing
    monkeypatch.setattr(toolchain, "find_compiler", lambda cache: compiler)
    assert "engine 'tvm'" in error_of(compiled_source, new, "--target", "altra")
    odd = error_of(small.bundle, new, "--target", "altra", "--size", "64x64", "--size", "64x72")
    assert "the size 64x72 cannot be generated" in odd
    monkeypatch.setattr(toolchain, "find_compiler", lambda cache: ("no-such-compiler",))
    assert "no-such-compiler cannot be run" in error_of(small.bundle, new, "--target", "altra")
    assert not new.exists()


def test_the_command_compiles(
    small, tmp_path: Path, compiler: tuple[str, ...], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "find_compiler", lambda cache: compiler)
    target, work = "aarch64-linux-gnu,+neon,+sve", tmp_path / "work"
    options = ["--target", target, "--size", "64x64", "--work", work]
    arguments = ["compile", small.bundle, tmp_path / "arm", *options]
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert f"MB for {target}" in result.output
    assert read_manifest(tmp_path / "arm").target["features"] == ["asimd", "sve"]
    assert {path.name for path in work.iterdir()} == set(QUICK)
