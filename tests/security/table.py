"""Measures every hostile input and writes the table of docs/security.md: python tests/security/table.py"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from security.hostile import HostileInput
from security.measured import Measured, all_rows, measure

PAGE = Path(__file__).parents[2] / "docs/security.md"
BEGIN, END = "<!-- hostile inputs: begin -->", "<!-- hostile inputs: end -->"


def cell(text: str) -> str:
    """A text as the cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def sentence_of(measured: Measured, folder: Path) -> str:
    """The sentence, without the folders of this machine."""
    text = (
        re.sub(r"^[Ee]rror: ", "", measured.sentence).replace(f"{folder}/in/", "").replace(f"{folder}/", "")
    )
    return text if len(text) <= 200 else f"{text[:197]}..."


def table(rows: Iterable[tuple[HostileInput, Measured, str]]) -> str:
    lines = ["| kind | input | what it is told | peak, MB | seconds |", "|---|---|---|---|---|"]
    for row, measured, sentence in rows:
        numbers = f"{measured.peak_megabytes:.0f} | {measured.seconds:.1f}"
        lines.append(f"| {row.kind} | {row.name} | {cell(sentence)} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    found = []
    for row in all_rows():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "case"
            folder.mkdir()
            measured = measure(row, folder)
            print(f"{measured.seconds:5.1f} s {measured.peak_megabytes:5.0f} MB  {row.name}", flush=True)
            if (
                measured.exit_code != 2
                or measured.left_behind
                or not re.search(row.sentence, measured.sentence)
            ):
                sys.exit(f"{measured.output}\n{measured.errors}\nleft behind: {measured.left_behind}")
            found.append((row, measured, sentence_of(measured, folder)))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}")


if __name__ == "__main__":
    main()
