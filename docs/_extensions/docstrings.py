"""Prepares the project's docstrings and command lines for Sphinx.

Docstrings are written for readers of the code: examples are indented, backticks are code, and a `*` is a `*`.
"""

from __future__ import annotations

import ast
import re
from dataclasses import is_dataclass
from typing import Any

from sonic.schema import Validated, definitions

_SECTION = re.compile(r"(Args|Arguments|Attributes|Returns|Raises|Yields|Note|Notes):$")
_STATEMENTS = (ast.Assign, ast.AnnAssign, ast.With, ast.For, ast.Import, ast.ImportFrom)


def mark_examples(_app: Any, what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Put '::' before indented paragraphs (code, formulas, JSON), as reStructuredText wants it."""
    paragraphs = "\n".join(lines).rstrip().split("\n\n")
    marked: list[str] = []
    if what in ("attribute", "data", "property") and ":" in paragraphs[0].partition("\n")[0]:
        marked += ["..", ""]  # a comment, or napoleon would take what is before the colon for a type
    in_section = after_example = False
    for paragraph in (text.split("\n") for text in paragraphs):
        if not paragraph[0].startswith(" "):
            in_section = bool(_SECTION.match(paragraph[0]))
        indented = all(line.startswith("    ") for line in paragraph)
        example = not in_section and (indented or _is_code(paragraph))
        if paragraph == ["Example:"]:  # napoleon would make a section of it, whose code is prose
            marked.append("For example:")
        elif example:
            marked += [] if after_example else ["::", ""]
            marked += paragraph if indented else [f"    {line}" for line in paragraph]
        else:
            marked += map(_escape, paragraph)
        marked.append("")
        after_example = example
    lines[:] = marked


def _is_code(paragraph: list[str]) -> bool:
    """Whether a paragraph is Python: statements, or expressions with a call among them."""
    try:
        nodes = ast.parse("\n".join(paragraph)).body
    except SyntaxError:
        return False
    # A sentence of one word is a name to Python, so that something has to happen.
    happens = [isinstance(node, _STATEMENTS) or _is_call(node) for node in nodes]
    return any(happens) and all(isinstance(node, (*_STATEMENTS, ast.Expr)) for node in nodes)


def _is_call(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def _escape(line: str) -> str:
    """What would be markup outside of backticks, such as ``*row_shape`` and ``|x|``."""
    parts = re.split(r"(``.*?``|`.*?`)", line)
    return "".join(part if part.startswith("`") else re.sub(r"([*|])", r"\\\1", part) for part in parts)


def describe_options(_app: Any, what: str, _name: str, obj: Any, _options: Any, lines: list[str]) -> None:
    """Describe the fields of a class of options with the sentence and the range of their definitions."""
    if what != "class" or not (issubclass(obj, Validated) and is_dataclass(obj)):
        return
    lines.append("")
    for definition in definitions(obj):
        option = definition.option
        default = option.default or f"{definition.default}"
        lines.append(f":param {definition.field}: {option.sentence}; {definition.wanted} [{default}].")


def strip_metadata(
    _app: Any, _what: str, _name: str, _obj: Any, _options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Leave metadata out of annotations: ``Annotated[int, Option(...)]`` becomes ``int``."""
    return _without_metadata(signature), _without_metadata(returns)


def _without_metadata(text: str | None) -> str | None:
    while text and (match := re.search(r"(~?\b\w+\.)?\bAnnotated\[", text)):
        depth, comma, end = 0, -1, -1
        for position in range(match.end(), len(text)):
            character = text[position]
            if character == "," and not depth and comma < 0:
                comma = position
            if character == "]" and not depth:
                end = position
                break
            depth += (character in "([{") - (character in ")]}")
        if comma < 0 or end < 0:
            break
        text = text[: match.start()] + text[match.end() : comma] + text[end + 1 :]
    return text


def mark_options(_app: Any, _context: Any, lines: list[str]) -> None:
    """Options in the help of other options are code, or their '--' would become a dash."""
    for index, line in enumerate(lines):
        if not line.startswith(".. "):
            lines[index] = re.sub(r"(?<![\w`-])(--[a-z][a-z-]*)", r"``\1``", line)


def always_outdated(_app: Any, _env: Any, *_changes: Any) -> list[str]:
    """Build the commands' page anew: it follows from code whose changes Sphinx does not see."""
    return ["reference/cli"]


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx. Docstrings are prepared before napoleon, which has the default priority of 500."""
    app.connect("autodoc-process-docstring", mark_examples, priority=400)
    app.connect("autodoc-process-docstring", describe_options, priority=600)
    app.connect("autodoc-process-signature", strip_metadata)
    app.connect("sphinx-click-process-options", mark_options)
    app.connect("env-get-outdated", always_outdated)
    return {"parallel_read_safe": True}
