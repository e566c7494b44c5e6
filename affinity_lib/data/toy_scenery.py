"""What the toy data has besides its classes: the colours, the grounds and the clutter."""

from __future__ import annotations

import numpy as np

from affinity_lib.data.toy_shapes import Array, Color, Dice, Frame, Layer, join, mix, stripes, wave


def _rgb(*values: int) -> Color:
    return tuple(v / 255 for v in values)


CREAM, SAND, CLAY = _rgb(238, 226, 198), _rgb(221, 190, 142), _rgb(201, 115, 82)
BRICK, HONEY, OLIVE = _rgb(170, 76, 66), _rgb(224, 172, 72), _rgb(142, 149, 84)
LEAF, TEAL, SKY = _rgb(98, 152, 92), _rgb(78, 150, 152), _rgb(128, 178, 214)
NAVY, PLUM, ROSE = _rgb(62, 84, 126), _rgb(132, 92, 134), _rgb(218, 148, 150)
STONE, COAL, BROWN = _rgb(156, 156, 158), _rgb(62, 62, 70), _rgb(134, 96, 68)
WHITE, INK, ORANGE = _rgb(248, 246, 240), _rgb(34, 32, 38), _rgb(238, 138, 40)

POOL = (CREAM, SAND, CLAY, BRICK, HONEY, OLIVE, LEAF, TEAL, SKY, NAVY, PLUM, ROSE, STONE, BROWN)


def draw_clutter(frame: Frame, dice: Dice) -> Layer:
    """A thing that is no class: a ball, a block, a leaf, a stone, a star or a stick."""
    layer, f = Layer(frame), frame
    base, second = dice.pick(POOL), dice.pick(POOL)
    kind = dice.below(6)
    if kind == 0:
        shape = f.ellipse(0.0, 0.0, 0.6, 0.6)
        layer.add(shape, base)
        layer.tint(f.cover(shape) * np.clip(stripes(f.x * 0.9 + 0.2), 0.0, 1.0), second)
    elif kind == 1:
        tall = dice.uniform(0.35, 0.6)
        shape = f.polygon((-0.6, -tall), (0.6, -tall), (0.6, tall), (-0.6, tall), rounding=0.06)
        layer.add(shape, base)
        layer.mark(np.abs(np.maximum(np.abs(f.x) - 0.4, np.abs(f.y) - tall + 0.2)) - 0.05, second)
    elif kind == 2:
        shape = np.maximum(f.ellipse(0.0, 0.55, 1.0, 0.95), f.ellipse(0.0, -0.55, 1.0, 0.95))
        layer.add(shape, mix(base, LEAF, 0.4))
        layer.mark(np.abs(f.y) - 0.03, second, strength=0.7)
        layer.mark(np.abs(np.abs(f.y) - f.x * 0.6 + 0.1) - 0.025, second, strength=0.5)
    elif kind == 3:
        lumps = [
            f.ellipse(dice.uniform(-0.4, 0.4), dice.uniform(-0.2, 0.2), 0.5, dice.uniform(0.3, 0.5))
            for _ in range(3)
        ]
        shape = join(*lumps, blend=0.2)
        layer.add(shape, mix(base, STONE, 0.5))
        grain = dice.smooth(*f.x.shape, 9, 9)
        layer.tint(f.cover(shape) * np.clip((grain - 0.5) * 3.0, 0.0, 0.6), second)
    elif kind == 4:
        points = ((0, -0.8), (0.2, -0.26), (0.76, -0.25), (0.32, 0.1), (0.47, 0.65), (0, 0.32))
        left = tuple((-x, y) for x, y in points[-2:0:-1])
        shape = f.polygon(*points, *left, rounding=0.05)
        layer.add(shape, base)
    else:
        shape = f.limb(-0.9, 0.0, 0.9, 0.0, 0.14, 0.14)
        layer.add(shape, base)
        layer.tint(f.cover(shape) * np.clip(stripes(f.x * 1.3), 0.0, 1.0), second)
    rim = np.clip(1.0 + shape * 6.0, 0.0, 1.0)
    layer.light(1.0 + f.cover(shape) * (0.18 * np.clip(f.up, -1.0, 1.0) - 0.25 * rim * rim))
    return layer


