"""The drawing kit of the toy data: random numbers, distance fields, patterns, layers of paint.

Every picture has to come out the same on every machine, to the pixel. So the kit keeps to arithmetic
that IEEE 754 fixes exactly: + - * / and square roots of single arrays, with no power, no sine, no
matrix product, no sum of floats. Shapes are signed distance fields (negative inside), which give
smooth edges without supersampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Array = np.ndarray
Color = tuple[float, float, float]
T = TypeVar("T")


class Dice:
    """Random choices made of PCG64's `random()` alone, whose stream numpy keeps stable.

    Args:
        key: non-negative integers that name the stream; equal keys give equal choices.

    >>> Dice(0, 1).below(100) == Dice(0, 1).below(100)
    True
    """

    def __init__(self, *key: int) -> None:
        self._random = np.random.Generator(np.random.PCG64(key)).random

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(self._random())

    def below(self, n: int) -> int:
        """An integer in 0..n-1."""
        return int(float(self._random()) * n)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return float(self._random()) < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of the items; name an item twice and it is twice as likely."""
        return items[self.below(len(items))]

    def field(self, height: int, width: int) -> Array:
        """White noise in [0, 1), float32 (height, width)."""
        return self._random((height, width)).astype(np.float32)

    def smooth(self, height: int, width: int, rows: float, columns: float) -> Array:
        """Smooth noise in [0, 1) with about `rows` x `columns` bumps, float32 (height, width)."""
        r, c = max(int(rows), 1), max(int(columns), 1)
        grid = self.field(r + 2, c + 2)
        i, u = _cell(height, r)
        j, v = _cell(width, c)
        upper = grid[i] + (grid[i + 1] - grid[i]) * u[:, None]
        return upper[:, j] + (upper[:, j + 1] - upper[:, j]) * v[None, :]


class Frame:
    """The pixels around an object, in the object's own coordinates (x ahead, y down).

    Args:
        size: side of the picture in pixels.
        center: the frame's origin, (x, y) in pixels.
        scale: pixels that one unit takes.
        degrees: whole degrees the object is turned by, clockwise as seen.
        flip: mirror the object, so that it looks to the left.
        reach: how many units around the origin are drawn.

    Attributes: `x`, `y` float32 (h, w) in units; `up` the same height seen by the light, in units;
    `scale`; `window` two slices of the picture.
    """

    def __init__(
        self,
        size: int,
        center: tuple[float, float],
        scale: float,
        degrees: int = 0,
        flip: bool = False,
        reach: float = 1.6,
    ) -> None:
        spans = [
            (max(int(c - reach * scale), 0), min(int(c + reach * scale) + 2, size)) for c in center
        ]
        (left, right), (top, bottom) = ((a, max(a, b)) for a, b in spans)
        self.window = (slice(top, bottom), slice(left, right))
        columns = (np.arange(left, right, dtype=np.float32) + 0.5 - center[0]) / scale
        rows = (np.arange(top, bottom, dtype=np.float32) + 0.5 - center[1]) / scale
        self.up = np.broadcast_to(-rows[:, None], (rows.size, columns.size))
        self.scale = scale
        self.x, self.y = _turn(columns[None, :], rows[:, None], degrees)
        if flip:
            self.x = -self.x

    def moved(self, x: float, y: float, degrees: int = 0, scale: float = 1.0) -> Frame:
        """The same pixels seen from a part at (x, y) that is turned and scaled on its own."""
        part = Frame.__new__(Frame)
        part.window, part.up, part.scale = self.window, self.up, self.scale * scale
        part.x, part.y = _turn((self.x - x) / scale, (self.y - y) / scale, degrees)
        return part

    def ellipse(self, cx: float, cy: float, a: float, b: float) -> Array:
        """Distance to an ellipse with half axes a and b (first order, exact for a circle)."""
        px, py = (self.x - cx) / a, (self.y - cy) / b
        near = np.sqrt(px * px + py * py)
        slope = np.sqrt((px * px) / (a * a) + (py * py) / (b * b))
        return near * (near - 1.0) / np.maximum(slope, 1e-3)

    def polygon(self, *points: tuple[float, float], rounding: float = 0.0) -> Array:
        """Distance to a polygon, its corners grown round by `rounding`."""
        nearest, inside = np.float32(1e6), np.zeros(self.x.shape, bool)
        for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
            ex, ey = bx - ax, by - ay
            wx, wy = self.x - ax, self.y - ay
            t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0.0, 1.0)
            dx, dy = wx - ex * t, wy - ey * t
            nearest = np.minimum(nearest, dx * dx + dy * dy)
            if ey:
                inside ^= ((ay > self.y) != (by > self.y)) & (wx < wy * (ex / ey))
        return np.where(inside, -1.0, 1.0).astype(np.float32) * np.sqrt(nearest) - rounding

    def limb(self, ax: float, ay: float, bx: float, by: float, r: float, end: float) -> Array:
        """Distance to a rounded limb from (ax, ay) to (bx, by), r thick that tapers to `end`."""
        ex, ey = bx - ax, by - ay
        wx, wy = self.x - ax, self.y - ay
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        dx, dy = wx - ex * t, wy - ey * t
        return np.sqrt(dx * dx + dy * dy) - (r + (end - r) * t)

    def cover(self, distance: Array) -> Array:
        """How much of each pixel lies inside, 0..1; an edge is a pixel wide."""
        return np.clip(0.5 - distance * self.scale, 0.0, 1.0)


