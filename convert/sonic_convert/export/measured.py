"""Memory that was measured before, by the structure of the graph.

Memory differs by a few pages from one measurement to the next, which would give two conversions of one
checkpoint different manifests. So what was measured once is quoted: for sonic-tiny from a file of this
package, for others from a file of :func:`collect`, if one is given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from sonic.errors import InputError

PACKAGED = Path(__file__).parents[1] / "assets" / "measured_memory.json"
_KEY = "structure"
_FACTS = {"weight_bytes", "activation_bytes"}
_GIVEN: ContextVar[dict[str, Any] | None] = ContextVar("given", default=None)


def structure_of(graph: Path, sizes: Sequence[Mapping[str, int]]) -> str:
    """A digest of a graph without the values of its weights, of its calls and of ONNX Runtime's version."""
    model = onnx.load(str(graph), load_external_data=False)
    for tensor in model.graph.initializer:
        dims, kind, name = list(tensor.dims), tensor.data_type, tensor.name
        tensor.Clear()
        tensor.dims.extend(dims)
        tensor.data_type, tensor.name = kind, name
    calls = json.dumps([dict(sorted(call.items())) for call in sizes])
    digest = hashlib.sha256(model.SerializeToString(deterministic=True))
    digest.update(f"{calls}\n{onnxruntime.__version__}".encode())
    return digest.hexdigest()


def known(structure: str) -> dict[str, Any] | None:
    """What was measured for a structure, or None."""
    facts = (_GIVEN.get() or {}).get(structure) or _read(PACKAGED).get(structure)
    return None if facts is None else {**facts, _KEY: structure}


def remember(structure: str, facts: Mapping[str, Any]) -> None:
    """Quote what was measured just now for other graphs of that structure, until the end of the block."""
    given = _GIVEN.get()
    if given is not None:
        given[structure] = {name: facts[name] for name in _FACTS}


@contextmanager
def quoting(path: Path | None, work: Path | None = None) -> Iterator[None]:
    """Until the end of the block, quote the file at `path`, a work folder, and what is measured in the block.

    Raises:
        InputError: the file cannot be read.
    """
    token = _GIVEN.set((collect(work) if work else {}) | (_read(path) if path else {}))
    try:
        yield
    finally:
        _GIVEN.reset(token)


def collect(work: Path) -> dict[str, dict[str, Any]]:
    """All that was measured, or quoted, in a work folder and its folders, by structure."""
    found = {}
    for path in work.rglob("measured/stage.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
        if _KEY in facts:
            found[facts[_KEY]] = {name: facts[name] for name in sorted(_FACTS)}
    return dict(sorted(found.items()))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); give a measured-memory.json of a release"
        ) from error
    if not isinstance(values, dict) or any(
        not isinstance(facts, dict) or set(facts) != _FACTS for facts in values.values()
    ):
        raise InputError(f"{path} holds no measured memory; give a measured-memory.json of a release")
    return values
