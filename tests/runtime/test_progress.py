"""Progress where standard error is no terminal: lines that say how far a stage is."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from sonic import progress
from sonic.progress import ConsoleProgress


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> tuple[ConsoleProgress, io.StringIO]:
    """Progress in a pipe, impatient."""
    monkeypatch.setattr(progress, "_FIRST_LINE_SECONDS", 0.05)
    monkeypatch.setattr(progress, "_LINES_EVERY_SECONDS", 0.2)
    text = io.StringIO()
    return ConsoleProgress(Console(file=text, markup=False, highlight=False)), text


def test_a_long_stage_says_how_far_it_is(lines: tuple[ConsoleProgress, io.StringIO]) -> None:
    shown, text = lines
    with shown.stage("denoising", 8) as advance:
        for _ in range(8):
            time.sleep(0.1)
            advance()
    written = text.getvalue().splitlines()
    assert len(written) >= 3
    assert written[0].startswith("denoising: 0 of 8 after 0 s") and "left" not in written[0]
    assert any("left" in line for line in written[1:-1])
    assert written[-1].startswith("denoising: 8 in ")


def test_a_step_that_takes_long_is_no_silence(lines: tuple[ConsoleProgress, io.StringIO]) -> None:
    shown, text = lines
    with shown.stage("export", 1) as advance:
        time.sleep(0.6)
        advance()
    assert text.getvalue().count("export: 0 of 1") >= 2


def test_a_short_stage_is_one_line(lines: tuple[ConsoleProgress, io.StringIO]) -> None:
    shown, text = lines
    with shown.stage("a [red]path[/red].mp4", 3) as advance:
        advance()
    assert text.getvalue().splitlines() == ["a [red]path[/red].mp4: 3 in 0.0 s"]


def test_what_an_earlier_run_did_is_counted_but_not_timed(lines: tuple[ConsoleProgress, io.StringIO]) -> None:
    shown, text = lines
    with shown.stage("denoising", 2000, 1000) as advance:
        for _ in range(4):
            time.sleep(0.3)
            advance()
    written = text.getvalue().splitlines()
    assert written[0].startswith("denoising: 1000 of 2000 after 0 s") and "left" not in written[0]
    left = [line for line in written[1:-1] if "left" in line]
    # At 0.3 s a step, 5 minutes; at the speed of 1000 steps in the same time, a second.
    assert left and all(line.endswith("min left") for line in left), left
    assert written[-1].startswith("denoising: 1000 of 2000 in ")


def test_a_stage_that_fails_says_nothing_more(lines: tuple[ConsoleProgress, io.StringIO]) -> None:
    shown, text = lines
    with pytest.raises(RuntimeError), shown.stage("frames", 3):
        raise RuntimeError
    time.sleep(0.2)
    assert text.getvalue() == ""
