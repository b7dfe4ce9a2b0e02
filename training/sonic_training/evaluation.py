"""Evaluates a bundle on held-out voices, sentences and people, which training never uses.

python -m sonic_training.evaluation sonic-tiny
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NotRequired, TypedDict

import click
import numpy as np
from PIL import Image
from rich.table import Table

from sonic.cli.errors import user_errors
from sonic.cli.tables import console
from sonic.media.video import Video, save_video
from sonic.model import SonicModel, load_model
from sonic.storage.files import write_json
from sonic_calibration.quality.contact_sheet import write_contact_sheet
from sonic_calibration.quality.report import QualityReport, judge
from sonic_calibration.quality.window_borders import window_borders
from sonic_convert.drawing.face import Pose
from sonic_training.actors import draw_poses, random_framing, random_look
from sonic_training.speech import SAMPLE_RATE_HZ, Corpus, build_corpus, write_wav

HELD_OUT_SEED = 900_000  # training draws its people from other seeds
DYNAMIC_SCALES = (0.5, 1.0, 1.5)
_SCALED_CLIPS = 5  # number of clips for which dynamic_scale and silence are evaluated
_SILENT_SECONDS = 3.0

Summary = dict[str, float | None]


class Evaluation(TypedDict):
    """The content of ``results.json``.

    Attributes:
        summary: means over the clips and worst values, by metric; None for what could not be measured.
        clips: the metrics of every clip (`QualityReport.to_json`), by its name.
        mouth_amplitude_by_dynamic_scale: mouth amplitudes of some clips, by dynamic scale.
        mouth_amplitude_of_silence: mouth amplitudes of the same portraits with a silent recording.
    """

    summary: Summary
    clips: dict[str, dict[str, object]]
    mouth_amplitude_by_dynamic_scale: NotRequired[dict[str, list[float]]]
    mouth_amplitude_of_silence: NotRequired[list[float]]


@dataclass(frozen=True)
class HeldOutClip:
    """A portrait and a recording.

    Attributes:
        name: number and voice.
        portrait, speech: the files.
        face_box: (x1, y1, x2, y2) of the portrait's face, in pixels of the generated video.
    """

    name: str
    portrait: Path
    speech: Path
    face_box: tuple[float, float, float, float]


def held_out_clips(folder: Path, count: int, side_pixels: int = 128) -> list[HeldOutClip]:
    """Draw portraits and mix speech of held-out voices, 2 to 8 seconds; the files are the same every time.

    Args:
        folder: where the files go.
        count: number of clips.
        side_pixels: side of the videos that will be generated.

    Raises:
        InputError: a speech synthesizer is not installed.
        OutputError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(build_corpus(folder / "speech", "held_out"))
    clips = []
    for index in range(count):
        generator = np.random.default_rng([HELD_OUT_SEED, index])
        look, framing = random_look(generator), random_framing(generator, 4 * side_pixels)
        picture = draw_poses(look, [Pose()], framing)[0]
        clip = corpus.clip(generator, float(np.linspace(2, 8, count)[index]))
        while clip.voice is None:  # pauses within the clips show how silence is handled
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
    """Generate a clip and compare it with its portrait and its speech."""
    video = model.generate(clip.portrait, clip.speech, inference_steps=steps, dynamic_scale=dynamic_scale)
    _, height, width, _ = video.shape
    portrait = np.asarray(Image.open(clip.portrait).resize((width, height), Image.Resampling.LANCZOS))
    borders = window_borders(model.constants, len(video), steps)
    return video, judge(video, clip.face_box, portrait, None, borders or None)


def silent_clip(clip: HeldOutClip) -> HeldOutClip:
    """The same portrait with a recording without speech: room noise at -66 dBFS."""
    generator = np.random.default_rng(HELD_OUT_SEED)
    samples = 5e-4 * generator.standard_normal(round(_SILENT_SECONDS * SAMPLE_RATE_HZ))
    speech = clip.speech.with_name("silence.wav")
    write_wav(speech, samples.astype(np.float32))
    return replace(clip, name=f"{clip.name} silent", speech=speech)


def summary(reports: Sequence[QualityReport]) -> Summary:
    """Means over the clips, and the worst values of metrics whose mean would hide them."""
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


def evaluate(
    bundle: str, clips: int, steps: int, scales: bool, out: Path, log: Callable[[str], None] = print
) -> Evaluation:
    """Generate and evaluate held-out clips; writes videos, contact sheets and `results.json`.

    Args:
        bundle: a bundle's name or path.
        clips: number of clips, at least 1.
        steps: denoising steps.
        scales: whether to also vary the dynamic scale, and to generate silent clips, for up to five clips.
        out: folder of the results and of the inputs (`out/inputs`).
        log: called with one line per finished clip.

    Raises:
        BundleError: the bundle does not exist, or it cannot be run.
        InputError: a speech synthesizer is not installed.
        OutputError: the folder cannot be written.
    """
    model = load_model(bundle)
    held_out = held_out_clips(out / "inputs", clips)
    reports = []
    for clip in held_out:
        video, report = judge_clip(model, clip, steps)
        reports.append(report)
        stem = out / clip.portrait.stem
        save_video(video, stem.with_suffix(".mp4"))
        write_contact_sheet(stem.with_suffix(".png"), video, clip.face_box, title=clip.name)
        sync = report.lip_sync
        log(f"{clip.name}: lip sync {sync.correlation if sync else float('nan'):.3f}")
    results: Evaluation = {
        "summary": summary(reports),
        "clips": {clip.name: report.to_json() for clip, report in zip(held_out, reports, strict=True)},
    }
    if scales:
        chosen = held_out[:_SCALED_CLIPS]
        amplitudes = {
            str(scale): [judge_clip(model, clip, steps, scale)[1].mouth_amplitude for clip in chosen]
            for scale in DYNAMIC_SCALES
        }
        silent = [judge_clip(model, silent_clip(clip), steps)[1].mouth_amplitude for clip in chosen]
        results["mouth_amplitude_by_dynamic_scale"] = amplitudes
        results["mouth_amplitude_of_silence"] = silent
        for scale, values in amplitudes.items():
            results["summary"][f"mouth_amplitude_at_dynamic_scale_{scale}"] = float(np.mean(values))
        results["summary"]["mouth_amplitude_of_silence"] = float(np.mean(silent))
    write_json(out / "results.json", results)
    return results


def summary_table(summary: Summary, title: str) -> Table:
    """A summary for the terminal."""
    table = Table("metric", "value", title=title)
    for name, value in summary.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    return table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle")
@click.option("--clips", type=click.IntRange(1), default=20, show_default=True,
              help="Number of held-out clips of 2 to 8 s.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), default=25, show_default=True, help="Denoising steps.")
@click.option("--scales/--no-scales", default=True, show_default=True,
              help="Also vary the dynamic scale, and generate silent clips, for five clips.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/evaluation"), show_default=True,
              help="Folder of videos, contact sheets and results.json.")  # fmt: skip
def main(bundle: str, clips: int, steps: int, scales: bool, out: Path) -> None:
    """Evaluate BUNDLE on held-out voices, sentences and people."""
    with user_errors():
        results = evaluate(bundle, clips, steps, scales, out, click.echo)
        title = f"{bundle}: {clips} held-out clips, {steps} steps"
        console().print(summary_table(results["summary"], title))


if __name__ == "__main__":
    main()
