"""Every target of fuzzing, on its stored inputs and on mutations of them; `make fuzz` goes on from there."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator

import pytest
from fuzz.targets import CORPUS, TARGETS, load_target

MUTATIONS = 200
_INTERESTING = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"-1",
    b"1e999",
    b"NaN",
    b"{",
    b"[" * 60,
]


def mutations(inputs: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Inputs with some bytes changed, cut out, doubled, or taken from another input; the same for a seed."""
    chance = random.Random(seed)
    for _ in range(count):
        data = bytearray(chance.choice(inputs))
        for _ in range(chance.randint(1, 4)):
            start = chance.randrange(len(data) + 1)
            # Headers are where readers decide what to do.
            start = min(start, chance.choice([64, len(data)]))
            end = min(len(data), start + chance.choice([1, 2, 4, 16, len(data)]))
            match chance.randrange(5):
                case 0:
                    del data[start:end]
                case 1:
                    data[start:end] = chance.choice(_INTERESTING)
                case 2:
                    data[start:start] = data[start:end]
                case 3:
                    other = chance.choice(inputs)
                    data[start:end] = other[start:end]
                case _:
                    data[start : start + 1] = bytes([chance.randrange(256)])
        yield bytes(data[:100_000])


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_reads_or_refuses(name: str) -> None:
    target = load_target(name)
    stored = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert stored
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in [*stored, b"", *mutations(stored, MUTATIONS, seed=len(name))]:
            try:
                target.one(data)
            except Exception as error:
                pytest.fail(f"{type(error).__name__}: {error}\n{data[:2000]!r}")


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_reached(name: str) -> None:
    """At least one stored input is good: bad ones alone would test the first check only."""
    target = load_target(name)
    reached = []

    class Watched(Exception):
        pass

    original = target.SonicError if hasattr(target, "SonicError") else None
    if original is None:
        return
    target.SonicError = Watched  # what is refused is not caught any more
    try:
        for path in sorted((CORPUS / name).iterdir()):
            try:
                target.one(path.read_bytes())
                reached.append(path.name)
            except original:
                pass
    finally:
        target.SonicError = original
    assert reached
