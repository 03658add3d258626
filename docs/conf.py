"""How Sphinx builds the manual. A warning is an error (`make docs`)."""

from __future__ import annotations

import sys
from pathlib import Path

from cachebus import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "cachebus"
author = "The cachebus developers"
copyright = "2026, The cachebus developers"  # noqa: A001 - the name that Sphinx reads
release = __version__

extensions = ["myst_parser", "generated"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["STATUS.md", "_build"]
myst_enable_extensions = ["deflist", "attrs_inline"]
myst_heading_anchors = 3
nitpicky = True
# Everything is here: the build asks the network for nothing.
html_theme = "furo"
html_title = f"cachebus {release}"
html_show_sphinx = False
