"""The training loop: it learns, and an interrupted run ends where an uninterrupted one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sonic_training.trainer import TrainingOptions, learning_rate, pack, train

OPTIONS = TrainingOptions(steps=30, learning_rate=0.05, warm_up_steps=3, save_every_steps=10, bfloat16=False)


def line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(2, 1)


def fit(module: nn.Module, stop_at: int | None = None):  # type: ignore[no-untyped-def]
    def loss(step: int) -> dict[str, Tensor]:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 2, generator=torch.Generator().manual_seed(step))
        return {"loss": ((module(x) - x.sum(dim=1, keepdim=True)) ** 2).mean()}

    return loss


def test_it_learns(tmp_path: Path) -> None:
    module = line()
    before = fit(module)(999)["loss"]
    train("line", module, fit(module), tmp_path, OPTIONS)
    assert fit(module)(999)["loss"] < 0.1 * before
    assert not module.training


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole, broken, resumed = line(), line(), line()
    train("line", whole, fit(whole), tmp_path / "whole", OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        train("line", broken, fit(broken, stop_at=17), tmp_path / "broken", OPTIONS)
    train("line", resumed, fit(resumed), tmp_path / "broken", OPTIONS)
    assert torch.equal(whole.weight, resumed.weight)
    assert not list((tmp_path / "broken").glob(".*"))


def test_a_finished_part_is_only_loaded(tmp_path: Path) -> None:
    module, again = line(), line()
    train("line", module, fit(module), tmp_path, OPTIONS)
    train("line", again, fit(again, stop_at=30), tmp_path, OPTIONS)
    assert torch.equal(module.weight, again.weight)


def test_the_schedule_warms_up_and_ends_low() -> None:
    rates = [learning_rate(step, OPTIONS) for step in range(OPTIONS.steps)]
    assert rates[0] == pytest.approx(0.05 / 3) and max(rates) == pytest.approx(0.05)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 0.002


def test_a_packed_part_keeps_the_finished_weights(tmp_path: Path) -> None:
    module, again = line(), line()
    train("line", module, fit(module), tmp_path / "state", OPTIONS)
    pack(tmp_path / "state", tmp_path / "packed")
    train("line", again, fit(again, stop_at=30), tmp_path / "packed", OPTIONS)
    assert torch.allclose(module.weight, again.weight, atol=1e-3)
    sizes = [(tmp_path / f / "line.state.pt").stat().st_size for f in ("state", "packed")]
    assert sizes[1] < sizes[0]


def test_a_packed_unfinished_part_resumes(tmp_path: Path) -> None:
    module, again = line(), line()
    with pytest.raises(KeyboardInterrupt):
        train("line", module, fit(module, stop_at=25), tmp_path / "state", OPTIONS)
    pack(tmp_path / "state", tmp_path / "packed")
    train("line", again, fit(again), tmp_path / "packed", OPTIONS)
    assert fit(again)(999)["loss"] < 0.1 * fit(line())(999)["loss"]
