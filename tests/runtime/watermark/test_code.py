from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonic.watermark import code

MESSAGES = st.integers(0, 2**64 - 1)


@settings(max_examples=20, deadline=None)
@given(MESSAGES, st.floats(1e-6, 1e6))
def test_a_codeword_is_decoded_at_any_scale(message: int, scale: float) -> None:
    assert code.decode(scale * (1.0 - 2.0 * code.encode(message))) == message


def test_the_transform_is_the_matrix_of_the_definition() -> None:
    """Arikan's: the n-th Kronecker power of [[1, 0], [1, 1]], modulo 2."""
    matrix = np.array([[1]])
    while len(matrix) < code.CODE_BITS:
        matrix = np.kron(matrix, np.array([[1, 0], [1, 1]]))
    message = 0x0123456789ABCDEF
    data = message.to_bytes(8, "big")
    check = zlib.crc32(data, code._CHECK_START).to_bytes(4, "big")
    word = np.zeros(code.CODE_BITS, int)
    word[~code._FROZEN] = np.unpackbits(np.frombuffer(data + check, np.uint8))
    assert np.array_equal(code.encode(message), word @ matrix % 2)


@pytest.mark.parametrize("message", [0, 2**64 - 1, 0x1ABCDE123456789F])
def test_noise_is_corrected(message: int) -> None:
    """A quarter of the bits are wrong."""
    draw = np.random.default_rng(3)
    for _ in range(10):
        noisy = 1.0 - 2.0 * code.encode(message) + draw.normal(0, 1.4, code.CODE_BITS)
        assert code.decode(noisy) == message


def test_without_a_codeword_there_is_no_message() -> None:
    draw = np.random.default_rng(4)
    for _ in range(60):
        assert code.decode(draw.normal(size=code.CODE_BITS)) is None
    assert code.decode(np.zeros(code.CODE_BITS)) is None
    assert code.decode(np.ones(code.CODE_BITS)) is None
    assert code.decode(np.full(code.CODE_BITS, np.nan)) is None


def test_a_shorter_check_passes_as_often_as_the_bound_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on false positives is that each of 32 words passes with 2**-32; here with 2**-8."""
    passed = words = 0
    draw = np.random.default_rng(5)
    for _ in range(80):
        candidates, _ = code._ListDecoder().decode(draw.normal(size=code.CODE_BITS))
        for bits in candidates:
            wanted = code._with_check(code._number(bits[:64]))
            passed += np.array_equal(bits[:72], wanted[:72])
            words += 1
    assert passed / words < 2**-8 + 5 * np.sqrt(2**-8 / words)
