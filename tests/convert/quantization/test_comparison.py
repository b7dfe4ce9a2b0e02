"""Holding a quantized bundle against the full-precision one."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import sonic
from sonic.bundle.store import open_bundle
from sonic.errors import OutputError
from sonic.options import GenerationOptions
from sonic_calibration.recording.examples import Example
from sonic_convert.quantization.comparison import (
    BundleComparison,
    ClipComparison,
    compare_bundles,
    comparison_table,
    record_comparison,
    write_comparison,
)

pytestmark = pytest.mark.filterwarnings("ignore::sonic.SonicWarning")  # the video's shape at 64 pixels
SETTINGS = GenerationOptions(duration=0.4, min_resolution=64, inference_steps=2)


@pytest.fixture(scope="module")
def compared(small, int8: Path, fp16: Path, clips: list[Example]) -> dict[str, BundleComparison]:
    """Three bundles against full precision."""
    return {
        bundle.name: compare_bundles(small.bundle, bundle, clips, SETTINGS)
        for bundle in (small.bundle, fp16, int8)
    }


def clip(psnr_db: float, lip_sync: float | None, reference: float | None) -> ClipComparison:
    return ClipComparison("a.png", psnr_db, psnr_db - 2, 0.9, lip_sync, reference)


def test_a_bundle_is_its_own_equal(compared: dict[str, BundleComparison]) -> None:
    found = compared["bundle"]
    assert found.psnr_db == found.worst_psnr_db == 100
    assert found.clips[0].ssim == pytest.approx(1)
    assert found.lip_sync_change == found.largest_lip_sync_change == 0


def test_the_fewer_bits_the_larger_the_difference(compared: dict[str, BundleComparison]) -> None:
    assert 50 < compared["fp16"].psnr_db < 100
    assert 15 < compared["int8"].psnr_db < compared["fp16"].psnr_db - 10
    assert compared["int8"].clips[0].ssim < compared["fp16"].clips[0].ssim
    for found in compared.values():
        (one,) = found.clips
        assert found.reference == "bundle" and one.example == "one.png"
        assert one.worst_psnr_db <= one.psnr_db
        assert one.reference_lip_sync == compared["bundle"].clips[0].lip_sync
    change = compared["int8"].lip_sync_change
    assert change is not None and 0 < abs(change) == compared["int8"].largest_lip_sync_change


def test_clips_without_speech_have_no_lip_sync() -> None:
    found = BundleComparison("fp32", (clip(30, None, None), clip(40, None, 0.5)))
    assert found.lip_sync_change is found.largest_lip_sync_change is None
    assert found.psnr_db == 35 and found.worst_psnr_db == 30


def test_changes_of_both_signs_are_weighed() -> None:
    found = BundleComparison("fp32", (clip(30, 0.7, 0.8), clip(40, 0.9, 0.7), clip(35, None, None)))
    assert found.lip_sync_change == pytest.approx(0.05)
    assert found.largest_lip_sync_change == pytest.approx(0.2)


def test_a_table_has_a_row_for_each_clip() -> None:
    console = Console(width=110, file=StringIO())
    found = BundleComparison("fp32", (clip(31.26, 0.75, 0.8), clip(40, None, None)))
    console.print(comparison_table(found, "int8 against fp32"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "int8 against fp32" in text and "31.3" in text and "0.750" in text
    assert "mean PSNR 35.6 dB, worst clip 31.3; lip sync -0.050 in the mean" in text


def test_the_numbers_are_written(compared: dict[str, BundleComparison], tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    write_comparison(path, compared["int8"])
    numbers = json.loads(path.read_text())
    assert numbers == compared["int8"].to_json()
    assert numbers["psnr_db"] == compared["int8"].psnr_db and len(numbers["clips"]) == 1
    with pytest.raises(OutputError, match="cannot write"):
        write_comparison(tmp_path / "no" / "folder.json", compared["int8"])


def test_a_comparison_is_noted_in_the_manifest(
    compared: dict[str, BundleComparison], int8: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "int8"
    shutil.copytree(int8, bundle)
    before = open_bundle(bundle).manifest.to_json()
    record_comparison(bundle, compared["int8"])
    after = open_bundle(bundle).manifest.to_json()
    assert after["parity"] == {"full_precision": compared["int8"].to_json()}
    assert before | {"parity": after["parity"]} == after
    sonic.load_model(bundle)
