"""Whom a bundle has to come from: the options of everything that opens one.

load_model("sonic-base", key="release.pub")     # only if the owner of that key signed it
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sonic.errors import InputError
from sonic.schema import Option, PathLike, Validated

#: The environment variable that names a folder of public keys, whose owners' machine code is run.
TRUSTED_KEYS = "SONIC_TRUSTED_KEYS"


@dataclass(frozen=True, kw_only=True)
class TrustOptions(Validated):
    """What is checked when a bundle is opened, and whom it has to come from.

    Raises:
        InputError: a value is of another type.
    """

    check_digests: Annotated[
        bool,
        Option("Compare every file with its size and SHA-256 in the manifest", name="verify"),
    ] = True
    trust: Annotated[
        bool,
        Option("Run the machine code of a compiled bundle even if no trusted key has signed it"),
    ] = False
    key: Annotated[
        PathLike | None,
        Option(
            "Public key (PEM) whose owner has to have signed the bundle", default="no signature is asked for"
        ),
    ] = None
    certificate: Annotated[
        PathLike | None,
        Option(
            "Root certificate (PEM) that the signer's certificate has to lead to",
            default="no signature is asked for",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.key is not None and self.certificate is not None:
            raise InputError("a bundle has one signature: give a key or a certificate, not both")
        if self.wants_signature and not self.check_digests:
            raise InputError("a signature says nothing of files that are not compared; leave --no-verify out")

    @property
    def wants_signature(self) -> bool:
        """Whether a bundle without a valid signature is refused."""
        return self.key is not None or self.certificate is not None


DEFAULT_TRUST = TrustOptions()


def trusted_keys() -> list[Path]:
    """The public keys (*.pem, *.pub) in the folder that ``$SONIC_TRUSTED_KEYS`` names; none if it is not set.

    Raises:
        InputError: the folder cannot be read.
    """
    folder = os.environ.get(TRUSTED_KEYS)
    if not folder:
        return []
    try:
        return sorted(path for path in Path(folder).iterdir() if path.suffix in (".pem", ".pub"))
    except OSError as error:
        raise InputError(
            f"${TRUSTED_KEYS} is {folder}, which cannot be read ({error.strerror}); it should be a folder of "
            "public keys (*.pem, *.pub)"
        ) from error
