"""The numeric constants of a bundle: one frozen dataclass for each part of the pipeline.

The defaults are the values in Sonic's published inference code. A bundle's manifest states all of them,
and the runtime uses the manifest's, if they are in the ranges that are stated here: far wider than any
checkpoint needs, and narrow enough that no value makes a clip endless or takes all memory.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Annotated, Any

from annotated_types import Interval, Len

from sonic.errors import BundleError
from sonic.records import EXACT, read_record

_ADVICE = "convert the checkpoint again with this version"

GUIDANCE_BRANCHES = 3  # unconditional, with the image, with image and audio

_SPECTRUM_LIMIT = 1 << 24  # values; 1.2 million in the published code
_Padding = Annotated[int, Interval(ge=0, le=1_024)]
_Stride = Annotated[int, Interval(ge=1, le=512)]
_Mean = Annotated[float, Interval(ge=-100, le=100)]
_Deviation = Annotated[float, Interval(ge=1e-3, le=100)]
_Guidance = Annotated[float, Interval(ge=0, le=100)]  # as the options' range


@dataclass(frozen=True)
class AudioConstants:
    """How a recording is cut into windows for the audio encoder, and its hidden states into frames'."""

    __pydantic_config__ = EXACT

    sample_rate_hz: Annotated[int, Interval(ge=8_000, le=48_000)] = 16_000
    window_samples: Annotated[int, Interval(ge=1_600, le=4_800_000)] = 480_000  # 30 s, as in its training
    fft_samples: Annotated[int, Interval(ge=64, le=8_192)] = 400
    hop_samples: Annotated[int, Interval(ge=16, le=8_192)] = 160
    mel_bins: Annotated[int, Interval(ge=1, le=1_024)] = 80
    unit_samples: Annotated[int, Interval(ge=16, le=48_000)] = 640  # 25 units per second
    states_per_unit: Annotated[int, Interval(ge=1, le=64)] = 2  # the encoder emits 50 states per second
    units_per_frame: Annotated[int, Interval(ge=1, le=64)] = 2  # 12.5 generated frames per second
    token_window_states: Annotated[int, Interval(ge=1, le=1_024)] = 10
    token_padding_states: tuple[_Padding, _Padding] = (4, 6)
    bucket_window_states: Annotated[int, Interval(ge=1, le=1_024)] = 50
    bucket_padding_states: tuple[_Padding, _Padding] = (24, 26)
    bucket_scale: Annotated[float, Interval(ge=-1e4, le=1e4)] = 16.0
    bucket_offset: Annotated[float, Interval(ge=-1e4, le=1e4)] = 16.0

    def __post_init__(self) -> None:
        """Check that a window's spectrum fits into memory.

        Raises:
            ValueError: it has more than `_SPECTRUM_LIMIT` values, or is longer than the window.
        """
        if self.fft_samples > self.window_samples or self.hop_samples > self.window_samples:
            raise ValueError("'fft_samples' and 'hop_samples' should be at most 'window_samples'")
        if self.window_samples // self.hop_samples * self.fft_samples > _SPECTRUM_LIMIT:
            raise ValueError("'window_samples' / 'hop_samples' x 'fft_samples' is too much for one window")

    @property
    def states_per_frame(self) -> int:
        """Encoder states from one generated frame to the next."""
        return self.states_per_unit * self.units_per_frame

    @property
    def samples_per_frame(self) -> int:
        """Samples from one generated frame to the next."""
        return self.unit_samples * self.units_per_frame


@dataclass(frozen=True)
class FaceConstants:
    """The face detector's input size (pixels) and its thresholds."""

    __pydantic_config__ = EXACT

    minimum_side_pixels: Annotated[int, Interval(ge=32, le=4_096)] = 416
    size_multiple_pixels: Annotated[int, Interval(ge=1, le=512)] = 32
    strides_pixels: Annotated[tuple[_Stride, ...], Len(1, 8)] = (8, 16, 32)
    confidence: Annotated[float, Interval(ge=0, le=1)] = 0.5
    intersection_over_union: Annotated[float, Interval(ge=0, le=1)] = 0.45


