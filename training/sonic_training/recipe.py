"""The recipe of sonic-tiny: its dimensions, and the training of its submodels in order of dependence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperModel

from sonic.bundle.constants import Constants
from sonic_convert.conversion import mel_filters
from sonic_convert.modules.audio import AudioEncoderStates
from sonic_convert.synth.checkpoint_writer import CheckpointWriter, create_checkpoint
from sonic_convert.synth.dimensions import SMALL, SynthDimensions
from sonic_convert.synth.synthesize import bucket_head, token_head
from sonic_training import audio, autoencoder, denoiser, face_detector, image_encoder, interpolator
from sonic_training.buckets import train_bucket_head
from sonic_training.clips import ClipOptions, draw_clips
from sonic_training.denoiser import DenoiserOptions, EncodedClips
from sonic_training.encoding import encode_clips
from sonic_training.pictures import load_pictures
from sonic_training.speech import Corpus, build_corpus
from sonic_training.trainer import TrainingOptions

# Every part has its own seed: the recipe's plus the part's position here.
_PARTS = (
    "speech", "autoencoder", "image_encoder", "audio", "clips", "buckets", "interpolator",
    "face_detector", "denoiser", "calm",
)  # fmt: skip
LICENSE = "Apache-2.0 (trained on drawn faces and synthesized speech)"

TINY = replace(
    SMALL,
    name="sonic-tiny",
    unet_channels=(32, 64, 64, 64),
    unet_heads=(1, 2, 2, 2),
    unet_groups=1,
    token_width=64,
    audio_hidden=128,
    vae_channels=(32, 32, 64, 64),
    vae_groups=1,
    image_width=64,
    image_hidden=128,
    whisper_width=64,
    whisper_hidden=128,
    interpolator_channels=16,
)


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the resulting checkpoint.

    Attributes:
        dimensions: widths and numbers of heads of all submodels.
        guidance: guidance scales of image and audio.
        weights_seed: seed of the initial weights.
        data_seed: seed of the training data.
        utterances: size of the speech corpus.
        picture_clips: silent clips of 4 frames for the autoencoder.
        portraits: portraits for the image encoder.
        speaking_clips: clips for the denoiser and the bucket head.
        smooth_clips: clips at the video's frame rate for the frame interpolator.
        autoencoder_steps: optimizer steps on crops, and then on whole pictures.
        audio, image_encoder, buckets, interpolator, face_detector: how these parts are trained.
        denoiser: stages of the denoiser's training.
        calm_clips: clips for the last stage of the denoiser's training.
        calm_head_motion: scale of the head motion in these clips.
        calm_denoiser: the last stage. Turning heads hide what has to stay the same, and make clips differ
            from their portraits by more than the VAE does; so it trains on people who hardly move.
    """

    dimensions: SynthDimensions = TINY
    guidance: tuple[float, float] = (1.5, 2.0)
    weights_seed: int = 0
    data_seed: int = 0
    utterances: int = 400
    picture_clips: int = 3000
    portraits: int = 4000
    speaking_clips: int = 1500
    smooth_clips: int = 200
    autoencoder_steps: tuple[int, int] = (3500, 900)
    audio: TrainingOptions = TrainingOptions(steps=3000, learning_rate=1.5e-3)
    image_encoder: TrainingOptions = TrainingOptions(steps=1500)
    buckets: TrainingOptions = TrainingOptions(steps=800)
    interpolator: TrainingOptions = TrainingOptions(steps=2000, learning_rate=2e-3)
    face_detector: TrainingOptions = TrainingOptions(steps=2000)
    denoiser: tuple[tuple[DenoiserOptions, TrainingOptions], ...] = (
        (
            DenoiserOptions(window_frames=9, windows_per_step=8, crop_side=8),
            TrainingOptions(6000, 1.5e-3, final_learning_rate=6e-4, average_decay=0.998),
        ),
        (
            DenoiserOptions(window_frames=25, windows_per_step=4, crop_side=8, crop_anywhere=0.35),
            TrainingOptions(500, 8e-4, final_learning_rate=7e-4, save_every_steps=100),
        ),
        (
            DenoiserOptions(window_frames=25, windows_per_step=3, mouth_weight=3.0, face_weight=2.0),
            TrainingOptions(1800, 7e-4, final_learning_rate=3e-4, save_every_steps=100),
        ),
    )
    calm_clips: int = 800
    calm_head_motion: float = 0.35
    calm_denoiser: tuple[DenoiserOptions, TrainingOptions] = (
        DenoiserOptions(window_frames=25, windows_per_step=3, mouth_weight=3.0, face_weight=2.0),
        TrainingOptions(1500, 6e-4, save_every_steps=100),
    )


