"""Counts the instructions that a call of a compiled submodel takes, in the emulator.

    python -m sonic_convert.bench.instructions build/instructions.json

Where there is no ARM machine to time calls on, instructions of one thread are counted, with a plugin of qemu.
What a call takes is the difference of two processes, one of which calls once more. What the file already
holds is not counted again.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np

from sonic.bundle.bundle import Bundle
from sonic.bundle.manifest import SubmodelInfo
from sonic.bundle.store import find_bundle, open_bundle
from sonic.cli.errors import user_errors
from sonic.errors import InputError
from sonic.options import GenerationOptions
from sonic.progress import ConsoleProgress, Progress
from sonic.storage.files import write_json
from sonic_calibration.recording.recordings import RecordingOptions
from sonic_convert.bench import run_calls
from sonic_convert.checkpoint.checkpoint import EMBEDDED
from sonic_convert.compilation.bridge_build import build_bridge
from sonic_convert.compilation.compile import CompileOptions, compile_submodel
from sonic_convert.compilation.sizes import shapes_of
from sonic_convert.compilation.targets import find_target
from sonic_convert.conversion import convert
from sonic_convert.export.submodels import Sizes, unet_sizes
from sonic_convert.quantization.pipeline import ReducedPrecision, reduce_bundle
from sonic_convert.quantization.plan import preset
from sonic_convert.quantization.qdq import QdqOptions
from sonic_convert.quantization.quantize import QuantizationOptions
from sonic_convert.synth.dimensions import SMALL
from sonic_convert.synth.synthesize import synthesize
from sonic_convert.testbed.sysroot import Sysroot, default_cache, emulated, make_sysroot

ONNX_RUNTIME, COMPILED, TVM_ALONE = "ONNX Runtime", "TVM and ACL", "TVM alone"
PROCESSOR = "neoverse-n1"
_SOURCE = Path(__file__).with_name("count_instructions.c")
_RUNTIME = Path(run_calls.__file__).parents[3] / "runtime"
_CALL_SECONDS = 3600
#: A UNet whose four levels all have the width of the published one's first, where most time is spent.
WIDE = replace(SMALL, unet_channels=(320,) * 4, unet_heads=(5,) * 4, unet_layers=1)


@dataclass(frozen=True)
class Case:
    """A call of the UNet to count.

    Attributes:
        title: for the report.
        bundle: the bundle of ONNX graphs.
        sizes: of the UNet's axes.
        alone: whether TVM without the kernel library is counted too, which takes long.
    """

    title: str
    bundle: Path
    sizes: Sizes
    alone: bool = False


@dataclass(frozen=True)
class Count:
    """The instructions of one call.

    Attributes:
        case, engine: what was counted.
        instructions: their number.
        magnitude: the sum of the absolute outputs, equal for all engines except for rounding.
    """

    case: str
    engine: str
    instructions: int
    magnitude: float


def build_plugin(folder: Path) -> Path:
    """Compile qemu's plugin that counts instructions, for this machine.

    Raises:
        InputError: there is no C compiler.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise InputError(
            "no C compiler is on PATH, which the plugin that counts instructions needs; install gcc"
        )
    folder.mkdir(parents=True, exist_ok=True)
    plugin = folder / "count_instructions.so"
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror"]
    subprocess.run([compiler, *flags, str(_SOURCE), "-o", str(plugin)], check=True)
    return plugin


def count_instructions(
    sysroot: Sysroot, arguments: Sequence[str | Path], plugin: Path, cpu: str = PROCESSOR
) -> int:
    """Instructions that an emulated program executes from start to end, on all its threads.

    Raises:
        InputError: the program fails.
    """
    return _run(sysroot, arguments, plugin, cpu)[0]


def _run(sysroot: Sysroot, arguments: Sequence[str | Path], plugin: Path, cpu: str) -> tuple[int, str]:
    environment = {"PYTHONPATH": str(_RUNTIME)}
    command = emulated(sysroot, arguments, cpu, 1, environment, plugin)
    done = subprocess.run(command, capture_output=True, text=True, timeout=_CALL_SECONDS)
    match = re.search(r"^instructions: (\d+)$", done.stderr, re.MULTILINE)
    if done.returncode or match is None:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"{arguments[0]} fails under emulation ({reason})")
    return int(match[1]), done.stdout


def count_case(
    case: Case,
    known: Sequence[Count],
    sysroot: Sysroot,
    bridge: Path,
    plugin: Path,
    work: Path,
    progress: Progress,
) -> Iterator[Count]:
    """Count one call in every engine, except for those that are known."""
    bundle = open_bundle(case.bundle)
    info = bundle.manifest.submodels["unet"]
    folder = work / re.sub(r"\W+", "-", case.title)
    folder.mkdir(parents=True, exist_ok=True)
    inputs = folder / "inputs.npz"
    np.savez(inputs, **_inputs(info, case.sizes))  # type: ignore[arg-type]
    engines = [ONNX_RUNTIME, COMPILED, *([TVM_ALONE] if case.alone else [])]
    done = {(count.case, count.engine) for count in known}
    with progress.stage(case.title, len(engines)) as advance:
        for engine in engines:
            if (case.title, engine) not in done:
                arguments = _arguments(engine, bundle, case, folder, sysroot, bridge, inputs)
                yield _count_call(case, engine, arguments, sysroot, plugin)
            advance()


