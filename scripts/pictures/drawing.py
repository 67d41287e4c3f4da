"""A canvas for flat drawings: outlined shapes, smooth curves, thick limbs, antialiased by supersampling.

Coordinates are pixels of the finished picture, x to the right and y down; colours are "#rrggbb". Points are pairs, or a
text such as "10,20 30,40". Only polygons, ellipses and lines on whole numbers are used, so the picture is the same
wherever it is drawn.
"""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

Point = tuple[float, float]
Points = Sequence[Point] | str
INK = "#4a3b36"  # of outlines
SCALE = 4  # drawn so many times larger, then averaged


class Canvas:
    """A square picture of `size` pixels."""

    def __init__(self, size: int, background: str):
        self.image = Image.new("RGB", (size * SCALE, size * SCALE), background)
        self.draw = ImageDraw.Draw(self.image)

    def finished(self) -> Image.Image:
        """Return the picture at its size, RGB."""
        return self.image.reduce(SCALE)

    def polygon(self, points: Points, fill: str | None, ink: str | None = INK, width: float = 2.2) -> None:
        """Draw a filled polygon and its outline; fill None: the outline only."""
        points = listed(points)
        if fill:
            self.draw.polygon([_large(point) for point in points], fill=fill)
        if ink:
            self.line([*points, points[0]], ink, width)

    def box(self, left, top, right, bottom, fill, ink=INK, radius: float = 0, width: float = 2.2) -> None:
        """Draw a rectangle, with rounded corners if radius > 0."""
        if radius == 0:
            self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill, ink, width)
            return
        corners = [
            (right - radius, top + radius, -90),
            (right - radius, bottom - radius, 0),
            (left + radius, bottom - radius, 90),
            (left + radius, top + radius, 180),
        ]
        self.polygon(
            [p for x, y, start in corners for p in arc(x, y, radius, radius, start, start + 90)], fill, ink, width
        )

    def oval(self, x, y, across, down=None, fill=None, ink=INK, width: float = 2.2, turn: float = 0) -> None:
        """Draw an ellipse of half axes `across` and `down` (a circle without `down`), turned by `turn` degrees."""
        self.polygon(arc(x, y, across, across if down is None else down, 0, 360, turn), fill, ink, width)

    def blob(self, points: Points, fill: str | None, ink: str | None = INK, width: float = 2.2) -> None:
        """Draw a closed smooth curve through the points."""
        self.polygon(smooth(points, closed=True), fill, ink, width)

    def line(self, points: Points, fill: str = INK, width: float = 2.2) -> None:
        """Draw a line with round joints and ends."""
        large = [_large(point) for point in listed(points)]
        thick = max(1, round(width * SCALE))
        self.draw.line(large, fill=fill, width=thick)
        radius = thick // 2
        for x, y in large:
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

    def curve(self, points: Points, fill: str = INK, width: float = 2.2) -> None:
        """Draw an open smooth curve through the points."""
        self.line(smooth(points), fill, width)

    def limb(self, points: Points, fill: str, width: float, ink: str = INK) -> None:
        """Draw a thick smooth stroke with an outline: an arm, a leg, a tail, a pipe."""
        path = smooth(points)
        self.line(path, ink, width + 4.4)
        self.line(path, fill, width)


def listed(points: Points) -> list[Point]:
    """Return points as pairs."""
    if isinstance(points, str):
        return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]
    return list(points)


def arc(x, y, across, down, start, end, turn: float = 0) -> list[Point]:
    """Return points of an elliptic arc from `start` to `end` degrees, clockwise on the screen, 0 at the right."""
    steps = max(8, round(abs(end - start) / 360 * 72))
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    points = []
    for step in range(steps + 1):
        angle = math.radians(start + (end - start) * step / steps)
        u, v = across * math.cos(angle), down * math.sin(angle)
        points.append((x + u * cosine - v * sine, y + u * sine + v * cosine))
    return points


def smooth(points: Points, closed: bool = False, steps: int = 14) -> list[Point]:
    """Return points of a Catmull-Rom spline through `points`."""
    points = listed(points)
    count = len(points)
    if closed:
        around = [points[-1], *points, points[0], points[1]]
    else:
        around = [points[0], *points, points[-1]]
    path = []
    for index in range(count if closed else count - 1):
        before, start, end, after = around[index : index + 4]
        path += [_spline(before, start, end, after, step / steps) for step in range(steps)]
    return path if closed else [*path, points[-1]]


def _spline(before: Point, start: Point, end: Point, after: Point, t: float) -> Point:
    def at(a, b, c, d):
        return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)

    return at(before[0], start[0], end[0], after[0]), at(before[1], start[1], end[1], after[1])


def _large(point: Point) -> tuple[int, int]:
    return round(point[0] * SCALE), round(point[1] * SCALE)
