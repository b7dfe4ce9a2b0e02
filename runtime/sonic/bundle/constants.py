"""The numeric constants of a bundle: one frozen dataclass for each part of the pipeline.

The defaults are the values in Sonic's published inference code. A bundle's manifest states all of them,
and the runtime uses the manifest's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from sonic.errors import BundleError
from sonic.records import EXACT, read_record

_ADVICE = "convert the checkpoint again with this version"

GUIDANCE_BRANCHES = 3  # unconditional, with the image, with image and audio


@dataclass(frozen=True)
class AudioConstants:
    """How a recording is cut into windows for the audio encoder, and its hidden states into frames'."""

    __pydantic_config__ = EXACT

    sample_rate_hz: int = 16_000
    window_samples: int = 480_000  # 30 s, the length the audio encoder was trained on
    fft_samples: int = 400
    hop_samples: int = 160
    mel_bins: int = 80
    unit_samples: int = 640  # 25 units per second
    states_per_unit: int = 2  # the encoder emits 50 states per second
    units_per_frame: int = 2  # 12.5 generated frames per second
    token_window_states: int = 10
    token_padding_states: tuple[int, int] = (4, 6)
    bucket_window_states: int = 50
    bucket_padding_states: tuple[int, int] = (24, 26)
    bucket_scale: float = 16.0
    bucket_offset: float = 16.0

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

    minimum_side_pixels: int = 416
    size_multiple_pixels: int = 32
    strides_pixels: tuple[int, ...] = (8, 16, 32)
    confidence: float = 0.5
    intersection_over_union: float = 0.45


@dataclass(frozen=True)
class PortraitConstants:
    """How a picture becomes the reference image, the face mask and the image encoder's input."""

    __pydantic_config__ = EXACT

    default_resolution_pixels: int = 512
    size_multiple_pixels: int = 64
    enlargement_limit_pixels: int = 512
    mask_area_scale: float = 1.1
    image_encoder_pixels: int = 224
    image_encoder_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_encoder_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class SamplerConstants:
    """Euler sampling of a v-prediction model over windows on a ring, with three guidance branches."""

    __pydantic_config__ = EXACT

    steps: int = 25
    sigma_min: float = 0.002
    sigma_max: float = 700.0
    karras_rho: float = 7.0
    image_guidance: tuple[float, float] = (2.0, 2.0)  # first and last step
    audio_guidance: tuple[float, float] = (7.5, 7.5)
    window_frames: int = 25
    window_overlap_frames: int = 0
    window_shift_frames: int = 7
    frame_rate_id: float = 12.5
    initial_latent_scale: float = 0.18215
    seed: int = 72_589


@dataclass(frozen=True)
class VideoConstants:
    """How latents become the encoded video."""

    __pydantic_config__ = EXACT

    latent_scale: float = 0.18215
    latent_channels: int = 4
    latent_stride_pixels: int = 8
    decode_chunk_frames: int = 8
    generated_frame_rate_hz: float = 12.5
    interpolation_factor: int = 2
    h264_constant_rate_factor: int = 18

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
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise BundleError(f"{source}: '{where}' should hold {sorted(expected)}, but holds {found}; {_ADVICE}")
    for name in expected:
        part = getattr(defaults, name)
        if is_dataclass(part):
            _check_names(part, values[name], source, name)
