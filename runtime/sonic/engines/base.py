"""Running submodels: one small interface, so that another engine can take ONNX Runtime's place.

    engine = make_engine(bundle)
    with engine.open("image_encoder") as image_encoder:
        embedding = image_encoder.run({"pixel_values": pixels})["image_embedding"]

A session lives as long as its ``with`` block: its weights leave memory with it. Engines and sessions hold no
state of a clip, so that any number of clips, in any threads, may share them; what belongs to a clip, such as
its observer, is in :mod:`sonic.engines.watched`.
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
        """Compute every output, by name, from every input, by name.

        `tags` say where in the clip the call is, for those who watch it; they change no output.
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
        """The bundle."""

    def open(self, submodel: str) -> Session:
        """Load a submodel; leave the ``with`` block to free it.

        Raises:
            BundleError: it cannot be loaded.
        """
