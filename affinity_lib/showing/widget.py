"""The walk of one image, to be touched: in Jupyter and on pages; elsewhere it is a still picture.

``walk.js`` beside this module computes and draws in the browser. What it needs of an image stands
in the notebook as an output of a type of its own, and pages take it from there.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from affinity_lib import plots
from affinity_lib.affinity import pairs_inside
from affinity_lib.data.files import load_scores
from affinity_lib.data.progress import has_reader
from affinity_lib.random_walk import random_walk
from affinity_lib.stages.walk import Walk

MIME = "application/vnd.affinity-lib.walk+json"
"""The type of the output that holds what ``walk.js`` needs."""

SCRIPT = Path(__file__).with_name("walk.js")

_SIDE = 512  # longest side of the photograph, in pixels


class WalkPicture:
    """The walk of one image as the output of a cell.

    A person who runs the cell where anywidget is installed can touch it. To all others, and in
    files, it is a still picture.

    Args:
        data: what ``walk.js`` needs.
        png: the still picture.
    """

    def __init__(self, data: Mapping[str, Any], png: bytes) -> None:
        self.data, self.png = data, png
        self._widget = None

    @classmethod
    def of(cls, walk: Walk, image_id: str, beta: float, t: int) -> WalkPicture:
        """The picture of a run's walk.

        Args:
            walk: what walks.
            image_id: which image.
            beta, t: of the run, see ``random_walk``.
        """
        affinity = walk.affinity(image_id)
        before, after = (walk.walked(image_id, beta, s, affinity)[1][1:] for s in (0, t))
        gain = (after - before).flatten()  # it begins where the walk has raised a map most
        chosen, cell = divmod(int(gain.argmax()), before[0].numel())
        own = {"alpha": walk.alpha, "beta": beta, "t": t, "map": 1 + chosen, "cell": cell}
        return cls(_data(walk, image_id, affinity) | own, _still(walk, image_id, affinity, own))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        png = base64.b64encode(self.png).decode()
        bundle = {"text/plain": "The walk of one image", "image/png": png, MIME: self.data}
        if has_reader() and find_spec("anywidget"):
            self._widget = self._widget or _widget(self.data)
            bundle |= self._widget._repr_mimebundle_()[0]
        return bundle


def embedded(data: Mapping[str, Any]) -> Markup:
    """A block of data for a page; ``mount`` of ``walk.js`` lets it replace the element before it."""
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return Markup(f'<script type="{MIME}">{text}</script>')


def mounting() -> Markup:
    """The script that lets all such blocks of a page be touched, to stand in it once."""
    script = SCRIPT.read_text(encoding="utf-8")
    return Markup(f'<script type="module">\n{script}\nmount(document);\n</script>')


def _widget(data: Mapping[str, Any]) -> Any:
    from anywidget import AnyWidget
    from traitlets import Dict

    class WalkWidget(AnyWidget):
        _esm = SCRIPT
        picture = Dict().tag(sync=True)

    return WalkWidget(picture=data)


def _data(walk: Walk, image_id: str, affinity: Tensor) -> dict[str, Any]:
    """What ``walk.js`` needs of an image: plain values, and arrays as base64."""
    data, grid = walk.inputs.data, affinity.shape[1:]
    tags, cams = load_scores(walk.cams / f"{image_id}.npz")
    pooling = {"size": walk.inputs.size(image_id), "stride": walk.net.backbone.output_stride}
    photograph, truth, file = data.image(image_id), None, io.BytesIO()
    photograph.thumbnail((_SIDE, _SIDE))
    photograph.save(file, "JPEG", quality=90)
    if data.has_masks([image_id]):
        mask = Image.fromarray(data.mask(image_id))
        truth = _runs(np.array(mask.resize(photograph.size, Image.Resampling.NEAREST)))
    heat = plt.get_cmap(plots.SCORES)(np.linspace(0, 1, 64))[:, :3] * 255
    return {
        "image": f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}",
        "size": [photograph.height, photograph.width],
        "grid": list(grid),
        "offsets": walk.offsets.tolist(),
        "distances": _distances(affinity.cpu(), walk.offsets),
        "cams": _halves(torch.from_numpy(cams)),
        "camSize": list(cams.shape[1:]),
        "pooling": pooling if walk.pooling else None,
        "tags": tags.tolist(),
        "names": list(data.classes),
        "colors": plots.class_colors(len(data.classes)).tolist(),
        "heat": base64.b64encode(heat.round().astype(np.uint8).tobytes()).decode(),
        "truth": truth,
    }


def _still(walk: Walk, image_id: str, affinity: Tensor, own: Mapping[str, Any]) -> bytes:
    """One cell, its affinities, and what a 1 in it becomes, as PNG."""
    height, width = affinity.shape[1:]
    y, x = divmod(own["cell"], width)
    one = torch.zeros(1, height, width, device=affinity.device)
    one[0, y, x] = 1
    spread = random_walk(one, affinity, walk.offsets, own["beta"], own["t"])[0].cpu()
    powers = affinity.cpu() ** own["beta"]
    figure = Figure(figsize=(7.5, 2.7), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)  # inches: titles of bare axes are cut otherwise
    photograph, near, far = figure.subplots(1, 3)
    photograph.imshow(walk.inputs.data.image(image_id), extent=(0, width, height, 0))
    photograph.plot(x + 0.5, y + 0.5, "s", mfc="none", mec="white", mew=2)
    square = plots.neighbourhood(powers, walk.offsets, y, x, center=math.nan).numpy()
    near.imshow(square, plots.SCORES, vmin=0)
    near.plot(len(square) // 2, len(square) // 2, "ks", mfc="none", mew=2)
    far.imshow(spread.numpy(), plots.SCORES)
    titles = (
        "one cell",
        f"its affinities to the power {own['beta']:g}",
        f"a 1 in it, t = {own['t']}",
    )
    for axis, title in zip(figure.axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, dpi=80)
    Image.open(whole).convert("RGB").quantize(64).save(small, "PNG", optimize=True)
    return small.getvalue()


def _distances(affinity: Tensor, offsets: Tensor) -> str:
    """-log W, the distance of Eq. 3, infinite outside of the map.

    Its half precision changes W^beta by less than 1e-4, whatever beta; that of W would not.
    """
    outside = ~pairs_inside(offsets, *affinity.shape[1:])
    return _halves(-affinity.log().masked_fill(outside, -math.inf))


def _halves(values: Tensor) -> str:
    return base64.b64encode(values.half().contiguous().numpy().tobytes()).decode()


def _runs(labels: np.ndarray) -> str:
    """Label, length, label, length, ... of a label map, row after row."""
    flat = labels.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=256))
    lengths = np.diff(starts, append=flat.size)
    return " ".join(map(str, np.column_stack([flat[starts], lengths]).ravel()))
