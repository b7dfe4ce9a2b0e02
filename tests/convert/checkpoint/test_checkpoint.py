"""Opening a checkpoint, reading its tensors, and the messages for everything that can be wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sonic.bundle.constants import Constants
from sonic.bundle.presets import UNTUNED, SpeedPreset, SpeedPresets
from sonic.errors import InputError
from sonic_convert.checkpoint.checkpoint import COMPONENTS, Checkpoint
from sonic_convert.checkpoint.tensor_files import load_strict, read_tensors
from sonic_convert.synth.synthesize import synthesize

SVD = "stable-video-diffusion-img2vid-xt"
VAE = f"{SVD}/vae/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("synth") / "small")


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own, to damage."""
    return Path(shutil.copytree(small, tmp_path / "checkpoints"))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_constants_come_from_defaults_configurations_and_overrides(small: Path) -> None:
    checkpoint = Checkpoint.open(small)
    constants, defaults = checkpoint.constants, Constants()
    assert constants.portrait.default_resolution_pixels == 128
    assert constants.sampler == defaults.sampler
    assert constants.audio == defaults.audio
    assert constants.video == defaults.video
    assert checkpoint.license.startswith("CC0")
    assert checkpoint.name == "sonic-small-random"
    assert checkpoint.unet_config["norm_num_groups"] == 32
    assert checkpoint.vae_config["norm_num_groups"] == 32


def test_configurations_change_the_constants(copy: Path) -> None:
    edit_json(copy / SVD / "scheduler/scheduler_config.json", lambda c: c.update(sigma_max=500))
    edit_json(
        copy / SVD / "vae/config.json",
        lambda c: c.update(scaling_factor=0.5, block_out_channels=[32] * 3, norm_num_groups=4),
    )
    edit_json(copy / SVD / "image_encoder/config.json", lambda c: c.update(image_size=96))
    edit_json(copy / "whisper-tiny/config.json", lambda c: c.update(num_mel_bins=128))
    checkpoint = Checkpoint.open(copy)
    constants = checkpoint.constants
    assert constants.sampler.sigma_max == 500.0
    assert constants.video.latent_scale == 0.5
    assert constants.video.latent_stride_pixels == 4
    assert constants.sampler.initial_latent_scale == 0.18215  # upstream's own constant
    assert constants.portrait.image_encoder_pixels == 96
    assert constants.audio.mel_bins == 128
    assert checkpoint.vae_config["norm_num_groups"] == 4


def test_official_checkpoint_without_our_file(copy: Path) -> None:
    (copy / "Sonic/config.json").unlink()
    checkpoint = Checkpoint.open(copy)
    assert "CC BY-NC-SA 4.0" in checkpoint.license
    assert "non-commercial" in checkpoint.license
    assert checkpoint.name == "sonic"
    assert checkpoint.constants.portrait.default_resolution_pixels == 512


def test_each_component_has_its_tensors(small: Path) -> None:
    checkpoint = Checkpoint.open(small)
    for component in COMPONENTS:
        assert all(path.is_file() for path in checkpoint.files(component))
        assert checkpoint.weights_file(component) in checkpoint.files(component)
        if component == "face_detector":
            continue
        state = checkpoint.state_dict(component)
        assert state
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert small / "Sonic/config.json" in checkpoint.files("constants")


def test_unet_is_sonics_not_the_video_models(small: Path) -> None:
    checkpoint = Checkpoint.open(small)
    state = checkpoint.state_dict("unet")
    stock = load_file(small / SVD / "unet/diffusion_pytorch_model.fp16.safetensors")
    added = sorted(set(state) - set(stock))
    assert set(stock) < set(state)
    assert all(".attn2.processor.to_" in name and name.endswith("_ip.0.weight") for name in added)
    assert not torch.equal(state["conv_in.weight"], stock["conv_in.weight"].float())
    assert not any("stable" in path.parent.parent.name and "safetensors" in path.name
                   for path in checkpoint.files("unet"))  # fmt: skip


def test_names_lose_their_prefixes(small: Path) -> None:
    checkpoint = Checkpoint.open(small)
    audio = checkpoint.state_dict("audio_encoder")
    assert "conv1.weight" in audio
    assert "layers.0.fc1.weight" in audio
    assert not any("decoder" in name for name in audio)
    assert "block_tea.conv1.0.weight" in checkpoint.state_dict("frame_interpolator")


def test_dtype_none_keeps_the_files(small: Path) -> None:
    state = Checkpoint.open(small).state_dict("audio2token", dtype=None)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}


