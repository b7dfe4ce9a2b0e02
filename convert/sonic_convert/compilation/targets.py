"""The processors that bundles are compiled for."""

from __future__ import annotations

from dataclasses import dataclass

import tvm

from sonic.errors import InputError

_TRIPLE = "aarch64-linux-gnu"


@dataclass(frozen=True)
class Target:
    """A kind of server.

    Attributes:
        name: on the command line.
        processor: LLVM's name of its cores.
        attributes: LLVM's names of further instruction sets, such as "+dotprod".
        features: names that Linux has to list under Features in /proc/cpuinfo.
        triple: architecture, system and ABI.
    """

    name: str
    processor: str
    attributes: tuple[str, ...]
    features: tuple[str, ...]
    triple: str = _TRIPLE

    def tvm_target(self) -> tvm.target.Target:
        """The target in TVM's form."""
        return tvm.target.Target(
            {
                "kind": "llvm",
                "mtriple": self.triple,
                "mcpu": self.processor,
                "mattr": list(self.attributes),
            }
        )


_DOT = ("+neon", "+dotprod", "+fullfp16")
_DOT_FEATURES = ("asimd", "asimddp", "asimdhp")
_V1 = (*_DOT, "+i8mm", "+bf16")
_V1_FEATURES = (*_DOT_FEATURES, "i8mm", "bf16", "sve")
TARGETS = {
    target.name: target
    for target in (
        Target("kunpeng920", "tsv110", _DOT, _DOT_FEATURES),
        Target("graviton2", "neoverse-n1", _DOT, _DOT_FEATURES),
        Target("graviton3", "neoverse-v1", _V1, _V1_FEATURES),
        Target("graviton4", "neoverse-v2", _V1, (*_V1_FEATURES, "sve2")),
        Target("altra", "neoverse-n1", _DOT, _DOT_FEATURES),
        Target("phytium-d2000", "generic", ("+neon",), ("asimd",)),
        Target("generic-armv8", "generic", ("+neon",), ("asimd",)),
    )
}
# The features that a custom target may have: LLVM's names and Linux's.
_LINUX_NAMES = {
    "neon": "asimd", "dotprod": "asimddp", "fullfp16": "asimdhp", "i8mm": "i8mm", "bf16": "bf16",
    "sve": "sve", "sve2": "sve2", "lse": "atomics", "rdm": "asimdrdm", "fp16fml": "asimdfhm",
}  # fmt: skip


def find_target(name: str) -> Target:
    """A target by its name, or from "TRIPLE,FEATURES", such as "aarch64-linux-gnu,+neon,+dotprod".

    Raises:
        InputError: there is no such target.
    """
    if name in TARGETS:
        return TARGETS[name]
    triple, *attributes = name.split(",")
    unknown = [a for a in attributes if not a.startswith("+") or a[1:] not in _LINUX_NAMES]
    if not triple.startswith(("aarch64-", "arm64-")) or not attributes or unknown:
        what = f"the feature '{unknown[0]}' is unknown; " if unknown else ""
        raise InputError(
            f"no target '{name}': {what}it should be one of {', '.join(TARGETS)}, or a triple and features "
            f"such as 'aarch64-linux-gnu,+neon,+dotprod' (of {', '.join(sorted(_LINUX_NAMES))})"
        )
    features = tuple(_LINUX_NAMES[attribute[1:]] for attribute in attributes)
    return Target(name, "generic", tuple(attributes), features, triple)
