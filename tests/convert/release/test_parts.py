"""The parts of a release: source, notes, licences, bill of materials."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from sonic.bundle.manifest_file import read_manifest
from sonic.bundle.store import PACKAGED_BUNDLES, sha256_of
from sonic.errors import InputError
from sonic_convert.checkpoint.checkpoint import DEFAULT_LICENSE, Checkpoint
from sonic_convert.checkpoint.notice import license_files, notice_of
from sonic_convert.cli.main import main
from sonic_convert.export import measured
from sonic_convert.release.bundles import BundleOptions, Packed
from sonic_convert.release.notes import release_notes
from sonic_convert.release.source import export

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- Next.\n\n## [0.1.0]\n\n### Added\n\n- First.\n"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    path = tmp_path_factory.mktemp("packed") / "sonic-tiny-fp32-x86_64.tar.zst"
    path.write_bytes(b"archive")
    return Packed(path, "x86_64", "fp32", read_manifest(PACKAGED_BUNDLES / "sonic-tiny"))


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "runtime/sonic").mkdir(parents=True)
    (root / "runtime/sonic/__init__.py").write_text('__version__ = "1.2.3"  # of all\n')
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "First", "--date", "2026-01-02T03:04:05Z")
    return root


def test_a_release_is_made_of_what_is_committed(repository: Path, tmp_path: Path, monkeypatch) -> None:
    (repository / "untracked").touch()
    source = export(repository, tmp_path / "copy")
    assert source.version == "1.2.3" and len(source.commit) == 40 and source.seconds > 1_700_000_000
    assert [path.name for path in source.folder.iterdir()] == ["runtime"]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert export(repository, tmp_path / "copy").seconds == 1_700_000_000
    (repository / "runtime/sonic/__init__.py").write_text('__version__ = "2"\n')
    with pytest.raises(InputError, match="runtime/sonic/__init__.py has changes"):
        export(repository, tmp_path / "copy")
    shutil.rmtree(repository / ".git")
    with pytest.raises(InputError, match="is no git clone"):
        export(repository, tmp_path / "copy")
    with pytest.raises(InputError, match="is not sonic-arm's repository"):
        export(tmp_path, tmp_path / "copy")


def test_notes_have_the_versions_changes_and_every_bundle(packed: Packed) -> None:
    notes = release_notes("0.1.0", CHANGELOG.replace("### Added\n\n- Next.\n\n", ""), [packed])
    assert "- First." in notes and "Next" not in notes
    (line,) = (line for line in notes.splitlines() if packed.archive.name in line)
    assert "| x86_64 | fp32 |" in line and sha256_of(packed.archive) in line and " dB |" in line
    assert packed.manifest.license in notes
    assert "- Next." in release_notes("0.2.0", CHANGELOG, [packed])
    with pytest.raises(InputError, match=r"no section \[0.2.0\]"):
        release_notes("0.2.0", "# Changelog\n", [packed])


def test_the_bill_is_valid_and_has_the_models_and_packages(packed: Packed, tmp_path: Path) -> None:
    if importlib.util.find_spec("cyclonedx") is None:
        pytest.skip("cyclonedx-python-lib is not installed")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    from sonic_convert.release.sbom import bill_of_materials

    wheel = tmp_path / "sonic_runtime-0.2-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    text = bill_of_materials("0.2", 1_700_000_000, [wheel], [packed])
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert text == bill_of_materials("0.2", 1_700_000_000, [wheel], [packed])
    bill = json.loads(text)
    assert bill["metadata"]["timestamp"].startswith("2023-11-14T22:13:20")
    components = {one["name"]: one for one in bill["components"]}
    model = components[packed.archive.name]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": sha256_of(packed.archive)}]
    (unet,) = (one for one in model["components"] if one["name"] == "unet")
    assert unet["components"][0]["hashes"][0]["content"] == packed.manifest.submodels["unet"].files[0].sha256
    assert {"numpy", "onnxruntime", "av", "torch"} <= set(components)
    (file,) = components["sonic-runtime"]["components"]
    assert file["hashes"][0]["content"] == sha256_of(wheel)
    depends = {one["ref"]: one.get("dependsOn", []) for one in bill["dependencies"]}
    runtime = " ".join(depends["pkg:pypi/sonic-runtime@0.2"])
    assert "numpy" in runtime and "torch" not in runtime


def test_third_party_licences_have_their_texts() -> None:
    if importlib.util.find_spec("packaging") is None:
        pytest.skip("packaging is not installed")
    from sonic_convert.release.licenses import third_party_licenses

    text = third_party_licenses({})
    for words in (
        "numpy ",
        "FFmpeg (libavcodec",
        "libavcodec-",
        "Permission is hereby granted",
        "onnxruntime ",
    ):
        assert words in text, words
    assert "\ntorch " not in text
    assert text == third_party_licenses({})


def test_licences_of_a_checkpoint(small, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(small.checkpoint, tmp_path / "checkpoint"))
    assert (small.bundle / "NOTICE").read_text() == notice_of(Checkpoint.open(checkpoint))
    assert "CC0" in notice_of(Checkpoint.open(checkpoint))
    (checkpoint / "Sonic/config.json").unlink()
    svd = checkpoint / "stable-video-diffusion-img2vid-xt"
    for path in (svd / "LICENSE.md", checkpoint / "LICENCE", checkpoint / "Sonic/license (copy).txt"):
        path.write_text("the licence")
    (checkpoint / "Sonic/licensed.txt").touch()
    found = license_files(checkpoint)
    assert found == {
        "licenses/LICENCE": checkpoint / "LICENCE",
        "licenses/Sonic/license__copy_.txt": checkpoint / "Sonic/license (copy).txt",
        "licenses/stable-video-diffusion-img2vid-xt/LICENSE.md": svd / "LICENSE.md",
    }


def test_the_published_weights_notice_names_their_licences(small) -> None:
    from dataclasses import replace

    text = notice_of(replace(Checkpoint.open(small.checkpoint), license=DEFAULT_LICENSE))
    for words in ("CC BY-NC-SA 4.0", "Stability AI", "GPL-3.0", "converted to ONNX"):
        assert words in text


def test_memory_that_was_measured_is_quoted(small, tmp_path: Path) -> None:
    found = measured.collect(small.bundle.with_name("bundle.work"))
    assert len(found) == 9
    structure, facts = next(iter(found.items()))
    assert measured.known(structure) is None
    path = tmp_path / "measured-memory.json"
    path.write_text(json.dumps(found))
    with measured.quoting(path):
        assert measured.known(structure) == {**facts, "structure": structure}
    assert measured.known(structure) is None
    path.write_text('{"a": 1}')
    with pytest.raises(InputError, match="holds no measured memory"), measured.quoting(path):
        pass


def test_values_of_weights_do_not_matter_to_the_structure(small, tmp_path: Path) -> None:
    import onnx

    graph = small.bundle / "audio2token/model.onnx"
    model = onnx.load(str(graph))
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = bytes(len(weights.raw_data))
    onnx.save(model, str(tmp_path / "model.onnx"))
    calls = [{"count": 2}]
    assert measured.structure_of(tmp_path / "model.onnx", calls) == measured.structure_of(graph, calls)
    assert measured.structure_of(graph, [{"count": 3}]) != measured.structure_of(graph, calls)
    model.graph.node[0].name += "x"
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert measured.structure_of(tmp_path / "model.onnx", calls) != measured.structure_of(graph, calls)


def test_unknown_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the precisions are .*int4"):
        BundleOptions(tmp_path, "name", ("int4",))


def test_missing_tools_are_named(monkeypatch) -> None:
    monkeypatch.setattr("sonic_convert.release.packages.NEEDED", ("no_such_tool",))
    result = CliRunner().invoke(main, ["release", "sonic-tiny", "dist"])
    assert result.exit_code == 2 and "a release needs 'no_such_tool'; pip install" in result.output
