"""The description of a machine."""

from __future__ import annotations

from fuzz.targets import in_file

from sonic.costs.machines import find_machine
from sonic.errors import SonicError


def one(data: bytes) -> None:
    try:
        machine = find_machine(str(in_file(data, "machine.json")))
    except SonicError:
        return
    machine.flop_per_second("unet")
