"""Writing a file whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sonic.errors import OutputError


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file of another name in the same folder, which then replaces `path`.

    At any error, and at Ctrl-C, `path` stays as it was and nothing is left beside it.

    Raises:
        OutputError: the file cannot be written there.
    """
    temporary = path.absolute().with_name(f".{secrets.token_hex(8)}.{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OutputError(
                f"cannot write {path} ({error.strerror or error}); choose another place"
            ) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all; as `replace_file`."""
    text = json.dumps(value, indent=1) + "\n"
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
