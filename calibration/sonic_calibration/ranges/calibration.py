"""Collects statistics of every layer's activations, segment by segment, and stores them in a file.

Example:

    observed = observed_tensors(find_layers(StoredGraph.open(bundle.graph_path("unet"))))
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

from sonic.bundle.bundle import Bundle
from sonic.bundle.manifest import Manifest
from sonic.errors import InputError
from sonic.progress import NoProgress, Progress
from sonic.storage.files import replace_file
from sonic_calibration.graphs.layers import Layer
from sonic_calibration.graphs.segments import Segment, ValueStore, needed_from, open_segment, split_graph
from sonic_calibration.graphs.stored_graph import StoredGraph
from sonic_calibration.ranges.statistics import TensorStatistics
from sonic_calibration.recording.recordings import Recordings, Sample

_VERSION = 1
_ABOUT_KEY = "about"
_FIELDS = tuple(field.name for field in fields(TensorStatistics))

Observed = Mapping[str, int]  # tensor name -> channel axis, counted from the end (negative)


@dataclass(frozen=True)
class Calibration:
    """Statistics of the tensors of one or more submodels.

    Attributes:
        tensors: for every submodel, the statistics by tensor name.
        graphs: for every submodel, the digest of the graph that was calibrated (`graph_digest`).
        recordings: the digest of the recordings that ran through the graphs.
    """

    tensors: dict[str, dict[str, TensorStatistics]]
    graphs: dict[str, str]
    recordings: str

    @property
    def digest(self) -> str:
        """SHA-256 of all statistics and of the digests, in hexadecimal."""
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
        """Write the statistics as an .npz file, atomically.

        Raises:
            OutputError: the file cannot be written.
        """
        about = {"version": _VERSION, "graphs": self.graphs, "recordings": self.recordings}
        arrays = {_ABOUT_KEY: np.array(json.dumps(about)), **self._arrays()}

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

        replace_file(path, write)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a file that `save` wrote.

        Raises:
            InputError: the file is missing, damaged, not a calibration, or of another version.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file[_ABOUT_KEY]))
                if about["version"] != _VERSION:
                    raise InputError(
                        f"{path} is of version {about['version']}, but this program reads version "
                        f"{_VERSION}; calibrate again"
                    )
                found: dict[str, dict[str, dict[str, Any]]] = {}
                for key in file:
                    if key != _ABOUT_KEY:
                        submodel, tensor, field = key.split("|")
                        array = file[key]
                        value = array if array.ndim else array.item()
                        found.setdefault(submodel, {}).setdefault(tensor, {})[field] = value
            tensors = {
                submodel: {name: TensorStatistics(**values) for name, values in by_tensor.items()}
                for submodel, by_tensor in found.items()
            }
            return cls(tensors, dict(about["graphs"]), str(about["recordings"]))
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
            raise InputError(
                f"{path} is no calibration ({error}); make one with 'sonic-convert calibrate'"
            ) from error

    def check_fits(self, manifest: Manifest, source: str) -> None:
        """Check that the calibration belongs to a bundle.

        Args:
            manifest: the bundle's manifest.
            source: the calibration's file name, for the error message.

        Raises:
            InputError: a graph of the bundle is not the one that was calibrated.
        """
        for submodel, digest in self.graphs.items():
            if digest != graph_digest(manifest, submodel):
                raise InputError(
                    f"{source} was collected from another '{submodel}' than that of the bundle "
                    f"{manifest.name}; calibrate this bundle with 'sonic-convert calibrate'"
                )


def graph_digest(manifest: Manifest, submodel: str) -> str:
    """SHA-256 of the digests of all files of a submodel, in hexadecimal."""
    files = manifest.submodels[submodel].files
    return hashlib.sha256("\n".join(file.sha256 for file in files).encode()).hexdigest()


def observed_tensors(layers: Iterable[Layer]) -> dict[str, int]:
    """Names of the tensors that the layers read and compute, with their channel axes."""
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
    """Collect statistics of tensors over all recorded calls.

    Args:
        bundle: the bundle that the recordings were made with.
        recordings: the result of `sonic_calibration.recording.recordings.record`.
        observed: for every submodel, the tensors to observe and their channel axes.
        work: a folder for intermediate results, deleted at the end; an interrupted calibration resumes
            from it.
        progress: reports the finished segments.

    Raises:
        InputError: a submodel was never called, or a tensor has values that are not finite.
    """
    progress = progress or NoProgress()
    tensors, graphs = {}, {}
    for submodel, wanted in observed.items():
        samples = recordings.samples(submodel)
        if not samples:
            raise InputError(
                f"the examples never reach '{submodel}', so there are no values to calibrate it with; give "
                "longer recordings"
            )
        graphs[submodel] = graph_digest(bundle.manifest, submodel)
        key = json.dumps([_VERSION, graphs[submodel], recordings.digest, sorted(wanted)])
        digest = hashlib.sha256(key.encode()).hexdigest()
        graph = StoredGraph.open(bundle.graph_path(submodel))
        segments = split_graph(graph, wanted)
        with progress.stage(f"calibrating {submodel}", len(segments)) as advance:
            tensors[submodel] = _collect(
                graph, segments, wanted, samples, _work_folder(work / submodel, digest), advance
            )
    shutil.rmtree(work, ignore_errors=True)
    return Calibration(tensors, graphs, recordings.digest)


def _work_folder(folder: Path, digest: str) -> Path:
    """The subfolder of this digest; those that other calibrations left behind are deleted."""
    own = folder / digest[:16]
    for other in folder.glob("*"):
        if other != own:
            shutil.rmtree(other)
    own.mkdir(parents=True, exist_ok=True)
    return own


def _collect(
    graph: StoredGraph,
    segments: list[Segment],
    wanted: Observed,
    samples: list[Sample],
    work: Path,
    advance: Callable[[], None],
) -> dict[str, TensorStatistics]:
    """Run the segments that are not finished yet; statistics of all observed tensors by name."""
    store = ValueStore(work / "values")
    resuming = (work / "segment_0000.npz").exists()
    needed = set() if resuming else {name for segment in segments for name in segment.inputs}
    tensors = _observe_inputs(samples, wanted, needed, store)
    for index, segment in enumerate(segments):
        result = work / f"segment_{index:04d}.npz"
        if result.exists():
            tensors |= Calibration.load(result).tensors.get("segment", {})
            advance()
            continue
        found = _run_segment(graph, segment, wanted, len(samples), store)
        Calibration({"segment": found}, {}, "").save(result)
        store.keep_only(needed_from(segments, index + 1))
        tensors |= found
        advance()
    return tensors


def _observe_inputs(
    samples: list[Sample], wanted: Observed, needed: Collection[str], store: ValueStore
) -> dict[str, TensorStatistics]:
    """Statistics of the observed graph inputs; the inputs named in `needed` are also put into the store."""
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
            f"{name} has {error} in {where}; the bundle's weights or the recording must be damaged"
        ) from error


def _run_segment(
    graph: StoredGraph, segment: Segment, wanted: Observed, samples: int, store: ValueStore
) -> dict[str, TensorStatistics]:
    """Run a segment on all samples: collect its statistics and store its outputs."""
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
