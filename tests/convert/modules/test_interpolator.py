"""The frame interpolator: what must hold for any weights, known flows, and its export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic.errors import InputError
from sonic_convert.modules.interpolator import FRAME_MULTIPLE_PIXELS, FrameInterpolator

CHANNELS = 6


def make_state(scale: float, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        module = FrameInterpolator(CHANNELS)
    return {
        name: torch.randn(value.shape, generator=generator) * scale
        for name, value in module.state_dict().items()
    }


def picture(height: int, width: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def module() -> FrameInterpolator:
    return FrameInterpolator.from_state_dict(make_state(0.15), "flownet.pkl")


@settings(max_examples=5, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    count=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_range_shape_and_symmetry_in_time(rows: int, columns: int, count: int, seed: int) -> None:
    module = FrameInterpolator.from_state_dict(make_state(0.15, seed), "flownet.pkl")
    size = (rows * FRAME_MULTIPLE_PIXELS, columns * FRAME_MULTIPLE_PIXELS)
    one, two = picture(*size, count, seed), picture(*size, count, seed + 1)
    with torch.no_grad():
        ahead, back = module(one, two), module(two, one)
    assert ahead.shape == one.shape
    assert float(ahead.min()) >= 0
    assert float(ahead.max()) <= 1
    assert torch.allclose(ahead, back, atol=1e-4)


def test_two_constant_frames_stay_between_them(module: FrameInterpolator) -> None:
    one, two = torch.full((1, 3, 32, 48), 0.25), torch.full((1, 3, 32, 48), 0.75)
    with torch.no_grad():
        assert torch.allclose(module(one, one), one, atol=1e-6)
        middle = module(one, two)
    assert float(middle.min()) >= 0.25 - 1e-6
    assert float(middle.max()) <= 0.75 + 1e-6


def test_without_any_flow_it_is_the_mean() -> None:
    module = FrameInterpolator.from_state_dict(make_state(0.0), "flownet.pkl")
    one, two = picture(32, 48), picture(32, 48, seed=1)
    with torch.no_grad():
        assert torch.allclose(module(one, two), (one + two) / 2, atol=1e-5)


def test_a_constant_flow_moves_both_frames_by_whole_pixels() -> None:
    """A flow of (x, y) = (1, 2) at each scale adds up to 4 + 2 + 1 = 7 times that many pixels."""
    state = make_state(0.0)
    for block in ("block0", "block1", "block2"):
        state[f"{block}.conv1.2.bias"] = torch.tensor([1.0, 2.0, 1.0, 2.0])
    module = FrameInterpolator.from_state_dict(state, "flownet.pkl")
    one, two = picture(64, 96), picture(64, 96, seed=1)
    with torch.no_grad():
        middle = module(one, two)
    mean = (one + two) / 2
    assert torch.allclose(middle[:, :, :50, :89], mean[:, :, 14:, 7:], atol=1e-4)
    # Beyond the border the last pixel repeats.
    assert torch.allclose(middle[:, :, :50, 90:], mean[:, :, 14:, 95:].expand(-1, -1, -1, 6),
                          atol=1e-4)  # fmt: skip


def test_opposite_flows_cancel() -> None:
    """Both directions are averaged, so a flow that is not the same both ways has no effect."""
    state = make_state(0.0)
    for block in ("block0", "block1", "block2"):
        state[f"{block}.conv1.2.bias"] = torch.tensor([1.0, 2.0, -1.0, -2.0])
        state[f"{block}.conv2.2.bias"] = torch.tensor([3.0])
    module = FrameInterpolator.from_state_dict(state, "flownet.pkl")
    one, two = picture(32, 48), picture(32, 48, seed=1)
    with torch.no_grad():
        assert torch.allclose(module(one, two), (one + two) / 2, atol=1e-5)


def test_the_weights_matter(module: FrameInterpolator) -> None:
    """The teacher's block is loaded and unused; all the others are used."""
    one, two = picture(32, 48), picture(32, 48, seed=1)
    with torch.no_grad():
        before = module(one, two)
        for block in ("block0", "block1", "block2", "block_tea"):
            state = make_state(0.15)
            state[f"{block}.convblock3.1.0.weight"] *= 3
            after = FrameInterpolator.from_state_dict(state, "flownet.pkl")(one, two)
            assert torch.equal(before, after) == (block == "block_tea")


def test_wrong_tensors_are_named() -> None:
    state = make_state(0.1)
    del state["block1.conv0.0.1.weight"]
    with pytest.raises(InputError, match=r"flownet\.pkl.*block1\.conv0\.0\.1\.weight"):
        FrameInterpolator.from_state_dict(state, "flownet.pkl")
    with pytest.raises(InputError, match=r"flownet\.pkl.*missing"):
        FrameInterpolator.from_state_dict({}, "flownet.pkl")
    state = make_state(0.1)
    state["block2.conv2.2.bias"] = torch.zeros(2)
    with pytest.raises(InputError, match=r"block2\.conv2\.2\.bias \(2,\) instead of \(1,\)"):
        FrameInterpolator.from_state_dict(state, "flownet.pkl")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_keeps_count_height_and_width_free(module: FrameInterpolator, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    path = tmp_path / "module.onnx"
    names = ["frame_0", "frame_1"]
    with torch.no_grad():
        torch.onnx.export(
            module,
            (picture(32, 48, 2), picture(32, 48, 2, seed=1)),
            path,
            input_names=names,
            output_names=["middle"],
            dynamic_axes={name: {0: "count", 2: "height", 3: "width"} for name in names},
            opset_version=18,
            dynamo=False,
        )
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for height, width, count in ((32, 48, 2), (80, 64, 1)):
        frames = [picture(height, width, count, seed) for seed in (2, 3)]
        with torch.no_grad():
            expected = module(*frames).numpy()
        feeds = {name: value.numpy() for name, value in zip(names, frames, strict=True)}
        found = session.run(None, feeds)[0]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-3
