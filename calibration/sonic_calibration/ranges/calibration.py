"""Statistics of what every layer sees, collected segment by segment, and the file that holds them.

calibration = calibrate(bundle, recordings, {"unet": observed}, Path("work"))
calibration.save(Path("sonic-base.calibration.npz"))
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sonic.bundle.manifest import Manifest
from sonic.bundle.store import Bundle
from sonic.errors import InputError
from sonic.progress import NoProgress, Progress
from sonic.storage.files import replace_file
from sonic_calibration.graphs.layers import Layer
from sonic_calibration.graphs.segments import Segment, ValueStore, cut, needed_after, open_segment
from sonic_calibration.graphs.stored_graph import StoredGraph
from sonic_calibration.ranges.statistics import TensorStatistics
from sonic_calibration.recording.recordings import Recordings, Sample

_VERSION = 1
_ABOUT = "about"
_FIELDS = tuple(field.name for field in fields(TensorStatistics))

Observed = Mapping[str, int]  # tensor -> its axis of channels, from the end


@dataclass(frozen=True)
class Calibration:
    """What was seen.

    Attributes:
        tensors: of every submodel, statistics by tensor.
        graphs: of every submodel, the digest of the graph it was collected from.
        recordings: the digest of what was recorded.
    """

    tensors: dict[str, dict[str, TensorStatistics]]
    graphs: dict[str, str]
    recordings: str

    @property
    def digest(self) -> str:
        """Of everything that was collected."""
        digest = hashlib.sha256(json.dumps([_VERSION, self.graphs, self.recordings]).encode())
        for name, array in sorted(self._arrays().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            f"{submodel}|{tensor}|{field}": np.asarray(getattr(statistics, field))
            for submodel, tensors in self.tensors.items()
            for tensor, statistics in tensors.items()
            for field in _FIELDS
        }

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        about = {"version": _VERSION, "graphs": self.graphs, "recordings": self.recordings}
        arrays = {_ABOUT: np.array(json.dumps(about)), **self._arrays()}

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

        replace_file(path, write)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read the file.

        Raises:
            InputError: it is missing, or no calibration.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file[_ABOUT]))
                if about["version"] != _VERSION:
                    raise InputError(
                        f"{path} is of version {about['version']}, but {_VERSION} is read here; "
                        "calibrate again"
                    )
                found: dict[str, dict[str, dict[str, Any]]] = {}
                for key in file:
                    if key != _ABOUT:
                        submodel, tensor, field = key.split("|")
                        array = file[key]
                        value = array if array.ndim else array.item()
                        found.setdefault(submodel, {}).setdefault(tensor, {})[field] = value
            tensors = {
                submodel: {name: TensorStatistics(**values) for name, values in of_submodel.items()}
                for submodel, of_submodel in found.items()
            }
            return cls(tensors, dict(about["graphs"]), str(about["recordings"]))
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
            raise InputError(
                f"{path} is no calibration ({error}); make one with 'sonic-convert calibrate'"
            ) from error

    def check_fits(self, manifest: Manifest, source: str) -> None:
        """Refuse a calibration of another model.

        Raises:
            InputError: a graph of the bundle is not the one that was calibrated.
        """
        for submodel, digest in self.graphs.items():
            if digest != graph_digest(manifest, submodel):
                raise InputError(
                    f"{source} was collected from another '{submodel}' than the one in the bundle "
                    f"{manifest.name}; calibrate this bundle with 'sonic-convert calibrate'"
                )


def graph_digest(manifest: Manifest, submodel: str) -> str:
    """Of all files of a submodel."""
    files = manifest.submodels[submodel].files
    return hashlib.sha256("\n".join(file.sha256 for file in files).encode()).hexdigest()


def observed_tensors(layers: Iterable[Layer]) -> dict[str, int]:
    """What the layers read and make, with the axes of channels."""
    observed: dict[str, int] = {}
    for layer in layers:
        for use in layer.uses:
            observed.setdefault(use.activation, layer.channel_axis)
            observed.setdefault(use.output, layer.channel_axis)
    return observed


def calibrate(
    bundle: Bundle,
    recordings: Recordings,
    observed: Mapping[str, Observed],
    work: Path,
    progress: Progress | None = None,
) -> Calibration:
    """Collect the statistics of tensors over all recorded calls.

    Args:
        bundle: that the recordings were made with.
        recordings: of `sonic_calibration.recording.recordings.record`.
        observed: for every submodel the tensors, with their axes of channels.
        work: a folder for what waits on disk; an interrupted calibration goes on there.
        progress: shows the segments.

    Raises:
        InputError: a submodel was never called, or a tensor had values that are not finite.
    """
    progress = progress or NoProgress()
    tensors, graphs = {}, {}
    for submodel, wanted in observed.items():
        samples = recordings.samples(submodel)
        if not samples:
            raise InputError(
                f"the examples never reach '{submodel}', so nothing is known of its values; give "
                "recordings that are longer"
            )
        graphs[submodel] = graph_digest(bundle.manifest, submodel)
        key = json.dumps([_VERSION, graphs[submodel], recordings.digest, sorted(wanted)])
        digest = hashlib.sha256(key.encode()).hexdigest()
        graph = StoredGraph.open(bundle.graph_path(submodel))
        segments = cut(graph, wanted)
        with progress.stage(f"calibrating {submodel}", len(segments)) as advance:
            tensors[submodel] = _collect(
                graph, segments, wanted, samples, _work_folder(work / submodel, digest), advance
            )
    shutil.rmtree(work, ignore_errors=True)
    return Calibration(tensors, graphs, recordings.digest)


def _work_folder(folder: Path, digest: str) -> Path:
    """A folder of this digest; what another calibration left is removed."""
    mine = folder / digest[:16]
    for other in folder.glob("*"):
        if other != mine:
            shutil.rmtree(other)
    mine.mkdir(parents=True, exist_ok=True)
    return mine


def _collect(
    graph: StoredGraph,
    segments: list[Segment],
    wanted: Observed,
    samples: list[Sample],
    work: Path,
    advance: Callable[[], None],
) -> dict[str, TensorStatistics]:
    store = ValueStore(work / "values")
    begun = (work / "segment_0000.npz").exists()
    needed = set() if begun else {name for segment in segments for name in segment.inputs}
    tensors = _take_inputs(samples, wanted, needed, store)
    for index, segment in enumerate(segments):
        done = work / f"segment_{index:04d}.npz"
        if done.exists():
            tensors |= Calibration.load(done).tensors.get("segment", {})
            advance()
            continue
        found = _run_segment(graph, segment, wanted, len(samples), store)
        Calibration({"segment": found}, {}, "").save(done)
        store.keep_only(needed_after(segments, index + 1))
        tensors |= found
        advance()
    return tensors


def _take_inputs(
    samples: list[Sample], wanted: Observed, needed: Collection[str], store: ValueStore
) -> dict[str, TensorStatistics]:
    """Statistics of the tensors that the graph is given; those that are needed go to the store."""
    found: dict[str, TensorStatistics] = {}
    for number, sample in enumerate(samples):
        for name, values in sample.arrays("in").items():
            if name in wanted:
                statistics = found.setdefault(name, TensorStatistics())
                _update(statistics, values, wanted[name], f"the input '{name}'", sample.path)
            if name in needed:
                store.write(number, name, values)
    return found


def _update(
    statistics: TensorStatistics, values: np.ndarray, channel_axis: int, name: str, where: object
) -> None:
    try:
        statistics.update(values, channel_axis)
    except InputError as error:
        raise InputError(
            f"{name} has {error} in {where}; the bundle's weights, or what was recorded, cannot be right"
        ) from error


def _run_segment(
    graph: StoredGraph, segment: Segment, wanted: Observed, samples: int, store: ValueStore
) -> dict[str, TensorStatistics]:
    found = {name: TensorStatistics() for name in segment.observed}
    names = list(dict.fromkeys((*segment.outputs, *segment.observed)))
    if not names:
        return found
    session = None
    for sample in range(samples):
        feeds = {name: store.read(sample, name) for name in segment.inputs}
        session = session or open_segment(graph, segment, feeds)
        for name, values in zip(names, session.run(names, feeds), strict=True):
            if name in found:
                where = f"recorded call {sample} of {graph.path}"
                _update(found[name], values, wanted[name], f"'{name}'", where)
            if name in segment.outputs:
                store.write(sample, name, values)
    return found
