"""Throughput of machines: ARM servers, machines described in files, and the machine at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from sonic.errors import InputError
from sonic.host import total_bytes
from sonic.records import EXACT, read_record


def _require_other(efficiency: Mapping[str, float]) -> Mapping[str, float]:
    if "other" not in efficiency:
        raise ValueError("it should have 'other', for the submodels that it does not name")
    return efficiency


_Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Machine:
    """A server, as far as capacity planning goes.

    Attributes:
        name: its name.
        cores: number of cores that compute.
        gigahertz: their clock rate under load.
        flop_per_cycle: float32 operations of one core in one cycle; a fused multiply-add counts as two.
        memory_gigabytes: memory of the machine.
        watts: power of the processor under load.
        efficiency: the fraction of the peak that is reached, by submodel; "other" for the rest. Measured by
            `sonic estimate --calibrate`, if it was.
        encode_seconds_per_megapixel: encoding time per megapixel of video, one frame after another.
        projected: whether the efficiency is taken from another machine.
    """

    __pydantic_config__ = EXACT

    name: str
    cores: Annotated[int, Field(gt=0)]
    gigahertz: _Positive
    flop_per_cycle: Annotated[int, Field(gt=0)]
    memory_gigabytes: _Positive
    watts: _Positive
    efficiency: Annotated[Mapping[str, _Positive], AfterValidator(_require_other)] = field(
        default_factory=lambda: {"other": 0.6}
    )
    encode_seconds_per_megapixel: _Positive = 0.02
    projected: bool = True

    @property
    def peak_flop_per_second(self) -> float:
        """Peak float32 operations per second of all cores."""
        return self.cores * self.gigahertz * 1e9 * self.flop_per_cycle

    def flop_per_second(self, submodel: str) -> float:
        """Operations per second that are reached in a submodel."""
        return self.peak_flop_per_second * self.efficiency.get(submodel, self.efficiency["other"])

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file that :func:`find_machine` reads."""
        return asdict(self) | {"efficiency": dict(self.efficiency)}


# Cores, clock and watts are from the makers' data sheets. Float32 operations per cycle follow from a core's
# 128-bit multiply-add pipes, eight operations each: two in TaiShan v110 and Neoverse N1, four in
# Neoverse V1 (as two of 256 bits) and V2, one in FTC662 (Arm's software optimization guides; for the
# Phytium, 588.8 GFLOPS of float64 at 64 cores and 2.3 GHz).
MACHINES = {
    machine.name: machine
    for machine in (
        Machine("kunpeng920", 64, 2.6, 16, 256, 180),
        Machine("graviton2", 64, 2.5, 16, 128, 110),
        Machine("graviton3", 64, 2.6, 32, 128, 100),
        Machine("graviton4", 96, 2.8, 32, 384, 130),
        Machine("altra", 80, 3.0, 16, 256, 210),
        Machine("phytium-ft2000", 64, 2.2, 8, 128, 100),
    )
}


def find_machine(name: str) -> Machine:
    """Find a machine by its name in `MACHINES`, or read the file that describes it.

    Raises:
        InputError: there is no such machine or file, or the file cannot be used.
    """
    if name in MACHINES:
        return MACHINES[name]
    path = Path(name)
    if not path.is_file():
        known = ", ".join(MACHINES)
        raise InputError(f"no machine '{name}'; give one of {known}, or the JSON file of one")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the machine cannot be read ({error})") from error
    return read_record(Machine, text, str(path), InputError)


def machine_at_hand(cores: int, efficiency: Mapping[str, float], encode_seconds: float) -> Machine:
    """This machine, as one "GHz" and one operation per cycle: `efficiency` is then in GFLOP/s per core."""
    return Machine("this machine", cores, 1.0, 1, total_bytes() / 1e9, 1.0, efficiency, encode_seconds, False)