def test_half_precision_files_are_preferred_and_either_can_be_forced(copy: Path) -> None:
    plain = copy / SVD / "vae/diffusion_pytorch_model.safetensors"
    image = copy / SVD / "image_encoder"
    shutil.copy(image / "model.fp16.safetensors", image / "model.safetensors")
    save_file({name: value * 2 for name, value in load_file(copy / VAE).items()}, plain)

    def weight(variant: str) -> float:
        state = Checkpoint.open(copy, variant).state_dict("vae")  # type: ignore[arg-type]
        return float(state["quant_conv.weight"].sum())

    half = float(load_file(copy / VAE)["quant_conv.weight"].float().sum())
    assert weight("auto") == weight("fp16") == pytest.approx(half)
    assert weight("fp32") == pytest.approx(2 * half, rel=1e-3)
    plain.unlink()
    with pytest.raises(InputError, match=r"diffusion_pytorch_model\.safetensors: the VAE"):
        Checkpoint.open(copy, "fp32")
    with pytest.raises(InputError, match="variant"):
        Checkpoint.open(copy, "half")  # type: ignore[arg-type]


def test_pytorch_files_serve_where_there_are_no_safetensors(copy: Path) -> None:
    for old, new in (
        (VAE, f"{SVD}/vae/diffusion_pytorch_model.bin"),
        ("whisper-tiny/model.safetensors", "whisper-tiny/pytorch_model.bin"),
    ):
        state = load_file(copy / old)
        state["proj_out.weight"] = torch.zeros(2, 2)
        torch.save(state, copy / new)
        (copy / old).unlink()
    checkpoint = Checkpoint.open(copy)
    assert "quant_conv.weight" in checkpoint.state_dict("vae")
    audio = checkpoint.state_dict("audio_encoder")
    assert "conv1.weight" in audio
    assert "proj_out.weight" not in audio


def test_whisper_names_without_the_outer_prefix(copy: Path) -> None:
    path = copy / "whisper-tiny/model.safetensors"
    before = Checkpoint.open(copy).state_dict("audio_encoder")
    state = {name.removeprefix("model."): value for name, value in load_file(path).items()}
    path.unlink()
    save_file(state, path)
    after = Checkpoint.open(copy).state_dict("audio_encoder")
    assert before.keys() == after.keys()


def test_position_ids_of_older_files_are_left_out(copy: Path) -> None:
    path = copy / SVD / "image_encoder/model.fp16.safetensors"
    state = load_file(path)
    names = set(state)
    path.unlink()
    save_file(state | {"vision_model.embeddings.position_ids": torch.arange(50)[None]}, path)
    assert set(Checkpoint.open(copy).state_dict("image_encoder")) == names


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("Sonic/unet.pth", "LeonJoe13/Sonic"),
        ("Sonic/audio2token.pth", "LeonJoe13/Sonic"),
        ("Sonic/audio2bucket.pth", "LeonJoe13/Sonic"),
        ("RIFE/flownet.pkl", "LeonJoe13/Sonic"),
        ("yoloface_v5m.pt", "LeonJoe13/Sonic"),
        (f"{SVD}/unet/config.json", "stabilityai/stable-video-diffusion-img2vid-xt"),
        (f"{SVD}/scheduler/scheduler_config.json", "stabilityai/"),
        (VAE, "stabilityai/stable-video-diffusion-img2vid-xt"),
        (f"{SVD}/image_encoder/model.fp16.safetensors", "stabilityai/"),
        ("whisper-tiny/config.json", "openai/whisper-tiny"),
        ("whisper-tiny/model.safetensors", "openai/whisper-tiny"),
    ],
)
def test_a_missing_file_is_named_with_its_source(copy: Path, name: str, source: str) -> None:
    (copy / name).unlink()
    with pytest.raises(InputError) as caught:
        Checkpoint.open(copy)
    assert str(copy / name) in str(caught.value)
    assert source in str(caught.value)


def test_the_video_models_own_unet_weights_are_not_needed(copy: Path) -> None:
    (copy / SVD / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    shutil.rmtree(copy / SVD / "feature_extractor")
    assert Checkpoint.open(copy).state_dict("unet")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        Checkpoint.open(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\x00"])
def test_bad_json_is_named(copy: Path, text: str) -> None:
    path = copy / SVD / "vae/config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"vae/config\.json"):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        (f"{SVD}/unet/config.json", "cross_attention_dim"),
        (f"{SVD}/vae/config.json", "scaling_factor"),
        (f"{SVD}/image_encoder/config.json", "projection_dim"),
        (f"{SVD}/scheduler/scheduler_config.json", "sigma_max"),
        ("whisper-tiny/config.json", "encoder_layers"),
    ],
)
def test_a_missing_value_is_named(copy: Path, file: str, key: str) -> None:
    edit_json(copy / file, lambda values: values.pop(key))
    with pytest.raises(InputError) as caught:
        Checkpoint.open(copy)
    assert str(copy / file) in str(caught.value)
    assert f"'{key}'" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prediction_type", "epsilon"),
        ("timestep_type", "discrete"),
        ("use_karras_sigmas", False),
        ("sigma_min", 0),
        ("sigma_max", 0.001),
        ("sigma_max", "700"),
    ],
)
def test_another_scheduler_is_refused(copy: Path, key: str, value: object) -> None:
    path = copy / SVD / "scheduler/scheduler_config.json"
    edit_json(path, lambda values: values.update({key: value}))
    with pytest.raises(InputError) as caught:
        Checkpoint.open(copy)
    assert str(path) in str(caught.value)
    assert f"'{key}'" in str(caught.value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        (f"{SVD}/image_encoder/config.json", "projection_dim", 31),
        ("whisper-tiny/config.json", "max_source_positions", 750),
        (f"{SVD}/vae/config.json", "block_out_channels", []),
        (f"{SVD}/vae/config.json", "scaling_factor", True),
    ],
)
def test_values_that_cannot_work_together(copy: Path, file: str, key: str, value: object) -> None:
    edit_json(copy / file, lambda values: values.update({key: value}))
    with pytest.raises(InputError) as caught:
        Checkpoint.open(copy)
    assert str(copy / file) in str(caught.value)
    assert f"'{key}'" in str(caught.value)


