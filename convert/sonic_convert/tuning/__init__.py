"""Finds a bundle's speed presets: records clips, searches plans offline, judges some by their videos."""