def _arguments(
    engine: str, bundle: Bundle, case: Case, folder: Path, sysroot: Sysroot, bridge: Path, inputs: Path
) -> list[str | Path]:
    script = [sysroot.python, Path(run_calls.__file__)]
    if engine == ONNX_RUNTIME:
        return [*script, "onnxruntime", bundle.graph_path("unet"), inputs, "CALLS"]
    options = CompileOptions(find_target("graviton2"), use_library=engine == COMPILED)
    programs = folder / engine.replace(" ", "-")
    compile_submodel(bundle, "unet", [case.sizes], options, sysroot.compiler, programs)
    return [*script, "tvm", programs / "program.json", inputs, "CALLS", bridge]


def _count_call(
    case: Case, engine: str, arguments: list[str | Path], sysroot: Sysroot, plugin: Path
) -> Count:
    """The difference of two calls and one: the first also configures functions and reshapes weights."""
    numbers = []
    for calls in (1, 2):
        command = [str(calls) if argument == "CALLS" else argument for argument in arguments]
        number, output = _run(sysroot, command, plugin, PROCESSOR)
        numbers.append(number)
    return Count(case.title, engine, numbers[1] - numbers[0], float(output.rsplit(" ", 1)[-1]))


def _inputs(info: SubmodelInfo, sizes: Sizes) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    inputs = {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in shapes_of(info, sizes).items()
    }
    return {name: np.abs(array) % 1 if "mask" in name else array for name, array in inputs.items()}


def _int8(source: Path, target: Path, resolution_pixels: int, progress: Progress) -> Path:
    """A bundle in int8; its ranges make no difference to the number of instructions."""
    if not target.exists():
        examples = target.with_name("examples")
        examples.mkdir(exist_ok=True)
        for name in ("portrait.png", "speech.wav"):
            shutil.copyfile(EMBEDDED / name, examples / name)
        options = ReducedPrecision(
            QuantizationOptions(preset("int8"), QdqOptions(isa="aarch64")),
            RecordingOptions(
                calls=1,
                clip=GenerationOptions(duration=0.3, min_resolution=resolution_pixels, inference_steps=1),
            ),
            examples,
        )
        reduce_bundle(source, target, options, progress=progress)
    return target


def cases(work: Path, progress: Progress) -> list[Case]:
    """The calls to count: of sonic-tiny's UNet and of one with the published width, in float32 and int8."""
    tiny, wide = find_bundle("sonic-tiny"), work / "wide"
    if not wide.exists():
        convert(synthesize(work / "wide.checkpoint", WIDE, 0), wide, progress=progress)
    whole, part = unet_sizes(3, 25, 16, 16), unet_sizes(1, 2, 8, 8)
    tiny8, wide8 = (_int8(bundle, work / f"{bundle.name}-int8", 64, progress) for bundle in (tiny, wide))
    return [
        Case("320 channels, 1 x 2 frames at 64 px, float32", wide, part, alone=True),
        Case("320 channels, 1 x 2 frames at 64 px, int8", wide8, part),
        Case("sonic-tiny, 1 x 2 frames at 64 px, float32", tiny, part, alone=True),
        Case("sonic-tiny, 3 x 25 frames at 128 px, float32", tiny, whole),
        Case("sonic-tiny, 3 x 25 frames at 128 px, int8", tiny8, whole),
    ]


def _read_counts(path: Path) -> list[Count]:
    """The counts of an earlier run.

    Raises:
        InputError: the file has other contents.
    """
    if not path.exists():
        return []
    try:
        return [Count(**values) for values in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} does not hold counts ({error}); name another file, or remove it") from error


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
def main(output: Path) -> None:
    """Count instructions of UNet calls under emulation and write them to OUTPUT, a JSON file."""
    with user_errors():
        progress = ConsoleProgress()
        sysroot = make_sysroot(default_cache(), progress)
        work = output.with_name(f"{output.stem}.work").absolute()
        plugin, bridge = build_plugin(work), build_bridge(work / "libsonic_acl.so", sysroot.compiler)
        counts = _read_counts(output)
        for case in cases(work, progress):
            for count in count_case(case, counts, sysroot, bridge, plugin, work, progress):
                counts.append(count)
                write_json(output, [asdict(count) for count in counts])
        for count in counts:
            click.echo(f"{count.case:44s} {count.engine:14s} {count.instructions / 1e6:10.0f} M")


if __name__ == "__main__":
    main()
