"""Statistics of recorded calls, collected segment by segment, and the file that stores them."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic.bundle.bundle import Bundle
from sonic.bundle.manifest_file import read_manifest
from sonic.bundle.store import PACKAGED_BUNDLES, open_bundle
from sonic.errors import InputError, OutputError
from sonic.options import GenerationOptions
from sonic_calibration.graphs import segments as segments_module
from sonic_calibration.graphs.layers import find_layers
from sonic_calibration.graphs.segments import ValueStore, needed_from, open_segment, split_graph
from sonic_calibration.graphs.stored_graph import StoredGraph, open_with_external_weights
from sonic_calibration.ranges import calibration as module
from sonic_calibration.ranges.calibration import Calibration, calibrate, graph_digest, observed_tensors
from sonic_calibration.ranges.statistics import TensorStatistics
from sonic_calibration.recording.examples import Example
from sonic_calibration.recording.recordings import RecordingOptions, Recordings, Sample, record

OPTIONS = RecordingOptions(
    calls=3, clip=GenerationOptions(duration=0.3, min_resolution=64, inference_steps=2)
)
SUBMODELS = ("vae_decoder", "unet")


@pytest.fixture(scope="module")
def bundle(small) -> Bundle:
    """The small bundle, opened."""
    return open_bundle(small.bundle)


@pytest.fixture(scope="module")
def recordings(
    tmp_path_factory: pytest.TempPathFactory, small, portrait: Path, short_wav: Path
) -> Recordings:
    """Recordings of one example; tests must not change them."""
    folder = tmp_path_factory.mktemp("recordings") / "r"
    return record(small.bundle, [Example(portrait, short_wav)], folder, OPTIONS)


@pytest.fixture(scope="module")
def observed(bundle: Bundle) -> dict[str, dict[str, int]]:
    """The observed tensors of each submodel."""
    return {
        submodel: observed_tensors(find_layers(StoredGraph.open(bundle.graph_path(submodel))))
        for submodel in SUBMODELS
    }


@pytest.fixture(scope="module")
def calibration(
    bundle: Bundle, recordings: Recordings, observed, tmp_path_factory: pytest.TempPathFactory
) -> Calibration:
    """An uninterrupted calibration of both submodels."""
    return calibrate(bundle, recordings, observed, tmp_path_factory.mktemp("work"))


def session_values(graph: StoredGraph, sample: Sample, names: list[str]) -> dict[str, np.ndarray]:
    """Values of tensors, computed by one session of the whole graph."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    known = {output.name for output in model.graph.output}
    given = sample.arrays("in")
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known and n not in given)
    session = open_with_external_weights(model, graph.path.parent)
    wanted = [name for name in names if name not in given]
    found = dict(zip(wanted, session.run(wanted, given), strict=True))
    return found | {name: given[name] for name in names if name in given}


def run_segments(
    graph: StoredGraph, observed: Collection[str], inputs: dict[str, np.ndarray], folder: Path
) -> dict[str, np.ndarray]:
    """The graph's outputs, computed segment by segment with only the needed tensors stored."""
    store = ValueStore(folder)
    for name, values in inputs.items():
        store.write(7, name, values)
    results, segments = {}, split_graph(graph, observed)
    final = {output.name for output in graph.model.graph.output}
    for index, segment in enumerate(segments):
        store.keep_only(needed_from(segments, index))
        feeds = {name: store.read(7, name) for name in segment.inputs}
        session = open_segment(graph, segment, feeds)
        names = list(segment.outputs)
        for name, values in zip(names, session.run(names, feeds), strict=True):
            store.write(7, name, values)
            if name in final:
                results[name] = values
    store.keep_only(needed_from(segments, len(segments)))
    assert not list(folder.rglob("*.npy"))
    return results


def relative_distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one.astype(float) - other) / np.linalg.norm(other.astype(float)))


