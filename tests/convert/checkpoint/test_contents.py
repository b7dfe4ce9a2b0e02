"""What is seen of a checkpoint's files before any work: pointers, web pages, ends that are missing, NaN."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sonic.errors import InputError
from sonic.progress import NoProgress
from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.checkpoint.contents import check_file
from sonic_convert.checkpoint.finite import check_finite, is_finite
from sonic_convert.export.contents import check_contents
from sonic_convert.synth.synthesize import synthesize

SVD = "stable-video-diffusion-img2vid-xt"
VAE = f"{SVD}/vae/diffusion_pytorch_model.fp16.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3200000000\n"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("synth") / "small")


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "checkpoints"))


@pytest.mark.parametrize(
    "name", ["Sonic/unet.pth", VAE, "RIFE/flownet.pkl", "yoloface_v5m.pt", f"{SVD}/unet/config.json"]
)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, "git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
        (b"", "empty"),
    ],
)
def test_what_is_no_such_file_is_named_when_the_checkpoint_is_opened(
    copy: Path, name: str, content: bytes, said: str
) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        Checkpoint.open(copy)
    assert str(copy / name) in str(caught.value)


@pytest.mark.parametrize("name", ["Sonic/unet.pth", "Sonic/audio2token.pth", VAE, "yoloface_v5m.pt"])
def test_a_missing_last_byte_is_seen_when_the_checkpoint_is_opened(copy: Path, name: str) -> None:
    os.truncate(copy / name, (copy / name).stat().st_size - 1)
    with pytest.raises(InputError, match="cut off") as caught:
        Checkpoint.open(copy)
    assert str(copy / name) in str(caught.value)


def test_how_much_of_a_safetensors_file_is_there(copy: Path) -> None:
    whole = (copy / VAE).stat().st_size
    os.truncate(copy / VAE, whole - 5)
    with pytest.raises(InputError, match=f"{whole - 5:,} of {whole:,} bytes"):
        check_file(copy / VAE)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 8) + b'{"a": 1}',
        struct.pack("<Q", 100_000) + b"{" + b"[" * 99_999,
        b"{",
    ],
)
def test_other_headers_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        check_file(path)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_only_regular_files_are_read(copy: Path, make: Callable[[Path], object]) -> None:
    path = copy / "whisper-tiny/config.json"
    path.unlink()
    make(path)
    with pytest.raises(InputError, match="not a regular file"):
        Checkpoint.open(copy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_no_number_is_found(dtype: torch.dtype, bad: float) -> None:
    values = torch.full((1000, 100), torch.finfo(dtype).max, dtype=dtype)
    values[::2] *= -1
    assert is_finite(values)
    values[999, 99] = bad
    assert not is_finite(values)
    with pytest.raises(InputError, match=r"w\.pth.*tensor b .* 1 of its 100,000 values"):
        check_finite({"a": torch.zeros(3), "b": values, "i": torch.ones(2, dtype=torch.int64)}, Path("w.pth"))


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_nan_is_named_before_the_work(copy: Path, component: str, tmp_path: Path) -> None:
    path = Checkpoint.open(copy).weights_file(component)
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    name = sorted(state)[3]
    state[name].view(-1)[0] = float("nan")
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    with pytest.raises(InputError, match="NaN or infinity") as caught:
        Checkpoint.open(copy).check_weights(component)
    assert str(path) in str(caught.value)
    assert name in str(caught.value)


def test_a_tensor_larger_than_its_memory_is_refused(copy: Path) -> None:
    torch.save({"proj1.weight": torch.zeros(1).expand(10**6, 10**6)}, copy / "Sonic/audio2token.pth")
    with pytest.raises(InputError, match=r"audio2token\.pth.*proj1\.weight"):
        Checkpoint.open(copy).check_weights("audio2token")


def test_what_was_checked_is_remembered_until_a_file_changes(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, checked = tmp_path / "checked.json", []
    check_contents(Checkpoint.open(copy), NoProgress(), known)
    monkeypatch.setattr(Checkpoint, "check_weights", lambda _, component: checked.append(component))
    check_contents(Checkpoint.open(copy), NoProgress(), known)
    assert checked == []
    os.utime(copy / "Sonic/unet.pth", (1, 1))
    check_contents(Checkpoint.open(copy), NoProgress(), known)
    assert checked == ["unet"]


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        (f"{SVD}/unet/config.json", "layers_per_block", 10**9),
        (f"{SVD}/image_encoder/config.json", "hidden_size", 10**12),
        (f"{SVD}/vae/config.json", "block_out_channels", [32] * 100_000),
    ],
)
def test_sizes_that_no_memory_holds_are_refused(copy: Path, file: str, key: str, value: object) -> None:
    values = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(values | {key: value}))
    with pytest.raises(InputError, match=f"'{key}'.*at most"):
        Checkpoint.open(copy)
