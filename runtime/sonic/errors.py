"""Errors that a user can solve.

Every message is one sentence that names the file or the value and says what would be right; the
command lines print it without a traceback and exit with code 2.
"""


class SonicError(ValueError):
    """Base class of every error that this package raises on purpose."""


class InputError(SonicError):
    """An image, a recording, a noise file or an option that cannot be used."""


class BundleError(SonicError):
    """A model bundle that is missing, incomplete, changed or of another version."""


class OutputError(SonicError):
    """A result that cannot be written where it was asked for."""