@pytest.mark.parametrize("submodel", SUBMODELS)
def test_segments_have_every_node_once_and_in_order(bundle: Bundle, observed, submodel: str) -> None:
    graph = StoredGraph.open(bundle.graph_path(submodel))
    segments = split_graph(graph, observed[submodel])
    assert [n.output[:] for s in segments for n in s.nodes] == [n.output[:] for n in graph.model.graph.node]
    assert len(segments) > 1
    known = {value.name for value in graph.model.graph.input}
    observed_tensors_seen: list[str] = []
    for index, segment in enumerate(segments):
        assert known >= needed_from(segments, index) >= set(segment.inputs)
        known |= set(segment.outputs)
        observed_tensors_seen += segment.observed
        assert len(segment.observed) <= 8
    assert len(observed_tensors_seen) == len(set(observed_tensors_seen))
    inputs = {value.name for value in graph.model.graph.input}
    assert set(observed_tensors_seen) == set(observed[submodel]) - inputs
    assert known >= {output.name for output in graph.model.graph.output}


def test_segments_respect_the_limit_of_weights(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = StoredGraph.open(bundle.graph_path("vae_decoder"))
    assert len(split_graph(graph, [])) == 1
    monkeypatch.setattr(segments_module, "_WEIGHT_BYTES_PER_SEGMENT", 100_000)
    segments = split_graph(graph, [])
    assert len(segments) > 3

    def weight_bytes(*nodes: onnx.NodeProto) -> int:
        read = [name for node in nodes for name in node.input if name in graph.initializers]
        return sum(graph.load(name).nbytes for name in read)

    for segment in segments:
        assert weight_bytes(*segment.nodes) <= 100_000 or len(segment.nodes) == 1
    for segment, after in pairwise(segments):
        assert weight_bytes(*segment.nodes, after.nodes[0]) > 100_000


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("submodel", SUBMODELS)
def test_segments_give_what_one_session_gives(
    bundle: Bundle, recordings: Recordings, observed, submodel: str, external: bool, tmp_path: Path
) -> None:
    path = bundle.graph_path(submodel)
    session = onnxruntime.InferenceSession(str(path))
    if external:
        target = tmp_path / "model.onnx"
        onnx.save(onnx.load(path), target, save_as_external_data=True, location="model.onnx.data")
        path = target
    inputs = recordings.samples(submodel)[-1].arrays("in")
    found = run_segments(StoredGraph.open(path), observed[submodel], inputs, tmp_path / "values")
    names = [output.name for output in session.get_outputs()]
    assert sorted(found) == sorted(names)
    for name, values in zip(names, session.run(names, inputs), strict=True):
        assert relative_distance(found[name], values) < 1e-5


@pytest.mark.parametrize("submodel", SUBMODELS)
def test_statistics_are_those_of_one_session(
    bundle: Bundle, recordings: Recordings, observed, calibration: Calibration, submodel: str
) -> None:
    graph = StoredGraph.open(bundle.graph_path(submodel))
    names = list(observed[submodel])
    statistics = calibration.tensors[submodel]
    assert set(statistics) == set(names)
    values = [session_values(graph, sample, names) for sample in recordings.samples(submodel)]
    for name in names:
        axis = observed[submodel][name]
        tensors = [np.moveaxis(of_call[name], axis, -1) for of_call in values]
        whole = np.concatenate([tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors])
        seen = statistics[name]
        atol = 1e-4 * float(np.abs(whole).max())
        assert (seen.count, seen.histogram.sum()) == (len(whole), whole.size)
        np.testing.assert_allclose(seen.channel_minimum, whole.min(axis=0), rtol=1e-3, atol=atol)
        np.testing.assert_allclose(seen.channel_maximum, whole.max(axis=0), rtol=1e-3, atol=atol)
        np.testing.assert_allclose(seen.channel_mean, whole.mean(axis=0, dtype=float), rtol=1e-3, atol=atol)
        assert seen.minimum == seen.channel_minimum.min() and seen.maximum == seen.channel_maximum.max()


@pytest.mark.parametrize("interrupted", [0, 1, 40, 90])
def test_an_interrupted_calibration_resumes(
    bundle: Bundle,
    recordings: Recordings,
    observed,
    calibration: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupted: int,
) -> None:
    """Interrupted in the middle of a segment, or (0) before the first one."""
    wanted = {"unet": observed["unet"]}
    write, run_segment, writes = ValueStore.write, module._run_segment, 0
    ran: list[str] = []

    def interrupting(*arguments) -> None:
        nonlocal writes
        writes += len(ran) == interrupted
        if writes == 2:
            raise KeyboardInterrupt
        write(*arguments)

    def noted(graph, segment, *arguments):
        ran.append(segment.nodes[0].output[0])
        return run_segment(graph, segment, *arguments)

    monkeypatch.setattr(module, "_run_segment", noted)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ValueStore, "write", interrupting)
        calibrate(bundle, recordings, wanted, tmp_path / "work")
    before = ran[:]
    assert len(before) == interrupted
    found = calibrate(bundle, recordings, wanted, tmp_path / "work")
    segments = split_graph(StoredGraph.open(bundle.graph_path("unet")), wanted["unet"])
    firsts = [segment.nodes[0].output[0] for segment in segments]
    assert before == firsts[:interrupted]
    assert ran[interrupted:] == firsts[max(interrupted - 1, 0) :]  # only the interrupted segment runs again
    graphs = {"unet": calibration.graphs["unet"]}
    whole = replace(calibration, tensors={"unet": calibration.tensors["unet"]}, graphs=graphs)
    assert found.digest == whole.digest
    assert not (tmp_path / "work").exists()


