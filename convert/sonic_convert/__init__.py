"""Converts a Sonic checkpoint into a bundle that the torch-free runtime reads."""

__version__ = "0.1.0"