class Layer:
    """Paint on a frame: `rgb` (h, w, 3) and `alpha` (h, w), float32 in 0..1."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.rgb = np.zeros((*frame.x.shape, 3), np.float32)
        self.alpha = np.zeros(frame.x.shape, np.float32)

    def add(self, distance: Array, color: Color | Array, on: Frame | None = None) -> None:
        """Paint a shape, inside or outside of what is there."""
        cover = (on or self.frame).cover(distance)
        self._blend(np.where(self.alpha > 0, cover, 1.0), color)
        self.alpha = np.maximum(self.alpha, cover)

    def mark(
        self, distance: Array, color: Color, on: Frame | None = None, strength: float = 1.0
    ) -> None:
        """Paint a shape on what is there; the outline stays as it is."""
        self._blend((on or self.frame).cover(distance) * strength, color)

    def tint(self, amount: Array, color: Color) -> None:
        """Mix a colour in, `amount` (h, w) in 0..1."""
        self._blend(amount, color)

    def light(self, factor: Array) -> None:
        """Multiply by a factor (h, w)."""
        self.rgb *= factor[..., None]

    def _blend(self, amount: Array, color: Color | Array) -> None:
        target = np.asarray(color, np.float32)
        self.rgb += amount[..., None] * (target - self.rgb)


def join(*distances: Array, blend: float = 0.0) -> Array:
    """The union of shapes; `blend` melts them together over so many units."""
    total = distances[0]
    for other in distances[1:]:
        nearer = np.minimum(total, other)
        if blend:
            h = np.maximum(blend - np.abs(total - other), 0.0) / blend
            nearer = nearer - h * h * (blend * 0.25)
        total = nearer
    return total


def wave(t: Array) -> Array:
    """A smooth wave of period 1 between -1 and 1, made of parabolas."""
    s = t - np.floor(t)
    half = np.where(s < 0.5, s, s - 0.5)
    return np.where(s < 0.5, 1.0, -1.0).astype(np.float32) * (16.0 * half * (0.5 - half))


def stripes(t: Array, sharp: float = 3.0) -> Array:
    """Stripes of period 1 between -1 and 1; the larger `sharp`, the harder their edges."""
    return np.clip(wave(t) * sharp, -1.0, 1.0)


def cells(u: Array, v: Array, radius: float = 0.55) -> Array:
    """Rows of arcs like scales or wool, one per unit, shifted row by row, between -1 and 1."""
    row = np.floor(v)
    shifted = u + (row - 2.0 * np.floor(row * 0.5)) * 0.5
    dx, dy = shifted - np.floor(shifted) - 0.5, v - row
    gap = np.abs(np.sqrt(dx * dx + dy * dy) - radius)
    return np.clip(1.0 - gap * 7.0, -1.0, 1.0)


def mix(a: Color, b: Color, t: float) -> Color:
    """The colour t of the way from a to b."""
    return tuple(p + (q - p) * t for p, q in zip(a, b, strict=True))


def _cell(n: int, cells_along: int) -> tuple[Array, Array]:
    position = np.arange(n, dtype=np.float32) * (np.float32(cells_along) / np.float32(n))
    index = np.floor(position)
    u = position - index
    return index.astype(np.int64), u * u * (3.0 - 2.0 * u)


def _turn(x: Array, y: Array, degrees: int) -> tuple[Array, Array]:
    """Coordinates in a frame turned by whole degrees; the table is rounded so that it is exact."""
    radians = np.float64(degrees % 360) * (np.pi / 180)
    cosine, sine = (round(float(f(radians)), 6) for f in (np.cos, np.sin))
    return x * cosine + y * sine, y * cosine - x * sine
