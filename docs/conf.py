"""Configuration of the documentation: ``make docs`` builds it without a warning and without a network."""

from __future__ import annotations

import sys
from pathlib import Path

import sonic

sys.path.append(str(Path(__file__).with_name("_extensions")))

project = "sonic-arm"
author = "the authors of sonic-arm"
copyright = author
version = release = sonic.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "docstrings"]
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
