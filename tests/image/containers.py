"""Building and running images without an engine or a service: buildah and podman in a user namespace.

The namespace has its own binfmt_misc, where an emulator of aarch64 is registered (Linux 6.7 or newer).
Nothing changes on this machine, and everything is gone when the command ends.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sonic.errors import InputError

TOOLS = ("buildah", "podman", "crun", "unshare")
# The header of ELF for aarch64, of programs (2) and of position-independent ones (3).
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
# F: the emulator is opened now, and found in every root folder.
_BINFMT = "/proc/sys/fs/binfmt_misc"
_EMULATE = (
    f"mount -t binfmt_misc none {_BINFMT} "
    "|| { echo 'Linux 6.7 or newer is needed to emulate aarch64' >&2; exit 1; }; "
    f"printf '%s' ':aarch64:M::{_MAGIC}:{_MASK}:'\"$1\"':F' > {_BINFMT}/register || exit 1; "
)
# crun refuses machines that have both versions of control groups; here it needs neither.
_ENTER = 'mount -t tmpfs none /sys/fs/cgroup; shift; exec "$@"'
# No service of the machine takes part: no systemd, no journal, no network.
_CONFIGURATION = """\
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
"""


@dataclass(frozen=True)
class Containers:
    """A store of images in a folder.

    Attributes:
        folder: holds everything.
        emulator: a static emulator of aarch64; None where the machine is one.
    """

    folder: Path
    emulator: Path | None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self) -> None:
        for program in TOOLS:
            if shutil.which(program) is None:
                raise InputError(f"'{program}' is not on PATH; install it")
        (self.folder / "containers.conf").write_text(_CONFIGURATION)

    def remove(self) -> None:
        """Remove the store, whose files may belong to other users of the namespace."""
        self._run(["rm", "-rf", str(self.folder)])

    def build(self, context: Path, tag: str, architecture: str, *more: str) -> None:
        """Build an image with buildah, in Docker's format, which has health checks."""
        self.check(
            "buildah", "build", "--isolation=chroot", "--format=docker", f"--platform=linux/{architecture}",
            "--pull-never", "--network=host", "--timestamp=0", f"--tag={tag}", *more, str(context),
        )  # fmt: skip

    def configuration(self, tag: str) -> dict[str, Any]:
        """An image's user, environment, command, health check and labels."""
        found: dict[str, Any] = self._inspect(tag)["Docker"]
        return found["config"] | {"Architecture": found["architecture"]}

    def layers(self, tag: str) -> list[str]:
        """The digests of an image's layers."""
        found: list[str] = self._inspect(tag)["OCIv1"]["rootfs"]["diff_ids"]
        return found

    def size_megabytes(self, tag: str) -> float:
        """What an image takes when it is unpacked, with its base."""
        listed = self.check("podman", "image", "inspect", "--format={{.Size}}", tag)
        return int(listed) / 1e6

    def run_command(
        self, tag: str, architecture: str, *command: str, volumes: Sequence[str] = (), user: str | None = None
    ) -> list[str]:
        """The command that runs a container as the guide says: read-only, without rights and without network.

        Args:
            tag: the image.
            architecture: its architecture.
            command: what to run in it; empty for the image's own.
            volumes: as for ``podman run --volume``.
            user: numbers as in "12345:12345"; None for the image's user.
        """
        return self._podman(
            "run", "--rm", "--read-only", "--tmpfs=/tmp", "--network=none", "--cap-drop=all",
            "--security-opt=no-new-privileges",
            f"--platform=linux/{architecture}",
            # What needs a service of the machine: control groups, and timers of systemd for the health check.
            "--cgroups=disabled", "--no-healthcheck",
            # Within the limits of the namespace, whatever they are.
            "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096",
            # Vectors of variable length are emulated fifteen times more slowly.
            "--env=QEMU_CPU=neoverse-n1",
            *([f"--user={user}"] if user else []), *(f"--volume={volume}" for volume in volumes),
            tag, *command,
        )  # fmt: skip

    def run(
        self, tag: str, architecture: str, *command: str, volumes: Sequence[str] = (), user: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a container to its end."""
        return self._run(self.run_command(tag, architecture, *command, volumes=volumes, user=user))

    def check(self, program: str, *arguments: str) -> str:
        """Run buildah or podman; returns what it printed."""
        whole = self._podman(*arguments) if program == "podman" else self._buildah(*arguments)
        done = self._run(whole)
        assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
        return done.stdout

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command in a new namespace, with all users of this machine and its own binfmt_misc."""
        script = ("" if self.emulator is None else _EMULATE) + _ENTER
        inner = ["sh", "-c", script, "sh", str(self.emulator), *command]
        environment = {**self.environment, "CONTAINERS_CONF": str(self.folder / "containers.conf")}
        if os.geteuid() != 0:
            entry = ["unshare", "--user", "--map-root-user", "--map-auto", "--mount", *inner]
            return subprocess.Popen(entry, text=True, env=environment, stdin=subprocess.DEVNULL, **options)
        # newuidmap, which unshare uses, has no range for root; but root may write the map. The process waits
        # for it, and starts another program to have root's rights in the namespace.
        wait = ["sh", "-c", 'read -r _; exec "$@" < /dev/null', "sh", *inner]
        process = subprocess.Popen(
            ["unshare", "--user", "--mount", *wait],
            text=True,
            env=environment,
            stdin=subprocess.PIPE,
            **options,
        )
        assert process.stdin is not None
        _wait_for_namespace(process)
        for name in ("uid_map", "gid_map"):
            ranges = [line.split() for line in Path(f"/proc/self/{name}").read_text().splitlines()]
            # One of all numbers is refused: the last one means "nobody".
            mapped = "".join(f"{first} {first} {min(int(count), 2**32 - 2)}\n" for first, _, count in ranges)
            Path(f"/proc/{process.pid}/{name}").write_text(mapped)
        process.stdin.write("\n")
        process.stdin.close()
        process.stdin = None
        return process

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        process = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process:
            output, errors = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def _inspect(self, tag: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.check("buildah", "inspect", "--type=image", tag))
        return found

    def _store(self) -> list[str]:
        return [
            f"--root={self.folder / 'images'}",
            f"--runroot={self.folder / 'run'}",
            "--storage-driver=overlay",
        ]

    def _buildah(self, *arguments: str) -> list[str]:
        return ["buildah", *self._store(), *arguments]

    def _podman(self, *arguments: str) -> list[str]:
        return ["podman", *self._store(), *arguments]


@dataclass(frozen=True)
class Images:
    """The images of both architectures, and how to build them again.

    Attributes:
        containers: where they are.
        tags: by architecture.
        arguments: what a build took, by architecture.
        native: the architecture of this machine.
    """

    containers: Containers
    tags: dict[str, str]
    arguments: dict[str, list[str]]
    native: str


def _wait_for_namespace(process: subprocess.Popen[str]) -> None:
    """Wait until a process has left this process's user namespace."""
    ours = os.readlink("/proc/self/ns/user")
    while process.poll() is None and os.readlink(f"/proc/{process.pid}/ns/user") == ours:
        os.sched_yield()
