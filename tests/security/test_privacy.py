"""Nothing leaves the machine: no connection and no look-up of names, and a home that stays empty."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from security.measured import without_network

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "convert/sonic_convert/assets"
CLIP = (
    "--bundle=sonic-tiny", f"--image={ASSETS / 'portrait.png'}", f"--audio={ASSETS / 'speech.wav'}",
    "--speed=fastest", "--resolution=64", "--duration=0.5",
)  # fmt: skip

# What programs open to look up a host's name. /etc/nsswitch.conf and /etc/passwd are not among them: they
# are read to find the user's name as well, for instance by torch for the name of its cache.
LOOKUPS = re.compile(r'"/etc/(resolv\.conf|hosts|host\.conf|gai\.conf|services)"')
INTERNET = re.compile(r"\b(connect|sendto|sendmsg|sendmmsg)\(.*(AF_INET|sin6?_port)|socket\(AF_NETLINK")


@cache
def can_trace() -> bool:
    """Whether strace is there, and may trace."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode == 0


def traced(arguments: list[str], folder: Path) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run a command without a network interface, under strace, with an empty home; returns the trace too."""
    if not can_trace() or not without_network():
        pytest.skip("strace and network namespaces are needed")
    home, trace = folder / "home", folder / "trace"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_", "HF_"))}
    done = subprocess.run(
        [
            *without_network(), "strace", "--follow-forks", "--seccomp-bpf", "--quiet=all",
            "--trace=network,open,openat",
            f"--output={trace}", *arguments,
        ],
        env=environment | {"HOME": str(home), "TMPDIR": str(folder)},
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    return done, trace.read_text(errors="replace")


# Every package and the modules that import ONNX Runtime, first in a process of their own.
IMPORTS = [
    "sonic", "sonic.cli.main", "sonic.engines.onnx", "sonic.jobs.runner",
    "sonic_calibration.graphs.segments", "sonic_calibration.quality.identity",
    "sonic_convert.bench.run_calls", "sonic_convert.cli.main", "sonic_convert.conversion",
    "sonic_convert.export.stages", "sonic_convert.quantization.half", "sonic_convert.quantization.qdq",
    "sonic_training.mouth",
]  # fmt: skip

COMMANDS = {
    "import": ["-c", "import sonic, onnxruntime, time; sonic.load_model('sonic-tiny'); time.sleep(1)"],
    "generate": ["-m", "sonic", "generate", *CLIP, "--output=video.mp4"],
    "generate.py": [str(ROOT / "generate.py"), *CLIP, "--output=video.mp4"],
    "example": [
        str(ROOT / "examples/generate_video.py"), str(ASSETS / "portrait.png"), str(ASSETS / "speech.wav"),
        "video.mp4", "--bundle=sonic-tiny", "--steps=1",
    ],
    "convert": ["-m", "sonic_convert", "convert", "sonic-tiny", "bundle"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_leaves_the_machine(name: str, tmp_path: Path) -> None:
    done, trace = traced([sys.executable, *COMMANDS[name]], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "openat" in trace  # the tracer saw something
    assert [line for line in trace.splitlines() if INTERNET.search(line) or LOOKUPS.search(line)] == []
    assert list((tmp_path / "home").rglob("*")) == []


def test_the_tracer_sees_a_look_up(tmp_path: Path) -> None:
    code = "import socket\ntry: socket.create_connection(('example.org', 80))\nexcept OSError: pass"
    done, trace = traced([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert INTERNET.search(trace) and LOOKUPS.search(trace)


@pytest.mark.parametrize("module", IMPORTS)
def test_telemetry_is_off_before_onnxruntime_is_imported(module: str) -> None:
    """Whichever module a program imports first."""
    code = f"""
import os, sys

class Watch:
    def find_spec(self, name, path, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
import {module}
if "onnxruntime" not in sys.modules:
    import onnxruntime
"""
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1"], done.stdout + done.stderr


def test_every_module_that_imports_onnxruntime_is_watched() -> None:
    """All packages import `sonic` first; programs beside them have to do it themselves."""
    for package in ("calibration/sonic_calibration", "convert/sonic_convert", "training/sonic_training"):
        source = (ROOT / package / "__init__.py").read_text()
        assert re.search(r"^(import sonic|from sonic import)\b", source, re.M), package
    for path in [*ROOT.glob("examples/*.py"), ROOT / "generate.py"]:
        names = re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.M)
        assert "onnxruntime" not in names[: names.index("sonic")], path