@dataclass(frozen=True)
class PortraitConstants:
    """How a picture becomes the reference image, the face mask and the image encoder's input."""

    __pydantic_config__ = EXACT

    default_resolution_pixels: Annotated[int, Interval(ge=64, le=4_096)] = 512
    size_multiple_pixels: Annotated[int, Interval(ge=8, le=512)] = 64
    enlargement_limit_pixels: Annotated[int, Interval(ge=64, le=4_096)] = 512
    mask_area_scale: Annotated[float, Interval(ge=0.01, le=100)] = 1.1
    image_encoder_pixels: Annotated[int, Interval(ge=8, le=2_048)] = 224
    image_encoder_mean: tuple[_Mean, _Mean, _Mean] = (0.48145466, 0.4578275, 0.40821073)
    image_encoder_std: tuple[_Deviation, _Deviation, _Deviation] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class SamplerConstants:
    """Euler sampling of a v-prediction model over windows on a ring, with three guidance branches."""

    __pydantic_config__ = EXACT

    steps: Annotated[int, Interval(ge=1, le=1_000)] = 25
    sigma_min: Annotated[float, Interval(ge=1e-6, le=100)] = 0.002
    sigma_max: Annotated[float, Interval(ge=1e-3, le=1e5)] = 700.0
    karras_rho: Annotated[float, Interval(ge=0.1, le=100)] = 7.0
    image_guidance: tuple[_Guidance, _Guidance] = (2.0, 2.0)  # first and last step
    audio_guidance: tuple[_Guidance, _Guidance] = (7.5, 7.5)
    window_frames: Annotated[int, Interval(ge=1, le=1_024)] = 25
    window_overlap_frames: Annotated[int, Interval(ge=0, le=1_023)] = 0
    window_shift_frames: Annotated[int, Interval(ge=0, le=1_024)] = 7
    frame_rate_id: Annotated[float, Interval(ge=0, le=1e4)] = 12.5
    initial_latent_scale: Annotated[float, Interval(ge=1e-4, le=1e4)] = 0.18215
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)] = 72_589

    def __post_init__(self) -> None:
        """Check what concerns two values.

        Raises:
            ValueError: windows overlap wholly, or the noise does not decrease.
        """
        if self.window_overlap_frames >= self.window_frames:
            raise ValueError("'window_overlap_frames' should be less than 'window_frames'")
        if self.sigma_min >= self.sigma_max:
            raise ValueError("'sigma_min' should be less than 'sigma_max'")


@dataclass(frozen=True)
class VideoConstants:
    """How latents become the encoded video."""

    __pydantic_config__ = EXACT

    latent_scale: Annotated[float, Interval(ge=1e-4, le=1e4)] = 0.18215
    latent_channels: Annotated[int, Interval(ge=1, le=256)] = 4
    latent_stride_pixels: Annotated[int, Interval(ge=1, le=64)] = 8
    decode_chunk_frames: Annotated[int, Interval(ge=1, le=256)] = 8
    generated_frame_rate_hz: Annotated[float, Interval(ge=1, le=240)] = 12.5
    interpolation_factor: Annotated[int, Interval(ge=1, le=16)] = 2
    h264_constant_rate_factor: Annotated[int, Interval(ge=0, le=51)] = 18

    @property
    def frame_rate_hz(self) -> float:
        """Frames per second of the finished video."""
        return self.generated_frame_rate_hz * self.interpolation_factor


@dataclass(frozen=True)
class Constants:
    """Every number that the runtime needs besides the submodels."""

    __pydantic_config__ = EXACT

    audio: AudioConstants = field(default_factory=AudioConstants)
    face: FaceConstants = field(default_factory=FaceConstants)
    portrait: PortraitConstants = field(default_factory=PortraitConstants)
    sampler: SamplerConstants = field(default_factory=SamplerConstants)
    video: VideoConstants = field(default_factory=VideoConstants)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The nested dictionary that a manifest stores."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], source: str) -> Constants:
        """Read the dictionary written by :meth:`to_json`.

        Raises:
            BundleError: a part or a value is missing, unknown or of the wrong type; the message names
                `source`, the file.
        """
        _check_names(cls(), values, source, "constants")
        return read_record(cls, json.dumps(values), source, BundleError, _ADVICE)


def _check_names(defaults: Any, values: Any, source: str, where: str) -> None:
    """A manifest has to state every value, so that new defaults in a later version do not change a bundle."""
    expected = {item.name for item in fields(defaults)}
    if not isinstance(values, dict) or set(values) != expected:
        if not isinstance(values, dict):
            wrong = f"is a {type(values).__name__}, but should be an object"
        elif missing := sorted(expected - set(values)):
            wrong = f"has no '{missing[0]}'"
        else:
            wrong = f"has {min(set(values) - expected)[:60]!r}, which this version does not know"
        raise BundleError(f"{source}: '{where}' {wrong}; {_ADVICE}")
    for name in expected:
        part = getattr(defaults, name)
        if is_dataclass(part):
            _check_names(part, values[name], source, name)
