"""What is loaded from a bundle is what was checked, whenever somebody changes it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from manifests import change_values
from onnx import TensorProto, helper

import sonic
from sonic.bundle.bundle import Bundle
from sonic.bundle.files import digest_of
from sonic.bundle.store import PACKAGED_BUNDLES, file_info, open_bundle
from sonic.bundle.trust import TrustOptions
from sonic.errors import BundleError, InputError, SonicWarning

GRAPH = "audio2bucket/model.onnx"
WEIGHTS = "audio2bucket/model.onnx.data"
UNCHECKED = TrustOptions(check_digests=False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of sonic-tiny that may be damaged."""
    return Path(shutil.copytree(PACKAGED_BUNDLES / "sonic-tiny", tmp_path / "bundle"))


@pytest.fixture
def external(directory: Path) -> Path:
    """The copy, with the weights of a submodel in a file of their own, as at the published size."""
    model = onnx.load(directory / GRAPH)
    onnx.save(
        model, directory / GRAPH, save_as_external_data=True, location="model.onnx.data", size_threshold=1024
    )
    files = [file_info(directory / path, directory) for path in (GRAPH, WEIGHTS)]
    entries = [{"path": one.path, "bytes": one.bytes, "sha256": one.sha256} for one in files]

    def change(values: dict) -> None:
        next(one for one in values["submodels"] if one["name"] == "audio2bucket")["files"] = entries

    change_values(directory, change)
    return directory


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def run(model: sonic.SonicModel) -> np.ndarray:
    inputs = {
        "audio_windows": np.ones((1, 2, 50, 1, 64), np.float32),
        "image_embedding": np.ones((1, 64), np.float32),
    }
    with model.engine.open("audio2bucket") as session:
        return session.run(inputs)["buckets"]


def test_a_graph_that_is_replaced_after_loading_is_named(directory: Path) -> None:
    model = sonic.load_model(directory)
    before = run(model)
    flip(directory / GRAPH)
    with pytest.raises(BundleError, match=f"{GRAPH} was changed since the bundle was made"):
        run(model)
    flip(directory / GRAPH)  # it is what it was: nothing to complain about
    np.testing.assert_array_equal(run(model), before)
    (directory / GRAPH).unlink()
    with pytest.raises(BundleError, match=f"{GRAPH} cannot be opened .No such file"):
        run(model)
    (directory / GRAPH).symlink_to(PACKAGED_BUNDLES / "sonic-tiny" / GRAPH)
    with pytest.raises(BundleError, match=f"{GRAPH} cannot be opened .it is a symbolic link"):
        run(model)


def test_a_graph_that_is_replaced_is_noticed_without_digests_too(directory: Path) -> None:
    with pytest.warns(SonicWarning, match="not compared with their digests"):
        model = sonic.load_model(directory, check_digests=False)
    run(model)
    flip(directory / GRAPH)
    with pytest.raises(BundleError, match=f"{GRAPH} was changed or replaced after the bundle was opened"):
        run(model)


def test_weights_in_a_file_of_their_own(external: Path) -> None:
    expected = run(sonic.load_model(PACKAGED_BUNDLES / "sonic-tiny"))
    model = sonic.load_model(external)
    np.testing.assert_array_equal(run(model), expected)
    flip(external / WEIGHTS)
    with pytest.raises(BundleError, match=f"{WEIGHTS} was changed since"):
        run(model)
    flip(external / WEIGHTS)
    np.testing.assert_array_equal(run(model), expected)
    os.truncate(external / WEIGHTS, 100)
    with pytest.raises(BundleError, match=f"{WEIGHTS} has 100 bytes"):
        run(model)


