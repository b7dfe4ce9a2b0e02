"""Hostile jobs files, reports, noise and machines, and outputs that are inputs."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from security.hostile import HostileInput

ASSETS = Path(__file__).parents[2] / "convert/sonic_convert/assets"
Write = Callable[[Path], object]


def good_inputs(folder: Path) -> None:
    for name in ("portrait.png", "speech.wav"):
        (folder / name).write_bytes((ASSETS / name).read_bytes())


def job(**values: object) -> str:
    line = {"image": "portrait.png", "audio": "speech.wav", "output": "video.mp4"} | values
    return json.dumps(line)


def batch(write: Write, *options: str) -> Callable[[Path], Sequence[str]]:
    """`sonic batch`, with a jobs file that a function writes; "{}" in an option is the folder."""

    def command(folder: Path) -> list[str]:
        good_inputs(folder)
        write(folder / "jobs.jsonl")
        placed = [option.format(folder) for option in options]
        return ["sonic", "batch", str(folder / "jobs.jsonl"), "--bundle=sonic-tiny", *placed]

    return command


def generate(write: Write, *options: str) -> Callable[[Path], Sequence[str]]:
    """`sonic generate`, with noise that a function writes."""

    def command(folder: Path) -> list[str]:
        good_inputs(folder)
        write(folder / "noise.npy")
        given = {"image": "portrait.png", "audio": "speech.wav", "output": "video.mp4"}
        arguments = [f"--{name}={folder / value}" for name, value in given.items()]
        placed = [option.format(folder) for option in options]
        return ["sonic", "generate", "--bundle=sonic-tiny", *arguments, *placed]

    return command


def with_noise(write: Write) -> Callable[[Path], Sequence[str]]:
    return generate(write, "--noise={}/noise.npy", "--resolution=64", "--duration=0.5")


def machine(write: Write) -> Callable[[Path], Sequence[str]]:
    def command(folder: Path) -> list[str]:
        write(folder / "machine.json")
        return ["sonic", "estimate", "sonic-tiny", f"--machine={folder / 'machine.json'}"]

    return command


def text(content: str | bytes) -> Write:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def huge(path: Path) -> None:
    """A gigabyte that takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(1 << 30)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def npy(header: str, values: bytes = b"") -> Write:
    encoded = header.encode() + b"\n"
    return text(b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded + values)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("noise.npy", bytes(100_000_000))


def one_good_job_and_a_pipe(path: Path) -> None:
    text(job())(path)
    os.mkfifo(path.with_name("report.jsonl"))


def pickled(path: Path) -> None:
    array = np.array([{"a": 1}], dtype=object)
    np.save(path, array, allow_pickle=True)


def machine_with(**values: object) -> str:
    good = {"name": "m", "cores": 4, "gigahertz": 2.0, "flop_per_cycle": 16, "memory_gigabytes": 8.0}
    return json.dumps(good | {"watts": 10.0} | values)


ROWS = [
    HostileInput("a jobs file that is a pipe", "jobs", batch(os.mkfifo), "named pipe, not a regular file"),
    HostileInput("a jobs file that is /dev/zero", "jobs", batch(zeros), "device, not a regular file"),
    HostileInput("a jobs file of 1 GB", "jobs", batch(huge), "larger than 16,777,216 bytes"),
    HostileInput(
        "a job nested 100,000 levels deep", "jobs", batch(text("[" * 100_000)), "line 1: .*nested deeper"
    ),
    HostileInput(
        "a job with Infinity as its seed",
        "jobs",
        batch(text(job(seed=float("inf")))),
        "Infinity is no JSON number",
    ),
    HostileInput(
        "a job with a seed of 10,000 digits",
        "jobs",
        batch(text(job()[:-1] + ', "seed": ' + "9" * 10_000 + "}")),
        "line 1: ",
    ),
    HostileInput(
        "a job whose duration is an integer beyond all floats",
        "jobs",
        batch(text(job()[:-1] + ', "duration": ' + "9" * 400 + "}")),
        "duration",
    ),
    HostileInput(
        "a job whose output is its portrait, by another path",
        "jobs",
        batch(
            lambda path: (
                path.with_name("portrait.mp4").symlink_to("portrait.png"),
                text(job(output="./portrait.mp4"))(path),
            )
        ),
        "would replace the input .*portrait.png",
    ),
    HostileInput(
        "two jobs with one output, through a linked folder",
        "jobs",
        batch(
            lambda path: (
                path.with_name("link").symlink_to("."),
                text(job() + "\n" + job(output="link/video.mp4"))(path),
            )
        ),
        "is that of line 1 too",
    ),
    HostileInput(
        "a report that is a pipe",
        "output",
        batch(one_good_job_and_a_pipe, "--report={}/report.jsonl"),
        "report.jsonl: the report cannot be continued",
    ),
    HostileInput(
        "a report that is the jobs file",
        "output",
        batch(text(job()), "--report={}/jobs.jsonl"),
        "would replace the input .*jobs.jsonl",
    ),
    HostileInput("noise that is a pipe", "option", with_noise(os.mkfifo), "named pipe"),
    HostileInput("noise that is /dev/zero", "option", with_noise(zeros), "device"),
    HostileInput(
        "noise whose header announces 2^60 values",
        "option",
        with_noise(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,)}")),
        "it is cut short",
    ),
    HostileInput(
        "noise whose header is 60,000 opening brackets", "option", with_noise(npy("(" * 60_000)), "npy file"
    ),
    HostileInput("noise that holds pickled objects", "option", with_noise(pickled), "its values are object"),
    HostileInput("noise that is an archive of 100 MB of zeros", "option", with_noise(archive), "archive"),
    HostileInput(
        "noise that the dump would replace",
        "output",
        generate(
            lambda path: np.save(path.with_name("latents.npy"), np.zeros(3, np.float32)),
            "--noise={}/latents.npy",
            "--dump={}",
        ),
        "would replace the input .*latents.npy",
    ),
    HostileInput(
        "a name with a line break and a terminal's command",
        "option",
        generate(text(""), "--noise={}/\n\x1b[2J[/bold]\udcff.npy"),
        r"\\n\\x1b\[2J\[/bold\]\\udcff.npy does not exist",
    ),
    HostileInput(
        "a virus scanner that does not answer",
        "option",
        generate(text(""), "--scan=unix:///nonexistent/clamd.ctl"),
        "virus scanner at unix:///nonexistent/clamd.ctl cannot be reached",
    ),
    HostileInput(
        "a machine nested 100,000 levels deep", "option", machine(text('{"a":' * 100_000)), "nested deeper"
    ),
    HostileInput(
        "a machine with Infinity cores",
        "option",
        machine(text(machine_with(cores=float("inf")))),
        "Infinity is no JSON number",
    ),
    HostileInput(
        "a machine with 10^300 cores", "option", machine(text(machine_with(cores=10**300))), "'cores'"
    ),
    HostileInput("a machine that is a pipe", "option", machine(os.mkfifo), "no machine"),
]
