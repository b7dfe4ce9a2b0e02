"""Commands run as any user, without a home, on a system of which nothing can be written but one folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ASSETS = Path(__file__).parents[2] / "convert/sonic_convert/assets"

# In a mount namespace of its own: all file systems read-only, an empty /tmp in memory, one folder that can be
# written; then another user, without HOME. The folder is opened to that user before.
_SCRIPT = """
set -e
mount --make-rprivate /
out=$1; shift
mount --bind "$out" "$out"
while read -r _ place _; do
    case "$place" in
        "$out"|/proc*|/dev*|/sys*) ;;
        *) mount -o remount,bind,ro "$place" 2>/dev/null || true ;;
    esac
done < /proc/self/mounts
if touch /read-only-test 2>/dev/null; then rm /read-only-test; echo "the root can be written" >&2; exit 99; fi
exec setpriv $as env -u HOME -u USER -u TMPDIR "$@"
"""
_USER = "--reuid=12345 --regid=12345 --clear-groups"
# Where the interpreter is in a folder of root's, the user may read everything; write, still nothing.
_READER = f"{_USER} --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"


def user_who_can_start(command: list[str]) -> str | None:
    """The options of setpriv with which a command starts as another user; None if it does not."""
    for options in (_USER, _READER):
        if (
            subprocess.run(["setpriv", *options.split(), "env", *command], capture_output=True).returncode
            == 0
        ):
            return options
    return None


def test_a_read_only_root_and_a_user_without_a_name(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("only root can make the system read-only")
    allowed = ["unshare", "--mount", "sh", "-c", "mount --make-rprivate / && mount --bind /mnt /mnt"]
    if subprocess.run(allowed, capture_output=True).returncode:
        pytest.skip("mounts are not allowed here")
    user = user_who_can_start([sys.executable, "-c", "import sonic"])
    if user is None:
        pytest.skip("another user cannot start the interpreter")
    out = Path(os.path.realpath("/var/tmp")) / f"sonic-read-only-{os.getpid()}"
    out.mkdir(mode=0o700)
    os.chown(out, 12345, 12345)
    try:
        command = [
            sys.executable, "-m", "sonic", "generate", "--bundle=sonic-tiny",
            f"--image={ASSETS / 'portrait.png'}", f"--audio={ASSETS / 'speech.wav'}",
            f"--output={out / 'video.mp4'}", "--speed=fastest", "--resolution=64", "--duration=0.5",
        ]  # fmt: skip
        done = subprocess.run(
            ["unshare", "--mount", "--net", "sh", "-c", _SCRIPT, "sh", str(out), *command],
            capture_output=True, text=True, cwd="/", env=os.environ | {"as": user},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert [path.name for path in out.iterdir()] == ["video.mp4"]
        assert (out / "video.mp4").stat().st_uid == 12345
    finally:
        shutil.rmtree(out)
