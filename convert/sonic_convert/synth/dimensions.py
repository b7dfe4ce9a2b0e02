"""The dimensions of synthesized checkpoints, and the configurations that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SynthDimensions:
    """Every width, depth and count of one synthesized checkpoint.

    UNet and VAE channels have to be multiples of 32, the number of groups that diffusers fixes in
    their normalisations (`unet_groups` and `vae_groups` are set afterwards); `unet_heads` divide the
    `unet_channels` of their level.
    """

    name: str
    unet_channels: tuple[int, int, int, int]
    unet_heads: tuple[int, int, int, int]
    unet_layers: int
    time_id_channels: int  # embedding width of each of the three added time ids
    token_width: int  # cross-attention, image embedding and audio tokens
    audio_tokens: int
    audio_hidden: int
    vae_channels: tuple[int, ...]
    vae_layers: int
    image_width: int
    image_layers: int
    image_heads: int
    image_hidden: int
    image_patch_pixels: int
    whisper_width: int
    whisper_layers: int
    whisper_heads: int
    whisper_hidden: int
    whisper_vocabulary: int
    whisper_text_positions: int
    interpolator_channels: int
    default_resolution_pixels: int
    unet_groups: int = 32
    vae_groups: int = 32

    def unet_config(self) -> dict[str, Any]:
        """`unet/config.json` as diffusers writes it."""
        return {
            "_class_name": "UNetSpatioTemporalConditionModel",
            "_diffusers_version": "0.24.0.dev0",
            "addition_time_embed_dim": self.time_id_channels,
            "block_out_channels": list(self.unet_channels),
            "cross_attention_dim": self.token_width,
            "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"],
            "in_channels": 8,
            "layers_per_block": self.unet_layers,
            **_groups(self.unet_groups),
            "num_attention_heads": list(self.unet_heads),
            "num_frames": 25,
            "out_channels": 4,
            "projection_class_embeddings_input_dim": 3 * self.time_id_channels,
            "sample_size": 96,
            "transformer_layers_per_block": 1,
            "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 3,
        }

    def vae_config(self) -> dict[str, Any]:
        """`vae/config.json` as diffusers writes it."""
        return {
            "_class_name": "AutoencoderKLTemporalDecoder",
            "_diffusers_version": "0.24.0.dev0",
            "block_out_channels": list(self.vae_channels),
            "down_block_types": ["DownEncoderBlock2D"] * len(self.vae_channels),
            "force_upcast": True,
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": self.vae_layers,
            **_groups(self.vae_groups),
            "out_channels": 3,
            "sample_size": 768,
            "scaling_factor": 0.18215,
        }

    def image_encoder_config(self) -> dict[str, Any]:
        """`image_encoder/config.json` as transformers writes it."""
        return {
            "architectures": ["CLIPVisionModelWithProjection"],
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": self.image_width,
            "image_size": 224,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": self.image_hidden,
            "layer_norm_eps": 1e-05,
            "model_type": "clip_vision_model",
            "num_attention_heads": self.image_heads,
            "num_channels": 3,
            "num_hidden_layers": self.image_layers,
            "patch_size": self.image_patch_pixels,
            "projection_dim": self.token_width,
        }

    def whisper_config(self) -> dict[str, Any]:
        """`whisper-tiny/config.json` as transformers writes it."""
        published = self.whisper_vocabulary > 50_257  # else the text tokens do not exist
        end, start = (50_257, 50_258) if published else (0, 1)
        return {
            "activation_dropout": 0.0,
            "activation_function": "gelu",
            "architectures": ["WhisperForConditionalGeneration"],
            "attention_dropout": 0.0,
            "bos_token_id": end,
            "d_model": self.whisper_width,
            "decoder_attention_heads": self.whisper_heads,
            "decoder_ffn_dim": self.whisper_hidden,
            "decoder_layerdrop": 0.0,
            "decoder_layers": self.whisper_layers,
            "decoder_start_token_id": start,
            "dropout": 0.0,
            "encoder_attention_heads": self.whisper_heads,
            "encoder_ffn_dim": self.whisper_hidden,
            "encoder_layerdrop": 0.0,
            "encoder_layers": self.whisper_layers,
            "eos_token_id": end,
            "init_std": 0.02,
            "is_encoder_decoder": True,
            "max_source_positions": 1500,
            "max_target_positions": self.whisper_text_positions,
            "model_type": "whisper",
            "num_hidden_layers": self.whisper_layers,
            "num_mel_bins": 80,
            "pad_token_id": end,
            "scale_embedding": False,
            "use_cache": True,
            "vocab_size": self.whisper_vocabulary,
        }


def _groups(count: int) -> dict[str, int]:
    """An entry that this project adds; official files do not have it."""
    return {} if count == 32 else {"norm_num_groups": count}


SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.24.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "trained_betas": None,
    "use_karras_sigmas": True,
}

IMAGE_PREPROCESSOR_CONFIG: dict[str, Any] = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 224},
}

WHISPER_PREPROCESSOR_CONFIG: dict[str, Any] = {
    "chunk_length": 30,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 80,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 480_000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
    "processor_class": "WhisperProcessor",
    "return_attention_mask": False,
    "sampling_rate": 16_000,
}

SMALL = SynthDimensions(
    name="small",
    unet_channels=(32, 32, 64, 64),
    unet_heads=(1, 1, 2, 2),
    unet_layers=1,
    time_id_channels=32,
    token_width=32,
    audio_tokens=8,
    audio_hidden=64,
    vae_channels=(32, 32, 32, 32),
    vae_layers=1,
    image_width=32,
    image_layers=2,
    image_heads=2,
    image_hidden=64,
    image_patch_pixels=32,
    whisper_width=32,
    whisper_layers=2,
    whisper_heads=2,
    whisper_hidden=64,
    whisper_vocabulary=64,
    whisper_text_positions=16,
    interpolator_channels=16,
    default_resolution_pixels=128,
)
"""Quick on two CPU cores: a step of a whole clip at 128 pixels takes seconds, not minutes."""

OTHER = SynthDimensions(
    name="other",
    unet_channels=(64, 32, 96, 64),
    unet_heads=(2, 1, 3, 4),
    unet_layers=2,
    time_id_channels=16,
    token_width=48,
    audio_tokens=5,
    audio_hidden=40,
    vae_channels=(32, 64, 32, 64),
    vae_layers=2,
    image_width=48,
    image_layers=3,
    image_heads=3,
    image_hidden=80,
    image_patch_pixels=56,
    whisper_width=48,
    whisper_layers=3,
    whisper_heads=3,
    whisper_hidden=96,
    whisper_vocabulary=32,
    whisper_text_positions=8,
    interpolator_channels=12,
    default_resolution_pixels=128,
    unet_groups=16,
    vae_groups=8,
)
"""Differs from `SMALL` in every number, so that nothing can depend on one of them."""

PUBLISHED = SynthDimensions(
    name="published",
    unet_channels=(320, 640, 1280, 1280),
    unet_heads=(5, 10, 20, 20),
    unet_layers=2,
    time_id_channels=256,
    token_width=1024,
    audio_tokens=32,
    audio_hidden=1024,
    vae_channels=(128, 256, 512, 512),
    vae_layers=2,
    image_width=1280,
    image_layers=32,
    image_heads=16,
    image_hidden=5120,
    image_patch_pixels=14,
    whisper_width=384,
    whisper_layers=4,
    whisper_heads=6,
    whisper_hidden=1536,
    whisper_vocabulary=51_865,
    whisper_text_positions=448,
    interpolator_channels=90,
    default_resolution_pixels=512,
)
"""Stable Video Diffusion XT, Whisper-tiny, RIFE HDv3 and Sonic's heads as they are published."""
