"""Captions, as slides and site give them to those who cannot see the figure."""

from __future__ import annotations

import re

from nbformat import NotebookNode

CAPTION = re.compile(r"\*(?![*\s])[^*]{20,}\*(?!\*)")
"""The sentence in italics that stands under every figure."""


def describe(notebook: NotebookNode) -> None:
    """Give each picture of an output the caption below it as its alternative text."""
    for cell, below in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        caption = CAPTION.match(below.source) if below else None
        pictures = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        if caption and pictures:
            text = " ".join(caption[0].strip("*").split()).replace("$", "").replace("\\", "")
            cell.metadata["mystnb"] = {"image": {"alt": text}}  # for the site
            for picture in pictures:
                picture.metadata["image/png"] = {"alt": text}  # for the slides
