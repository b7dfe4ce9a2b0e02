"""Every hostile input ends in one sentence, soon, in little memory, and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from security.hostile import HostileInput
from security.measured import LIMIT_MEGABYTES, all_rows, measure

PAGE = Path(__file__).parents[2] / "docs/security.md"
ROWS = all_rows()
KINDS = {"picture", "sound", "bundle", "checkpoint", "jobs", "video", "output", "option"}


@pytest.mark.security
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_hostile_input_is_one_sentence(row: HostileInput, tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    measured = measure(row, tmp_path / "case")
    shown = f"{measured.output}\n{measured.errors}"
    assert not measured.timed_out, shown
    assert measured.exit_code == 2, shown
    assert measured.sentence.lower().startswith("error: "), shown
    assert re.search(row.sentence, measured.sentence), shown
    assert "Traceback" not in shown
    assert measured.left_behind == ()
    assert measured.peak_megabytes < LIMIT_MEGABYTES


def test_every_row_is_in_the_documentation() -> None:
    page = PAGE.read_text()
    assert [row.name for row in ROWS if f"| {row.name} |" not in page] == []
    assert {row.kind for row in ROWS} <= KINDS
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
