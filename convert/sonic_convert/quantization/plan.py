"""Which precision every layer gets: presets, and a small file of patterns.

Example:

    plan = preset("int8")
    plan = read_plan(Path("precision.toml"))
    plan.of("unet", "unet.conv_in")        # "fp32"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from sonic.errors import InputError
from sonic_convert.export.submodels import SUBMODELS

#: What a layer can be: float32; with weights stored in float16 or in eight bits but computed in float32;
#: computed in float16; or with eight-bit weights and activations.
LAYER_PRECISIONS = ("fp32", "fp16", "weights8", "fp16-native", "int8")
PRESETS = ("fp32", "fp16", "fp16-native", "int8", "int8-max")
_CALIBRATED = ("fp16-native", "int8")  # those that need the activations' ranges

Rule = tuple[str, str]  # a pattern of layer names, and the precision of those that match


@dataclass(frozen=True)
class PrecisionPlan:
    """Rules for every submodel; the first that matches a layer counts, and a layer without one is fp32.

    Attributes:
        name: of the preset or the file.
        rules: by submodel.
    """

    name: str
    rules: dict[str, tuple[Rule, ...]]

    def of(self, submodel: str, layer: str) -> str:
        """The precision of a layer."""
        for pattern, precision in self.rules.get(submodel, ()):
            if fnmatchcase(layer, pattern):
                return precision
        return "fp32"

    def with_exceptions(self, submodel: str, layers: Iterable[str], precision: str) -> PrecisionPlan:
        """The same plan with another precision for some layers."""
        exceptions = tuple((layer.replace("[", "[[]"), precision) for layer in layers)
        rules = {**self.rules, submodel: (*exceptions, *self.rules.get(submodel, ()))}
        return PrecisionPlan(self.name, rules)

    def main_precision(self, submodel: str) -> str:
        """The precision of most layers of a submodel: that of its last rule."""
        rules = self.rules.get(submodel, ())
        return rules[-1][1] if rules else "fp32"

    @property
    def quantized(self) -> tuple[str, ...]:
        """The submodels with layers that need a calibration."""
        return tuple(submodel for submodel in self.rules if self.quantizes(submodel))

    def quantizes(self, submodel: str) -> bool:
        """Whether any layer quantizes its activations, whose ranges have to be known."""
        return any(precision in _CALIBRATED for _, precision in self.rules.get(submodel, ()))


def preset(name: str) -> PrecisionPlan:
    """One of `PRESETS`: the policies of the submodels' table.

    "fp16" stores weights in float16 and computes in float32; "fp16-native" computes in float16 too, which
    pays on processors with float16 arithmetic. "int8" has eight-bit arithmetic where most time is spent and
    eight-bit weights elsewhere; "int8-max" starts from eight-bit arithmetic in every layer, to be
    searched with a budget.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"precision is {name!r}, but should be one of {', '.join(PRESETS)} or a .toml file")
    if name == "fp32":
        return PrecisionPlan(name, {})
    if name == "int8":
        return PrecisionPlan(name, {submodel.name: submodel.int8 for submodel in SUBMODELS})
    everywhere = name.removesuffix("-max")
    return PrecisionPlan(name, {submodel.name: (("*", everywhere),) for submodel in SUBMODELS})


def read_plan(path: Path) -> PrecisionPlan:
    """Read a file of rules: a table for every submodel, patterns of layer names and their precisions.

        [unet]
        "unet.conv_in" = "fp32"
        "*.time_emb_proj" = "weights8"
        "*" = "int8"

    Raises:
        InputError: the file cannot be read, or names a submodel or a precision that does not exist.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: the precisions cannot be read ({reason})") from error
    names = [submodel.name for submodel in SUBMODELS]
    rules: dict[str, tuple[Rule, ...]] = {}
    for submodel, entries in values.items():
        if not isinstance(entries, dict):
            raise InputError(f"{path}: {submodel} is {entries!r}, but should be a table, [{submodel}]")
        if submodel not in names:
            raise InputError(f"{path}: [{submodel}] is no submodel; it should be one of {', '.join(names)}")
        for pattern, precision in entries.items():
            if precision not in LAYER_PRECISIONS:
                raise InputError(
                    f"{path}: {pattern!r} of [{submodel}] is {precision!r}, but should be one of "
                    f"{', '.join(LAYER_PRECISIONS)}"
                )
        rules[submodel] = tuple(entries.items())
    return PrecisionPlan(path.stem, rules)


def find_plan(name: str) -> PrecisionPlan:
    """A preset by its name, or a file by its path.

    Raises:
        InputError: there is neither.
    """
    return read_plan(Path(name)) if name.endswith(".toml") else preset(name)
