"""What the aarch64 test bed is made from, without making it: mirrors, folders, command lines, errors."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from sonic.errors import InputError
from sonic.progress import NoProgress
from sonic_convert.testbed import debian_packages, sysroot
from sonic_convert.testbed.debian_packages import Mirror, PackageSet, find_mirror, finish, is_unpacked, start
from sonic_convert.testbed.sysroot import Sysroot, default_cache, emulated, make_sysroot

DEB822 = """\
Types: deb
URIs: http://vendor.example/tools
Suites: stable-tools
Components: main

# Debian
Types: deb deb-src
URIs: http://mirror.example/debian
  http://second.example/debian
Suites: bookworm bookworm-updates
# inside
Components: main contrib
Signed-By: {keyring}
"""


@pytest.fixture
def keyring(tmp_path: Path) -> Path:
    path = tmp_path / "keyring.gpg"
    path.write_bytes(b"keys")
    return path


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    return tmp_path / "apt"


@pytest.fixture
def made(tmp_path: Path) -> Sysroot:
    return Sysroot(
        tmp_path, tmp_path / "root", tmp_path / "site", tmp_path / "root/usr/bin/python3.13", ("qemu",),
        ("loader", "old-qemu"), ("g++",),
    )  # fmt: skip


def test_mirror_of_a_deb822_source(apt: Path, keyring: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(DEB822.format(keyring=keyring))
    assert find_mirror(apt, {}, [Path("/nowhere")]) == Mirror("http://mirror.example/debian", keyring)


@pytest.mark.parametrize(
    ("line", "uri"),
    [
        ("deb http://mirror.example/debian trixie main", "http://mirror.example/debian"),
        ("deb [arch=amd64 signed-by={keyring}] https://m.example/d/ stable main contrib # ours",
         "https://m.example/d/"),
        ("deb\t[ trusted=yes ]  mirror+file:/etc/mirrors  bookworm  main", "mirror+file:/etc/mirrors"),
    ],
)  # fmt: skip
def test_mirror_of_a_one_line_source(apt: Path, keyring: Path, line: str, uri: str) -> None:
    others = "# deb http://old.example/debian trixie main\ndeb-src http://source.example/debian trixie main\n"
    (apt / "sources.list").write_text(others + line.format(keyring=keyring) + "\n")
    assert find_mirror(apt, {}, [keyring]) == Mirror(uri, keyring)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "deb http://vendor.example/tools nodistro main",
        "deb http://security.example/debian-security bookworm-security main",
        "deb http://mirror.example/debian bookworm contrib",
        "deb http://archive.example/ubuntu noble main",
        "deb cdrom:[Debian]/ bookworm main",
        "nonsense",
    ],
)
def test_what_is_no_mirror_of_debian(apt: Path, keyring: Path, source: str) -> None:
    (apt / "sources.list").write_text(source + "\n")
    disabled = DEB822.format(keyring=keyring) + "Enabled: no\n"
    (apt / "sources.list.d/off.sources").write_text(disabled)
    (apt / "sources.list.d/debian.sources.bak").write_text(DEB822)
    with pytest.raises(InputError, match="no source in .* is a mirror of Debian.*SONIC_DEBIAN_MIRROR"):
        find_mirror(apt, {}, [keyring])


def test_a_named_mirror_goes_before_those_of_the_machine(apt: Path, keyring: Path) -> None:
    (apt / "sources.list").write_text("deb http://mirror.example/debian trixie main\n")
    named = {"SONIC_DEBIAN_MIRROR": "https://named.example/debian"}
    assert find_mirror(apt, named, [keyring]).uri == "https://named.example/debian"
    for wrong in ("named.example", "https://a.example/debian trixie", "https://a.example/\nSigned-By: x"):
        with pytest.raises(InputError, match="the address of a Debian mirror is needed"):
            find_mirror(apt, {"SONIC_DEBIAN_MIRROR": wrong}, [keyring])


def test_missing_keys_are_named(apt: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="debian-archive-keyring"):
        find_mirror(apt, {"SONIC_DEBIAN_MIRROR": "https://named.example/debian"}, [tmp_path / "none.gpg"])


def test_a_machine_without_apt_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="'apt-get' is not on PATH; Debian, Ubuntu or a relative is needed"):
        make_sysroot(tmp_path / "cache", NoProgress())


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a:b"])
def test_folders_that_the_tools_cannot_take(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="choose another"):
        make_sysroot(tmp_path / name, NoProgress())


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"):
        make_sysroot(tmp_path / "file/cache", NoProgress())


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    from sonic_convert.cli.target import sysroot as command

    result = CliRunner().invoke(command, ["--cache", str(tmp_path / "a,b")])
    assert result.exit_code == 2 and "choose another" in result.output


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SONIC_SYSROOT", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "sonic-arm/sysroot"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache/sonic-arm/sysroot"
    monkeypatch.setenv("SONIC_SYSROOT", "elsewhere")
    assert default_cache() == Path.cwd() / "elsewhere"


def test_a_folder_is_complete_only_with_its_digest(tmp_path: Path) -> None:
    folder = tmp_path / "root"
    (start(folder) / "left over").touch()
    partial = start(folder)
    assert not list(partial.iterdir()) and not is_unpacked(folder, "digest")
    finish(partial, folder, "digest")
    assert is_unpacked(folder, "digest") and not is_unpacked(folder, "other")
    (start(folder) / "new").touch()
    assert is_unpacked(folder, "digest")  # until the new one is complete


def test_what_is_unpacked_decides_the_digest() -> None:
    wanted = PackageSet("root", "trixie", "arm64", ("python3",))
    assert wanted.digest == PackageSet("other name", "trixie", "arm64", ("python3",)).digest
    others = [
        PackageSet("root", "bookworm", "arm64", ("python3",)),
        PackageSet("root", "trixie", "arm64", ("python3", "libc6-dev")),
        PackageSet("root", "trixie", "arm64", ("python3",), without=("libc6",)),
        PackageSet("root", "trixie", "arm64", ("python3",), only="usr/bin/python3"),
    ]
    assert len({wanted.digest, *(other.digest for other in others)}) == 5


def test_a_complete_folder_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = PackageSet("root", "trixie", "arm64", ("python3",))
    finish(start(tmp_path / "root"), tmp_path / "root", wanted.digest)
    monkeypatch.setattr(debian_packages, "find_mirror", lambda: pytest.fail("asked for a mirror"))
    assert debian_packages.unpack(wanted, tmp_path, NoProgress()) == tmp_path / "root"


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is not on PATH")
def test_a_download_that_fails_is_told_in_one_sentence(
    tmp_path: Path, keyring: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian_packages, "find_mirror", lambda: Mirror(f"file:{tmp_path}/debian", keyring))
    with pytest.raises(InputError, match="apt cannot get python3 of Debian trixie .*; check the network"):
        debian_packages.unpack(PackageSet("r", "trixie", "arm64", ("python3",)), tmp_path, NoProgress())
    assert not (tmp_path / "r").exists()


def test_command_line_of_an_emulated_program(made: Sysroot, tmp_path: Path) -> None:
    command = emulated(made, [made.python, "-c", "print('a,b')"])
    assert command[:5] == ["qemu", "-L", str(made.root), "-cpu", "neoverse-n1"]
    assert command[-3:] == [str(made.python), "-c", "print('a,b')"]
    assert f"PYTHONPATH={made.site}" in command and "-plugin" not in command
    assert all(command[command.index(name) - 1] == "-U" for name in ("LD_PRELOAD", "PYTHONHOME"))


def test_options_of_an_emulated_program(made: Sysroot) -> None:
    environment = {"PYTHONPATH": "/runtime", "PYTHONPYCACHEPREFIX": "/bytecode", "NAME": "value"}
    command = emulated(made, ["program"], "cortex-a53", 3, environment, "count.so,output=x")
    assert command[:2] == ["loader", "old-qemu"]
    assert command[command.index("-cpu") + 1] == "cortex-a53"
    assert command[command.index("-plugin") + 1] == "count.so,output=x"
    variables = {command[i + 1] for i, word in enumerate(command) if word == "-E"}
    assert variables == {
        f"PYTHONPATH=/runtime{os.pathsep}{made.site}", "PYTHONPYCACHEPREFIX=/bytecode", "NAME=value",
        "OMP_NUM_THREADS=3", "OPENBLAS_NUM_THREADS=3", "SONIC_SANDBOX=0",
    }  # fmt: skip
    assert environment["PYTHONPATH"] == "/runtime"
    with pytest.raises(InputError, match="NAME is 'a,b', but qemu cannot take a comma"):
        emulated(made, ["program"], environment={"NAME": "a,b"})


@pytest.mark.parametrize(
    ("told", "version"),
    [
        ("qemu-aarch64 version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)", (10, 0)),
        ("qemu-aarch64 version 7.2.22 (Debian 1:7.2+dfsg-7)", (7, 2)),
        ("something else", (0, 0)),
    ],
)
def test_version_of_an_emulator(told: str, version: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, told + "\nCopyright", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert sysroot._emulator_version("qemu") == version


def test_the_runtimes_requirements_are_read() -> None:
    names = {requirement.partition(">")[0] for requirement in sysroot._requirements()}
    assert {"numpy", "onnxruntime", "av"} <= names