def draw_ground(size: int, dice: Dice) -> Array:
    """What lies behind everything: one ground, or two that meet, float32 (size, size, 3)."""
    frame = Frame(size, (size / 2, size / 2), size / 2, reach=1.1)
    picture = _ground(frame, dice)
    if dice.chance(0.6):
        other = _ground(frame, dice)
        edge = dice.uniform(-0.5, 0.3) + dice.uniform(-0.15, 0.15) * frame.x
        edge = edge + 0.08 * dice.smooth(size, size, 1, 5)
        below = np.clip((frame.y - edge) * (size / 3), 0.0, 1.0)
        picture += below[..., None] * (other - picture)
    return picture


def _ground(f: Frame, dice: Dice) -> Array:
    """One of eight grounds, its colours drawn from the pool that the objects wear."""
    layer, shape = Layer(f), f.x.shape
    kind = dice.below(8)
    base = mix(dice.pick(_GROUND_COLORS[kind]), dice.pick(POOL), dice.uniform(0.0, 0.45))
    other = mix(dice.pick(POOL), base, dice.uniform(0.3, 0.7))
    dark, pale = mix(base, COAL, 0.35), mix(base, WHITE, 0.5)
    layer.tint(np.ones(shape, np.float32), base)
    if kind == 0:  # sky
        layer.tint(np.clip(0.45 + 0.4 * f.y, 0.0, 1.0), pale)
        cloud = dice.smooth(*shape, 5, 3) * 0.7 + dice.smooth(*shape, 11, 7) * 0.3
        layer.tint(np.clip((cloud - 0.5) * 6.0, 0.0, 0.9), WHITE)
    elif kind == 1:  # water
        bend = dice.smooth(*shape, 8, 5) * 0.9
        layer.tint(np.clip(wave(f.y * dice.uniform(3, 5) + bend) * 0.7 - 0.2, 0.0, 0.6), pale)
        layer.tint(np.clip(-wave(f.y * 2.6 + bend) * 0.5, 0.0, 0.4), dark)
    elif kind == 2:  # lawn
        blades = dice.smooth(*shape, 14, 44)
        layer.tint(np.clip((blades - 0.5) * 2.5, 0.0, 0.7), dark)
        layer.tint(np.clip((dice.smooth(*shape, 12, 40) - 0.6) * 3.0, 0.0, 0.7), other)
    elif kind == 3:  # planks
        wide = dice.uniform(2.0, 4.0)
        grain = dice.smooth(*shape, 40, 4)
        layer.tint(np.clip((grain - 0.45) * 1.6, 0.0, 0.6), dark)
        gap = np.abs(f.y * wide - np.floor(f.y * wide) - 0.5)
        layer.tint(np.clip((gap - 0.46) * 25.0, 0.0, 0.8), COAL)
    elif kind == 4:  # blanket
        wide = dice.uniform(1.5, 3.5)
        layer.tint(0.6 * np.clip(stripes(f.x * wide), 0.0, 1.0), other)
        layer.tint(0.6 * np.clip(stripes(f.y * wide), 0.0, 1.0), other)
    elif kind == 5:  # sand
        layer.tint(np.clip((dice.field(*shape) - 0.75) * 2.0, 0.0, 0.5), dark)
        layer.tint(np.clip((dice.smooth(*shape, 5, 5) - 0.4) * 1.5, 0.0, 0.6), other)
    elif kind == 6:  # bricks
        wide = dice.uniform(3.0, 5.0)
        row = np.floor(f.y * wide)
        along = f.x * (wide * 0.5) + row * 0.5
        gap = np.maximum(
            np.abs(f.y * wide - row - 0.5) - 0.4,
            (np.abs(along - np.floor(along) - 0.5) - 0.45) * 2.0,
        )
        layer.tint(np.clip(dice.smooth(*shape, 7, 5) - 0.3, 0.0, 0.6), other)
        layer.tint(np.clip(gap * 16.0, 0.0, 0.8), CREAM)
    else:  # wallpaper
        wide = dice.uniform(2.5, 5.0)
        u, v = f.x * wide, f.y * wide
        du, dv = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
        layer.tint(np.clip((0.09 - du * du - dv * dv) * 25.0, 0.0, 0.75), other)
    return layer.rgb


_GROUND_COLORS: tuple[tuple[Color, ...], ...] = (
    (SKY, SKY, ROSE, NAVY),
    (TEAL, NAVY, SKY),
    (LEAF, OLIVE, LEAF),
    (BROWN, SAND, STONE),
    (BRICK, CREAM, TEAL, PLUM),
    (SAND, CREAM, STONE),
    (CLAY, BRICK, STONE),
    (CREAM, ROSE, OLIVE, PLUM),
)
