"""The parts of the recipe one by one: consistent data, losses and initialisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sonic.bundle.constants import Constants
from sonic.diffusion.conditioning import SlidingWindows
from sonic_calibration.quality.mouth import mouth_opening
from sonic_convert.modules.face import load_face_detector
from sonic_training import autoencoder, denoiser, face_detector, mouth
from sonic_training.actors import draw_poses, head_motion, random_framing, random_look
from sonic_training.audio import token_windows
from sonic_training.buckets import bucket_windows
from sonic_training.clips import ClipOptions, draw_clip, motion_buckets
from sonic_training.pictures import Pictures, load_pictures
from sonic_training.recipe import TINY
from sonic_training.speech import SpeechClip

RATE_HZ = 16_000


class Tone:
    """A corpus of one recording: a vowel of 0.4 s every 0.8 s."""

    def clip(self, generator: np.random.Generator, seconds: float) -> SpeechClip:
        times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
        voice = sum(np.sin(2 * np.pi * f * times) for f in (150, 600, 1000))
        samples = (0.1 * voice * (times % 0.8 < 0.4)).astype(np.float32)
        return SpeechClip(samples, samples, "tone", 0.0, None, None, 0.0)


def test_a_drawn_mouth_is_as_open_as_the_speech_says() -> None:
    clip = draw_clip(np.random.default_rng(3), Tone(), ClipOptions(frames=25))  # type: ignore[arg-type]
    assert clip.frames.shape == (25, 128, 128, 3)
    driven = mouth.opening(clip.heard, 25, 12.5)
    assert np.corrcoef(driven, clip.opening)[0, 1] > 0.999
    x1, y1, x2, y2 = clip.mouth_box
    # The metrics' face box, computed from the mouth's box.
    wide, tall = (x2 - x1) / 0.56, (y2 - y1) / 0.42
    box = (x1 - 0.22 * wide, y1 - 0.64 * tall, x2 + 0.22 * wide, y2 - 0.06 * tall)
    assert np.corrcoef(mouth_opening(clip.frames, box), clip.opening)[0, 1] > 0.95


def test_silence_keeps_the_mouth_closed() -> None:
    assert not mouth.opening(np.zeros(RATE_HZ, np.float32), 12, 12.5).any()
    assert not mouth.spread(np.zeros(RATE_HZ, np.float32), 12, 12.5).any()


def test_more_motion_moves_the_head_more() -> None:
    look, framing = random_look(np.random.default_rng(0)), random_framing(np.random.default_rng(0), 128)

    def change(amount: float) -> float:
        poses = head_motion(np.random.default_rng(1), 20, 12.5, amount)
        frames = draw_poses(look, poses, framing).astype(float)
        return float(np.abs(np.diff(frames, axis=0)).mean())

    assert change(0.2) < change(0.6) < change(1.2)
    assert motion_buckets(1.0, 1.0).tolist() == [32.0, 20.0]


@pytest.mark.parametrize("kind", ["token", "bucket"])
def test_audio_windows_equal_those_of_the_runtime(kind: str) -> None:
    audio = Constants().audio
    padding = getattr(audio, f"{kind}_padding_states")
    window = getattr(audio, f"{kind}_window_states")
    states = np.random.default_rng(0).standard_normal((41, 3, 4)).astype(np.float32)
    runtime = SlidingWindows(padding, window, audio.states_per_frame, 10)
    expected = np.concatenate([runtime.push(states), runtime.finish()])
    cut = {"token": token_windows, "bucket": bucket_windows}[kind]
    assert np.array_equal(cut(torch.from_numpy(states), audio).numpy(), expected)


def test_the_autoencoder_starts_as_a_blur_and_its_latents_can_be_scaled(tmp_path: Path) -> None:
    pictures = load_pictures(tmp_path, 2, 128, 0)
    vae = autoencoder.build(TINY.vae_config(), 0).eval()
    x = torch.from_numpy(pictures.frames[0].copy()).permute(0, 3, 1, 2) / 127.5 - 1

    def decoded() -> torch.Tensor:
        with torch.inference_mode():
            return vae.decode(vae.encode(x).latent_dist.mode(), num_frames=4).sample

    before = decoded()
    for color in range(3):
        pair = torch.stack([torch.nn.functional.avg_pool2d(y, 8)[:, color].ravel() for y in (x, before)])
        assert float(torch.corrcoef(pair)[0, 1]) > 0.95
    still = Pictures(pictures.frames[:, :1].repeat(4, axis=1), pictures.boxes)
    autoencoder.set_latent_scale(vae, still, 0.18215)
    y = torch.from_numpy(still.frames[:, 0].copy()).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        latents = vae.encode(y).latent_dist.mode()
    assert float(latents.std()) == pytest.approx(1 / 0.18215, rel=1e-3)
    assert torch.allclose(decoded(), before, atol=1e-4)


def test_a_perfect_prediction_has_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target is v of the noisy latents: x0 = x / (s^2 + 1) - v s / sqrt(s^2 + 1)."""
    frames = 5
    clips = denoiser.EncodedClips(
        latents=torch.randn(2, 8, 4, 4, 4).half(),
        references=torch.randn(2, 4, 4, 4).half(),
        image_embeddings=torch.randn(2, 6).half(),
        audio_windows=torch.randn(2, 8, 10, 3, 4).half(),
        buckets=torch.rand(2, 2),
        masks=(torch.ones(2, 1, 4, 4).half(),),
        mouths=torch.zeros(2, 1, 4, 4).half(),
    )
    seen = {}

    def oracle(unet, sample, timestep, time_ids, context):  # type: ignore[no-untyped-def]
        sigma = (4 * timestep).exp()[:, None, None, None, None]
        noisy = sample[:, :, :4] * (sigma**2 + 1).sqrt()
        clean = seen["clean"]
        return (noisy / (sigma**2 + 1) - clean) * (sigma**2 + 1).sqrt() / sigma

    class Tokens(torch.nn.Module):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*windows.shape[:2], 2, 6)

    generator = np.random.default_rng(0)
    chosen = generator.integers(2, size=3)
    starts = generator.integers(8 - frames + 1, size=3)
    window = starts[:, None] + np.arange(frames)
    seen["clean"] = clips.latents[torch.from_numpy(chosen)[:, None], torch.from_numpy(window)].float()
    monkeypatch.setattr(denoiser, "denoise", oracle)
    model = denoiser.Denoiser(torch.nn.Identity(), Tokens())  # type: ignore[arg-type]
    options = denoiser.DenoiserOptions(window_frames=frames, windows_per_step=3)
    loss = denoiser.denoiser_loss(model, clips, options, np.random.default_rng(0))["loss"]
    assert float(loss) < 1e-4


def test_the_detector_archive_has_the_official_interface(tmp_path: Path) -> None:
    network = face_detector.FaceNetwork()
    face_detector.write_archive(network, tmp_path / "yoloface_v5m.pt")
    archive = load_face_detector(tmp_path / "yoloface_v5m.pt")
    for height, width in ((416, 416), (448, 608)):
        found = archive(torch.rand(1, 3, height, width), *face_detector.grids(height, width))
        cells = sum(height // s * (width // s) for s in face_detector.STRIDES_PIXELS)
        assert found.shape == (1, cells, 16)


def test_a_scene_marks_its_faces() -> None:
    counts = set()
    for seed in range(12):
        picture, boxes = face_detector.draw_scene(np.random.default_rng(seed), 416)
        assert picture.shape == (416, 416, 3) and picture.dtype == np.uint8
        counts.add(len(boxes))
        for x1, y1, x2, y2 in boxes:
            assert x2 - x1 > 20 and y2 - y1 > 20 and x1 > -60 and x2 < 476 and y1 > -60 and y2 < 500
    assert {0, 1} <= counts
