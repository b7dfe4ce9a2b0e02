"""Debian packages of any release and architecture, unpacked into a folder without root.

apt itself resolves dependencies, downloads and verifies signatures, with a separate configuration that
pretends that nothing is installed; ``dpkg-deb`` unpacks. Packages' scripts never run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sonic.errors import InputError
from sonic.progress import Progress

_SUITES = {"bullseye", "bookworm", "trixie", "forky", "sid", "oldoldstable", "oldstable", "stable", "testing",
           "unstable"}  # fmt: skip
_KEYRINGS = [Path(f"/usr/share/keyrings/debian-archive-keyring.{suffix}") for suffix in ("gpg", "pgp")]
_URI = re.compile(r"(https?|file|copy|mirror(\+[a-z]+)?):/\S+")
_STAMP = ".stamp"
_HELP = "$SONIC_DEBIAN_MIRROR may name one"


@dataclass(frozen=True)
class Mirror:
    """Where Debian's packages come from.

    Attributes:
        uri: as in apt's list of sources.
        keyring: the keys that its releases are signed with.
    """

    uri: str
    keyring: Path


@dataclass(frozen=True)
class PackageSet:
    """Packages that are unpacked into one folder, with everything that they depend on.

    Attributes:
        name: of the folder.
        suite: Debian's release, by code name.
        architecture: Debian's name of it, such as "arm64".
        packages: their names.
        without: packages among them that are left out.
        only: the one file that is unpacked, as a path inside the folder; None for all.
    """

    name: str
    suite: str
    architecture: str
    packages: tuple[str, ...]
    without: tuple[str, ...] = ()
    only: str | None = None

    @property
    def digest(self) -> str:
        """Of everything that decides what the folder holds, except for the packages' versions."""
        described = json.dumps([self.suite, self.architecture, self.packages, self.without, self.only])
        return hashlib.sha256(described.encode()).hexdigest()


def find_mirror(
    apt_folder: Path = Path("/etc/apt"),
    environment: Mapping[str, str] = os.environ,
    keyrings: Sequence[Path] = (),
) -> Mirror:
    """The mirror of Debian that this machine uses, or the one that $SONIC_DEBIAN_MIRROR names.

    Args:
        apt_folder: has `sources.list` and `sources.list.d`.
        environment: of the process.
        keyrings: where Debian's keys may be, best first; the usual places by default.

    Raises:
        InputError: there is none, or the keys are missing.
    """
    uri, signed_by = environment.get("SONIC_DEBIAN_MIRROR", ""), None
    if uri and not _URI.fullmatch(uri):
        raise InputError(f"SONIC_DEBIAN_MIRROR is '{uri}', but the address of a Debian mirror is needed")
    if not uri:
        found = next(_sources(apt_folder), None)
        if found is None:
            raise InputError(f"no source in {apt_folder} is a mirror of Debian; {_HELP}")
        uri, signed_by = found
    candidates = [*(keyrings or _KEYRINGS), *([signed_by] if signed_by else [])]
    keyring = next((path for path in candidates if path.is_file()), None)
    if keyring is None:
        raise InputError(f"{candidates[0]} is missing; install the package debian-archive-keyring")
    return Mirror(uri, keyring)


def host_architecture() -> str:
    """Debian's name of this machine's architecture.

    Raises:
        InputError: apt or dpkg is missing.
    """
    for tool in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise InputError(f"'{tool}' is not on PATH; Debian, Ubuntu or a relative is needed")
    return _run(["dpkg", "--print-architecture"], "dpkg does not run").strip()


def is_unpacked(folder: Path, digest: str) -> bool:
    """Whether the folder is complete and of this digest."""
    try:
        return (folder / _STAMP).read_text() == digest
    except OSError:
        return False


