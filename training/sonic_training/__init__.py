"""Makes sonic-tiny: a small Sonic checkpoint trained from scratch on drawn faces and synthesized speech."""

# First: it disables ONNX Runtime's telemetry, which has to happen before anything imports onnxruntime.
import sonic  # noqa: F401
