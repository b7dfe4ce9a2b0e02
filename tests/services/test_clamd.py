"""`--scan` with a real clamd, whose signatures are those of EICAR's test file and of a portrait."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sonic.cli.main import main
from sonic.errors import InputError
from sonic.scan import check_scanner, scan_files

pytestmark = pytest.mark.services
ASSETS = Path(__file__).parents[2] / "convert/sonic_convert/assets"
# In two parts, so that no scanner takes this file for the test file itself.
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-" + rb"STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
LIMIT_BYTES = 4 << 20


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good portrait and recording, and one of each that the scanner knows."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("portrait.png", "speech.wav"):
        shutil.copy(ASSETS / name, folder)
    Image.open(folder / "portrait.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "bad.png")
    (folder / "eicar.wav").write_bytes(EICAR)
    (folder / "large.wav").write_bytes(bytes(LIMIT_BYTES + 1))
    return folder


@pytest.fixture(scope="module", params=["unix", "tcp"])
def address(request, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running clamd."""
    program = shutil.which("clamd", path="/usr/sbin:/usr/bin")
    assert program is not None, "install clamav-daemon"
    folder = tmp_path_factory.mktemp("clamd")
    (folder / "db").mkdir()
    signatures = []
    for path, name in ((inputs / "eicar.wav", "Eicar-Test"), (inputs / "bad.png", "Bad-Portrait")):
        content = path.read_bytes()
        signatures.append(f"{hashlib.md5(content).hexdigest()}:{len(content)}:{name}\n")
    (folder / "db/own.hdb").write_text("".join(signatures))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listening = {
        "unix": f"LocalSocket {folder}/clamd.sock",
        "tcp": f"TCPSocket {port}\nTCPAddr 127.0.0.1",
    }[request.param]
    (folder / "clamd.conf").write_text(
        f"DatabaseDirectory {folder}/db\n{listening}\nForeground yes\nLogFile {folder}/log\n"
        f"StreamMaxLength {LIMIT_BYTES}\n"
    )
    process = subprocess.Popen([program, f"--config-file={folder}/clamd.conf"])
    address = {"unix": f"unix://{folder}/clamd.sock", "tcp": f"tcp://127.0.0.1:{port}"}[request.param]
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                check_scanner(address)
                break
            except InputError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def generate(folder: Path, output: Path, address: str, image: str, audio: str) -> Result:
    arguments = {
        "bundle": "sonic-tiny", "image": folder / image, "audio": folder / audio, "output": output,
        "scan": address, "speed": "fastest", "resolution": 64, "duration": 0.5,
    }  # fmt: skip
    return CliRunner().invoke(main, ["generate", *[f"--{name}={value}" for name, value in arguments.items()]])


def test_a_clean_clip_is_generated(inputs: Path, address: str, tmp_path: Path) -> None:
    result = generate(inputs, tmp_path / "video.mp4", address, "portrait.png", "speech.wav")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "video.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("image", "audio", "sentence"),
    [
        (
            "bad.png",
            "speech.wav",
            "bad.png is refused: the virus scanner found Bad-Portrait.UNOFFICIAL",
        ),
        ("portrait.png", "eicar.wav", "eicar.wav is refused: the virus scanner found Eicar-Test.UNOFFICIAL"),
        ("portrait.png", "large.wav", "large.wav cannot be scanned: it is larger than the scanner takes"),
    ],
)
def test_what_is_not_clean_is_refused(
    inputs: Path, address: str, tmp_path: Path, image: str, audio: str, sentence: str
) -> None:
    result = generate(inputs, tmp_path / "video.mp4", address, image, audio)
    assert result.exit_code == 2 and sentence in result.output, result.output
    assert list(tmp_path.iterdir()) == []


def test_an_infected_job_fails_alone(inputs: Path, address: str, tmp_path: Path) -> None:
    fast = {"speed": "fastest", "resolution": 64, "duration": 0.5}
    jobs = [
        {"image": str(inputs / image), "audio": str(inputs / audio), "output": f"{number}.mp4", **fast}
        for number, (image, audio) in enumerate(
            [("bad.png", "speech.wav"), ("portrait.png", "speech.wav"), ("portrait.png", "eicar.wav")]
        )
    ]
    path = tmp_path / "jobs.jsonl"
    path.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    result = CliRunner().invoke(main, ["batch", str(path), "--bundle=sonic-tiny", f"--scan={address}"])
    assert result.exit_code == 1 and "1 of 3 jobs done" in result.output, result.output
    assert result.output.count("the virus scanner found") == 2
    assert [file.name for file in tmp_path.glob("*.mp4")] == ["1.mp4"]


def test_many_files_over_one_scanner(inputs: Path, address: str) -> None:
    scan_files(address, [inputs / "portrait.png"] * 20)
