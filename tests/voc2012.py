"""PASCAL VOC 2012 in miniature: every folder and every kind of file of the original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from affinity_lib.data.label_maps import write_labels
from affinity_lib.data.voc import VOC_CLASSES
from affinity_lib.evaluation import VOID

SIZE = (24, 18)

SEGMENTED = {
    "train": {"2007_000032": ["aeroplane", "person"], "2007_000063": ["dog", "chair"],
              "2007_000121": ["tvmonitor"], "2007_000243": ["aeroplane"], "2007_000332": ["horse"]},
    "val": {"2007_000033": ["aeroplane"], "2007_000042": ["train"], "2007_000061": ["boat"],
            "2007_000123": ["sheep"], "2007_000129": ["bicycle", "person"]},
}  # fmt: skip
ONLY_DETECTED = {
    "train": {"2008_000008": ["horse", "person"], "2008_000015": ["bottle"]},
    "val": {"2008_000002": ["tvmonitor"], "2008_000003": ["train", "person"]},
}

_HEAD = """<annotation>
	<folder>VOC2012</folder>
	<filename>{name}.jpg</filename>
	<source>
		<database>The VOC2007 Database</database>
		<annotation>PASCAL VOC2007</annotation>
		<image>flickr</image>
	</source>
	<size>
		<width>{width}</width>
		<height>{height}</height>
		<depth>3</depth>
	</size>
	<segmented>{segmented}</segmented>
"""
_OBJECT = """	<object>
		<name>{name}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<occluded>1</occluded>
		<bndbox>
			<xmax>{right}.3</xmax>
			<xmin>2</xmin>
			<ymax>12</ymax>
			<ymin>3</ymin>
		</bndbox>
		<difficult>{difficult}</difficult>{part}
	</object>
"""
_PART = """
		<part>
			<name>head</name>
			<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>
		</part>"""


def draw_voc2012(root: Path) -> Path:
    """A whole ``VOCdevkit/VOC2012``; the images of ``ONLY_DETECTED`` have no masks."""
    root = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    for folder in ("Action", "Layout", "Main", "Segmentation"):
        (root / "ImageSets" / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for image_id, names in (SEGMENTED[split] | ONLY_DETECTED[split]).items():
            pixels = random.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_id}.jpg")
            segmented = image_id in SEGMENTED[split]
            (root / "Annotations" / f"{image_id}.xml").write_text(_xml(image_id, names, segmented))
            if segmented:
                mask = np.zeros(SIZE[::-1], np.uint8)
                for k, name in enumerate(names):
                    mask[2:12, 2 + 8 * k : 9 + 8 * k] = VOID
                    mask[3:11, 3 + 8 * k : 8 + 8 * k] = VOC_CLASSES.index(name) + 1
                write_labels(root / "SegmentationClass" / f"{image_id}.png", mask)
                write_labels(root / "SegmentationObject" / f"{image_id}.png", mask > 0)
    _lists(root / "ImageSets")
    return root


def _xml(image_id: str, names: list[str], segmented: bool) -> str:
    text = _HEAD.format(name=image_id, width=SIZE[0], height=SIZE[1], segmented=int(segmented))
    for k, name in enumerate([*names, names[0]]):  # two of the first class
        part = _PART if name == "person" else ""
        text += _OBJECT.format(name=name, right=8 + k, difficult=int(k == 2), part=part)
    return text + "</annotation>\n"


def _lists(folder: Path) -> None:
    lines: dict[str, list[str]] = {}
    for split in ("train", "val"):
        every = SEGMENTED[split] | ONLY_DETECTED[split]
        for name in (split, "trainval"):
            lines.setdefault(f"Segmentation/{name}", []).extend(SEGMENTED[split])
            lines.setdefault(f"Main/{name}", []).extend(sorted(every))
            for image_id, names in sorted(every.items()):
                people = [k for k, tag in enumerate(names, 1) if tag == "person"]
                for kind, width in (("Layout", 6), ("Action", 3)):
                    objects = [f"{image_id}{k:{width}}" for k in people]
                    lines.setdefault(f"{kind}/{name}", []).extend(objects)
                for tag in VOC_CLASSES:
                    flag = 1 if tag in names else -1
                    lines.setdefault(f"Main/{tag}_{name}", []).append(f"{image_id} {flag:2d}")
    for name, content in lines.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in content))
