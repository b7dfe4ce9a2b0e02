"""Running submodels: one small interface, so that another engine can take ONNX Runtime's place.

    engine = make_engine(bundle)
    with engine.open("image_encoder") as image_encoder:
        embedding = image_encoder.run({"pixel_values": pixels})["image_embedding"]

A session lives as long as its ``with`` block, and its weights are freed with it. Engines and sessions hold no
per-clip state, so any number of clips, in any threads, may share them; per-clip state, such as the observer,
is in :mod:`sonic.engines.watched`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

import numpy as np

from sonic.bundle.store import Bundle

Arrays = dict[str, np.ndarray]


class Session(Protocol):
    """A submodel that is ready to run; any number of threads may call it at the same time."""

    def run(self, inputs: Mapping[str, np.ndarray], **tags: object) -> Arrays:
        """Run the submodel: takes all of its inputs by name, returns all of its outputs by name.

        `tags` say where in the clip the call belongs, for observers; they do not change the outputs.
        """

    def __enter__(self) -> Session: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Engine(Protocol):
    """Opens the submodels of one bundle."""

    @property
    def bundle(self) -> Bundle:
        """The bundle whose submodels it opens."""

    def open(self, submodel: str) -> Session:
        """Load a submodel; it is freed at the end of the session's ``with`` block.

        Raises:
            BundleError: it cannot be loaded.
        """
