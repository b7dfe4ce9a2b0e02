"""What sonic-tiny can do, on voices, sentences and people that training never met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from sonic.cli.errors import user_errors
from sonic.diffusion.plan import window_indices
from sonic.media.video import Video, save_video
from sonic.model import SonicModel, load_model
from sonic.storage.files import write_json
from sonic_calibration.quality.contact_sheet import write_contact_sheet
from sonic_calibration.quality.report import QualityReport, judge
from sonic_convert.drawing.face import Pose
from sonic_training.actors import draw_poses, random_framing, random_look
from sonic_training.speech import SAMPLE_RATE_HZ, Corpus, build_corpus, write_wav

HELD_OUT_SEED = 900_000  # training draws its people from other seeds
SCALES = (0.5, 1.0, 1.5)
_FEW_CLIPS = 5  # for what is not measured on every clip
_SILENT_SECONDS = 3.0


@dataclass(frozen=True)
class HeldOutClip:
    """One portrait and one recording, as files, and where the portrait's face is (x1 y1 x2 y2)."""

    name: str
    portrait: Path
    speech: Path
    face_box: tuple[float, float, float, float]


def held_out_clips(folder: Path, count: int, side_pixels: int = 128) -> list[HeldOutClip]:
    """Draw people and let held-out voices speak for 2 to 8 seconds; the same files every time."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(build_corpus(folder / "speech", "held_out"))
    clips = []
    for index in range(count):
        generator = np.random.default_rng([HELD_OUT_SEED, index])
        look, framing = random_look(generator), random_framing(generator, 4 * side_pixels)
        picture = draw_poses(look, [Pose()], framing)[0]
        clip = corpus.clip(generator, float(np.linspace(2, 8, count)[index]))
        while clip.voice is None:  # silence is judged by the clips' own pauses
            clip = corpus.clip(generator, float(np.linspace(2, 8, count)[index]))
        portrait, speech = folder / f"{index:02d}.png", folder / f"{index:02d}.wav"
        Image.fromarray(picture).save(portrait)
        write_wav(speech, clip.heard)
        x1, y1, x2, y2 = (value / 4 for value in framing.face_box)
        clips.append(HeldOutClip(f"{index:02d} {clip.voice}", portrait, speech, (x1, y1, x2, y2)))
    return clips


def judge_clip(
    model: SonicModel, clip: HeldOutClip, steps: int, dynamic_scale: float = 1.0
) -> tuple[Video, QualityReport]:
    """Generate a clip and measure it against its own portrait and its own speech."""
    video = model.generate(clip.portrait, clip.speech, inference_steps=steps, dynamic_scale=dynamic_scale)
    _, height, width, _ = video.shape
    portrait = np.asarray(Image.open(clip.portrait).resize((width, height), Image.Resampling.LANCZOS))
    borders = window_borders(model, len(video), steps)
    return video, judge(video, clip.face_box, portrait, None, borders or None)


def silent_clip(clip: HeldOutClip) -> HeldOutClip:
    """The same portrait with a recording in which nobody speaks: room noise at -66 dBFS."""
    generator = np.random.default_rng(HELD_OUT_SEED)
    samples = 5e-4 * generator.standard_normal(round(_SILENT_SECONDS * SAMPLE_RATE_HZ))
    speech = clip.speech.with_name("silence.wav")
    write_wav(speech, samples.astype(np.float32))
    return replace(clip, name=f"{clip.name} silent", speech=speech)


def window_borders(model: SonicModel, frames: int, steps: int) -> list[int]:
    """The finished frames at which a window of the last denoising step begins."""
    factor = model.constants.video.interpolation_factor
    generated = (frames + factor - 1) // factor
    windows = window_indices(generated, steps - 1, model.constants.sampler)
    starts = {int(indices[0]) * factor for indices in windows}
    return sorted(start for start in starts if 0 < start < frames - 1)


def summary(reports: Sequence[QualityReport]) -> dict[str, Any]:
    """Means, and the worst where the mean would hide it."""
    syncs = [report.lip_sync for report in reports if report.lip_sync is not None]
    closed = [report.closed_in_silence for report in reports if report.closed_in_silence is not None]
    faces = [report.identity for report in reports if report.identity is not None]
    borders = [r.flicker.border_ratio for r in reports if r.flicker.border_ratio is not None]
    return {
        "clips": len(reports),
        "lip_sync_correlation": float(np.mean([sync.correlation for sync in syncs])),
        "lip_sync_worst": float(np.min([sync.correlation for sync in syncs])),
        "lip_sync_largest_lag_frames": int(max(abs(sync.lag_frames) for sync in syncs)),
        "open_in_silence": float(np.mean(closed)) if closed else None,
        "identity_psnr_db": float(np.mean([face.psnr_db for face in faces])),
        "identity_aligned_psnr_db": float(np.mean([face.aligned_psnr_db for face in faces])),
        "picture_psnr_db": float(np.mean([face.picture_psnr_db for face in faces])),
        "border_flicker_ratio": float(np.mean(borders)) if borders else None,
        "border_flicker_ratio_worst": float(np.max(borders)) if borders else None,
        "mouth_amplitude": float(np.mean([report.mouth_amplitude for report in reports])),
        "sharpness_ratio": float(np.mean([r.sharpness.ratio for r in reports if r.sharpness.ratio])),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle")
@click.option("--clips", default=20, show_default=True, help="How many held-out clips of 2 to 8 s.")
@click.option("--steps", default=25, show_default=True, help="Denoising steps.")
@click.option("--scales/--no-scales", default=True,
              help="Also vary dynamic_scale, and listen to silence, on five clips.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/evaluation"), show_default=True,
              help="Where videos, contact sheets and results.json go.")  # fmt: skip
def main(bundle: str, clips: int, steps: int, scales: bool, out: Path) -> None:
    """Judge BUNDLE on held-out voices, sentences and people."""
    with user_errors():
        evaluate(bundle, clips, steps, scales, out)


def evaluate(bundle: str, clips: int, steps: int, scales: bool, out: Path) -> dict[str, Any]:
    """Generate and judge every clip; writes MP4s, contact sheets and `results.json` to `out`."""
    model = load_model(bundle)
    made = held_out_clips(out / "inputs", clips)
    reports = []
    for clip in made:
        video, report = judge_clip(model, clip, steps)
        reports.append(report)
        stem = out / clip.portrait.stem
        save_video(video, stem.with_suffix(".mp4"))
        write_contact_sheet(stem.with_suffix(".png"), video, clip.face_box, title=clip.name)
        sync = report.lip_sync
        click.echo(f"{clip.name}: lip sync {sync.correlation if sync else float('nan'):.3f}")
    results: dict[str, Any] = {"summary": summary(reports)}
    results["clips"] = {clip.name: report.to_json() for clip, report in zip(made, reports, strict=True)}
    if scales:
        few = made[:_FEW_CLIPS]
        amplitudes = {
            str(scale): [judge_clip(model, clip, steps, scale)[1].mouth_amplitude for clip in few]
            for scale in SCALES
        }
        silent = [judge_clip(model, silent_clip(clip), steps)[1].mouth_amplitude for clip in few]
        results["mouth_amplitude_by_dynamic_scale"] = amplitudes
        results["mouth_amplitude_of_silence"] = silent
        for scale, values in amplitudes.items():
            results["summary"][f"mouth_amplitude_at_dynamic_scale_{scale}"] = float(np.mean(values))
        results["summary"]["mouth_amplitude_of_silence"] = float(np.mean(silent))
    write_json(out / "results.json", results)
    table = Table("measure", "value", title=f"{bundle}: {clips} held-out clips, {steps} steps")
    for name, value in results["summary"].items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
    return results


if __name__ == "__main__":
    main()
