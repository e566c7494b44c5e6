"""Sphinx's settings of the web site, whose pages ``build.py`` gathers."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The library is imported for its docstrings; Sphinx's own packages come first, then those it needs.
sys.path.insert(0, str(ROOT))
sys.path += map(str, ROOT.glob(".venv/lib/python*/site-packages"))

project = html_title = "AffinityNet, step by step"
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

nb_execution_mode = "off"  # the outputs are those of the committed notebooks
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]  # the walk that can be touched stays a picture
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
napoleon_use_ivar = True  # attributes stand in the text of their class, once
default_role = "py:obj"

html_theme = "sphinx_book_theme"
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the sidebar has the search
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "light"}  # figures have white ground
html_copy_source = html_show_sourcelink = html_domain_indices = False
html_static_path = [str(ROOT / ".site/node_modules/mathjax/es5/tex-svg.js"), "site.css"]
html_favicon = "icon.svg"
html_css_files = ["site.css"]
mathjax_path = "tex-svg.js"
