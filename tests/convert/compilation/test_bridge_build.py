"""What is wrong with a compiler is said in one sentence, and a library that exists is left alone then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sonic.errors import InputError, OutputError
from sonic_convert.compilation import bridge_build
from sonic_convert.compilation.bridge_build import build_bridge

ANSWER = 'if [ "$1" = -dumpmachine ]; then echo aarch64-linux-gnu; exit; fi\n'
# Writes its arguments to what follows -o.
WRITE = 'while [ "$1" != -o ]; do all="$all $1"; shift; done; echo "$all $*" > "$2"\n'


def fake_compiler(folder: Path, script: str) -> tuple[str, ...]:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(0o755)
    return (str(path),)


def test_the_sources_are_compiled_and_linked(tmp_path: Path) -> None:
    output = tmp_path / "folder/libsonic_acl.so"
    assert build_bridge(output, fake_compiler(tmp_path, ANSWER + WRITE)) == output
    written = output.read_text()
    sources = sorted((Path(bridge_build.__file__).parent / "bridge").glob("*.cpp"))
    assert len(sources) > 5 and all(str(source) in written for source in sources)
    assert "-larm_compute" in written and "-ltvm_ffi" in written
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo x86_64-linux-gnu", "makes programs for 'x86_64-linux-gnu', not for aarch64"),
        ("echo no; echo 'error: unknown option' >&2; exit 1", "fails: error: unknown option"),
        (ANSWER + "exit 1", "fails: it does not say why"),
        (
            ANSWER + "echo 'f.h:4:10: fatal error: arm_compute/core/Error.h: No such file' >&2; exit 1",
            "does not find the Arm Compute Library 24.11",
        ),
        (
            ANSWER + "echo 'ld: cannot find -larm_compute: No such file' >&2; exit 1",
            "does not find the Arm Compute Library 24.11",
        ),
        (
            ANSWER + "printf 'x.cpp: In function f:\\nx.cpp:3:1: error: expected ;\\nmore\\n' >&2; exit 1",
            "fails: x.cpp:3:1: error: expected ;",
        ),
    ],
)
def test_errors(tmp_path: Path, script: str, message: str) -> None:
    output = tmp_path / "libsonic_acl.so"
    output.write_text("before")
    with pytest.raises(InputError) as caught:
        build_bridge(output, fake_compiler(tmp_path, script))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert output.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compiler", output.name]


def test_no_compiler(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no-such-compiler cannot be run .*install g\\+\\+ for aarch64"):
        build_bridge(tmp_path / "libsonic_acl.so", ["no-such-compiler"])


def test_no_ffi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="install apache-tvm-ffi"):
        build_bridge(tmp_path / "libsonic_acl.so", fake_compiler(tmp_path, ANSWER + WRITE))


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path, ANSWER + WRITE)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for output in (tmp_path / "file/libsonic_acl.so", tmp_path / "folder"):
        with pytest.raises(OutputError, match="cannot be written"):
            build_bridge(output, compiler)


def test_this_machines_compiler(tmp_path: Path) -> None:
    """Whatever g++ there is: the library, or what is missing."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    try:
        assert build_bridge(tmp_path / "libsonic_acl.so").stat().st_size > 1000
    except InputError as error:
        assert "not for aarch64" in str(error) or "Arm Compute Library" in str(error)
