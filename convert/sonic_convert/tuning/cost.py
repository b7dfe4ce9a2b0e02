"""Says what a tuning will cost before it starts."""

from __future__ import annotations

from sonic.costs.calibration import calibrate
from sonic.costs.estimate import estimate_clip
from sonic.generation import load_speech
from sonic.media.portrait import load_portrait, output_size
from sonic.model import SonicModel
from sonic.plan import ClipSize, denoising_steps, plan_clip
from sonic_convert.tuning.tune import CANDIDATES, Tuner

_PROBE_SECONDS = 5.0
_TYPICAL_SHARE = 0.2  # of the published sampler's evaluations, in the mean over the plans that are judged


def generations(tuner: Tuner) -> float:
    """About how many generations with the published sampler all work of a tuning comes to."""
    clips, tuned = len(tuner.examples), tuner.tuned_clips
    return clips + CANDIDATES * tuned * _TYPICAL_SHARE + (clips - tuned) * 3 * _TYPICAL_SHARE


def describe_cost(model: SonicModel, tuner: Tuner) -> str:
    """One line: how much is generated, and about how long that takes on this machine.

    Raises:
        BundleError: the bundle cannot be run, or does not say what it computes.
    """
    options = tuner.clip_options.resolved(model.constants)
    assert options.min_resolution is not None
    example = tuner.examples[0]
    picture = load_portrait(example.image)
    width, height = output_size(
        *picture.size, options.min_resolution, model.constants.portrait.size_multiple_pixels
    )
    seconds = load_speech(example.audio, options).duration_seconds
    plan = plan_clip(
        model.constants, ClipSize(seconds, width, height), denoising_steps(model.manifest, options)
    )
    machine = calibrate(model.engine, plan, _PROBE_SECONDS)
    clip_seconds = estimate_clip(model.manifest, plan, machine, model.run).total_seconds
    count = generations(tuner)
    return (
        f"tuning with {len(tuner.examples)} clips of about {seconds:.1f} s at {width}x{height} pixels: the "
        f"work of {count:.1f} generations with {len(plan.denoising.steps)} steps, about "
        f"{_duration(count * clip_seconds)} on this machine"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
