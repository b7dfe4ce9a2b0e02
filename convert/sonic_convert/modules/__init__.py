"""Submodels as PyTorch modules that keep the official tensor names and export to ONNX."""
