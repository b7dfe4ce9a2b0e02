"""Synthesized checkpoints: the official layout, the same bytes, and activations of order one."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    UNetSpatioTemporalConditionModel,
)
from transformers import AutoFeatureExtractor, CLIPVisionModelWithProjection, WhisperModel

from sonic.errors import InputError, OutputError
from sonic_convert.checkpoint.checkpoint import COMPONENTS, Checkpoint
from sonic_convert.modules.audio import AudioEncoderStates, AudioToBucket, AudioToToken
from sonic_convert.modules.interpolator import FrameInterpolator
from sonic_convert.synth import synthesize as synth
from sonic_convert.synth.dimensions import OTHER, PUBLISHED, SMALL, SynthDimensions
from sonic_convert.synth.synthesize import synthesize
from sonic_convert.synth.values import sinusoids, uniform

SVD = "stable-video-diffusion-img2vid-xt"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("synth") / "small")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("synth") / "other", OTHER, seed=5, dtype="float32")


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    again = synthesize(tmp_path / "elsewhere" / "again")
    assert digests(again) == digests(small)


def test_another_seed_gives_other_weights(small: Path, tmp_path: Path) -> None:
    first, second = digests(small), digests(synthesize(tmp_path / "small", seed=1))
    assert first.keys() == second.keys()
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {name for name in first if name.endswith((".pth", ".pkl", "tensors"))}


def test_a_small_checkpoint_is_small(small: Path) -> None:
    assert sum(path.stat().st_size for path in small.rglob("*") if path.is_file()) < 15e6


def test_layout(small: Path, other: Path) -> None:
    weights = {
        "Sonic/audio2bucket.pth",
        "Sonic/audio2token.pth",
        "Sonic/unet.pth",
        "RIFE/flownet.pkl",
        "whisper-tiny/model.safetensors",
        "yoloface_v5m.pt",
    }
    for root, variant in ((small, ".fp16"), (other, "")):
        names = {name for name in digests(root) if not name.endswith(".json")}
        assert names == weights | {
            f"{SVD}/unet/diffusion_pytorch_model{variant}.safetensors",
            f"{SVD}/vae/diffusion_pytorch_model{variant}.safetensors",
            f"{SVD}/image_encoder/model{variant}.safetensors",
        }


@pytest.mark.parametrize("which", ["small", "other"])
def test_loads_as_upstream_loads_it(which: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(which)
    variant = "fp16" if which == "small" else None
    for kind, folder in (
        (UNetSpatioTemporalConditionModel, "unet"),
        (AutoencoderKLTemporalDecoder, "vae"),
        (CLIPVisionModelWithProjection, "image_encoder"),
    ):
        _, info = kind.from_pretrained(
            root / SVD, subfolder=folder, variant=variant, output_loading_info=True
        )
        assert not any(info.values()), folder
    _, info = WhisperModel.from_pretrained(root / "whisper-tiny", output_loading_info=True)
    assert not any(info.values())
    scheduler = EulerDiscreteScheduler.from_pretrained(root / SVD, subfolder="scheduler")
    scheduler.set_timesteps(25)
    assert float(scheduler.sigmas[0]) == pytest.approx(700)
    extractor = AutoFeatureExtractor.from_pretrained(root / "whisper-tiny")
    assert extractor.feature_size == 80
    flow = torch.load(root / "RIFE/flownet.pkl", weights_only=True)
    assert all(name.startswith("module.") for name in flow)
    archive = torch.jit.load(str(root / "yoloface_v5m.pt"))
    grids = [torch.zeros(1, 1, 64 // stride, 64 // stride, 2) for stride in (8, 16, 32)]
    assert archive(torch.zeros(1, 3, 64, 64), grids).shape == (1, 3 * (64 + 16 + 4), 16)


@pytest.mark.parametrize("which", ["small", "other"])
def test_sonics_unet_is_the_stock_one_plus_adapters(which: str, request: pytest.FixtureRequest) -> None:
    checkpoint = Checkpoint.open(request.getfixturevalue(which))
    state = checkpoint.state_dict("unet", dtype=None)
    with torch.device("meta"):
        stock = UNetSpatioTemporalConditionModel.from_config(checkpoint.unet_config)
    shapes = {name: value.shape for name, value in stock.state_dict().items()}
    adapters = set(state) - set(shapes)
    expected = set()
    for name in shapes:
        if name.endswith("attn2.to_k.weight"):
            base = name.removesuffix("to_k.weight")
            expected |= {f"{base}processor.to_{part}_ip.0.weight" for part in "kv"}
    assert adapters == expected
    assert any("temporal_transformer_blocks" in name for name in adapters)
    assert all(state[name].shape == shape for name, shape in shapes.items())


@pytest.mark.parametrize("which", ["small", "other"])
def test_our_modules_take_every_component(which: str, request: pytest.FixtureRequest) -> None:
    checkpoint = Checkpoint.open(request.getfixturevalue(which))
    config, audio = checkpoint.audio_encoder_config, checkpoint.constants.audio
    width, layers = config["d_model"], config["encoder_layers"] + 1
    context = checkpoint.unet_config["cross_attention_dim"]
    AudioEncoderStates.from_state_dict(config, checkpoint.state_dict("audio_encoder"), "whisper")
    tokens = AudioToToken.from_state_dict(
        checkpoint.state_dict("audio2token"),
        "token",
        window_states=audio.token_window_states,
        layers=layers,
        channels=width,
    )
    buckets = AudioToBucket.from_state_dict(
        checkpoint.state_dict("audio2bucket"),
        "bucket",
        window_states=audio.bucket_window_states,
        channels=width,
        image_channels=context,
    )
    FrameInterpolator.from_state_dict(checkpoint.state_dict("frame_interpolator"), "flow")
    with torch.no_grad():
        made = tokens(torch.rand(1, 2, audio.token_window_states, layers, width))
        count = SMALL.audio_tokens if which == "small" else OTHER.audio_tokens
        assert made.shape == (1, 2, count, context)
        windows = torch.rand(1, 2, audio.bucket_window_states, 1, width)
        assert buckets(windows, torch.rand(1, context)).shape == (1, 2, 2, 1)


def test_activations_are_of_order_one(small: Path) -> None:
    """Else parity tests would compare zeros, infinities or saturated pictures."""
    checkpoint = Checkpoint.open(small)
    unet = UNetSpatioTemporalConditionModel.from_config(checkpoint.unet_config).eval()
    state = checkpoint.state_dict("unet")
    unet.load_state_dict({name: state[name] for name in unet.state_dict()})
    vae = AutoencoderKLTemporalDecoder.from_config(checkpoint.vae_config).eval()
    vae.load_state_dict(checkpoint.state_dict("vae"))
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    sample, ids = noise(1, 4, 8, 16, 16), torch.tensor([[12.5, 20.0, 20.0]])
    with torch.no_grad():
        for timestep in (1.6, 0.0, -1.5):
            one, two = (
                unet(sample, timestep, context, ids).sample for context in (noise(1, 1, 32), noise(1, 1, 32))
            )
            assert 0.1 < one.std() < 2
            assert (one - two).std() > 0.1
        picture = vae.decode(noise(4, 4, 16, 16) * 5, num_frames=4).sample
        latent = vae.encode(noise(1, 3, 64, 64).clamp(-1, 1)).latent_dist.mode()
    assert 0.2 < picture.std() < 1
    assert (picture.abs() > 1).float().mean() < 0.25
    assert 1 < latent.std() < 12


def test_published_dimensions_are_those_of_the_released_models() -> None:
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel.from_config(PUBLISHED.unet_config())
        vae = AutoencoderKLTemporalDecoder.from_config(PUBLISHED.vae_config())
    state = unet.state_dict()
    added = [value.numel() for name, value in state.items() if name.endswith("attn2.to_k.weight")]
    assert sum(value.numel() for value in state.values()) == 1_524_623_082
    assert 2 * sum(added) == pytest.approx(51e6, rel=0.02)
    assert sum(value.numel() for value in vae.state_dict().values()) == 97_742_847


def test_the_other_dimensions_differ_everywhere() -> None:
    for each in fields(SynthDimensions):
        if each.name != "default_resolution_pixels":
            assert getattr(SMALL, each.name) != getattr(OTHER, each.name), each.name


def test_a_folder_with_something_in_it_is_kept(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        synthesize(tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"
    with pytest.raises(InputError, match="file"):
        synthesize(tmp_path / "precious.txt")


def test_overwrite_replaces_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    synthesize(out, overwrite=True)
    assert not (out / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert Checkpoint.open(out).files(COMPONENTS[0])


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(synth, "write_face_detector", fail)
    with pytest.raises(OutputError, match="no space"):
        synthesize(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"size": "medium"}, {"dtype": "bfloat16"}])
def test_unknown_arguments(tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(InputError, match="should be one of"):
        synthesize(tmp_path / "out", **change)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_values_depend_on_their_name_alone_and_have_the_deviation() -> None:
    one = uniform((400, 400), 0.5, 0, "unet", "a")
    assert torch.equal(one, uniform((400, 400), 0.5, 0, "unet", "a"))
    assert float(one.std()) == pytest.approx(0.5, rel=0.02)
    for seed, component, name in ((1, "unet", "a"), (0, "vae", "a"), (0, "unet", "b")):
        assert not torch.equal(one, uniform((400, 400), 0.5, seed, component, name))


def test_sinusoids_are_whispers() -> None:
    table = sinusoids(1500, 384)
    assert table.shape == (1500, 384)
    assert torch.equal(table[0], torch.cat([torch.zeros(192), torch.ones(192)]))
    assert float(table[1, 0]) == pytest.approx(torch.tensor(1.0).sin().item())
