"""The report's charts: the front, the training curves, and how a network is built layer by layer."""

from collections.abc import Sequence
from itertools import pairwise

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.reporting import numbers, svg
from nas_llm.reporting.front_plot import in_plane, staircase, with_costs
from nas_llm.reporting.run_files import Curve, Progress, RunFiles, Search, spreads_widely
from nas_llm.search.archive import Evaluation

BLOCK_WIDTH, GUTTER = 360.0, 36.0
SEARCH_COLOURS = 6  # of the style sheet
ROW, TALL, MANY = 8.0, 18.0, 16  # heights of a layer's row: small where there are many


def front_chart(run: RunFiles, search: Search, cost: str, quality: str) -> str:
    """The front in one plane; every point names its network when pointed at."""
    baseline = with_costs(search, cost)
    groups = [search.front, search.dominated, baseline, [search.full]]
    points = [point for group in groups for point in in_plane(group, cost, quality)]
    x, y = svg.scales(points, from_zero=True, logarithmic=search.is_logarithmic(quality, [b for _, b in points]))
    x_label, y_label = (numbers.axis(name, search.unit(name)) for name in (cost, quality))
    parts = svg.frame(x, y, x_label, y_label, numbers.tick)

    def at(evaluation: Evaluation) -> svg.Point:
        return evaluation.objectives[cost], evaluation.objectives[quality]

    def title(evaluation: Evaluation, what: str = "") -> str:
        values = [f"{numbers.label(n)} {numbers.value(n, v)}" for n, v in evaluation.objectives.items()]
        return "\n".join([what or evaluation.id, *values, evaluation.architecture.summary()])

    parts += [svg.circle(at(e), x, y, "dominated", 3.5, title(e)) for e in search.dominated]
    if baseline:
        joined = in_plane(baseline, cost, quality) if cost in numbers.COUNTS else []
        parts.append(svg.line(joined, x, y, "baseline-line"))
        parts += [svg.triangle(at(e), x, y, "baseline", title(e, "truncated, untrained")) for e in baseline]
    parts.append(svg.line(staircase(search, cost, quality), x, y, "front-line"))
    parts += [svg.circle(at(e), x, y, "front", 5, title(e)) for e in search.front]
    exported = in_plane([export.evaluation for export in run.exports], cost, quality)
    parts += [svg.circle(point, x, y, "exported", 10) for point in exported]
    parts.append(svg.star(at(search.full), x, y, "full", title(search.full, "full network")))
    return svg.document(parts, f"Pareto front: {y_label} against {x_label}")


def progress_chart(progress: Progress) -> str:
    """The hypervolume over the evaluations of every search; the middle network's across."""
    low, high = progress.span()
    x = svg.Scale(0, progress.evaluations, svg.LEFT, svg.WIDTH - svg.RIGHT)
    y = svg.Scale(low, high, svg.HEIGHT - svg.BOTTOM, svg.TOP)
    parts = svg.frame(x, y, "architectures asked for", "hypervolume [part of the box]", numbers.tick)
    level = progress.heuristic
    parts.append(svg.line([(0, level), (progress.evaluations, level)], x, y, "heuristic"))
    for place, (searcher, points) in enumerate(progress.curves.items()):
        css = f"search-{place % SEARCH_COLOURS}"
        parts.append(svg.line(_steps(points, low), x, y, f"curve {css}"))
        parts.append(
            svg.circle(points[-1], x, y, f"dot {css}", 4, f"{numbers.searcher(searcher)}: {points[-1][1]:.3f}")
        )
    return svg.document(parts, "Hypervolume over the architectures asked for")


def _steps(points: Sequence[svg.Point], low: float) -> list[svg.Point]:
    """Level until the next evaluation that raises it; from below the chart's edge straight up."""
    stairs: list[svg.Point] = []
    for (a, b), (following, _) in pairwise([*points, points[-1]]):
        stairs += [(a, max(b, low)), (following, max(b, low))]
    first = next((i for i, (_, b) in enumerate(stairs) if b > low), 0)
    return [(stairs[first][0], low), *stairs[first:]]


