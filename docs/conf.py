"""Sphinx configuration."""

import skyloom

project = "skyloom"
author = "the skyloom developers"
project_copyright = "2026, the skyloom developers"
release = version = skyloom.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"skyloom {release}"
numpydoc_show_class_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
