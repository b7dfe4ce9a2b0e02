"""What a preset may cost in quality, and whether measured quality keeps it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from sonic.bundle.presets import PRESET_NAMES, SpeedName
from sonic.errors import InputError
from sonic.records import TOLERANT


@dataclass(frozen=True)
class Measures:
    """The quality of a clip beside that of the same clip with the published sampler.

    Attributes:
        ssim, psnr: structural similarity (0..1) and PSNR (dB) of the frames.
        lip: by how much the correlation of mouth and sound is lower; None without speech.
        amplitude: relative change of the mouth's amplitude, without sign: 0.1 is 10 %.
        identity: by how many dB the likeness to the portrait is lower.
        sharpness: relative change of the sharpness, without sign.
        border: by how much the flicker at window borders, relative to other frames, is higher; None in
            clips of one window.
        mouth: mouth amplitude relative to the published sampler's, with sign: 0.9 is 10 % less.
    """

    ssim: float
    psnr: float
    lip: float | None
    amplitude: float
    identity: float
    sharpness: float
    border: float | None
    mouth: float

    __pydantic_config__ = TOLERANT

    @classmethod
    def mean(cls, clips: Sequence[Measures]) -> Measures:
        """The mean over clips; the amplitude is that of the mean change, as single clips scatter."""
        means: dict[str, float | None] = {}
        for item in fields(cls):
            values = [getattr(clip, item.name) for clip in clips]
            known = [value for value in values if value is not None]
            means[item.name] = float(np.mean(known)) if known else None
        mouth = means["mouth"]
        assert mouth is not None
        return cls(**(means | {"amplitude": abs(mouth - 1)}))  # type: ignore[arg-type]


@dataclass(frozen=True)
class QualityBudget:
    """Limits of measures; the names are those of `Measures`. None does not limit.

    Attributes:
        ssim, psnr: the least.
        lip, amplitude, identity, sharpness, border: the most. A short clip has too few window borders for
            more than a warning, so that the border is not limited unless it is asked for.
    """

    ssim: float | None = None
    psnr: float | None = None
    lip: float | None = 0.02
    amplitude: float | None = 0.1
    identity: float | None = 0.3
    sharpness: float | None = None
    border: float | None = None

    def broken(self, measures: Measures, share: float = 1.0) -> list[str]:
        """The names of the limits that `measures` break.

        Args:
            measures: of clips.
            share: how much of each limit may be used up; for SSIM, of its distance to 1.
        """
        limits = {name: limit for name, limit in asdict(self).items() if limit is not None}
        found = {name: getattr(measures, name) for name in limits}
        return [
            name
            for name, limit in limits.items()
            if found[name] is not None and not _keeps(name, found[name], limit, share)
        ]

    def __str__(self) -> str:
        """As the command line takes it: "ssim=0.99,lip=0.02"."""
        return ",".join(f"{name}={limit:g}" for name, limit in asdict(self).items() if limit is not None)


def _keeps(name: str, value: float, limit: float, share: float) -> bool:
    if name == "ssim":
        return 1 - value <= share * (1 - limit)
    return value >= limit if name == "psnr" else value <= share * limit


#: The budgets of the presets where none is given.
DEFAULT_BUDGETS: Mapping[SpeedName, QualityBudget] = {
    "balanced": QualityBudget(ssim=0.995),
    "fast": QualityBudget(ssim=0.99),
    "fastest": QualityBudget(ssim=0.98),
}


def parse_budgets(texts: Iterable[str]) -> dict[SpeedName, QualityBudget]:
    """Read budgets such as "fast:ssim=0.99,lip=0.02"; without a preset's name, one is for all presets.

    What a text does not name keeps its default; "none" lifts a limit.

    Raises:
        InputError: a text has another form; the message says which.
    """
    budgets = dict(DEFAULT_BUDGETS)
    for text in texts:
        name, _, limits = text.rpartition(":")
        if name and name not in PRESET_NAMES:
            raise InputError(f"the budget {text!r} is for '{name}', but should be for one of {_PRESETS}")
        changed = dict(map(_parse_limit, limits.split(",")))
        for preset in (name,) if name else tuple(budgets):
            budgets[preset] = replace(budgets[preset], **changed)  # type: ignore[index,arg-type]
    return budgets


_PRESETS = ", ".join(PRESET_NAMES)
_MEASURES = tuple(item.name for item in fields(QualityBudget))


def _parse_limit(text: str) -> tuple[str, float | None]:
    match = re.fullmatch(r"\s*(\w+)=(\d+(?:\.\d+)?|none)\s*", text)
    if match is None or match[1] not in _MEASURES:
        raise InputError(
            f"the budget has {text!r}, but should have limits such as lip=0.02,ssim=0.98,amplitude=0.1 "
            f"({', '.join(_MEASURES)}; none lifts one)"
        )
    limit = None if match[2] == "none" else float(match[2])
    if match[1] == "ssim" and limit is not None and limit >= 1:
        raise InputError(f"the budget's ssim is {limit:g}, but should be below 1")
    return match[1], limit
