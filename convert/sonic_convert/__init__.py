"""Converts a Sonic checkpoint into a bundle that the torch-free runtime reads."""

from sonic import __version__ as __version__  # one release, one version
