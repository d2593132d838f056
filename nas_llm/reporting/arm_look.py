"""How the arms of a sweep look, the same in all of its pictures."""

from __future__ import annotations

from typing import Any

COLOURS = ("#1a1a1a", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8c8c8c")
MARKERS = "o^sDvXp*"
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.5, 1.2)))  # tell apart what comes after the last colour


def line(place: int) -> dict[str, Any]:
    """Colour and dashes of the arm at this place."""
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place // len(COLOURS) % len(DASHES)]}


def marker(place: int) -> str:
    """Its marker: none is that of the arm with the same colour in the round before."""
    return MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]
