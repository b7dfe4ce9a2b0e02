"""Throughput of machines: ARM servers, machines described in files, and the machine at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from sonic.bounded import read_json
from sonic.errors import InputError
from sonic.host import cpu_features, total_bytes
from sonic.records import EXACT, read_record


def _require_other(efficiency: Mapping[str, float]) -> Mapping[str, float]:
    if "other" not in efficiency:
        raise ValueError("it should have 'other', for the submodels that it does not name")
    return efficiency


_Positive = Annotated[float, Field(gt=0)]
_Count = Annotated[int, Field(gt=0, le=1_000_000)]

# Speed of layers of a precision, relative to float32's, as far as it was found out. Processors with the dot
# product of eight-bit integers (asimddp, VNNI) do four times as many multiply-adds with it as in float32, but
# not everything is one: an emulated Neoverse N1 executes 1615 M instructions for a float32 call of a UNet of
# the published width and 653 M for int8 (ONNX Runtime; TVM with the Arm Compute Library: 1344 M and 548 M),
# and x86 with VNNI was 2.5 times as fast (docs/benchmarks.md). These are ratios of whole calls: layers alone
# gain somewhat more. Without the instruction, nothing was measured, and no gain is assumed. Weights stored in
# float16 are widened before they are used: 0.90 to 0.93 of float32's speed on x86.
_HALF = {"fp16": 0.93}
LAYER_SPEED_WITHOUT_DOT_PRODUCT = _HALF
LAYER_SPEED_WITH_DOT_PRODUCT = _HALF | {"int8": 2.45}
_DOT_PRODUCT_FEATURES = frozenset({"asimddp", "avx512_vnni", "avx_vnni"})


def efficiency_key(submodel: str, precision: str) -> str:
    """The key of `Machine.efficiency` for a submodel of a precision: "unet" in float32, or "unet:int8"."""
    return submodel if precision == "fp32" else f"{submodel}:{precision}"


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
        efficiency: the fraction of the peak that is reached in float32, by submodel; "other" for the rest.
            Measured by `sonic estimate --calibrate`, if it was, which also knows other precisions: the key
            "unet:int8" is for a UNet whose main precision is int8.
        layer_speed: where a precision was not measured, how many times as fast as float32 its layers run, by
            precision; 1 for those that it does not name.
        encode_seconds_per_megapixel: encoding time per megapixel of video, one frame after another.
        projected: whether the efficiency is taken from another machine.
    """

    __pydantic_config__ = EXACT

    name: str
    cores: _Count
    gigahertz: _Positive
    flop_per_cycle: _Count
    memory_gigabytes: _Positive
    watts: _Positive
    efficiency: Annotated[Mapping[str, _Positive], AfterValidator(_require_other)] = field(
        default_factory=lambda: {"other": 0.6}
    )
    encode_seconds_per_megapixel: _Positive = 0.02
    projected: bool = True
    layer_speed: Mapping[str, _Positive] = field(
        default_factory=lambda: dict(LAYER_SPEED_WITHOUT_DOT_PRODUCT)
    )

    @property
    def peak_flop_per_second(self) -> float:
        """Peak float32 operations per second of all cores."""
        return self.cores * self.gigahertz * 1e9 * self.flop_per_cycle

    def flop_per_second(self, submodel: str) -> float:
        """Operations per second that are reached in a submodel, under its key in `efficiency`."""
        return self.peak_flop_per_second * self.efficiency.get(submodel, self.efficiency["other"])

    def has_measured(self, submodel: str, precision: str) -> bool:
        """Whether the efficiency of a submodel was measured on this machine, in this precision."""
        return not self.projected and efficiency_key(submodel, precision) in self.efficiency

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file that :func:`find_machine` reads."""
        return asdict(self) | {
            "efficiency": dict(self.efficiency),
            "layer_speed": dict(self.layer_speed),
        }


# Cores, clock and watts are from the makers' data sheets. Float32 operations per cycle follow from a core's
# 128-bit multiply-add pipes, eight operations each: two in TaiShan v110 and Neoverse N1, four in
# Neoverse V1 (as two of 256 bits) and V2, one in FTC662 (Arm's software optimization guides; for the
# Phytium, 588.8 GFLOPS of float64 at 64 cores and 2.3 GHz). All but the Phytium have the dot product.
_DOT_PRODUCT: dict[str, Any] = {"layer_speed": LAYER_SPEED_WITH_DOT_PRODUCT}
MACHINES = {
    machine.name: machine
    for machine in (
        Machine("kunpeng920", 64, 2.6, 16, 256, 180, **_DOT_PRODUCT),
        Machine("graviton2", 64, 2.5, 16, 128, 110, **_DOT_PRODUCT),
        Machine("graviton3", 64, 2.6, 32, 128, 100, **_DOT_PRODUCT),
        Machine("graviton4", 96, 2.8, 32, 384, 130, **_DOT_PRODUCT),
        Machine("altra", 80, 3.0, 16, 256, 210, **_DOT_PRODUCT),
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
    values = read_json(path, InputError)
    return read_record(Machine, json.dumps(values), str(path), InputError)


def machine_at_hand(cores: int, efficiency: Mapping[str, float], encode_seconds: float) -> Machine:
    """This machine, as one "GHz" and one operation per cycle: `efficiency` is then in GFLOP/s per core."""
    has_dot_product = _DOT_PRODUCT_FEATURES & cpu_features()
    return Machine(
        "this machine",
        cores,
        1.0,
        1,
        total_bytes() / 1e9,
        1.0,
        efficiency,
        encode_seconds,
        projected=False,
        layer_speed=LAYER_SPEED_WITH_DOT_PRODUCT if has_dot_product else LAYER_SPEED_WITHOUT_DOT_PRODUCT,
    )


def combine(machines: Sequence[Machine]) -> Machine:
    """One machine that was measured several times, in several precisions.

    "other" is the slowest of all; encoding takes what it took first.
    """
    efficiency = {key: value for machine in machines for key, value in machine.efficiency.items()}
    efficiency["other"] = min(efficiency.values())
    return replace(machines[0], efficiency=efficiency)
