"""Converts a Sonic checkpoint to a bundle that the runtime runs without PyTorch."""

# First: importing sonic disables ONNX Runtime's telemetry, which it has to do before onnxruntime is imported.
from sonic import __version__ as __version__  # one release, one version