def finish(partial: Path, folder: Path, digest: str) -> None:
    """Move a complete folder to its place, with the digest of what it was made from."""
    (partial / _STAMP).write_text(digest)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def start(folder: Path) -> Path:
    """An empty folder beside `folder`, to be filled and given to :func:`finish`."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def unpack(wanted: PackageSet, cache: Path, progress: Progress) -> Path:
    """The folder `cache/name` with the packages unpacked; nothing is done where it is complete.

    Downloads stay in `cache` until the folder is complete, so that an interrupted run resumes from them.

    Raises:
        InputError: there is no mirror, it does not have a package, or a download fails.
    """
    folder = cache / wanted.name
    if is_unpacked(folder, wanted.digest):
        return folder
    apt = _Apt(cache / f"{wanted.name}.apt", wanted, find_mirror())
    with progress.stage(f"{wanted.name}: lists of packages", 1) as advance:
        apt.update()
        advance()
    archives = apt.download(progress)
    with progress.stage(f"{wanted.name}: unpacking", len(archives)) as advance:
        partial = start(folder)
        if wanted.only is None:
            # The links of base-files first: a package that still has files in /lib would make it a folder.
            for name in ("bin", "lib", "sbin"):
                (partial / "usr" / name).mkdir(parents=True)
                (partial / name).symlink_to(f"usr/{name}")
        for archive in archives:
            if archive.name.split("_")[0] not in wanted.without:
                _unpack(archive, partial, wanted.only)
            advance()
        if wanted.only is not None and not (partial / wanted.only).is_file():
            raise InputError(f"{' '.join(wanted.packages)} of {wanted.suite} has no {wanted.only}")
        finish(partial, folder, wanted.digest)
    shutil.rmtree(apt.folder)
    return folder


class _Apt:
    """apt for one set of packages, with its state in a folder and nothing installed."""

    def __init__(self, folder: Path, wanted: PackageSet, mirror: Mirror) -> None:
        self.folder = folder
        self.wanted = wanted
        # With "file:", apt would use the packages where they are, without copying them.
        uri = re.sub(r"^file:", "copy:", mirror.uri)
        for name in ("lists/partial", "archives/partial", "none/partial", "empty"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        (folder / "debian.sources").write_text(
            f"Types: deb\nURIs: {uri}\nSuites: {wanted.suite}\nComponents: main\n"
            f"Architectures: {wanted.architecture}\nSigned-By: {mirror.keyring}\n"
        )
        settings = {
            "Dir": folder,
            "Dir::State": folder,
            "Dir::State::status": folder / "status",
            "Dir::State::lists": folder / "lists",
            "Dir::Cache": folder,
            "Dir::Cache::archives": folder / "archives",
            "Dir::Etc": folder / "empty",
            "Dir::Etc::main": "none",
            "Dir::Etc::parts": folder / "empty",
            "Dir::Etc::preferencesparts": folder / "empty",
            "Dir::Etc::sourcelist": folder / "debian.sources",
            "Dir::Etc::sourceparts": folder / "empty",
            "APT::Architecture": wanted.architecture,
            "APT::Architectures": wanted.architecture,
            "APT::Install-Recommends": "false",
            # As root, apt would download as a user who may not read this folder.
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Debug::NoLocking": "true",
        }
        lines = [*_host_acquisition(), *(f'{name} "{value}";' for name, value in settings.items())]
        (folder / "apt.conf").write_text("\n".join(lines) + "\n")

    def update(self) -> None:
        """Download the lists of packages and verify them."""
        # Without this, apt falls back on old lists where it gets no new ones, and reports success.
        self._get("-o", "APT::Update::Error-Mode=any", "update")

    def download(self, progress: Progress) -> list[Path]:
        """Download the packages with their dependencies; returns the archives in apt's order."""
        install = ["--yes", "--no-install-recommends", "install", *self.wanted.packages]
        # With an empty cache, or archives that are there already would not be listed.
        empty = f"Dir::Cache::archives={self.folder / 'none'}"
        listed = self._get("-q", "-o", empty, "--print-uris", *install)
        # Lines of 'URI' name bytes digest.
        names = [line.split()[1] for line in listed.splitlines() if line.startswith("'")]
        with progress.stage(f"{self.wanted.name}: downloading", len(names)) as advance:
            for line in self._lines("-q", "--download-only", *install):
                if line.startswith("Get:"):
                    advance()
        return [self.folder / "archives" / name for name in names]

    def _get(self, *arguments: str) -> str:
        return "\n".join(self._lines(*arguments))

    def _lines(self, *arguments: str) -> Iterator[str]:
        environment = os.environ | {"APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C"}
        with (self.folder / "errors").open("w+") as errors:
            process = subprocess.Popen(
                ["apt-get", *arguments], stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL,
                text=True, env=environment,
            )  # fmt: skip
            with process:
                assert process.stdout is not None
                try:
                    for line in process.stdout:
                        yield line.rstrip("\n")
                except BaseException:  # interrupted: the next run needs the folder's locks
                    process.terminate()
                    raise
            if process.returncode != 0:
                errors.seek(0)
                reasons = [line[2:].strip() for line in errors.read().splitlines() if line.startswith("E:")]
                raise InputError(
                    f"apt cannot get {' '.join(self.wanted.packages)} of Debian {self.wanted.suite} "
                    f"({reasons[0] if reasons else 'no reason given'}); check the network and the mirror "
                    f"({_HELP})"
                )


