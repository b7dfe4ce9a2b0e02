"""Bundles that are whole, and bundles that are not."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from manifests import change_values

from sonic.bundle.constants import Constants
from sonic.bundle.manifest import SUBMODEL_NAMES, Manifest
from sonic.bundle.manifest_file import read_manifest
from sonic.bundle.store import find_bundle, open_bundle
from sonic.errors import BundleError
from sonic.model import load_model


@pytest.fixture
def bundle(small, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(small.bundle, tmp_path / "bundle"))


def test_manifest_survives_json(small) -> None:
    manifest = read_manifest(small.bundle)
    again = Manifest.from_json(json.loads(json.dumps(manifest.to_json())), "again")
    assert again == manifest
    assert tuple(manifest.submodels) == SUBMODEL_NAMES
    assert manifest.license.startswith("CC0")
    assert manifest.constants.portrait.default_resolution_pixels == 128
    unet = manifest.submodels["unet"]
    assert unet.inputs[0].shape == ("batch", "frames", 8, "height", "width")
    latent = manifest.submodels["vae_encoder"].outputs[0]
    assert latent.shape == (1, 4, "height/8", "width/8")
    assert unet.opset == 18 and unet.precision == "fp32"
    assert {source.path for source in manifest.sources} >= {"Sonic/unet.pth", "yoloface_v5m.pt"}
    assert all(r["relative_l2"] <= 1e-4 for r in manifest.parity["submodels"].values())


def test_missing_file(bundle: Path) -> None:
    (bundle / "unet/model.onnx").unlink()
    with pytest.raises(BundleError, match="unet/model.onnx is missing"):
        open_bundle(bundle)


def test_changed_file(bundle: Path) -> None:
    path = bundle / "vae_decoder/model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="vae_decoder/model.onnx was changed"):
        load_model(bundle)
    open_bundle(bundle, check_digests=False)


def test_truncated_file(bundle: Path) -> None:
    path = bundle / "audio2token/model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="the manifest says"):
        open_bundle(bundle)


def test_extra_file(bundle: Path) -> None:
    (bundle / "unet/notes.txt").touch()
    with pytest.raises(BundleError, match="unet/notes.txt is not in the manifest"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m.update(schema_version=99), "schema version is 99"),
        (lambda m: m.pop("license"), "'license'"),
        (lambda m: m["submodels"].pop(), "face_detector"),
        (lambda m: m["submodels"][0]["files"][0].update(path="../x"), "malformed"),
        (lambda m: m["constants"]["sampler"].pop("sigma_max"), "sampler"),
        (lambda m: m["constants"]["sampler"].update(steps="many"), "sampler.steps"),
        (lambda m: m.update(engine="abacus"), "'abacus'"),
    ],
)
def test_damaged_manifest(bundle: Path, change, expected: str) -> None:
    change_values(bundle, change)
    with pytest.raises(BundleError, match=expected):
        load_model(bundle)


def test_no_json(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="cannot be read"):
        load_model(bundle)


def test_names_are_searched(bundle: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("SONIC_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sonic.bundle.store.PACKAGED_BUNDLES", tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="no bundle was found.*sonic-convert convert"):
        find_bundle("mine")
    for folder in (tmp_path / "package", tmp_path / "data/sonic", tmp_path / "bundles", tmp_path / "home"):
        shutil.copytree(bundle, folder / "mine")
        assert find_bundle("mine").resolve() == folder / "mine"
    with pytest.raises(BundleError, match="bundles found: .*home/mine"):
        find_bundle("yours")
    assert find_bundle(bundle) == bundle


def test_constants_survive_json() -> None:
    constants = Constants()
    assert Constants.from_json(json.loads(json.dumps(asdict(constants))), "file") == constants
