"""How evidence and win rate went over the votes, as inline SVG that follows the page's colours."""

from collections.abc import Callable, Iterable, Sequence
from math import ceil, floor, log10
from typing import Final

from domain.verdicts import Point, Results

HEIGHT: Final = 268
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 34, 44
RANGE: Final = (1e-3, 1e6)  # of evidence; more lies on the edge
STYLE: Final = """
svg { display: block; width: 100%; height: auto; font: 13px system-ui, sans-serif; }
svg text { fill: var(--text); } svg .faint { fill: var(--faint); }
svg .grid { stroke: var(--grid); } svg .mark { stroke: var(--mark); stroke-dasharray: 6 4; stroke-width: 1.5; }
svg .line { fill: none; stroke: var(--line); stroke-width: 2.5; stroke-linejoin: round; }
svg .band { fill: var(--line); opacity: .18; } svg .dot { fill: var(--line); } svg text.marked { fill: var(--mark); }
"""
Scale = Callable[[float], float]


def evidence(found: Results, width: int) -> str:
    """On a logarithmic scale, from 1 at no votes, with the line from where on there is a verdict."""
    values = [(0, 1.0), *((point.votes, point.e_value) for point in found.timeline)]
    logs = [(votes, log10(min(max(value, RANGE[0]), RANGE[1]))) for votes, value in values]
    low = floor(min(-1.0, *(value for _, value in logs)))
    high = ceil(max(2.0, *(value for _, value in logs)))
    x, y = _scales(found.timeline, width, low, high)
    step = 1 if high - low <= 5 else 2
    ticks = [(float(power), f"{10.0**power:,.10g}") for power in range(low, high + 1, step)]
    threshold = log10(found.threshold)
    return _svg(
        width,
        "Evidence that the arms differ, after each vote",
        "Evidence (e-value)",
        _grid(found.timeline, width, x, y, ticks),
        _mark(width, y(threshold), f"{found.threshold:g}: verdict"),
        _line((x(votes), y(value)) for votes, value in logs),
    )


def win_rate(found: Results, width: int) -> str:
    """With ties as half, in its interval valid at every look, and the margin within which arms are equivalent."""
    x, y = _scales(found.timeline, width, 0.0, 1.0)
    upper = [f"{x(point.votes):.1f},{y(point.high):.1f}" for point in found.timeline]
    lower = [f"{x(point.votes):.1f},{y(point.low):.1f}" for point in reversed(found.timeline)]
    return _svg(
        width,
        "A's win rate with ties as half, after each vote, in an interval valid at every look",
        "A's win rate, ties as half; band: valid at every look",
        _grid(found.timeline, width, x, y, [(tenth / 4, f"{25 * tenth} %") for tenth in range(5)]),
        f'<polygon class="band" points="{" ".join(upper + lower)}"/>',
        _mark(width, y(0.5 + found.margin), ""),
        _mark(width, y(0.5 - found.margin), f"±{100 * found.margin:.0f} points: equivalent"),
        _line((x(point.votes), y(point.win_rate)) for point in found.timeline),
    )


def ticks(most: int, wanted: int) -> list[int]:
    """Round numbers from 0 to the most."""
    power = 10 ** floor(log10(max(most / wanted, 1)))
    step = next(power * times for times in (1, 2, 5, 10) if most / (power * times) <= wanted)
    return list(range(0, most + 1, step))


def _scales(timeline: Sequence[Point], width: int, low: float, high: float) -> tuple[Scale, Scale]:
    most = timeline[-1].votes
    return (
        lambda votes: LEFT + votes / most * (width - LEFT - RIGHT),
        lambda value: HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
    )


def _grid(timeline: Sequence[Point], width: int, x: Scale, y: Scale, rows: Iterable[tuple[float, str]]) -> str:
    parts = []
    for value, label in rows:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="faint" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{label}</text>')
    parts += [
        f'<text class="faint" x="{x(votes):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{votes:,}</text>'
        for votes in ticks(timeline[-1].votes, 4 if width < 500 else 8)
    ]
    middle = (LEFT + width - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">votes that count</text>')
    return "".join(parts)


def _mark(width: int, y: float, label: str) -> str:
    text = (
        f'<text class="marked" x="{width - RIGHT}" y="{y + 15:.1f}" text-anchor="end">{label}</text>' if label else ""
    )
    return f'<line class="mark" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>{text}'


def _line(points: Iterable[tuple[float, float]]) -> str:
    known = list(points)
    x, y = known[-1]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in known)
    return f'<polyline class="line" points="{path}"/><circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _svg(width: int, title: str, axis: str, *parts: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>'
        f'<text x="4" y="14">{axis}</text>{"".join(parts)}</svg>'
    )
