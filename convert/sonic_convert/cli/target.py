"""The commands of ``sonic-convert`` for the machines that bundles run on: sysroot, compile, bridge."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from sonic.cli.errors import user_errors
from sonic.progress import ConsoleProgress
from sonic_convert.cli.options import PATH


@click.command()
@click.option("--cache", type=PATH, help="Folder to fill [$SONIC_SYSROOT, or the user's folder for caches].")
def sysroot(cache: Path | None) -> None:
    """Make an aarch64 test bed: Debian and Python packages, an emulator, a cross compiler; 0.9 GB."""
    with user_errors():
        from sonic_convert.testbed.sysroot import default_cache, make_sysroot

        made = make_sysroot(cache or default_cache(), ConsoleProgress())
        for name, value in (
            ("root", str(made.root)),
            ("Python packages", str(made.site)),
            ("compiler", shlex.join(made.compiler)),
            ("emulator", shlex.join(made.emulator)),
            ("with plugins", shlex.join(made.plugin_emulator)),
        ):
            click.echo(f"{name}: {value}")


@click.command()
@click.argument("source", type=PATH)
@click.argument("bundle", type=PATH)
@click.option(
    "--target", required=True, help="A server, such as kunpeng920 or graviton3, or TRIPLE,+FEATURE,..."
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="WIDTHxHEIGHT",
    help="Of videos, in pixels; repeat it for several [the bundle's resolution, square].",
)
@click.option("--work", type=PATH, help="Folder of intermediate results [BUNDLE.work].")
@click.option("--cache", type=PATH, help="The folder of 'sonic-convert sysroot', where the compiler is.")
def compile(  # noqa: A001 (the command's name)
    source: Path, bundle: Path, target: str, sizes: tuple[str, ...], work: Path | None, cache: Path | None
) -> None:
    """Compile SOURCE, a bundle of ONNX graphs, for aarch64 with TVM and the Arm Compute Library."""
    with user_errors():
        from sonic.bundle.store import find_bundle
        from sonic_convert.compilation.compile import CompileOptions, compile_bundle
        from sonic_convert.compilation.sizes import Picture
        from sonic_convert.compilation.targets import find_target
        from sonic_convert.compilation.toolchain import find_compiler

        options = CompileOptions(find_target(target), tuple(map(Picture.parse, sizes)))
        manifest = compile_bundle(
            find_bundle(source), bundle, options, find_compiler(cache), work, ConsoleProgress()
        )
        megabytes = sum(file.bytes for file in manifest.files) / 1e6
        click.echo(f"{bundle}: {megabytes:.1f} MB for {options.target.name}")


@click.command()
@click.argument("output", type=PATH)
@click.option("--cache", type=PATH, help="The folder of 'sonic-convert sysroot', where the compiler is.")
def bridge(output: Path, cache: Path | None) -> None:
    """Build only the library between TVM and the Arm Compute Library; compiled bundles contain it."""
    with user_errors():
        from sonic_convert.compilation.bridge_build import build_bridge
        from sonic_convert.compilation.toolchain import find_compiler

        build_bridge(output, find_compiler(cache))
        click.echo(f"{output}: {output.stat().st_size / 1e6:.2f} MB")


COMMANDS = (bridge, compile, sysroot)
