"""Changing the manifests of bundles, as somebody can who gives them the right digest again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sonic.bundle.manifest_file import manifest_text


def write_values(bundle: Path, values: Mapping[str, Any]) -> None:
    """Write a manifest's values, with their digest."""
    (bundle / "manifest.json").write_text(manifest_text(values))


def change_values(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest's values in place, and their digest with them."""
    values = json.loads((bundle / "manifest.json").read_text())
    change(values)
    write_values(bundle, values)
