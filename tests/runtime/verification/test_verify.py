"""A bundle is held against PyTorch without PyTorch: passes, fails, and is refused with one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from manifests import change_values

from sonic.bundle.manifest import SUBMODEL_NAMES, Manifest, VerificationInfo
from sonic.bundle.manifest_file import read_manifest
from sonic.bundle.store import file_info
from sonic.cli.main import main
from sonic.errors import BundleError
from sonic.model import SonicModel, load_model
from sonic.verification.golden import ExpectedClip, GoldenVectors, write_arrays
from sonic.verification.verify import verify_bundle
from sonic_convert.bundle_writer import write_manifest


@pytest.fixture
def bundle(small, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(small.bundle, tmp_path / "bundle"))


def verify(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


def sentence(result: Result) -> str:
    """The one line of an error that the user can solve."""
    assert result.exit_code == 2, (result.output, result.exception)
    lines = result.output.strip().splitlines()  # of finished stages before
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def change_weight(
    bundle: Path, submodel: str, change: Callable[[np.ndarray], np.ndarray], name: str = ""
) -> None:
    """Change the largest weight with `name` in its own; the manifest gets the new digest."""
    path = bundle / submodel / "model.onnx"
    model = onnx.load(path)
    tensors = [tensor for tensor in model.graph.initializer if name in tensor.name]
    tensor = max(tensors, key=lambda one: np.prod(one.dims, dtype=int))
    values = change(onnx.numpy_helper.to_array(tensor).copy()).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    manifest = read_manifest(bundle)
    info = replace(manifest.submodels[submodel], files=(file_info(path, bundle),))
    write_manifest(bundle, replace(manifest, submodels=manifest.submodels | {submodel: info}))


def golden(manifest: Manifest) -> VerificationInfo:
    assert manifest.verification is not None
    return manifest.verification


def change_golden(bundle: Path, submodel: str, write: Callable[[Path], object]) -> None:
    """Replace a submodel's golden file; the manifest gets the new digest."""
    manifest = read_manifest(bundle)
    info = golden(manifest)
    entry = info.submodels[submodel]
    write(bundle / entry.file.path)
    entry = replace(entry, file=file_info(bundle / entry.file.path, bundle))
    info = replace(info, submodels=info.submodels | {submodel: entry})
    write_manifest(bundle, replace(manifest, verification=info))


