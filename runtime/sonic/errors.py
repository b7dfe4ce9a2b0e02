"""Errors that a user can fix.

Every message is one sentence that names the file or the value and says what would be right; the
command lines print it without a traceback and exit with code 2.
"""

import warnings


class SonicError(ValueError):
    """Base class of every error that this package raises on purpose."""


class InputError(SonicError):
    """An image, a recording, a noise file or an option that cannot be used."""


class BundleError(SonicError):
    """A model bundle that is missing, incomplete or changed, of another version, or cannot be run here."""


class OutputError(SonicError):
    """A result that cannot be written to the requested place."""


class GenerationCancelled(SonicError):
    """A generation that was cancelled through its `cancel` event; it left nothing but its checkpoint."""


def first_line(error: BaseException) -> str:
    """What another library's error says, for a sentence: at most 200 characters that can be printed."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 200 else f"{text[:197]}..."


class SonicWarning(UserWarning):
    """Something the user may want to know about an input; the result is still as documented."""


def warn(message: str) -> None:
    """Warn the user; the command lines print the message once."""
    warnings.warn(message, SonicWarning, stacklevel=3)


def shown(value: object) -> str:
    """A value as an error's sentence shows it: its `repr`, of at most 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