def test_leftovers_of_another_calibration_are_not_used(
    bundle: Bundle, recordings: Recordings, observed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"vae_decoder": observed["vae_decoder"]}
    other = copied(recordings, tmp_path / "r", "latents", lambda values: 2 * values)
    opened = 0

    def interrupting(*arguments):
        nonlocal opened
        opened += 1
        if opened % 6 == 0:
            raise KeyboardInterrupt
        return open_segment(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "open_segment", interrupting)
        for given in (other, recordings):
            with pytest.raises(KeyboardInterrupt):
                calibrate(bundle, given, wanted, tmp_path / "work")
            (left,) = (tmp_path / "work" / "vae_decoder").iterdir()
            assert list(left.glob("segment_*.npz"))
    found = calibrate(bundle, recordings, wanted, tmp_path / "work")
    assert found.digest == calibrate(bundle, recordings, wanted, tmp_path / "fresh").digest
    assert found.digest != calibrate(bundle, other, wanted, tmp_path / "fresh").digest


def copied(recordings: Recordings, folder: Path, name: str, change) -> Recordings:
    """A copy of the recordings with another digest and one input changed."""
    shutil.copytree(recordings.folder, folder)
    changed = Recordings(folder, "another")
    for sample in (sample for submodel in SUBMODELS for sample in changed.samples(submodel)):
        with np.load(sample.path) as file:
            arrays = dict(file)
        if f"in.{name}" in arrays:
            arrays[f"in.{name}"] = change(arrays[f"in.{name}"])
            np.savez(sample.path, **arrays)
    return changed


