"""What a watermark says: which bundle made the video, when, and as which job; 64 bits.

    bits    what
    63..60  version of this layout, 1
    59..40  bundle: the first 20 bits of the SHA-256 of the bundle's manifest
    39..20  time: whole hours since the start of 2020 (UTC) plus one, until 2139; 0 if none was given
    19..0   job: a number that was given, or the first 20 bits of a digest of inputs and options

There is nothing about persons in it. The numbers are short: they tell records apart that one has, and do not
prove by themselves what made a video.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sonic.errors import InputError

VERSION = 1
FIELD_BITS = 20
LARGEST = 2**FIELD_BITS - 1
_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Watermark:
    """The payload of a video.

    Attributes:
        bundle: first 20 bits of the SHA-256 of the bundle's manifest.
        hour: whole hours since the start of 2020 in UTC, plus one; 0 for no time.
        job: a number of at most 20 bits.

    Raises:
        InputError: a number has more than 20 bits, or is negative.
    """

    bundle: int = 0
    hour: int = 0
    job: int = 0

    def __post_init__(self) -> None:
        for name in ("bundle", "hour", "job"):
            value = getattr(self, name)
            if not 0 <= value <= LARGEST:
                raise InputError(f"a watermark's {name} is {value}, but should be 0 to {LARGEST}")

    @property
    def time(self) -> datetime | None:
        """The start of the hour in UTC, or None."""
        return _EPOCH + timedelta(hours=self.hour - 1) if self.hour else None

    def to_number(self) -> int:
        """The payload as a number of 64 bits."""
        number = VERSION
        for value in (self.bundle, self.hour, self.job):
            number = number << FIELD_BITS | value
        return number

    @classmethod
    def from_number(cls, number: int) -> Watermark | None:
        """The payload of a number of 64 bits, or None if its version is another one."""
        fields = [number >> shift & LARGEST for shift in (2 * FIELD_BITS, FIELD_BITS, 0)]
        return cls(*fields) if number >> 3 * FIELD_BITS == VERSION else None

    def to_json(self) -> dict[str, Any]:
        """The fields as `sonic watermark read --json` prints them."""
        time = self.time
        return {
            "payload": f"{self.to_number():016x}",
            "bundle": f"{self.bundle:05x}",
            "time": None if time is None else time.strftime("%Y-%m-%dT%H:00Z"),
            "job": self.job,
        }


def first_bits(digest: str) -> int:
    """The first 20 bits of a digest in hexadecimal; 0 of an empty one, as of a bundle that is being made."""
    return int(digest[: FIELD_BITS // 4] or "0", 16)


def hour_of(text: str) -> int:
    """The hour of a time: "now", or ISO 8601, such as 2026-11-27 or 2026-11-27T20:00+01:00.

    Without an offset it is in UTC.

    Raises:
        InputError: it is no time from 2020 to 2139.
    """
    try:
        time = datetime.now(UTC) if text == "now" else datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is not None:
        time = time if time.tzinfo else time.replace(tzinfo=UTC)
        hour = (time - _EPOCH) // timedelta(hours=1) + 1
        if 1 <= hour <= LARGEST:
            return hour
    raise InputError(
        f"a watermark's time is {text!r}, but should be 'now' or a date of 2020 to 2138, such as 2026-11-27 "
        "or 2026-11-27T20:00Z"
    )