def test_weights_are_read_for_their_digest_once(external: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sonic.load_model(external)
    read: list[int] = []

    def count(descriptor: int) -> str:
        read.append(descriptor)
        return digest_of(descriptor)

    monkeypatch.setattr("sonic.bundle.bundle.digest_of", count)
    run(model), run(model)
    assert read == []
    os.utime(external / WEIGHTS)
    run(model), run(model)
    assert len(read) == 1


@pytest.mark.parametrize("how", ["in place", "replaced", "and back"])
def test_weights_that_change_while_they_are_loaded(
    external: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Between the check and ONNX Runtime's reading there is no time at which a change is not noticed."""
    model = sonic.load_model(external)
    weights, other = external / WEIGHTS, external.parent / "other"
    shutil.copy(weights, other)
    flip(other)
    from sonic.engines import onnx as engine

    original = engine.open_session

    def meanwhile(*arguments: object) -> object:
        if how == "in place":
            flip(weights)
            return original(*arguments)
        kept = external.parent / "kept"
        weights.rename(kept)
        shutil.copy(other, weights)
        session = original(*arguments)
        if how == "and back":
            kept.replace(weights)
        return session

    monkeypatch.setattr(engine, "open_session", meanwhile)
    with pytest.raises(BundleError, match=f"{WEIGHTS} was changed or replaced"):
        run(model)


def test_a_folder_that_is_swapped_while_weights_are_loaded(
    external: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime reads in the folder that was checked, wherever it is by then."""
    expected = run(sonic.load_model(PACKAGED_BUNDLES / "sonic-tiny"))
    model = sonic.load_model(external)
    from sonic.engines import onnx as engine

    original = engine.open_session

    def meanwhile(*arguments: object) -> object:
        folder = (external / WEIGHTS).parent
        shutil.copytree(folder, external.parent / "evil")
        flip(external.parent / "evil/model.onnx.data", 0)
        folder.rename(external.parent / "kept")
        (external.parent / "evil").rename(folder)
        return original(*arguments)

    monkeypatch.setattr(engine, "open_session", meanwhile)
    np.testing.assert_array_equal(run(model), expected)


def test_unread_weights_beside_a_graph_are_no_way_out(external: Path) -> None:
    model = onnx.load(external / GRAPH, load_external_data=False)
    tensor = next(one for one in model.graph.initializer if one.data_location == TensorProto.EXTERNAL)
    next(entry for entry in tensor.external_data if entry.key == "location").value = "../unet/model.onnx"
    (external / GRAPH).write_bytes(model.SerializeToString())
    info = file_info(external / GRAPH, external)
    change_values(
        external,
        lambda values: next(
            one for one in values["submodels"] if one["name"] == "audio2bucket"
        )["files"][0].update(bytes=info.bytes, sha256=info.sha256),
    )  # fmt: skip
    with pytest.raises(BundleError, match=r"has weights in '\.\./unet/model\.onnx'"):
        run(sonic.load_model(external))


def test_files_of_downloads_are_ignored(directory: Path) -> None:
    (directory / ".cache/huggingface").mkdir(parents=True)
    for name in (".cache/huggingface/a.lock", ".gitattributes", "unet/.DS_Store"):
        (directory / name).write_text("x")
    open_bundle(directory)
    (directory / "notes.txt").touch()
    with pytest.raises(BundleError, match="the file notes.txt is not in the manifest"):
        open_bundle(directory)


def test_assets_are_finite_numbers(directory: Path) -> None:
    bundle = open_bundle(directory)
    assert bundle.asset("mel_filters").shape == (201, 80)
    for array in (np.full((201, 80), np.nan, np.float32), np.zeros((201, 80), np.float64)):
        np.save(directory / "mel_filters.npy", array)
        info = file_info(directory / "mel_filters.npy", directory)
        unchecked = Bundle(
            directory, bundle.manifest.__class__.from_json(
                bundle.manifest.to_json() | {
                    "assets": {"mel_filters": {"path": info.path, "bytes": info.bytes, "sha256": info.sha256}}
                },
                "manifest",
            ),
        )  # fmt: skip
        with pytest.raises(BundleError, match="should hold finite float32 numbers"):
            unchecked.asset("mel_filters")


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    with pytest.raises(InputError, match="a key or a certificate, not both"):
        TrustOptions(key=key, certificate=key)
    with pytest.raises(InputError, match="leave --no-verify out"):
        TrustOptions(key=key, check_digests=False)


def test_a_file_that_the_manifest_does_not_list_is_not_read(directory: Path) -> None:
    with pytest.raises(BundleError, match="lists no file secret"):
        open_bundle(directory).read("secret")


def test_control_flow_never_reaches_onnx_runtime(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(directory / GRAPH)
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=model.graph))
    (directory / GRAPH).write_bytes(model.SerializeToString())
    info = file_info(directory / GRAPH, directory)
    change_values(
        directory,
        lambda values: next(
            one for one in values["submodels"] if one["name"] == "audio2bucket"
        )["files"][0].update(bytes=info.bytes, sha256=info.sha256),
    )  # fmt: skip
    loaded = sonic.load_model(directory)
    monkeypatch.setattr("onnxruntime.InferenceSession", None)
    with pytest.raises(BundleError, match="has control flow"):
        run(loaded)