def not_finite(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flat[values.size // 2] = np.nan
    return values


def test_values_that_are_not_finite_are_named(
    bundle: Bundle, recordings: Recordings, observed, tmp_path: Path
) -> None:
    bad = copied(recordings, tmp_path / "r", "sample", not_finite)
    with pytest.raises(InputError, match="'/conv_in/.*' has values that are not finite in .*unet/model.onnx"):
        calibrate(bundle, bad, {"unet": observed["unet"]}, tmp_path / "work")


def test_inputs_that_are_not_finite_are_named(
    bundle: Bundle, recordings: Recordings, observed, tmp_path: Path
) -> None:
    bad = copied(recordings, tmp_path / "r", "latents", not_finite)
    with pytest.raises(InputError, match="latents"):
        calibrate(bundle, bad, {"vae_decoder": observed["vae_decoder"]}, tmp_path / "work")


def test_a_submodel_that_is_never_called_is_named(
    bundle: Bundle, recordings: Recordings, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="the examples never reach 'vae_encoder'"):
        calibrate(bundle, recordings, {"vae_encoder": {}}, tmp_path / "work")


def test_the_file_holds_everything(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "a.calibration.npz"
    path.write_text("old")
    calibration.save(path)
    loaded = Calibration.load(path)
    assert loaded.digest == calibration.digest
    assert (loaded.graphs, loaded.recordings) == (calibration.graphs, calibration.recordings)
    assert loaded.tensors.keys() == calibration.tensors.keys()
    for submodel, tensors in calibration.tensors.items():
        assert loaded.tensors[submodel].keys() == tensors.keys()
        for name, statistics in tensors.items():
            for field, value in vars(statistics).items():
                np.testing.assert_array_equal(getattr(loaded.tensors[submodel][name], field), value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.calibration.npz"]
    with pytest.raises(OutputError, match="cannot write"):
        calibration.save(tmp_path / "missing" / "a.npz")


@settings(deadline=None, max_examples=20)
@given(
    st.dictionaries(st.text("ab/.:_0", min_size=1, max_size=8), st.integers(1, 5), max_size=3),
    st.integers(0, 9),
)
def test_any_statistics_come_back_and_have_their_own_digest(
    tmp_path_factory: pytest.TempPathFactory, channels: dict[str, int], seed: int
) -> None:
    rng, tensors = np.random.default_rng(seed), {}
    for name, count in channels.items():
        tensors[name] = TensorStatistics()
        tensors[name].update(rng.normal(0, 10, (3, count)).astype(np.float32), -1)
    one = Calibration({"unet": tensors} if tensors else {}, {"unet": "g"}, "r")
    path = tmp_path_factory.mktemp("calibration") / "a.npz"
    one.save(path)
    loaded = Calibration.load(path)
    assert loaded.digest == one.digest
    digests = {one.digest, replace(one, graphs={"unet": "h"}).digest, replace(one, recordings="s").digest}
    assert len(digests) == 3
    for statistics in tensors.values():
        statistics.histogram[3] += 1
        assert one.digest not in digests
        digests.add(one.digest)


def stored(folder: Path, kind: str) -> Path:
    """A file that cannot be read as a calibration."""
    path = folder / "a.npz"
    statistics = TensorStatistics()
    statistics.update(np.ones((3, 2), np.float32), -1)
    Calibration({"unet": {"x": statistics}}, {}, "").save(path)
    whole = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "text":
        path.write_text("no calibration")
    elif kind == "other":
        np.savez(path, weights=np.ones(3))
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif kind == "version":
        np.savez(path, about=np.array('{"version": 99, "graphs": {}, "recordings": ""}'))
    elif kind == "fields":
        about = np.array('{"version": 1, "graphs": {}, "recordings": ""}')
        np.savez(path, **{"about": about, "unet|x|colour": np.ones(3)})  # type: ignore[arg-type]
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "changed":
        middle = whole.index(b"unet|x|histogram") + 1000
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    return path


@pytest.mark.parametrize(
    "kind",
    ["missing", "text", "other", "array", "version", "fields", "empty", "cut", "changed"],
)
def test_files_that_are_not_calibrations_are_refused(kind: str, tmp_path: Path) -> None:
    path = stored(tmp_path, kind)
    reason = "is of version 99" if kind == "version" else "is no calibration"
    with pytest.raises(InputError, match=f"{path} {reason}"):
        Calibration.load(path)


def test_a_calibration_fits_its_own_model_only(bundle: Bundle, calibration: Calibration) -> None:
    calibration.check_fits(bundle.manifest, "a.npz")
    assert calibration.graphs == {name: graph_digest(bundle.manifest, name) for name in SUBMODELS}
    with pytest.raises(InputError, match="a.npz was collected from another 'vae_decoder'"):
        calibration.check_fits(read_manifest(PACKAGED_BUNDLES / "sonic-tiny"), "a.npz")
    unet = bundle.manifest.submodels["unet"]
    changed = replace(unet, files=(*unet.files[:-1], replace(unet.files[-1], sha256="0" * 64)))
    manifest = replace(bundle.manifest, submodels=dict(bundle.manifest.submodels) | {"unet": changed})
    with pytest.raises(InputError, match="a.npz was collected from another 'unet'"):
        calibration.check_fits(manifest, "a.npz")
