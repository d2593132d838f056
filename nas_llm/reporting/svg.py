"""Line and point charts as inline SVG, whose colours come from the page's style sheet and so follow its light or dark
theme.

Coordinates are pixels of the viewBox; data are mapped to them by a `Scale` per axis.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
WIDTH, HEIGHT = 860.0, 420.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 16.0, 16.0, 52.0
TICKS = 6


@dataclass(frozen=True)
class Scale:
    """Maps values between `low` and `high` to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    @classmethod
    def around(
        cls, values: Sequence[float], start: float, end: float, *, zero: bool = False, logarithmic: bool = False
    ) -> "Scale":
        """Holds all values with some air; from zero if so asked."""
        low, high = min(values), max(values)
        if logarithmic:
            return cls(low / 1.15, high * 1.15, start, end, True)
        air = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(0.0 if zero else low - air, high + air, start, end)

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the scale."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        else:
            raw = (self.high - self.low) / TICKS
            power = 10.0 ** math.floor(math.log10(raw))
            step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= raw)
            first = math.ceil(self.low / step)
            every = [step * (first + i) for i in range(2 * TICKS)]
        return [value for value in every if self.low <= value <= self.high]


def frame(x: Scale, y: Scale, x_label: str, y_label: str, tick: Callable[[float], str]) -> list[str]:
    """Grid, tick labels and axis labels."""
    bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    parts = []
    for value in x.ticks():
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{tick(value)}</text>')
    for value in y.ticks():
        at = y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick(value)}</text>')
    centre = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{centre}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_label)}</text>')
    turn = f'transform="rotate(-90 14 {middle})"'
    parts.append(f'<text class="label" x="14" y="{middle}" {turn} text-anchor="middle">{escape(y_label)}</text>')
    return parts


def scales(points: Sequence[Point], *, from_zero: bool, logarithmic: bool) -> tuple[Scale, Scale]:
    """Scales of a chart of the usual size that holds `points`."""
    x = Scale.around([x for x, _ in points], LEFT, WIDTH - RIGHT, zero=from_zero)
    y = Scale.around([y for _, y in points], HEIGHT - BOTTOM, TOP, logarithmic=logarithmic)
    return x, y


def line(points: Sequence[Point], x: Scale, y: Scale, css: str) -> str:
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    return f'<polyline class="{css}" points="{path}"/>'


def circle(point: Point, x: Scale, y: Scale, css: str, radius: float, title: str = "") -> str:
    return f'<circle class="{css}" cx="{x(point[0]):.1f}" cy="{y(point[1]):.1f}" r="{radius}">{_title(title)}</circle>'


def triangle(point: Point, x: Scale, y: Scale, css: str, title: str = "") -> str:
    a, b = x(point[0]), y(point[1])
    corners = f"{a - 5:.1f},{b - 4:.1f} {a + 5:.1f},{b - 4:.1f} {a:.1f},{b + 5:.1f}"
    return f'<polygon class="{css}" points="{corners}">{_title(title)}</polygon>'


def star(point: Point, x: Scale, y: Scale, css: str, title: str = "") -> str:
    a, b = x(point[0]), y(point[1])
    turns = [(math.pi * i / 5, 10.0 if i % 2 == 0 else 4.2) for i in range(10)]
    corners = " ".join(f"{a + r * math.sin(t):.1f},{b - r * math.cos(t):.1f}" for t, r in turns)
    return f'<polygon class="{css}" points="{corners}">{_title(title)}</polygon>'


def document(parts: Sequence[str], description: str, *, width: float = WIDTH, height: float = HEIGHT) -> str:
    """One `<svg>` element, described for those who cannot see it."""
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}">'
    return "".join([head, *parts, "</svg>"])


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
