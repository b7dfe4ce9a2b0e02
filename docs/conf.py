"""Configuration of the documentation: ``make docs`` builds it without a warning and without a network."""

from __future__ import annotations

import ast
import re
from typing import Any

import sonic

project = "sonic-arm"
author = "the authors of sonic-arm"
copyright = author  # noqa: A001 (Sphinx's name)
version = release = sonic.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
highlight_language = "none"
# Single backticks in docstrings are code, not emphasis.
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"sonic-arm {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00768a", "color-brand-content": "#00768a"},
    "dark_css_variables": {"color-brand-primary": "#4fb8c9", "color-brand-content": "#4fb8c9"},
}

_SECTION = re.compile(r"(Args|Arguments|Attributes|Returns|Raises|Yields|Note|Notes|Example|Examples):$")
_STATEMENTS = (ast.Assign, ast.AnnAssign, ast.With, ast.For, ast.Import, ast.ImportFrom)


def _is_code(paragraph: list[str]) -> bool:
    """Whether a paragraph of a docstring is an example: Python statements or calls."""
    try:
        nodes = ast.parse("\n".join(paragraph)).body
    except SyntaxError:
        return False
    return bool(nodes) and all(
        isinstance(node, _STATEMENTS) or isinstance(node, ast.Expr) for node in nodes
    ) and any(
        isinstance(node, _STATEMENTS) or isinstance(getattr(node, "value", None), ast.Call) for node in nodes
    )  # fmt: skip


def _escape(line: str) -> str:
    """What reStructuredText would take for markup outside of backticks: ``*row_shape``, ``|x|``."""
    parts = re.split(r"(``.*?``|`.*?`)", line)
    return "".join(part if part.startswith("`") else re.sub(r"([*|])", r"\\\1", part) for part in parts)


def _mark_examples(
    _app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Docstrings show code, formulas and JSON as indented paragraphs; reStructuredText wants a '::' before."""
    marked: list[str] = []
    in_section = False
    paragraph: list[str] = []

    def flush() -> None:
        nonlocal in_section
        if not paragraph:
            return
        indented = all(line.startswith("    ") for line in paragraph)
        if not paragraph[0].startswith(" "):
            in_section = bool(_SECTION.match(paragraph[0]))
        if indented and not in_section:
            marked.extend(["::", "", *paragraph])
        elif not in_section and _is_code(paragraph):
            marked.extend(["::", "", *(f"    {line}" for line in paragraph)])
        else:
            marked.extend(map(_escape, paragraph))
        paragraph.clear()

    for line in lines:
        if line.strip():
            paragraph.append(line)
        else:
            flush()
            marked.append(line)
    flush()
    lines[:] = marked


def setup(app: Any) -> None:
    """Called by Sphinx. Before napoleon, which runs at the default priority of 500."""
    app.connect("autodoc-process-docstring", _mark_examples, priority=400)
