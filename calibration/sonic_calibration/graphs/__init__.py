"""ONNX graphs whose weights stay on disk: reading them, finding their layers, running them in segments."""