def test_presets_come_with_a_tuned_checkpoint(copy: Path) -> None:
    assert Checkpoint.open(copy).speeds == UNTUNED
    own = SpeedPresets("fast", {name: SpeedPreset.at_levels((700.0, 1.0)) for name in UNTUNED.presets})
    path = copy / "Sonic/speeds.json"
    path.write_text(json.dumps(own.to_json()))
    assert Checkpoint.open(copy).speeds == own
    path.write_text(json.dumps(own.to_json() | {"default": "slow"}))
    with pytest.raises(InputError, match="'default' is 'slow'") as caught:
        Checkpoint.open(copy)
    assert str(path) in str(caught.value)


def test_overrides_reach_numbers_and_tuples(copy: Path) -> None:
    (copy / "Sonic/config.json").write_text(
        json.dumps({"constants": {"sampler": {"steps": 4, "audio_guidance": [3, 5.5]}}})
    )
    sampler = Checkpoint.open(copy).constants.sampler
    assert sampler.steps == 4
    assert sampler.audio_guidance == (3.0, 5.5)
    assert sampler.image_guidance == (2.0, 2.0)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"constants": {"sampling": {"steps": 4}}}, "constants.sampling"),
        ({"constants": {"sampler": {"step": 4}}}, "constants.sampler.step"),
        ({"constants": {"sampler": {"steps": "4"}}}, "constants.sampler.steps"),
        ({"constants": {"sampler": {"audio_guidance": [1, "2"]}}}, "audio_guidance"),
        ({"constants": {"sampler": 4}}, "constants.sampler"),
        ({"constants": [4]}, "constants"),
        ({"license": ""}, "license"),
        ({"name": 3}, "name"),
    ],
)
def test_a_bad_override_is_named(copy: Path, own: dict[str, Any], named: str) -> None:
    path = copy / "Sonic/config.json"
    path.write_text(json.dumps(own))
    with pytest.raises(InputError) as caught:
        Checkpoint.open(copy)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("unet", "Sonic/unet.pth"),
        ("vae", VAE),
        ("frame_interpolator", "RIFE/flownet.pkl"),
        ("audio_encoder", "whisper-tiny/model.safetensors"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_named(copy: Path, component: str, name: str, share: float) -> None:
    path = copy / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError) as caught:
        Checkpoint.open(copy).state_dict(component)
    assert str(path) in str(caught.value)


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_is_refused(copy: Path, tmp_path: Path, save: Any) -> None:
    proof = tmp_path / "ran"
    save({"proj1.weight": Runs(proof)}, copy / "Sonic/audio2token.pth")
    with pytest.raises(InputError, match=r"audio2token\.pth.*refused"):
        Checkpoint.open(copy).state_dict("audio2token")
    assert not proof.exists()


@pytest.mark.parametrize("value", [[torch.zeros(1)], {"a": {"b": torch.zeros(1)}}, {1: torch.zeros(1)}])
def test_only_plain_state_dicts_are_read(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"odd\.pth.*state dict"):
        read_tensors(tmp_path / "odd.pth")


def test_files_of_the_older_pytorch_format(tmp_path: Path) -> None:
    state = {"module.weight": torch.arange(6.0), "module.steps": torch.tensor(3)}
    torch.save(state, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    read = read_tensors(tmp_path / "old.pkl")
    assert torch.equal(read["module.weight"], state["module.weight"])
    assert read["module.steps"].dtype == torch.int64


def test_load_strict_takes_exactly_the_tensors() -> None:
    with torch.device("meta"):
        module = nn.Linear(2, 3)
    state = {"weight": torch.rand(3, 2), "bias": torch.rand(3)}
    load_strict(module, state, "file.pth")
    assert torch.equal(module.weight, state["weight"])


def test_load_strict_lists_what_does_not_fit() -> None:
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    state = module.state_dict()
    short = {name: value for name, value in state.items() if name.endswith("bias")}
    short["0.bias"] = torch.zeros(5)
    short["extra"] = torch.zeros(1)
    with pytest.raises(InputError) as caught:
        load_strict(module, short, "file.pth")
    message = str(caught.value)
    assert message.startswith("file.pth")
    assert "12 missing" in message
    assert "9.weight" in message
    assert "10.weight" not in message  # the eleventh of twelve is only counted
    assert "2 more" in message
    assert "1 unexpected (extra)" in message
    assert "0.bias (5,) instead of (2,)" in message
