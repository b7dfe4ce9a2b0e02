"""Checkpoints that should get no further than a first look, or than the child process that reads them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from security.hostile import HostileInput

_TINY = Path(__file__).parents[2] / "convert/sonic_convert/assets/sonic-tiny"
_SVD = "stable-video-diffusion-img2vid-xt"
_DEEP = 100_000


def _row(name: str, spoil: Callable[[Path], object], sentence: str) -> HostileInput:
    def command(folder: Path) -> Sequence[str]:
        checkpoint = folder / "checkpoint"
        shutil.copytree(_TINY, checkpoint)
        spoil(checkpoint)
        return ["sonic_convert", "convert", str(checkpoint), str(folder / "bundle")]

    return HostileInput(name, "checkpoint", command, sentence)


class _RunsCommand:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch /tmp/sonic-hostile-pickle-ran",))


def _pickle_that_runs(root: Path) -> None:
    (root / "Sonic/audio2token.pth").write_bytes(pickle.dumps({"proj1.weight": _RunsCommand()}))


def _archive_that_runs(root: Path) -> None:
    import torch

    torch.save({"proj1.weight": _RunsCommand()}, root / "Sonic/unet.pth")


def _lfs_pointer(root: Path) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064d}\nsize 3200000000\n"
    (root / "Sonic/unet.pth").write_text(text)


def _web_page(root: Path) -> None:
    page = "<!DOCTYPE html>\n<html><head><title>Google Drive - Virus scan warning</title></head></html>\n"
    (root / "RIFE/flownet.pkl").write_text(page)


def _cut(name: str, share: float) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        path = root / name
        os.truncate(path, int(path.stat().st_size * share))

    return spoil


def _nan_weights(root: Path) -> None:
    import torch

    state = torch.load(root / "Sonic/unet.pth", weights_only=True)
    name = sorted(state)[-1]
    state[name].view(-1)[-1] = float("nan")
    torch.save(state, root / "Sonic/unet.pth")


def _repeated_value(root: Path) -> None:
    import torch

    # One number that claims to be 4 TB.
    torch.save({"conv_in.weight": torch.zeros(1).expand(1_000_000, 1_000_000)}, root / "Sonic/unet.pth")


def _vae(root: Path) -> Path:
    return next((root / _SVD / "vae").glob("*.safetensors"))


def _huge_header(root: Path) -> None:
    _vae(root).write_bytes(struct.pack("<Q", 1 << 60) + b"{" + b" " * 1000)


def _overlapping_offsets(root: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    text = json.dumps(header).encode()
    _vae(root).write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 64)


def _config(text: str) -> Callable[[Path], object]:
    return lambda root: (root / _SVD / "vae/config.json").write_text(text)


def _changed_config(key: str, value: object) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        path = root / _SVD / "unet/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return spoil


def _config_is(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        path = root / "whisper-tiny/config.json"
        path.unlink()
        make(path)

    return spoil


def _script(body: str) -> Callable[[Path], None]:
    """A face detector whose forward is this code."""

    def spoil(root: Path) -> None:
        import torch

        # A class of its own: TorchScript compiles a class once in a process.
        module = type(f"Net{abs(hash(body))}", (torch.jit.ScriptModule,), {})()
        code = f"def forward(self, image: Tensor, grids: List[Tensor]) -> Tensor:\n{body}\n"
        module.define(code)
        torch.jit.save(module, str(root / "yoloface_v5m.pt"))

    return spoil


def _code_while_loading(root: Path) -> None:
    _script("    return image")(root)
    path = root / "yoloface_v5m.pt"
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            if name.endswith(".py"):
                content += b"  def __setstate__(self, state: int) -> None:\n    while True:\n      pass\n"
            new.writestr(name, content)


def _packed_bomb(root: Path) -> None:
    path = root / "yoloface_v5m.pt"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        root_name = archive.namelist()[0].split("/")[0]
        with archive.open(f"{root_name}/data/bomb", "w", force_zip64=True) as entry:
            for _ in range(1100):
                entry.write(b"\0" * (1 << 20))


ROWS: list[HostileInput] = [
    _row("a pickle that calls os.system", _pickle_that_runs, r"audio2token\.pth.*refused"),
    _row("a PyTorch archive whose pickle calls os.system", _archive_that_runs, r"unet\.pth.*refused"),
    _row("a pointer of Git LFS in place of the weights", _lfs_pointer, r"unet\.pth.*Git LFS.*git lfs pull"),
    _row("a web page in place of the weights", _web_page, r"flownet\.pkl.*web page"),
    _row(
        "half of a safetensors file", lambda r: os.truncate(_vae(r), _vae(r).stat().st_size // 2), r"cut off"
    ),
    _row("half of a PyTorch archive", _cut("Sonic/unet.pth", 0.5), r"unet\.pth.*cut off"),
    _row("an empty weights file", _cut("Sonic/audio2bucket.pth", 0), r"audio2bucket\.pth.*empty"),
    _row("one NaN among the UNet's weights", _nan_weights, r"unet\.pth.*NaN or infinity in 1 of"),
    _row("a tensor that repeats one number for 4 TB", _repeated_value, r"unet\.pth.*conv_in\.weight"),
    _row("a safetensors header of 10^18 bytes", _huge_header, r"safetensors"),
    _row("a safetensors file whose tensor lies outside", _overlapping_offsets, r"cut off"),
    _row("a configuration nested 100,000 deep", _config("[" * _DEEP + "]" * _DEEP), r"config\.json.*deep"),
    _row("a configuration with Infinity", _config('{"scaling_factor": Infinity}'), r"config\.json.*Infinity"),
    _row("an integer of a million digits", _config('{"a": ' + "9" * 1_000_000 + "}"), r"config\.json.*read"),
    _row("a UNet of 10^9 layers", _changed_config("layers_per_block", 10**9), r"layers_per_block.*at most"),
    _row("a named pipe as configuration", _config_is(os.mkfifo), r"config\.json.*named pipe"),
    _row(
        "a device without end as configuration",
        _config_is(lambda path: path.symlink_to("/dev/zero")),
        r"config\.json.*device",
    ),
    _row(
        "TorchScript with an endless loop",
        _script("    while True:\n        image = image * 1.0001\n    return image"),
        r"yoloface_v5m\.pt.*does not come to an end",
    ),
    _row(
        "TorchScript that allocates 100 GB",
        _script("    return torch.ones([25000000000]) + image.sum()"),
        r"yoloface_v5m\.pt.*fails",
    ),
    _row(
        "TorchScript that writes a file",
        _script("    torch.save(image, '/tmp/sonic-hostile-torchscript-wrote')\n    return image"),
        r"yoloface_v5m\.pt.*aten::save",
    ),
    _row(
        "TorchScript that runs code while it is loaded",
        _code_while_loading,
        r"yoloface_v5m\.pt.*__setstate__",
    ),
    _row(
        "TorchScript that unpacks to more than a gigabyte", _packed_bomb, r"yoloface_v5m\.pt.*bytes unpacked"
    ),
]
