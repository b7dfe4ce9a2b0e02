"""The processors that bundles are compiled for, and the compiler that links programs for them."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from sonic.errors import InputError
from sonic_convert.compilation import targets, toolchain
from sonic_convert.compilation.build import build
from sonic_convert.compilation.lowering import lower
from sonic_convert.compilation.targets import TARGETS, find_target
from sonic_convert.compilation.toolchain import find_compiler

AARCH64 = 183  # ELF's number of the machine


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_compiles(
    name: str, graph_of: Callable[..., onnx.ModelProto], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """LLVM only warns of processors and features that it does not know."""
    x = {"x": np.ones((8, 64), np.float32)}
    graph = graph_of([helper.make_node("Sigmoid", ["x"], ["y"])], {}, x)
    executable = build(lower(graph, {}, Path()), TARGETS[name].tvm_target())
    objects: list[Path] = []

    def link(output: str, files: list[str], options: object = None, **_: object) -> None:
        objects.extend(Path(file) for file in files)
        Path(output).write_bytes(objects[0].read_bytes())

    executable.export_library(str(tmp_path / "program.so"), fcompile=link)
    program = (tmp_path / "program.so").read_bytes()
    assert program[:4] == b"\x7fELF" and int.from_bytes(program[18:20], "little") == AARCH64
    told = "".join(capfd.readouterr())
    assert "not a recognized" not in told and "not supported" not in told, told


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_what_a_program_may_use_is_checked_where_it_runs(target: targets.Target) -> None:
    assert target.triple == "aarch64-linux-gnu"
    needed = {targets._LINUX_NAMES[attribute.removeprefix("+")] for attribute in target.attributes}
    assert needed <= set(target.features)
    assert "asimd" in target.features
    if target.processor == "generic":
        assert set(target.features) == {"asimd"}


def test_targets_by_name() -> None:
    assert find_target("kunpeng920").processor == "tsv110"
    assert find_target("graviton3").features == ("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve")
    assert find_target("generic-armv8").attributes == ("+neon",)


def test_a_target_of_ones_own() -> None:
    name = "aarch64-linux-gnu,+neon,+dotprod,+lse"
    target = find_target(name)
    assert (target.name, target.processor, target.triple) == (name, "generic", "aarch64-linux-gnu")
    assert target.attributes == ("+neon", "+dotprod", "+lse")
    assert target.features == ("asimd", "asimddp", "atomics")
    assert str(target.tvm_target().attrs["mtriple"]) == "aarch64-linux-gnu"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("kunpeng", ""),
        ("", ""),
        ("aarch64-linux-gnu", ""),
        ("x86_64-linux-gnu,+avx2", "the feature '\\+avx2' is unknown; "),
        ("x86_64-linux-gnu,+neon", ""),
        ("aarch64-linux-gnu,+neon,dotprod", "the feature 'dotprod' is unknown; "),
        ("aarch64-linux-gnu,+neon,+mte", "the feature '\\+mte' is unknown; "),
        ("aarch64-linux-gnu,+neon,", "the feature '' is unknown; "),
    ],
)
def test_unknown_targets(name: str, what: str) -> None:
    with pytest.raises(InputError, match=f"no target '.*': {what}it should be one of kunpeng920, ") as caught:
        find_target(name)
    assert "'aarch64-linux-gnu,+neon,+dotprod' (of bf16, dotprod," in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_sysroot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(InputError, match=f"no sysroot in {tmp_path}, .*; make it with 'make sysroot'"):
        find_compiler(tmp_path)
    monkeypatch.setenv("SONIC_SYSROOT", str(tmp_path / "default"))
    with pytest.raises(InputError, match=f"no sysroot in {tmp_path}/default, "):
        find_compiler()


def test_the_compiler_of_the_sysroot_or_of_an_arm_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made:
        compiler = ("cross-g++", "--sysroot")

    (tmp_path / "root").mkdir()
    monkeypatch.setattr(toolchain, "make_sysroot", lambda folder, progress: Made)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert find_compiler(tmp_path) == ("cross-g++", "--sysroot")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert find_compiler(tmp_path / "none") == ("g++",)
