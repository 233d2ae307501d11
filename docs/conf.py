"""How Sphinx builds these pages: ``sphinx-build -W -b html docs docs/_build/html``, with the extra ``docs``.

Formulas are drawn by MathJax, which the reader's browser fetches.
"""

import configparser
from pathlib import Path

_setup = configparser.ConfigParser()
_setup.read(Path(__file__).parents[1] / "setup.cfg")

project = _setup["metadata"]["name"]
release = version = _setup["metadata"]["version"]
author = "The refattn developers"
copyright = "2026, The refattn developers"

extensions = ["myst_parser", "sphinx.ext.mathjax"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

html_theme = "alabaster"
html_theme_options = {"description": _setup["metadata"]["description"], "page_width": "84em", "body_max_width": "none"}