def _host_acquisition() -> list[str]:
    """How this machine's apt downloads: proxies, certificates, retries; as lines of a configuration."""
    dumped = _run(["apt-config", "dump"], "apt-config does not run").splitlines()
    left_out = ("Acquire::IndexTargets", "Acquire::Languages")  # what is downloaded, not how
    return [line for line in dumped if line.startswith("Acquire::") and not line.startswith(left_out)]


def _unpack(archive: Path, folder: Path, only: str | None) -> None:
    problem = f"{archive.name} cannot be unpacked"
    if only is None:
        _run(["dpkg-deb", "--extract", str(archive), str(folder)], problem)
        return
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archived:
            for member in archived:
                content = archived.extractfile(member) if member.name.removeprefix("./") == only else None
                if content is not None:
                    path = folder / only
                    path.parent.mkdir(parents=True)
                    with path.open("wb") as file:
                        shutil.copyfileobj(content, file)
                    path.chmod(member.mode)
    if process.returncode != 0:
        raise InputError(f"{problem}; is the disk full?")


def _run(command: Sequence[str], problem: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"{problem} ({error.strerror})") from error
    if done.returncode != 0:
        reasons = done.stderr.strip().splitlines() or ["no reason given"]
        raise InputError(f"{problem} ({reasons[-1]})")
    return done.stdout


def _sources(apt_folder: Path) -> Iterator[tuple[str, Path | None]]:
    """URIs of Debian's mirrors and the keyrings that the sources name, in apt's order."""
    parts = sorted((apt_folder / "sources.list.d").glob("*"))
    for path in [apt_folder / "sources.list", *parts]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            yield from _one_line_sources(text)
        elif path.suffix == ".sources":
            yield from _deb822_sources(text)


def _one_line_sources(text: str) -> Iterator[tuple[str, Path | None]]:
    """From lines such as: deb [signed-by=KEYRING] URI SUITE COMPONENT ..."""
    for line in text.splitlines():
        match = re.fullmatch(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)", line.partition("#")[0].strip())
        if match is None:
            continue
        options, uri, suite, components = match.groups()
        keyring = re.search(r"\bsigned-by=(/[^\s,]+)", options or "")
        if suite in _SUITES and "main" in components.split() and _URI.fullmatch(uri):
            yield uri, Path(keyring[1]) if keyring else None


def _deb822_sources(text: str) -> Iterator[tuple[str, Path | None]]:
    """From paragraphs such as: Types: deb, URIs: URI ..., Suites: SUITE ..., Components: main."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, list[str]] = {}
        values: list[str] = []
        for line in paragraph.splitlines():
            if not line[:1].isspace():
                name, _, line = line.partition(":")
                values = fields.setdefault(name.strip().lower(), [])
            values += line.split()
        if (
            "deb" not in fields.get("types", [])
            or fields.get("enabled", ["yes"])[0].lower() in ("no", "false", "0")
            or "main" not in fields.get("components", [])
            or not _SUITES & set(fields.get("suites", []))
        ):
            continue
        keyring = next((Path(word) for word in fields.get("signed-by", []) if word.startswith("/")), None)
        for uri in fields.get("uris", []):
            if _URI.fullmatch(uri):
                yield uri, keyring
