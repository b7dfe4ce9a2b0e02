"""Reading weight files, and loading them strictly."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from sonic.errors import InputError

# What PyTorch's reader raises for bytes that are none of its own.
_DAMAGES = (
    OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
    AssertionError, MemoryError, OverflowError, struct.error,
)  # fmt: skip
_LISTED = 10  # names in an error message; further ones are only counted


def read_tensors(
    path: Path,
    keep: Callable[[str], str | None] = lambda name: name,
    dtype: torch.dtype | None = torch.float32,
) -> dict[str, torch.Tensor]:
    """Read a `.safetensors` file, or a state dict saved by PyTorch (any other suffix).

    Pickles are read with `weights_only=True`: a file that would run code is refused.

    Args:
        path: the file.
        keep: maps a tensor's name to the one to give it, or to None to leave the tensor out.
        dtype: floating-point tensors are converted to it; None keeps the file's.

    Raises:
        InputError: the file is corrupt, refused, or not a dictionary of tensors.
    """
    reader = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
    tensors = reader(path, keep)
    return {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def load_strict(module: nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> None:
    """Give `module` exactly the tensors of `state`, which become its own (`assign=True`).

    Raises:
        InputError: tensors are missing, unexpected or mis-shaped; the first ten are named.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    misshaped = [
        f"{name} {tuple(state[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    problems = [
        _list(label, names)
        for label, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("mis-shaped", misshaped),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"{source}: the tensors do not fit {type(module).__name__} as this checkpoint's "
            f"configuration describes it: {'; '.join(problems)}"
        )
    module.load_state_dict(state, strict=True, assign=True)


def _list(label: str, names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {label} ({', '.join(names[:_LISTED])}{more})"


def _read_safetensors(path: Path, keep: Callable[[str], str | None]) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            names = {name: keep(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return {new: file.get_tensor(name) for name, new in names.items() if new is not None}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: this is not a complete safetensors file ({_first_line(error)}); "
            "it should be downloaded again"
        ) from error


def _read_pickle(path: Path, keep: Callable[[str], str | None]) -> dict[str, torch.Tensor]:
    try:
        # Files of PyTorch before 1.6 are not archives and cannot be mapped into memory.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "Weights only load failed" in str(error):
            raise InputError(
                f"{path}: the file does not hold plain tensors only (it is damaged, or asks to run "
                "code, which is refused); it should be a plain state dict"
            ) from error
        raise InputError(_damaged(path, error)) from error
    except _DAMAGES as error:
        raise InputError(_damaged(path, error)) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise InputError(
            f"{path}: the file holds {type(state).__name__}, but should hold a plain state dict, "
            "a dictionary of tensors by name"
        )
    for name, tensor in state.items():
        if not _is_plain(tensor):
            raise InputError(
                f"{path}: the tensor {name} has no memory of its own for each of its values (it is "
                "sparse, or repeats a value); it should be a plain, contiguous tensor"
            )
    names = {name: keep(name) for name in state}
    return {new: state[name] for name, new in names.items() if new is not None}


def _is_plain(tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"{path}: this is not a complete file saved by PyTorch ({_first_line(error)}); "
        "it should be downloaded again"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
