"""The six classes of the toy data, the things that are no class, and the grounds they lie on.

Each class has a telling part (a bird's cap and beak, a boat's sail, a car's wheels, a cat's or a
sheep's face, a fish's mask) that is missing in some objects, and a body that says little: a
silhouette and a faint pattern in colours that all classes, the clutter and the grounds share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from affinity_lib.data.toy_scenery import (
    BRICK,
    BROWN,
    CLAY,
    COAL,
    CREAM,
    HONEY,
    INK,
    LEAF,
    NAVY,
    ORANGE,
    PLUM,
    POOL,
    ROSE,
    SAND,
    SKY,
    STONE,
    TEAL,
    WHITE,
)
from affinity_lib.data.toy_shapes import (
    Array,
    Color,
    Dice,
    Frame,
    Layer,
    cells,
    join,
    mix,
    stripes,
    wave,
)


@dataclass(frozen=True)
class Coat:
    """What an object wears: two colours, how clearly its pattern shows, whether its part does."""

    base: Color
    second: Color
    contrast: float
    part: bool


def draw_object(name: str, frame: Frame, dice: Dice, around: Color) -> Layer:
    """One object of a class, about 2 units long, painted into a layer of its own.

    Args:
        name: one of `CLASSES`.
        frame: where it lies; one unit is half the object's length.
        dice: the choices of shape, colour and pattern are taken from here.
        around: colour of the ground, which half of the objects take after.
    """
    draw, favourites = _CLASSES[name]
    base = mix(dice.pick(favourites + POOL), dice.pick(POOL), dice.uniform(0.0, 0.25))
    if dice.chance(0.4):
        base = mix(base, around, dice.uniform(0.2, 0.55))
    coat = Coat(
        base=base,
        second=mix(dice.pick(POOL), base, dice.uniform(0.0, 0.4)),
        contrast=dice.uniform(0.06, 0.16),
        part=dice.chance(0.55 if name == "fish" else 0.7),
    )
    layer = Layer(frame)
    draw(layer, dice, coat)
    return layer


def _finish_body(layer: Layer, dice: Dice, body: Array, pattern: Array, coat: Coat) -> None:
    """The pattern, blotches that all classes share, and light from above on a rounded body."""
    f = layer.frame
    inside = f.cover(body)
    if dice.chance(0.65):
        blotch = dice.smooth(*f.x.shape, dice.uniform(3, 6), dice.uniform(3, 6))
        layer.tint(inside * np.clip((blotch - 0.5) * 12.0, 0.0, 0.85), coat.second)
    worn = np.clip(dice.smooth(*f.x.shape, 4, 4) * 4.0 - 1.0, 0.3, 1.0)
    shade = 1.0 + coat.contrast * pattern * worn
    rim = np.clip(1.0 + body * 7.0, 0.0, 1.0)
    light = 1.0 + 0.22 * np.clip(f.up, -1.0, 1.0) - 0.28 * rim * rim
    layer.light(1.0 + inside * (shade * light - 1.0))


def _eye(layer: Layer, x: float, y: float, r: float, iris: Color) -> None:
    f = layer.frame
    layer.mark(f.ellipse(x, y, r, r), iris)
    layer.mark(f.ellipse(x + r * 0.2, y, r * 0.55, r * 0.62), INK)
    layer.mark(f.ellipse(x + r * 0.35, y - r * 0.35, r * 0.24, r * 0.24), WHITE)


def _bird(layer: Layer, dice: Dice, coat: Coat) -> None:
    f = layer.frame
    plump, tail = dice.uniform(0.36, 0.46), dice.uniform(-0.28, 0.22)
    hx, hy = dice.uniform(0.50, 0.66), dice.uniform(-0.52, -0.34)
    for foot in (-0.05, 0.17):
        layer.add(
            f.limb(foot, plump - 0.1, foot + 0.04, plump + 0.32, 0.045, 0.06),
            mix(coat.base, COAL, 0.5),
        )
    quill = f.polygon((-0.35, -0.1), (-1.2, tail - 0.14), (-1.15, tail + 0.16), (-0.3, 0.25))
    layer.add(quill, mix(coat.base, coat.second, 0.6))
    body = join(f.ellipse(0.0, 0.05, 0.66, plump), f.ellipse(hx, hy, 0.32, 0.31), blend=0.3)
    layer.add(body, coat.base)
    lift = dice.below(24) - 6
    wing_frame = f.moved(-0.12, 0.02, -lift)
    wing = join(
        wing_frame.ellipse(0.05, 0.0, 0.38, 0.25),
        wing_frame.polygon((0.0, -0.2), (-0.75, 0.02), (0.0, 0.24)),
    )
    layer.mark(wing, mix(coat.base, coat.second, 0.45))
    feathers = cells(wing_frame.y * 6.0, -wing_frame.x * 6.0)
    _finish_body(layer, dice, join(body, quill), feathers, coat)
    if coat.part:
        cap = dice.pick((BRICK, BRICK, INK))
        layer.mark(f.ellipse(hx, hy, 0.33, 0.32), cap)
        layer.mark(f.ellipse(hx + 0.1, hy + 0.16, 0.23, 0.15), WHITE)
        layer.add(
            f.polygon((hx + 0.24, hy - 0.14), (hx + 0.7, hy + 0.06), (hx + 0.22, hy + 0.18)), ORANGE
        )
        _eye(layer, hx + 0.11, hy - 0.08, 0.11, HONEY)


def _boat(layer: Layer, dice: Dice, coat: Coat) -> None:
    f = layer.frame
    bow, deep, mast = dice.uniform(0.85, 1.1), dice.uniform(0.52, 0.66), dice.uniform(-0.1, 0.2)
    top = -dice.uniform(0.85, 1.1)
    layer.add(f.limb(mast, 0.1, mast, top, 0.045, 0.035), BROWN)
    if dice.chance(0.6):
        cabin = f.polygon((-0.62, 0.1), (-0.56, -0.2), (-0.14, -0.2), (-0.1, 0.1), rounding=0.03)
        layer.add(cabin, mix(coat.second, CREAM, 0.4))
        layer.mark(f.ellipse(-0.35, -0.05, 0.08, 0.07), mix(SKY, WHITE, 0.3))
    hull = f.polygon((-0.95, 0.06), (bow, 0.0), (bow * 0.62, deep), (-0.74, deep), rounding=0.04)
    layer.add(hull, coat.base)
    if dice.chance(0.5):
        layer.mark(f.polygon((-1.2, 0.0), (1.2, -0.05), (1.2, 0.09), (-1.2, 0.14)), coat.second)
    _finish_body(layer, dice, hull, stripes(f.y * 7.0, 2.0), coat)
    if coat.part:
        sail, band = dice.pick(((WHITE, BRICK), (WHITE, NAVY), (HONEY, BRICK), (BRICK, CREAM))), 0
        main = f.polygon((mast - 0.07, top), (mast - 0.07, -0.08), (mast - 0.72, -0.1))
        jib = f.polygon((mast + 0.07, top + 0.12), (mast + 0.07, -0.04), (mast + 0.56, -0.04))
        for cloth, paint in ((main, sail[0]), (jib, sail[1])):
            layer.add(cloth, paint)
        across = stripes(f.y * 4.0 + band, 4.0)
        layer.tint(f.cover(main) * np.clip(across, 0.0, 1.0), sail[1])
    else:
        layer.add(f.limb(mast, -0.12, mast - 0.66, -0.16, 0.07, 0.05), mix(CREAM, coat.base, 0.4))


def _car(layer: Layer, dice: Dice, coat: Coat) -> None:
    f = layer.frame
    rear, front = dice.uniform(-0.95, -0.5), dice.uniform(0.15, 0.5)
    roof = -dice.uniform(0.42, 0.62)
    floor = 0.36
    cabin_points = ((rear, -0.05), (rear + 0.14, roof), (front - 0.22, roof), (front + 0.1, -0.05))
    cabin = f.polygon(*cabin_points, rounding=0.07)
    chassis = f.polygon((-0.98, -0.08), (0.62, -0.08), (1.0, 0.1), (1.0, floor), (-1.0, floor))
    body = join(cabin, chassis - 0.06)
    layer.add(body, coat.base)
    _finish_body(layer, dice, body, wave(f.x * 1.8 + f.y * 1.8), coat)
    glass = mix(SKY, WHITE, dice.uniform(0.1, 0.5)) if dice.chance(0.7) else mix(COAL, NAVY, 0.4)
    middle = (rear + front) / 2
    panes = (
        ((rear + 0.1, -0.07), (rear + 0.2, roof + 0.07), (middle - 0.09, roof + 0.07)),
        ((middle + 0.01, -0.07), (middle + 0.01, roof + 0.07), (front - 0.24, roof + 0.07)),
    )
    for points, corner in zip(panes, (middle - 0.09, front - 0.03), strict=True):
        layer.mark(f.polygon(*points, (corner, -0.07)), glass)
    seam = np.abs(f.x - middle) - 0.012
    layer.mark(np.maximum(seam, np.abs(f.y - 0.13) - 0.2), mix(coat.base, INK, 0.5))
    for x in (-0.55, 0.56):
        if coat.part:
            layer.add(f.ellipse(x, floor, 0.27, 0.27), INK)
            layer.mark(f.ellipse(x, floor, 0.16, 0.16), WHITE)
            layer.mark(f.ellipse(x, floor, 0.07, 0.07), BRICK)
        else:
            arch = f.ellipse(x, floor + 0.02, 0.24, 0.16)
            layer.add(arch, mix(coat.base, INK, 0.3))
    if coat.part:
        layer.mark(f.ellipse(0.99, 0.12, 0.08, 0.09), HONEY)


def _cat(layer: Layer, dice: Dice, coat: Coat) -> None:
    f = layer.frame
    hx, hy = dice.uniform(0.58, 0.74), dice.uniform(-0.42, -0.22)
    long, belly = dice.uniform(0.62, 0.74), dice.uniform(0.28, 0.38)
    curl = dice.uniform(-0.75, -0.1)
    tail = join(
        f.limb(-0.6, -0.05, -1.0, 0.05 + curl * 0.4, 0.1, 0.09),
        f.limb(-1.0, 0.05 + curl * 0.4, -1.05, curl, 0.09, 0.07),
        blend=0.1,
    )
    step = dice.uniform(-0.08, 0.12)
    legs = [f.limb(x, 0.15, x + step, 0.66, 0.12, 0.1) for x in (-0.52, -0.26, 0.3, 0.54)]
    head = f.ellipse(hx, hy, 0.36, 0.33)
    body = join(f.ellipse(0.0, 0.06, long, belly), *legs, tail, head, blend=0.16)
    layer.add(body, coat.base)
    tabby = stripes(f.x * 4.6 + 0.4 * wave(f.y * 1.3 + 0.2), 2.0)
    _finish_body(layer, dice, body, tabby, coat)
    if coat.part:
        for side in (-1, 1):
            ear = f.polygon(
                (hx + side * 0.33, hy - 0.08), (hx + side * 0.32, hy - 0.56), (hx, hy - 0.28)
            )
            layer.add(ear, mix(coat.base, INK, 0.25))
            layer.mark(ear + 0.06, ROSE)
        layer.mark(f.ellipse(hx, hy + 0.15, 0.25, 0.18), WHITE)
        iris = dice.pick((HONEY, LEAF))
        for side in (-1, 1):
            _eye(layer, hx + side * 0.15, hy - 0.05, 0.12, iris)
        layer.mark(f.ellipse(hx, hy + 0.1, 0.075, 0.055), BRICK)


def _fish(layer: Layer, dice: Dice, coat: Coat) -> None:
    f = layer.frame
    deep, fork = dice.uniform(0.36, 0.52), dice.uniform(0.28, 0.44)
    fins = join(
        f.polygon((-0.55, 0.0), (-1.1, -fork), (-0.98, 0.0), (-1.1, fork), rounding=0.03),
        f.polygon((-0.45, -deep * 0.6), (-0.25, -deep - 0.3), (0.3, -deep - 0.12), (0.35, -0.2)),
        f.polygon((-0.2, deep * 0.6), (-0.35, deep + 0.2), (0.15, deep * 0.8)),
    )
    layer.add(fins, mix(coat.base, coat.second, 0.6))
    trunk = f.ellipse(0.05, 0.0, 0.82, deep)
    body = join(trunk, f.ellipse(-0.55, 0.0, 0.25, 0.16), blend=0.2)
    layer.add(body, coat.base)
    layer.tint(f.cover(body) * np.clip(f.y * 1.8, 0.0, 0.5), CREAM)
    scales = 1.5 * cells(f.y * 5.0, -f.x * 5.0)
    _finish_body(layer, dice, join(body, fins), scales, coat)
    side_fin = f.polygon((0.22, 0.06), (-0.18, 0.02), (-0.12, 0.26), rounding=0.03)
    layer.mark(side_fin, mix(coat.base, coat.second, 0.7))
    if coat.part:
        mask = np.maximum(trunk, f.ellipse(0.95, 0.0, 0.56, 0.9))
        layer.mark(mask, dice.pick((HONEY, ORANGE, ORANGE)))
        layer.mark(np.abs(f.ellipse(0.95, 0.0, 0.56, 0.9)) - 0.03, WHITE)
        _eye(layer, 0.56, -0.1, 0.12, WHITE)
        layer.mark(f.limb(0.9, 0.1, 0.68, 0.14, 0.03, 0.02), INK)


def _sheep(layer: Layer, dice: Dice, coat: Coat) -> None:
    f = layer.frame
    hx, hy = dice.uniform(0.66, 0.84), dice.uniform(-0.28, 0.02)
    step = dice.uniform(-0.06, 0.06)
    legs = [f.limb(x, 0.3, x + step, 0.72, 0.09, 0.08) for x in (-0.45, -0.2, 0.25, 0.48)]
    layer.add(join(*legs), mix(coat.base, COAL, 0.55))
    humps = [
        f.ellipse(x, y + dice.uniform(-0.05, 0.05), r, r * 0.95)
        for x, y, r in (
            (-0.62, 0.0, 0.3), (-0.3, -0.22, 0.32), (0.1, -0.24, 0.34), (0.46, -0.14, 0.32),
            (0.56, 0.12, 0.3), (0.2, 0.22, 0.34), (-0.25, 0.24, 0.34), (-0.58, 0.18, 0.26),
        )
    ]  # fmt: skip
    fleece = join(*humps, f.ellipse(0.0, 0.0, 0.6, 0.34), blend=0.06)
    layer.add(fleece, coat.base)
    wool = cells(f.x * 5.0, f.y * 5.0, 0.42)
    _finish_body(layer, dice, fleece, wool, coat)
    if coat.part:
        face = f.moved(hx, hy, 18, 1.2)
        tone = dice.pick((INK, COAL, mix(BROWN, INK, 0.5)))
        for side in (-1, 1):
            layer.add(face.ellipse(side * 0.27, -0.17, 0.16, 0.08), mix(tone, ROSE, 0.4), face)
        layer.add(face.ellipse(0.0, 0.05, 0.22, 0.33), tone, face)
        layer.mark(face.ellipse(0.0, -0.22, 0.19, 0.13), CREAM, face)
        for side in (-1, 1):
            layer.mark(face.ellipse(side * 0.1, 0.0, 0.065, 0.065), WHITE, face)
            layer.mark(face.ellipse(side * 0.1, 0.01, 0.03, 0.04), INK, face)
        layer.mark(face.ellipse(0.0, 0.27, 0.09, 0.05), ROSE, face)


_CLASSES: dict[str, tuple[Callable[[Layer, Dice, Coat], None], tuple[Color, ...]]] = {
    "bird": (_bird, (SKY, NAVY, BROWN, ROSE) * 2),
    "boat": (_boat, (BRICK, BROWN, TEAL, CREAM) * 2),
    "car": (_car, (BRICK, SKY, HONEY, STONE) * 2),
    "cat": (_cat, (STONE, SAND, CLAY, BROWN) * 2),
    "fish": (_fish, (CLAY, TEAL, PLUM, HONEY) * 2),
    "sheep": (_sheep, (CREAM, STONE, SAND, ROSE) * 2),
}
CLASSES: tuple[str, ...] = tuple(_CLASSES)
