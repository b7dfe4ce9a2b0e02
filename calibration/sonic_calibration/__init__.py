"""Records what the submodels of a bundle really see, for parity, ranges and calibration."""

__version__ = "0.1.0"
