"""An error-correcting code with soft decoding: a polar code of 512 bits for 96, a CRC of 32 bits among them.

    codeword = encode(0x123456789ABCDEF0)
    decode(1.0 - 2.0 * codeword)          # 0x123456789ABCDEF0

Polar codes are those of 5G's control channels (3GPP TS 38.212); at this length a list decoder that the CRC
helps to choose is within a decibel of what any code can do. Which places are frozen follows from their
polarization weight (He et al. 2017), so that there is no table.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

#: Bits of a codeword, of a message, and of its check.
CODE_BITS = 512
MESSAGE_BITS = 64
CHECK_BITS = 32
#: How many words a decoder considers at the same time, and in the end.
LIST_SIZE = 32

_INFORMATION_BITS = MESSAGE_BITS + CHECK_BITS
# Of the message 0, the check must not be 0: an all-zero word would be a valid one.
_CHECK_START = 0x534F4E49


def encode(message: int) -> NDArray[np.uint8]:
    """The codeword of a message of 64 bits: uint8 (512,) of 0 and 1."""
    word = np.zeros(CODE_BITS, np.uint8)
    word[~_FROZEN] = _with_check(message)
    step = 1
    while step < CODE_BITS:
        pairs = word.reshape(-1, 2, step)
        pairs[:, 0] ^= pairs[:, 1]
        step *= 2
    return word


def decode(soft: NDArray[np.floating]) -> int | None:
    """The message whose codeword fits best, or None if no word on the list has a valid check.

    With any input that is not made from a codeword, a message is returned with a probability of at most
    LIST_SIZE / 2**32, as that many words are checked.

    Args:
        soft: (512,), positive where a bit is likely 0; the scale does not matter.
    """
    values = np.asarray(soft, np.float64)
    if not np.isfinite(values).all() or not values.any():
        return None
    words, metrics = _ListDecoder().decode(values)
    for index in np.argsort(metrics, kind="stable"):
        bits = words[index]
        message = _number(bits[:MESSAGE_BITS])
        if np.array_equal(bits, _with_check(message)):
            return message
    return None


def _with_check(message: int) -> NDArray[np.uint8]:
    data = message.to_bytes(MESSAGE_BITS // 8, "big")
    check = zlib.crc32(data, _CHECK_START).to_bytes(CHECK_BITS // 8, "big")
    return np.unpackbits(np.frombuffer(data + check, np.uint8))


def _number(bits: NDArray[np.uint8]) -> int:
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _frozen_places() -> NDArray[np.bool_]:
    places = np.arange(CODE_BITS)
    weights = sum(((places >> bit) & 1) * 2.0 ** (bit / 4) for bit in range(CODE_BITS.bit_length() - 1))
    frozen = np.ones(CODE_BITS, bool)
    frozen[np.argsort(weights, kind="stable")[-_INFORMATION_BITS:]] = False
    return frozen


_FROZEN = _frozen_places()


class _ListDecoder:
    """Successive cancellation with a list of paths (Tal and Vardy 2015), in log-likelihood ratios."""

    def __init__(self) -> None:
        self._metrics = np.full(LIST_SIZE, np.inf)
        self._metrics[0] = 0
        self._words = np.zeros((LIST_SIZE, _INFORMATION_BITS), np.uint8)
        self._decided = 0

    def decode(self, values: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """The information bits of every path, (paths, 96), and how badly each fits."""
        self._node(np.repeat(values[None], LIST_SIZE, axis=0), 0)
        return self._words, self._metrics

    def _node(self, values: NDArray[np.float64], first: int) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
        """Decide the bits from `first` on.

        Args:
            values: (paths, bits).
            first: the place of the first bit.

        Returns:
            The bits as they were sent, (paths, bits), and for each path, of which former one it is the
            continuation.
        """
        paths, count = values.shape
        if _FROZEN[first : first + count].all():
            self._metrics += np.maximum(-values, 0).sum(axis=1)
            return np.zeros((paths, count), np.uint8), np.arange(paths)
        if count == 1:
            return self._fork(values[:, 0])
        left, right = values[:, : count // 2], values[:, count // 2 :]
        least = np.minimum(np.abs(left), np.abs(right))
        bits, origin = self._node(np.where((left < 0) ^ (right < 0), -least, least), first)
        left, right = left[origin], right[origin]
        others, later = self._node(np.where(bits == 1, right - left, right + left), first + count // 2)
        return np.concatenate([bits[later] ^ others, others], axis=1), origin[later]

    def _fork(self, values: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
        """Follow every path with a 0 and with a 1, and keep the best."""
        both = np.concatenate([self._metrics + np.maximum(-values, 0), self._metrics + np.maximum(values, 0)])
        best = np.argsort(both, kind="stable")[:LIST_SIZE]
        origin, bits = best % LIST_SIZE, (best // LIST_SIZE).astype(np.uint8)
        self._metrics, self._words = both[best], self._words[origin]
        self._words[:, self._decided] = bits
        self._decided += 1
        return bits[:, None], origin
