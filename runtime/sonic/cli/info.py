"""``sonic info``: a bundle's manifest as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from sonic.bundle.manifest import Manifest, TensorInfo
from sonic.bundle.presets import EXACT_SPEED, SPEED_NAMES
from sonic.bundle.store import find_bundle
from sonic.bundle.trust import TrustOptions
from sonic.cli.errors import user_errors
from sonic.cli.options import manifest_for_command, trust_options
from sonic.cli.tables import console
from sonic.diffusion.steps import StepSettings, evaluations_per_window
from sonic.errors import BundleError, first_line
from sonic.media.credentials import credentials_available
from sonic.options import GenerationOptions, IntakeLimits
from sonic.plan import denoising_steps
from sonic.sandbox.process import sandbox_report


@click.command()
@click.argument("bundle")
@trust_options
def info(bundle: str, trust: TrustOptions) -> None:
    """Print a bundle's manifest as tables."""
    with user_errors():
        directory = find_bundle(bundle)
        manifest = manifest_for_command(directory, trust)
        try:
            print_manifest(manifest, directory, console())
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise BundleError(
                f"{directory}: what the manifest says of 'parity' or 'quantization' is malformed "
                f"({first_line(error)}); convert the checkpoint again"
            ) from error
        print_sandbox(console())


def print_manifest(manifest: Manifest, directory: Path, console: Console) -> None:
    """Print a bundle's submodels, speed presets, constants, sources and measured parity."""
    facts = Table(title=f"bundle {manifest.name}", show_header=False)
    facts.add_row("directory", str(directory))
    facts.add_row("engine", manifest.engine)
    if manifest.machine_code:
        facts.add_row("holds", "machine code, which is run only if a trusted key signed it, or with --trust")
    facts.add_row("license of the weights", manifest.license)
    facts.add_row("made by", ", ".join(f"{name} {v}" for name, v in manifest.producer.items()))
    facts.add_row("size", _megabytes(sum(file.bytes for file in manifest.files)))
    facts.add_row("golden vectors", _golden_vectors(manifest, directory))
    installed = "can be signed" if credentials_available() else "need pip install 'sonic-runtime[c2pa]'"
    facts.add_row("content credentials", installed)
    console.print(facts)

    submodels = Table(title="submodels")
    for column in ("name", "precision", "opset", "size", "inputs", "outputs", "relative L2"):
        submodels.add_column(
            column,
            justify="right" if column in ("opset", "size") else "left",
            no_wrap=column == "name",
        )
    parity = manifest.parity.get("submodels", {})
    for submodel in manifest.submodels.values():
        error = parity.get(submodel.name, {}).get("relative_l2")
        submodels.add_row(
            submodel.name,
            submodel.precision,
            str(submodel.opset),
            _megabytes(submodel.bytes),
            "\n".join(map(_signature, submodel.inputs)),
            "\n".join(map(_signature, submodel.outputs)),
            "not measured" if error is None else f"{error:.1e}",
        )
    console.print(submodels)

    if manifest.quantization:
        print_quantization(manifest, console)

    console.print(speeds_table(manifest))

    constants = Table(title="constants")
    for column in ("part", "name", "value"):
        constants.add_column(column, no_wrap=column != "value")
    for part, values in manifest.constants.to_json().items():
        for name, value in values.items():
            constants.add_row(part, name, str(value))
    console.print(constants)

    sources = Table(title="made from")
    for column in ("file", "size", "sha256"):
        sources.add_column(column, overflow="fold")
    for source in manifest.sources:
        sources.add_row(source.path, _megabytes(source.bytes), source.sha256[:16])
    console.print(sources)

    compared = manifest.parity.get("full_precision")
    if compared:
        measured = Table(title=f"videos against {compared['reference']}")
        for name in ("psnr_db", "worst_psnr_db", "lip_sync_change", "largest_lip_sync_change"):
            value = compared[name]
            measured.add_row(name, "not measured" if value is None else f"{value:.4g}")
        console.print(measured)

    video = manifest.parity.get("video")
    if video:
        measured = Table(title="parity of a whole video with PyTorch")
        for name, value in video.items():
            measured.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
        console.print(measured)