def curves_chart(curves: Sequence[Curve]) -> str:
    """Losses over the optimizer steps."""
    points = [point for curve in curves for point in curve.points]
    x, y = svg.scales(points, from_zero=True, logarithmic=spreads_widely([b for _, b in points]))
    parts = svg.frame(x, y, "optimizer step", "loss [nats/token]", numbers.tick)
    parts += [svg.line(curve.points, x, y, f"curve {curve.name}") for curve in curves]
    for curve in curves:
        if len(curve.points) <= 40:
            titled = [(point, f"{curve.name}, step {point[0]:.0f}: {point[1]:.3f}") for point in curve.points]
            parts += [svg.circle(point, x, y, f"dot {curve.name}", 2.5, title) for point, title in titled]
    return svg.document(parts, "Loss of " + ", ".join(curve.name for curve in curves) + " over the optimizer steps")


def layers_chart(architecture: Architecture, full: Architecture) -> str:
    """Every layer of the full network as an outline, filled as far as the sub-network keeps it.

    Heads (times head size) to the left, FFN to the right, the first layer at the top, the residual width above all.
    """
    kept = {layer.index: layer for layer in architecture.layers}
    height = TALL if len(full.layers) <= MANY else ROW
    half = (BLOCK_WIDTH - GUTTER) / 2
    parts = _residual(architecture.hidden, full.hidden)
    top = 30.0
    parts.append(f'<text class="tick" x="{half}" y="{top + 14}" text-anchor="end">attention heads</text>')
    parts.append(f'<text class="tick" x="{half + GUTTER}" y="{top + 14}">FFN width</text>')
    top += 20
    for layer in full.layers:
        parts += _layer(kept.get(layer.index), layer, top, height, half)
        top += height + 3
    return svg.document(parts, architecture.summary(), width=BLOCK_WIDTH, height=top)


def _residual(hidden: int, full: int) -> list[str]:
    return [
        f'<rect class="outline" x="0.5" y="0.5" width="{BLOCK_WIDTH - 1}" height="19" rx="2"/>',
        f'<rect class="hidden" x="0.5" y="0.5" width="{(BLOCK_WIDTH - 1) * hidden / full:.1f}" height="19" rx="2"/>',
        f'<text class="on-bar" x="8" y="14">hidden {hidden} of {full}</text>',
    ]


def _layer(kept: LayerChoice | None, full: LayerChoice, top: float, height: float, half: float) -> list[str]:
    right, base = half + GUTTER, top + height / 2 + 4
    outlines = [
        f'<rect class="outline" x="0.5" y="{top}" width="{half - 0.5}" height="{height}" rx="2"/>',
        f'<rect class="outline" x="{right}" y="{top}" width="{half - 0.5}" height="{height}" rx="2"/>',
    ]
    readable = height >= TALL
    css = "tick" if kept else "tick gone"
    index = f'<text class="{css}" x="{half + GUTTER / 2}" y="{base}" text-anchor="middle">{full.index}</text>'
    if kept is None:
        gone = f'<text class="tick gone" x="{half - 8}" y="{base}" text-anchor="end">dropped</text>'
        texts = [index, gone] if readable else []
        return [f'<g class="dropped"><title>layer {full.index}: dropped</title>', *outlines, *texts, "</g>"]
    attention = half * kept.heads * kept.head_dim / (full.heads * full.head_dim)
    ffn = half * kept.ffn / full.ffn
    tall = f'y="{top}" height="{height}" rx="2"'
    bars = [
        f'<rect class="attention" x="{half - attention:.1f}" width="{attention:.1f}" {tall}/>',
        f'<rect class="ffn" x="{right}" width="{ffn:.1f}" {tall}/>',
    ]
    texts = [
        index,
        f'<text class="on-bar" x="{half - 6}" y="{base}" text-anchor="end">{kept.heads} of {full.heads}</text>',
        f'<text class="on-bar" x="{right + 6}" y="{base}">{kept.ffn} of {full.ffn}</text>',
    ]
    title = (
        f"layer {full.index}: {kept.heads} of {full.heads} heads in {kept.kv_groups} of {full.kv_groups} groups, "
        f"head size {kept.head_dim} of {full.head_dim}, FFN {kept.ffn} of {full.ffn}"
    )
    return [f"<g><title>{title}</title>", *outlines, *bars, *(texts if readable else []), "</g>"]
