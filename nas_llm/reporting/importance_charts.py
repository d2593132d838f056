"""The report's charts of importance scores, as inline SVG that follows the page's light or dark theme."""

from __future__ import annotations

import numpy as np

from nas_llm.reporting import numbers, svg
from nas_llm.reporting.charts import MANY, ROW, TALL
from nas_llm.reporting.importance_scores import Scores, falling, spreads

POINTS = 120


def charts(scores: Scores) -> list[tuple[str, str]]:
    """(what it shows, the picture) for every axis that has scores."""
    found = []
    if scores.ffn:
        shown = "FFN neurons of every layer, from the most important one down; the first layer is blue, the last red"
        found.append((shown, _curves({f"layer {layer}": values for layer, values in scores.ffn.items()}, "neurons")))
    if scores.attention.size:
        apart = f", groups of {scores.heads_per_group} apart" if scores.heads_per_group > 1 else ""
        shown = f"attention heads of every layer in their places before sorting{apart}; the stronger, the better"
        found.append((shown, _map(scores.attention, "head", scores.heads_per_group)))
    if scores.heads_per_group > 1 and scores.groups:
        shown = "KV groups of every layer in their places before sorting; the stronger, the better"
        found.append((shown, _map(scores.grouped, "KV group", 1)))
    if scores.hidden is not None:
        shown = "hidden channels (residual stream), from the most important one down"
        found.append((shown, _curves({"hidden channels": scores.hidden}, "channels")))
    if scores.layers is not None:
        found.append(("layers; the number is the place in the order in which they are kept", _bars(scores.layers)))
    return found


def _curves(values: dict[str, np.ndarray], units: str) -> str:
    logarithmic = spreads(np.concatenate(list(values.values())))
    lines = {name: falling(own, POINTS, positive=logarithmic) for name, own in values.items()}
    points = [point for line in lines.values() for point in line]
    x, y = svg.scales(points, from_zero=True, logarithmic=logarithmic)
    label = "score (logarithmic)" if logarithmic else "score"
    parts = svg.frame(x, y, f"{units}, the most important first", label, numbers.tick)
    for place, (name, line) in enumerate(lines.items()):
        hue = round(210 + 150 * place / max(len(lines) - 1, 1))
        colour = f'style="stroke: hsl({hue} 60% 50%); stroke-width: 1.5"'
        parts.append(f"<g {colour}><title>{name}</title>{svg.line(line, x, y, 'score')}</g>")
    return svg.document(parts, f"Importance scores of {units}")


def _map(table: np.ndarray, unit: str, per_group: int) -> str:
    """A cell for every unit, filled as its score lies between the lowest and the highest."""
    depth, count = table.shape
    height = TALL if depth <= MANY else ROW
    gap = 6.0 if per_group > 1 else 0.0
    width = (svg.WIDTH - svg.LEFT - svg.RIGHT - gap * (count // per_group - 1)) / count
    low, high = float(np.nanmin(table)), float(np.nanmax(table))
    parts = []
    for (layer, place), score in np.ndenumerate(table):
        if place == 0 and (height == TALL or layer % 4 == 0):
            at = f'x="{svg.LEFT - 8}" y="{layer * (height + 2) + height / 2 + 4:.1f}"'
            parts.append(f'<text class="tick" {at} text-anchor="end">{layer}</text>')
        if np.isfinite(score):
            left = svg.LEFT + place * width + place // per_group * gap
            opacity = 0.06 + 0.94 * (score - low) / (high - low or 1)
            title = f"<title>layer {layer}, {unit} {place}: {numbers.significant(float(score))}</title>"
            box = f'x="{left:.1f}" y="{layer * (height + 2):.1f}" width="{max(width - 2, 1):.1f}" height="{height}"'
            parts.append(f'<rect class="score" {box} fill-opacity="{opacity:.2f}">{title}</rect>')
    bottom = depth * (height + 2) + 18
    ends = f"lowest {numbers.significant(low)}, highest {numbers.significant(high)}"
    parts.append(f'<text class="tick" x="{svg.LEFT}" y="{bottom}">layer by {unit}; {ends}</text>')
    return svg.document(parts, f"Importance scores: {ends}", height=bottom + 8)


def _bars(values: np.ndarray) -> str:
    height = 180.0
    width = (svg.WIDTH - svg.LEFT - svg.RIGHT) / len(values)
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = svg.Scale(low, high if high > low else low + 1, height, 20.0)
    ranks = np.argsort(np.argsort(-values, kind="stable"), kind="stable") + 1
    parts = []
    for layer, score in enumerate(values.tolist()):
        left, middle = svg.LEFT + layer * width, svg.LEFT + (layer + 0.5) * width
        top, base = sorted((scale(score), scale(0.0)))
        title = f"<title>layer {layer}: {numbers.significant(score)}, kept as number {ranks[layer]}</title>"
        box = f'x="{left + 2:.1f}" y="{top:.1f}" width="{max(width - 4, 1):.1f}" height="{base - top:.1f}"'
        parts.append(f'<rect class="score" {box}>{title}</rect>')
        parts.append(
            f'<text class="tick" x="{middle:.1f}" y="{top - 5:.1f}" text-anchor="middle">{ranks[layer]}</text>'
        )
        parts.append(f'<text class="tick" x="{middle:.1f}" y="{height + 18}" text-anchor="middle">{layer}</text>')
    parts.append(
        f'<text class="tick" x="{svg.LEFT - 8}" y="{scale(high) + 4:.1f}" text-anchor="end">'
        f"{numbers.significant(high)}</text>"
    )
    centre = (svg.LEFT + svg.WIDTH - svg.RIGHT) / 2
    parts.append(f'<text class="label" x="{centre}" y="{height + 40}" text-anchor="middle">layer</text>')
    turn = f'transform="rotate(-90 14 {height / 2})"'
    parts.append(f'<text class="label" x="14" y="{height / 2}" {turn} text-anchor="middle">score</text>')
    return svg.document(parts, "Importance scores of layers", height=height + 48)
