"""Running submodels: one small interface, so that another engine can take ONNX Runtime's place.

    engine = OnnxRuntimeEngine(bundle)
    with engine.open("image_encoder") as image_encoder:
        embedding = image_encoder.run({"pixel_values": pixels})["image_embedding"]

A session lives as long as its ``with`` block: its weights leave memory with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sonic.bundle.store import Bundle

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Call:
    """One run of a submodel, as an observer sees it; `tags` says where in the clip it happened."""

    submodel: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    tags: Mapping[str, Any] = field(default_factory=dict)


Observer = Callable[[Call], None]


class Session(Protocol):
    """A submodel that is ready to run."""

    def run(self, inputs: Mapping[str, np.ndarray], **tags: Any) -> Arrays:
        """Compute every output, by name, from every input, by name."""

    def __enter__(self) -> Session: ...

    def __exit__(self, *error: Any) -> None: ...


class Submodels(Protocol):
    """The submodels of one bundle, to be opened."""

    @property
    def bundle(self) -> Bundle:
        """The bundle."""

    def open(self, submodel: str) -> Session:
        """Load a submodel; leave the ``with`` block to free it."""


class Engine(Submodels, Protocol):
    """Opens the submodels of one bundle; `observer` sees every call."""

    observer: Observer | None
