"""The confined process: loads one reader, gives up what it does not need, and decodes its standard input.

It is started by :mod:`sonic.sandbox.process`, which reads its standard output
(:mod:`sonic.sandbox.protocol`).
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from sonic.sandbox import confinement
from sonic.sandbox.protocol import Messages, Refusal
from sonic.sandbox.settings import PictureSettings, SoundSettings


@dataclass(frozen=True)
class Order:
    """What the process is to do.

    Attributes:
        kind: "picture", "sound" or "probe".
        settings: of the reader: the fields of `PictureSettings` or `SoundSettings`.
        seconds: of processor time that it may use.
        memory_bytes: that decoding may use, beyond what the process has once its libraries are loaded.
    """

    kind: str
    settings: dict[str, Any]
    seconds: float
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def main(order: Order) -> None:
    """What the confined process does."""
    confinement.die_with_parent()
    carry_out(order, Messages(_write), confined=True)


def carry_out(order: Order, messages: Messages, confined: bool, file: BinaryIO | None = None) -> None:
    """Carry out an order in this process; everything that can go wrong with the input becomes a message.

    Args:
        order: what to do.
        messages: takes the result.
        confined: whether the process gives up what it does not need, for good.
        file: to read; standard input by default.

    Raises:
        BrokenPipeError: nobody takes the messages any more.
    """
    try:
        _run(order, messages, confined, file)
    except Refusal as refusal:
        messages.error(str(refusal))
    except ImportError as error:
        messages.error(f"cannot be read here ({error}); install what is missing")
    except MemoryError:
        messages.error(
            f"takes more than {order.memory_bytes / 1e6:g} MB of memory to decode; "
            "give a smaller one, or raise the limit decode-memory-megabytes"
        )
    except Exception as error:  # what a reader did not expect of a damaged file
        messages.error(f"is damaged: its decoder failed ({type(error).__name__})")


def _run(order: Order, messages: Messages, confined: bool, file: BinaryIO | None) -> None:
    if order.kind == "probe":
        _probe(order, messages)
    elif order.kind == "picture":
        from sonic.sandbox import pictures

        picture_settings = PictureSettings(**order.settings)
        pictures.prepare(picture_settings)
        with _input(order, confined, file) as stream:
            pictures.decode(stream, picture_settings, messages)
    else:
        from sonic.sandbox import sounds

        sound_settings = SoundSettings(**order.settings)
        sounds.prepare(sound_settings)
        with _input(order, confined, file) as stream:
            sounds.decode(stream, sound_settings, messages)


def _input(order: Order, confined: bool, file: BinaryIO | None) -> BinaryIO:
    if file is None:
        file = open(0, "rb", closefd=False)  # noqa: SIM115
    if confined:
        confinement.confine(order.seconds, order.memory_bytes)
    return file


def _probe(order: Order, messages: Messages) -> None:
    from sonic.sandbox import probe

    by = confinement.confine(order.seconds, order.memory_bytes)
    messages.end(by=by, possible=probe.possible())


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
