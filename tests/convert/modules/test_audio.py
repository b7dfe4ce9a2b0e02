"""The audio submodels against their formulas, against transformers, and exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from sonic.errors import InputError
from sonic_convert.modules.audio import AudioEncoderStates, AudioToBucket, AudioToToken

WIDTH, LAYERS = 12, 3  # the audio encoder's; layers with the embedding
CONFIG = {
    "model_type": "whisper",
    "d_model": WIDTH,
    "encoder_layers": LAYERS - 1,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 20,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "vocab_size": 8,
    "pad_token_id": 0,
    "decoder_layers": 1,
    "decoder_attention_heads": 1,
}


def random_state(module: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) * 0.3
        for name, value in module.state_dict().items()
    }


@pytest.fixture(scope="module")
def token_state() -> dict[str, torch.Tensor]:
    return random_state(AudioToToken(10, LAYERS, WIDTH, 14, 5, 8))


@pytest.fixture(scope="module")
def bucket_state() -> dict[str, torch.Tensor]:
    return random_state(AudioToBucket(50, WIDTH, 8, 14, 2))


@pytest.fixture(scope="module")
def encoder_state() -> dict[str, torch.Tensor]:
    return random_state(WhisperEncoder(WhisperConfig(**CONFIG)))


def build_tokens(state: dict[str, torch.Tensor], **change: int) -> AudioToToken:
    sizes = {"window_states": 10, "layers": LAYERS, "channels": WIDTH} | change
    return AudioToToken.from_state_dict(state, "audio2token.pth", **sizes)


def build_buckets(state: dict[str, torch.Tensor], **change: int) -> AudioToBucket:
    sizes = {"window_states": 50, "channels": WIDTH, "image_channels": 8} | change
    return AudioToBucket.from_state_dict(state, "audio2bucket.pth", **sizes)


def linear(state: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> torch.Tensor:
    return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def test_tokens_follow_the_formula_frame_by_frame(token_state: dict[str, torch.Tensor]) -> None:
    windows = torch.randn(1, 4, 10, LAYERS, WIDTH)
    with torch.no_grad():
        tokens = build_tokens(token_state)(windows)
    assert tokens.shape == (1, 4, 5, 8)
    for frame in range(4):
        values = linear(token_state, "proj1", windows[0, frame].reshape(-1)).clamp(min=0)
        values = linear(token_state, "proj2", values).clamp(min=0)
        values = linear(token_state, "proj3", values).reshape(5, 8)
        values = (values - values.mean(1, keepdim=True)) / torch.sqrt(
            values.var(1, keepdim=True, unbiased=False) + 1e-5
        )
        values = values * token_state["norm.weight"] + token_state["norm.bias"]
        assert torch.allclose(tokens[0, frame], values, atol=1e-5)


def test_buckets_follow_the_formula_frame_by_frame(bucket_state: dict[str, torch.Tensor]) -> None:
    windows, image = torch.randn(1, 4, 50, 1, WIDTH), torch.randn(1, 8)
    with torch.no_grad():
        buckets = build_buckets(bucket_state)(windows, image)
    assert buckets.shape == (1, 4, 2, 1)
    for frame in range(4):
        values = torch.cat([windows[0, frame].reshape(-1), image[0]])
        for name in ("proj1", "proj2"):
            values = linear(bucket_state, name, values)
            values = values * torch.sigmoid(values)
        values = linear(bucket_state, "proj3", values)
        assert torch.allclose(buckets[0, frame, :, 0], values, atol=1e-5)


@pytest.mark.parametrize("change", [{"window_states": 9}, {"layers": 2}, {"channels": 16}])
def test_token_head_of_another_encoder(token_state: dict[str, torch.Tensor], change: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"audio2token\.pth: 'proj1\.weight'"):
        build_tokens(token_state, **change)


@pytest.mark.parametrize("change", [{"window_states": 9}, {"channels": 16}, {"image_channels": 9}])
def test_bucket_head_of_another_encoder(
    bucket_state: dict[str, torch.Tensor], change: dict[str, int]
) -> None:
    with pytest.raises(InputError, match=r"audio2bucket\.pth: 'proj1\.weight'"):
        build_buckets(bucket_state, **change)


def test_damaged_heads_are_refused(
    token_state: dict[str, torch.Tensor], bucket_state: dict[str, torch.Tensor]
) -> None:
    for name in token_state:
        without = {key: value for key, value in token_state.items() if key != name}
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            build_tokens(without)
    with pytest.raises(InputError, match="multiple of the token width"):
        build_tokens(token_state | {"norm.weight": torch.ones(7), "norm.bias": torch.ones(7)})
    with pytest.raises(InputError, match="unexpected"):
        build_tokens(token_state | {"extra": torch.ones(1)})
    three = {"proj3.weight": torch.ones(3, 14), "proj3.bias": torch.ones(3)}
    with pytest.raises(InputError, match="mis-shaped"):
        build_buckets(bucket_state | three)


def test_states_are_those_of_transformers(encoder_state: dict[str, torch.Tensor]) -> None:
    encoder = WhisperEncoder(WhisperConfig(**CONFIG)).eval()
    encoder.load_state_dict(encoder_state)
    seen: list[torch.Tensor] = []
    for layer in encoder.layers:
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    log_mel = torch.randn(1, 80, 3000)
    with torch.no_grad():
        last = encoder(log_mel).last_hidden_state
        states = AudioEncoderStates.from_state_dict(CONFIG, encoder_state, "whisper")(log_mel)
    assert states.shape == (1, 1500, LAYERS, WIDTH)
    # What enters a layer: the embedding with its positions, then each earlier layer's output.
    assert len(seen) == LAYERS - 1
    for index, expected in enumerate(seen):
        assert torch.allclose(states[:, :, index], expected, atol=1e-5)
    assert torch.allclose(states[:, :, -1], last, atol=1e-5)


def test_first_state_is_the_convolutions_plus_positions(
    encoder_state: dict[str, torch.Tensor],
) -> None:
    log_mel = torch.randn(1, 80, 3000)
    values = log_mel
    for name, stride in (("conv1", 1), ("conv2", 2)):
        weight, bias = encoder_state[f"{name}.weight"], encoder_state[f"{name}.bias"]
        values = functional.gelu(functional.conv1d(values, weight, bias, stride, 1))
    expected = values[0].T + encoder_state["embed_positions.weight"]
    with torch.no_grad():
        states = AudioEncoderStates.from_state_dict(CONFIG, encoder_state, "whisper")(log_mel)
    assert torch.allclose(states[0, :, 0], expected, atol=1e-5)


def test_encoder_of_another_width_is_refused(encoder_state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InputError, match=r"whisper/model\.safetensors.*mis-shaped"):
        AudioEncoderStates.from_state_dict(
            CONFIG | {"encoder_ffn_dim": 24}, encoder_state, "whisper/model.safetensors"
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("which", ["tokens", "buckets", "states"])
def test_export(
    which: str,
    token_state: dict[str, torch.Tensor],
    bucket_state: dict[str, torch.Tensor],
    encoder_state: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    ort = pytest.importorskip("onnxruntime")
    frames = torch.export.Dim.DYNAMIC
    module: nn.Module
    if which == "tokens":
        module = build_tokens(token_state)
        examples = [(torch.randn(1, n, 10, LAYERS, WIDTH),) for n in (3, 7)]
        shapes: tuple[dict[int, object], ...] = ({1: frames},)
    elif which == "buckets":
        module = build_buckets(bucket_state)
        examples = [(torch.randn(1, n, 50, 1, WIDTH), torch.randn(1, 8)) for n in (3, 7)]
        shapes = ({1: frames}, {})
    else:
        module = AudioEncoderStates.from_state_dict(CONFIG, encoder_state, "whisper")
        examples = [(torch.randn(1, 80, 3000),) for _ in range(2)]
        shapes = ({},)
    path = tmp_path / "module.onnx"
    with torch.no_grad():
        torch.onnx.export(
            module, examples[0], path, dynamo=True, opset_version=18, dynamic_shapes=shapes,
            verbose=False,
        )  # fmt: skip
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    for example in examples:
        with torch.no_grad():
            expected = module(*example).numpy()
        feeds = {name: value.numpy() for name, value in zip(names, example, strict=True)}
        found = session.run(None, feeds)[0]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-4
