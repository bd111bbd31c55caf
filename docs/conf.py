"""How the pages are built: `make docs`. Tables of what the code defines are made of the code (_ext/generated.py)."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

from dft_mm import __version__

project = "dft_mm"
author = "the authors of dft_mm"
release = version = __version__
extensions = ["myst_parser", "generated"]
myst_heading_anchors = 3
exclude_patterns = ["_ext"]
html_theme = "furo"
html_title = f"dft_mm {__version__}"
html_copy_source = False
nitpicky = True