def make_checkpoint(work: Path, out: Path, recipe: Recipe) -> Path:
    """Draw the training data, train every submodel and write the checkpoint.

    Parts that are already finished in `work` are reused, and an interrupted part resumes from its last
    saved step.

    Args:
        work: folder for the training data and state; takes about 5 GB.
        out: the checkpoint's folder; replaced if it exists.
        recipe: sizes, steps and seeds.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: a speech synthesizer is not installed.
        OutputError: a folder cannot be written.
    """
    dimensions, state = recipe.dimensions, work / "training"
    seeds = {name: recipe.data_seed + index for index, name in enumerate(_PARTS)}
    constants = Constants()
    speech = build_corpus(work / "speech/train", "train", recipe.utterances)
    corpus = Corpus(speech)
    filters = mel_filters(constants.audio)
    encoder = audio.build_encoder(dimensions.whisper_config(), recipe.weights_seed)
    tokens = token_head(dimensions)
    speech_model = audio.SpeechModel(encoder, tokens, dimensions.whisper_width)
    audio.train_audio(speech_model, corpus, filters, constants.audio, state, recipe.audio, seeds["audio"])

    vae = autoencoder.build(dimensions.vae_config(), recipe.weights_seed)
    pictures = load_pictures(work / "pictures", recipe.picture_clips, 128, seeds["autoencoder"])
    autoencoder.train_autoencoder(vae, pictures, state, recipe.autoencoder_steps, seeds["autoencoder"])
    autoencoder.set_latent_scale(vae, pictures, constants.video.latent_scale)

    images = image_encoder.build(dimensions.image_encoder_config(), recipe.weights_seed)
    image_encoder.train_image_encoder(
        images,
        constants.portrait,
        state,
        recipe.portraits,
        recipe.image_encoder,
        seeds["image_encoder"],
    )

    def encoded(name: str, seed: int, count: int, options: ClipOptions) -> EncodedClips:
        files = draw_clips(work / f"{name}clips", speech, seed, count, options)
        return encode_clips(
            files, work / f"{name}encoded", vae, constants.video.latent_scale, encoder, images, filters,
            constants.audio,
        )  # fmt: skip

    clips = encoded("", seeds["clips"], recipe.speaking_clips, ClipOptions())
    torch.manual_seed(recipe.weights_seed)
    buckets = bucket_head(dimensions)
    train_bucket_head(
        buckets, encoder, clips.image_embeddings, corpus, filters, constants.audio, state,
        recipe.buckets, seeds["buckets"],
    )  # fmt: skip
    flow = interpolator.build(dimensions.interpolator_channels, recipe.weights_seed)
    interpolator.train_interpolator(
        flow, work, speech, recipe.smooth_clips, recipe.interpolator, seeds["interpolator"]
    )
    faces = face_detector.train_face_detector(state, recipe.face_detector, seeds["face_detector"])

    unet = denoiser.build_unet(dimensions.unet_config(), recipe.weights_seed)
    model = denoiser.Denoiser(unet, tokens)
    denoiser.train_denoiser(model, clips, state, recipe.denoiser, seeds["denoiser"])
    del clips
    calm_options = ClipOptions(head_motion=recipe.calm_head_motion)
    calm = encoded("calm-", seeds["calm"], recipe.calm_clips, calm_options)
    denoiser.train_denoiser(model, calm, state, (recipe.calm_denoiser,), seeds["calm"], "calm-")

    def write(writer: CheckpointWriter) -> None:
        writer.unet(model.unet.state_dict())
        writer.vae(vae.state_dict())
        writer.image_encoder(images.clip.state_dict())
        writer.audio_encoder(_whisper_weights(encoder, dimensions))
        writer.audio_heads(model.tokens.state_dict(), buckets.state_dict())
        writer.frame_interpolator(flow.state_dict())
        writer.face_detector(lambda path: face_detector.write_archive(faces, path))
        writer.configs(dimensions, own_config(recipe))

    return create_checkpoint(out, "float16", True, write)


def own_config(recipe: Recipe) -> dict[str, object]:
    """`Sonic/config.json`: name, license and the constants that differ from those of the published model."""
    image, audio = recipe.guidance
    constants = {
        "portrait": {"default_resolution_pixels": recipe.dimensions.default_resolution_pixels},
        "sampler": {"image_guidance": [image, image], "audio_guidance": [audio, audio]},
    }
    return {"license": LICENSE, "name": recipe.dimensions.name, "constants": constants}


def _whisper_weights(encoder: AudioEncoderStates, dimensions: SynthDimensions) -> dict[str, torch.Tensor]:
    """The encoder's weights, and random ones for the unused decoder that Whisper's file also contains."""
    torch.manual_seed(0)
    whisper = WhisperModel(WhisperConfig(**dimensions.whisper_config()))
    whisper.encoder.load_state_dict(encoder.encoder.state_dict())
    return whisper.state_dict()
