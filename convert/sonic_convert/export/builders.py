"""The PyTorch module of every submodel, built from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from sonic_convert.checkpoint.checkpoint import Checkpoint
from sonic_convert.checkpoint.tensor_files import load_strict
from sonic_convert.export.dimensions import read_dimensions
from sonic_convert.modules.audio import AudioEncoderStates, AudioToBucket, AudioToToken
from sonic_convert.modules.exportable_unet import ExportableUNet, folded_levels
from sonic_convert.modules.face import load_face_detector
from sonic_convert.modules.image import (
    ExportableVaeDecoder,
    ImageEncoder,
    VaeDecoder,
    VaeEncoder,
    build_vae,
)
from sonic_convert.modules.interpolator import FrameInterpolator
from sonic_convert.modules.unet import SonicUNet


def build_audio_encoder(checkpoint: Checkpoint) -> nn.Module:
    """Whisper's encoder with all its hidden states."""
    name = "audio_encoder"
    return AudioEncoderStates.from_state_dict(
        checkpoint.audio_encoder_config, checkpoint.state_dict(name), _source(checkpoint, name)
    )


def build_audio2token(checkpoint: Checkpoint) -> nn.Module:
    """The head that turns audio states into the tokens that the UNet attends to."""
    name, dimensions = "audio2token", read_dimensions(checkpoint)
    return AudioToToken.from_state_dict(
        checkpoint.state_dict(name),
        _source(checkpoint, name),
        window_states=dimensions.token_window,
        layers=dimensions.audio_layers,
        channels=dimensions.audio_width,
    )


def build_audio2bucket(checkpoint: Checkpoint) -> nn.Module:
    """The head that predicts motion buckets from audio states and the image embedding."""
    name, dimensions = "audio2bucket", read_dimensions(checkpoint)
    return AudioToBucket.from_state_dict(
        checkpoint.state_dict(name),
        _source(checkpoint, name),
        window_states=dimensions.bucket_window,
        channels=dimensions.audio_width,
        image_channels=dimensions.context_width,
    )


def build_image_encoder(checkpoint: Checkpoint) -> nn.Module:
    """CLIP's vision tower with its projection."""
    name = "image_encoder"
    return ImageEncoder.from_state_dict(
        checkpoint.image_encoder_config, checkpoint.state_dict(name), _source(checkpoint, name)
    )


def build_vae_encoder(checkpoint: Checkpoint) -> nn.Module:
    """The VAE's encoder, with the mode of the latent distribution as its output."""
    return VaeEncoder(_vae(checkpoint)).eval()


def build_vae_decoder(checkpoint: Checkpoint) -> nn.Module:
    """The VAE's decoder with the published forward."""
    return VaeDecoder(_vae(checkpoint)).eval()


def build_exportable_vae_decoder(checkpoint: Checkpoint) -> nn.Module:
    """The VAE's decoder as it is exported: the published numbers in fewer operations."""
    return ExportableVaeDecoder(_vae(checkpoint)).eval()


def build_unet(checkpoint: Checkpoint) -> SonicUNet:
    """The UNet with the published forward."""
    unet = SonicUNet.build(checkpoint.unet_config)
    load_strict(unet, checkpoint.state_dict("unet"), _source(checkpoint, "unet"))
    return unet.eval()


def build_exportable_unet(checkpoint: Checkpoint) -> nn.Module:
    """The UNet as it is exported: the published numbers in fewer operations."""
    dimensions, portrait = read_dimensions(checkpoint), checkpoint.constants.portrait
    side = portrait.default_resolution_pixels // checkpoint.constants.video.latent_stride_pixels
    folded = folded_levels(side * side, dimensions.tokens, dimensions.levels)
    return ExportableUNet(build_unet(checkpoint), folded).eval()


def published_unet_arguments(inputs: Mapping[str, Tensor], face_mask: Tensor) -> tuple[Tensor, ...]:
    """The arguments of the published UNet for those of the exported one.

    Args:
        inputs: of the exported UNet, by name.
        face_mask: (1, 1, H, W) float32, which the published UNet takes in place of a mask for each level.
    """
    frames = inputs["sample"].shape[1]
    image = inputs["image_embedding"][:, None, None].expand(-1, frames, -1, -1)
    return (
        inputs["sample"],
        inputs["timestep"],
        inputs["added_time_ids"],
        image.flatten(0, 1),
        inputs["audio_tokens"].flatten(0, 1),
        face_mask,
    )


def build_frame_interpolator(checkpoint: Checkpoint) -> nn.Module:
    """RIFE's flow network."""
    name = "frame_interpolator"
    return FrameInterpolator.from_state_dict(checkpoint.state_dict(name), _source(checkpoint, name))


def build_face_detector(checkpoint: Checkpoint) -> nn.Module:
    """The operations of the checkpoint's TorchScript archive, with its grids as separate arguments."""
    return load_face_detector(checkpoint.weights_file("face_detector"))


def _vae(checkpoint: Checkpoint) -> AutoencoderKLTemporalDecoder:
    state = checkpoint.state_dict("vae")
    return build_vae(checkpoint.vae_config, state, _source(checkpoint, "vae"))


def _source(checkpoint: Checkpoint, component: str) -> str:
    return str(checkpoint.weights_file(component))