def read_json(path: Path) -> dict[str, Any]:
    """A file that every JSON reader takes: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_whole_bundle_passes(small, tmp_path: Path) -> None:
    result = verify(small.bundle, "--threads", 1, "--json", tmp_path / "v.json")
    assert result.exit_code == 0, (result.output, result.exception)
    assert all(name in result.output for name in SUBMODEL_NAMES) and "FAILED" not in result.output
    numbers = read_json(tmp_path / "v.json")
    assert numbers["passed"] and numbers["clip"]["psnr_db"] >= numbers["clip"]["minimum_psnr_db"] == 50
    rows = {row["name"]: row for row in numbers["submodels"]}
    assert tuple(rows) == SUBMODEL_NAMES
    for row in rows.values():
        assert 0 < row["relative_l2"] < 1e-5 and row["tolerance"] == 2e-4 and row["passed"]
        assert row["when_made"] < 1e-5


def test_one_changed_byte_is_refused(bundle: Path) -> None:
    path = bundle / "unet/model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "unet/model.onnx was changed since the bundle was made" in sentence(verify(bundle))


@pytest.mark.parametrize(("submodel", "name"), [("unet", "conv_out.weight"), ("audio2token", "")])
def test_another_model_fails(bundle: Path, tmp_path: Path, submodel: str, name: str) -> None:
    change_weight(bundle, submodel, lambda values: 4 * values, name)
    result = verify(bundle, "--json", tmp_path / "v.json")
    assert result.exit_code == 1, (result.output, result.exception)
    assert "FAILED" in result.output
    numbers = read_json(tmp_path / "v.json")
    assert [row["name"] for row in numbers["submodels"] if not row["passed"]] == [submodel]
    assert not numbers["passed"] and (submodel != "unet" or not numbers["clip"]["passed"])


@pytest.mark.parametrize("submodel", ["unet", "vae_decoder"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_fail(bundle: Path, tmp_path: Path, submodel: str, value: float) -> None:
    change_weight(bundle, submodel, lambda values: np.full_like(values, value))
    result = verify(bundle, "--json", tmp_path / "v.json")
    assert result.exit_code == 1, (result.output, result.exception)
    assert "not finite" in result.output and "note:" not in result.output
    numbers = read_json(tmp_path / "v.json")
    row = next(row for row in numbers["submodels"] if row["name"] == submodel)
    assert row["relative_l2"] is None and not row["passed"] and not numbers["clip"]["passed"]
    if submodel == "unet":
        assert numbers["clip"]["psnr_db"] is None and "not finite" in numbers["clip"]["problem"]


def test_a_bundle_without_golden_vectors_loads_and_says_so(bundle: Path) -> None:
    shutil.rmtree(bundle / "golden")
    write_manifest(bundle, replace(read_manifest(bundle), verification=None))
    assert "verification" not in json.loads((bundle / "manifest.json").read_text())
    load_model(bundle)
    assert "holds no golden vectors to be verified with; convert" in sentence(verify(bundle))
    shown = CliRunner().invoke(main, ["info", str(bundle)])
    assert shown.exit_code == 0 and "none; convert the checkpoint again" in shown.output


def test_info_tells_of_the_golden_vectors(small) -> None:
    shown = CliRunner().invoke(main, ["info", str(small.bundle)])
    assert shown.exit_code == 0 and "'sonic verify" in shown.output


def test_a_missing_golden_file_is_named(bundle: Path) -> None:
    (bundle / "golden/unet.npz").unlink()
    assert "golden/unet.npz is missing" in sentence(verify(bundle))


def _whole(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: path.write_text("golden"), "cannot be read as golden vectors"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot be read as golden vectors"),
        (lambda path: path.write_bytes(b""), "cannot be read as golden vectors"),
        (
            lambda path: write_arrays(path, {"out.buckets": np.zeros(3, np.float32)}),
            "holds no 'shape.buckets'",
        ),
        (
            lambda path: write_arrays(path, _whole(path) | {"in.image_embedding": np.zeros((1, 3), "f4")}),
            "'audio2bucket' does not run on its golden inputs",
        ),
        (
            lambda path: write_arrays(path, _whole(path) | {"shape.buckets": np.array([2, 4])}),
            r"gives the shape (1, 4, 2, 1) for 'buckets'",
        ),
        (
            lambda path: GoldenVectors(
                GoldenVectors.load(path).inputs,
                {"others": GoldenVectors.load(path).outputs["buckets"]},
            ).save(path),
            "gives nothing for 'others'",
        ),
    ],
)
def test_golden_files_that_do_not_fit(bundle: Path, write: Callable[[Path], object], expected: str) -> None:
    change_golden(bundle, "audio2bucket", write)
    assert expected in sentence(verify(bundle))


def test_a_clip_that_does_not_fit(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    info = golden(manifest)
    path = bundle / info.clip.expected.path
    clip = ExpectedClip.load(path)
    for changed, expected in (
        (replace(clip, frames=np.concatenate([clip.frames] * 2)), "its golden frames have (14, 128, 128, 3)"),
        (replace(clip, noise=clip.noise[:2]), "noise is float32 (2, 4, 16, 16)"),
    ):
        changed.save(path)
        entry = replace(info.clip, expected=file_info(path, bundle))
        write_manifest(bundle, replace(manifest, verification=replace(info, clip=entry)))
        assert expected in sentence(verify(bundle))


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["submodels"].pop("unet"),
        lambda v: v["submodels"]["unet"].update(tolerance="much"),
        lambda v: v["submodels"]["unet"]["file"].update(path="../unet.npz"),
        lambda v: v["clip"].pop("steps"),
        lambda v: v["clip"].update(face_box=[1, 2]),
        lambda v: v.update(clip=None),
    ],
)
def test_a_malformed_entry_is_named(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    change_values(bundle, lambda values: change(values["verification"]))
    assert "missing or malformed; convert the checkpoint again" in sentence(verify(bundle))


def test_no_bundle_and_no_place_for_the_numbers(small, tmp_path: Path) -> None:
    assert "no bundle" in sentence(verify(tmp_path / "none"))
    result = verify(small.bundle, "--json", tmp_path / "missing/v.json")
    assert result.exit_code == 2 and "missing/v.json" in sentence(result)


def test_one_submodel_is_in_memory_at_a_time(small, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(small.bundle)
    opened: list[str] = []

    def counted(name: str) -> object:
        session = original(name)
        enter, leave = session.__enter__, session.__exit__

        class Counted:
            run = staticmethod(session.run)

            def __enter__(self) -> object:
                assert not opened
                opened.append(name)
                return enter()

            def __exit__(self, *error: Any) -> None:
                opened.remove(name)
                leave(*error)

        return Counted()

    original = model.engine.open
    monkeypatch.setattr(model.engine, "open", counted)
    monkeypatch.setattr("sonic.verification.verify.generate_clip", _refuse)
    found = verify_bundle(model)
    assert all(row.passed for row in found.submodels) and found.clip.problem == "no clip here"
    assert not found.passed


def _refuse(model: SonicModel, *_: object) -> np.ndarray:
    raise BundleError("no clip here")
