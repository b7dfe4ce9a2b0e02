from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonic.errors import InputError
from sonic.watermark.payload import LARGEST, Watermark, first_bits, hour_of

FIELD = st.integers(0, LARGEST)


@given(FIELD, FIELD, FIELD)
def test_a_payload_is_64_bits_and_comes_back(bundle: int, hour: int, job: int) -> None:
    watermark = Watermark(bundle, hour, job)
    number = watermark.to_number()
    assert 0 <= number < 2**64
    assert Watermark.from_number(number) == watermark


def test_the_layout_is_the_documented_one() -> None:
    assert Watermark(0xABCDE, 0x12345, 0x6789F).to_number() == 0x1_ABCDE_12345_6789F


def test_another_version_is_no_watermark() -> None:
    assert Watermark.from_number(0x2_ABCDE_12345_6789F) is None


def test_a_time_is_kept_to_the_hour() -> None:
    watermark = Watermark(hour=hour_of("2026-11-27T21:59:59+01:00"))
    assert watermark.time == datetime(2026, 11, 27, 20, tzinfo=UTC)
    assert Watermark(hour=hour_of("2020-01-01")).time == datetime(2020, 1, 1, tzinfo=UTC)
    assert Watermark().time is None


def test_now_is_this_hour() -> None:
    before = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    assert before <= Watermark(hour=hour_of("now")).time <= datetime.now(UTC)


@pytest.mark.parametrize("text", ["", "yesterday", "2019-12-31", "2200-01-01", "2026-13-01"])
def test_a_time_that_is_none_is_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match="should be 'now' or a date of 2020 to 2138"):
        hour_of(text)


def test_a_number_that_is_too_large_is_one_sentence() -> None:
    with pytest.raises(InputError, match="job is 1048576, but should be 0 to 1048575"):
        Watermark(job=2**20)


def test_the_first_bits_of_a_digest() -> None:
    assert first_bits("abcdef0123") == 0xABCDE
