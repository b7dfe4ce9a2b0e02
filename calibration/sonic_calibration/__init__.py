"""Calibration for quantization, and quality metrics for talking-head videos.

- `recording`: generates example clips and keeps the inputs and outputs of the submodels.
- `graphs`: reads ONNX graphs, finds their layers and runs them in segments.
- `ranges`: collects statistics of tensors and chooses quantization ranges from them.
- `quality`: measures a video: lip sync, identity, sharpness, flicker, and the difference from a reference.
"""

# First: it disables ONNX Runtime's telemetry, which has to happen before anything imports onnxruntime.
import sonic  # noqa: F401
