"""Checking what goes into a bundle's submodels and what comes out of them, whatever the engine.

    engine = CheckedEngine(OnnxRuntimeEngine(bundle))

A submodel that is not what the manifest says, or whose weights are damaged, ends in one sentence, rather than
in an exception from within an engine, or in black frames.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sonic.bundle.bundle import Bundle
from sonic.bundle.manifest import SubmodelInfo, TensorInfo
from sonic.engines.base import Arrays, Engine, Parallelism, Session, WrappedSession
from sonic.errors import BundleError, SonicError, first_line

_AGAIN = "copy or convert the bundle again"


class NotFinite(BundleError):
    """A submodel returned NaN or infinity."""


class CheckedEngine:
    """Wraps an engine: every call is checked against the manifest, and every output for finite values."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def bundle(self) -> Bundle:
        """The bundle of the wrapped engine."""
        return self._engine.bundle

    def open(self, submodel: str, parallelism: Parallelism | None = None) -> Session:
        """Load a submodel.

        Raises:
            BundleError: it cannot be loaded.
        """
        return _CheckedSession(self.bundle, submodel, self._engine.open(submodel, parallelism))


class _CheckedSession(WrappedSession):
    """A session whose inputs and outputs are checked."""

    def __init__(self, bundle: Bundle, submodel: str, session: Session) -> None:
        super().__init__(session)
        self._info: SubmodelInfo = bundle.manifest.submodels[submodel]
        self._where = f"{bundle.directory}: '{submodel}'"

    def run(self, inputs: Mapping[str, np.ndarray], **tags: object) -> Arrays:
        """Run the submodel.

        Raises:
            NotFinite: an output has a value that is not finite.
            BundleError: an input or output is not as the manifest says, or the engine cannot compute it.
        """
        axes: dict[str, int] = {}
        self._compare("takes", self._info.inputs, inputs, axes)
        try:
            outputs = self._session.run(inputs, **tags)
        except SonicError:
            raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:  # engines' errors share no base class
            raise BundleError(f"{self._where} cannot be run ({first_line(error)}); {_AGAIN}") from error
        self._compare("returns", self._info.outputs, outputs, axes)
        for name, array in outputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise NotFinite(
                    f"{self._where} returned values that are not finite in '{name}'; its weights or "
                    "precision cannot be right: copy or convert the bundle again"
                )
        return outputs

    def _compare(
        self, verb: str, stated: tuple[TensorInfo, ...], found: Mapping[str, np.ndarray], axes: dict[str, int]
    ) -> None:
        for tensor in stated:
            array = found.get(tensor.name)
            if array is None or array.dtype != tensor.dtype or not _fits(array.shape, tensor.shape, axes):
                has = "nothing" if array is None else f"{array.dtype} {array.shape}"
                raise BundleError(
                    f"{self._where} {verb} {has} for '{tensor.name}', but the manifest says {tensor.dtype} "
                    f"({', '.join(map(str, tensor.shape))}); {_AGAIN}"
                )


def _fits(shape: tuple[int, ...], stated: tuple[int | str, ...], axes: dict[str, int]) -> bool:
    """Whether a shape is the stated one, where an axis with a name has one size in all inputs and outputs."""
    return len(shape) == len(stated) and all(
        size == (axes.setdefault(axis, size) if isinstance(axis, str) else axis)
        for size, axis in zip(shape, stated, strict=True)
    )
