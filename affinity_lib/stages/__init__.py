"""From files to files: what each stage of the paper does with all images of a data set.

The modules of the paper know tensors alone; here their functions are called for one image after
the other, over all cores, and what they give is written aside and renamed, so that a stage that is
stopped goes on with the images that are missing.
"""

from __future__ import annotations

from typing import NamedTuple


class Step(NamedTuple):
    """What a notebook makes of each image, for all that shows or goes on with it.

    Attributes:
        result: the notebook's stem and the folder of its results.
        name: in a few words.
        kind: "cams" (scores of the tags present), "scores" (background first) or "labels".
        judged: whether its IoU with the truth says something.
        row: its key in the metrics' "table1", if it has a number there that the paper has not.
    """

    result: str
    name: str
    kind: str
    judged: bool = True
    row: str = ""


STEPS = (
    Step("01_class_activation_maps/cams", "CAM", "cams", judged=False),
    Step("02_affinity_labels/labels", "trusted areas", "labels", judged=False),
    Step("04_random_walk/walked", "random walk", "scores"),
    Step("05_segmentation_labels/labels", "walk + dCRF", "labels"),
    Step("06_segmentation_network/predictions", "network", "labels"),
)
"""The chain, image by image. A new stage after the walk is a notebook, a line here, and a folder of
scores: notebook 5 makes its labels of the last scores in this list."""


def last(kind: str, before: str = "") -> Step:
    """The last step of a kind; ``before``: that comes before a notebook.

    >>> last("scores").result
    '04_random_walk/walked'
    >>> last("labels", before="06_segmentation_network").name
    'walk + dCRF'
    """
    return [s for s in STEPS if s.kind == kind and (not before or s.result < before)][-1]