def print_sandbox(console: Console) -> None:
    """Print what confines the process that decodes portraits and recordings on this system."""
    table = Table(title="sandbox: the process that decodes portraits and recordings", show_header=False)
    for name, value in sandbox_facts(IntakeLimits.from_environment()).items():
        table.add_row(name, value)
    console.print(table)


def sandbox_facts(limits: IntakeLimits) -> dict[str, str]:
    """What is confined and how, in words; tried out, as a container may refuse what the kernel offers."""
    if not limits.sandbox:
        return {"state": "switched off: files are decoded in the process that generates"}
    found = sandbox_report()
    words = {
        "files": (
            "can open none but the input",
            "may open files: the system has neither Landlock nor seccomp",
        ),
        "network": (
            "cannot be reached",
            "may be reached: the system has neither seccomp nor user namespaces",
        ),
        "processes": ("cannot start any", "may start some: the system has no seccomp"),
    }
    facts = {"confined by": ", ".join([*found["by"], "limits of the process"])}
    facts |= {name: texts[bool(found["possible"][name])] for name, texts in words.items()}
    facts["time, memory"] = f"{limits.decode_seconds} s, {limits.decode_memory_megabytes} MB for each file"
    return facts


def speeds_table(manifest: Manifest) -> Table:
    """The speed presets, "exact" first: noise levels, guidance branches at each, evaluations of the UNet."""
    speeds = manifest.speeds
    table = Table(title=f"speed presets ({'tuned for this bundle' if speeds.tuned else 'not tuned'})")
    for column in ("speed", "steps", "evaluations a window", "noise levels", "branches"):
        right = column in ("steps", "evaluations a window")
        table.add_column(column, justify="right" if right else "left", no_wrap=column == "speed")
    for name in SPEED_NAMES:
        steps = denoising_steps(manifest, GenerationOptions(speed=name))
        table.add_row(
            name + (" (default)" if name == speeds.default else ""),
            str(len(steps)),
            str(evaluations_per_window(steps)),
            _levels(steps),
            ", ".join(str(len(step.branches)) for step in steps) if name != EXACT_SPEED else "all",
        )
    if not speeds.tuned:
        table.caption = "'sonic-convert tune' finds presets for this bundle"
    return table


def _levels(steps: Sequence[StepSettings]) -> str:
    """The noise levels of some steps; of many, the first and the last ones."""
    levels = [f"{step.sigma:.4g}" for step in steps]
    return ", ".join(levels if len(levels) <= 10 else [*levels[:3], "...", *levels[-2:]])


def print_quantization(manifest: Manifest, console: Console) -> None:
    """Print how a bundle was quantized: plan, calibration, and every submodel's layers by precision."""
    facts = manifest.quantization
    table = Table(title=f"precision {facts['plan']} for {facts['profile']}")
    for column in ("submodel", "layers", "parameters"):
        table.add_column(column, no_wrap=column == "submodel")
    for name, done in facts["layers"].items():
        counts = [
            ", ".join(f"{count:,} {precision}" for precision, count in done.get(key, {}).items())
            for key in ("layers", "parameters")
        ]
        table.add_row(name, *counts)
    kept = facts.get("kept_in_float")
    table.caption = f"calibration {(facts['calibration'] or 'none')[:16]}" + (
        "" if kept is None else f"; {len(kept)} units left in float32 for the budget"
    )
    console.print(table)


def _golden_vectors(manifest: Manifest, directory: Path) -> str:
    info = manifest.verification
    if info is None:
        return "none; convert the checkpoint again to be able to verify the bundle"
    size = _megabytes(sum(file.bytes for file in info.files))
    return f"{size}; 'sonic verify {directory}' compares the bundle with PyTorch on this machine"


def _signature(tensor: TensorInfo) -> str:
    return f"{tensor.name} ({', '.join(map(str, tensor.shape))})"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
