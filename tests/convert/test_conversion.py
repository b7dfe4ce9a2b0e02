"""Stages are cached by what they read; bad checkpoints and targets are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sonic.bundle.store import sha256_of
from sonic.errors import OutputError
from sonic.model import load_model
from sonic.verification.verify import verify_bundle
from sonic_convert.cli.main import main
from sonic_convert.conversion import convert
from sonic_convert.export import stages
from sonic_convert.export.stages import run_stage


def test_conversion_resumes_and_repeats(small, tmp_path: Path, monkeypatch) -> None:
    work = tmp_path / "work"
    shutil.copytree(small.bundle.with_name("bundle.work"), work)
    checkpoint = Path(shutil.copytree(small.checkpoint, tmp_path / "checkpoint"))
    produced = []
    original = stages.run_stage

    def counting(folder: Path, key: list[str], produce):
        def note(target: Path):
            produced.append(f"{folder.parent.name}/{folder.name}")
            return produce(target)

        return original(folder, key, note)

    monkeypatch.setattr(stages, "run_stage", counting)
    first = convert(checkpoint, tmp_path / "bundle", work_path=work)
    assert produced == []
    path = checkpoint / "RIFE/flownet.pkl"
    state = {k: v * 1.5 for k, v in torch.load(path, weights_only=True).items()}
    torch.save(state, path)
    second = convert(checkpoint, tmp_path / "bundle", work_path=work)
    done = ("exported", "simplified", "fused", "checked", "measured")
    assert produced == [*(f"frame_interpolator/{stage}" for stage in done), "work/golden"]
    changed = [
        name
        for name, submodel in second.manifest.submodels.items()
        if submodel.files[0].sha256 != first.manifest.submodels[name].files[0].sha256
    ]
    assert changed == ["frame_interpolator"]


def test_interrupted_stage_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(target: Path) -> dict:
        (target / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path / "stage", ["key"], interrupted)
    assert list(tmp_path.iterdir()) == []


def test_bundle_files_equal_for_equal_checkpoints(small, tmp_path: Path) -> None:
    again = convert(small.checkpoint, tmp_path / "again", work_path=tmp_path / "work")
    for name, submodel in again.manifest.submodels.items():
        assert sha256_of(small.bundle / submodel.files[0].path) == submodel.files[0].sha256, name


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda s: s.pop("conv_in.weight"), "conv_in.weight"),
        (lambda s: s.update({"conv_renamed": s.pop("conv_out.bias")}), "conv_renamed"),
        (lambda s: s.update({"conv_in.bias": s["conv_in.bias"][:-1].clone()}), "conv_in.bias"),
    ],
)
def test_damaged_unet_is_refused(small, tmp_path: Path, damage, expected: str) -> None:
    checkpoint = Path(shutil.copytree(small.checkpoint, tmp_path / "checkpoint"))
    path = checkpoint / "Sonic/unet.pth"
    state = torch.load(path, weights_only=True)
    damage(state)
    torch.save(state, path)
    result = CliRunner().invoke(main, ["convert", str(checkpoint), str(tmp_path / "bundle")])
    assert result.exit_code == 2, (result.output, result.exception)
    assert expected in result.output and "unet.pth" in result.output
    assert not (tmp_path / "bundle").exists()


def test_missing_file_is_named(small, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(small.checkpoint, tmp_path / "checkpoint"))
    (checkpoint / "RIFE/flownet.pkl").unlink()
    result = CliRunner().invoke(main, ["convert", str(checkpoint), str(tmp_path / "bundle")])
    assert result.exit_code == 2
    assert "flownet.pkl" in result.output and "LeonJoe13/Sonic" in result.output


def test_svd_unet_weights_are_not_needed(small, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(small.checkpoint, tmp_path / "checkpoint"))
    for path in (checkpoint / "stable-video-diffusion-img2vid-xt/unet").glob("*.safetensors"):
        path.unlink()
    work = Path(shutil.copytree(small.bundle.with_name("bundle.work"), tmp_path / "work"))
    convert(checkpoint, tmp_path / "bundle", work_path=work)


def test_other_folders_are_not_replaced(small, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/letter.txt").touch()
    with pytest.raises(OutputError, match="is no bundle"):
        convert(small.checkpoint, tmp_path / "precious")


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_what_another_process_makes_is_left_to_it(small, tmp_path: Path, command: str) -> None:
    source = small.checkpoint if command == "convert" else small.bundle
    hold = (
        "import sys, time; from pathlib import Path; from sonic.storage.claims import claimed\n"
        "with claimed(Path(sys.argv[1]), 'the bundle'): print(flush=True); time.sleep(600)"
    )
    target = tmp_path / "bundle"
    with subprocess.Popen([sys.executable, "-c", hold, str(target)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        result = CliRunner().invoke(main, [command, str(source), str(target)])
        process.kill()
    assert result.exit_code == 2, (result.output, result.exception)
    assert f"the bundle is being written by process {process.pid} on" in result.output
    assert not target.exists() and not (tmp_path / "bundle.work").exists()


def test_own_constants_reach_the_bundle(small, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(small.checkpoint, tmp_path / "checkpoint"))
    path = checkpoint / "Sonic/config.json"
    own = json.loads(path.read_text())
    own["constants"]["sampler"] = {"steps": 12, "audio_guidance": [3.0, 4.0]}
    own["constants"]["video"] = {"interpolation_factor": 1}
    path.write_text(json.dumps(own))
    os.utime(path)
    conversion = convert(checkpoint, tmp_path / "bundle")
    sampler = conversion.manifest.constants.sampler
    assert (sampler.steps, sampler.audio_guidance) == (12, (3.0, 4.0))
    # A clip without interpolation has nothing for the interpolator, which is verified all the same.
    found = verify_bundle(load_model(tmp_path / "bundle"))
    assert found.passed and found.frames == 4 and len(found.submodels) == 9
