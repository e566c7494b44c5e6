"""Sphinx's settings of the web site, whose pages ``build.py`` gathers."""

import re
from pathlib import Path

from sphinx import addnodes

ROOT = Path(__file__).parents[2]

project = html_title = "AffinityNet, step by step"
author = "The affinitynet-notebooks authors"
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

nb_execution_mode = "off"  # the outputs are those of the committed notebooks
nb_merge_streams = True
nb_render_markdown_format = "myst"  # outputs have tables, too
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
add_module_names = False  # headings name the modules
python_use_unqualified_type_names = True
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
html_copy_source = html_show_sourcelink = html_domain_indices = html_use_index = False
html_static_path = [str(ROOT / ".site/node_modules/mathjax/es5/tex-svg.js"), "site.css"]
html_favicon = "icon.svg"
html_css_files = ["site.css"]
mathjax_path = "tex-svg.js"


def setup(app):
    """Of what Python says of itself, leave out what helps no reader."""
    app.connect("autodoc-process-signature", spelled)
    app.connect("autodoc-skip-member", without_words)
    app.connect("doctree-read", shortened)


def spelled(app, what, name, obj, options, signature, result):
    """Dots for a default that cannot be spelled, with which Sphinx reads no signature."""
    if signature:
        named = re.sub(r"<built-in function (\w+)>", r"\1", signature)
        return re.sub(r"<(?:[^<>]|<lambda>)*>", "...", named), result


def without_words(app, what, name, obj, skip, options):
    """No entry for fields of tuples, which the text of their class explains."""
    return (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") or None


def shortened(app, doctree):
    """No value of a constant that is longer than a line."""
    for value in list(doctree.findall(addnodes.desc_annotation)):
        if len(value.astext()) > 100:
            value.parent.remove(value)
