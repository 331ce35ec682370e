"""How a training went, as inline SVG that follows the page's colours."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

WIDTH: Final = 360
HEIGHT: Final = 200
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 30, 34
# What is drawn where the method has it, on the same axes where two are of one kind.
CURVES: Final[Mapping[str, tuple[str, ...]]] = {
    "Expected reward": ("gain", "held_out_gain"),
    "Loss": ("loss", "held_out_loss"),
    "KL to the base, nats a code": ("kl", "held_out_kl"),
    "Pairs told apart": ("accuracy", "held_out_accuracy"),
}


def curves(points: Sequence[Mapping[str, float]]) -> list[str]:
    """Each point has its `step`. Solid is of the clips that were learnt from, dotted of held-out ones."""
    drawn = []
    for title, names in CURVES.items():
        lines = [[(point["step"], point[name]) for point in points if name in point] for name in names]
        if any(len(line) > 1 for line in lines):
            drawn.append(_picture(title, lines))
    return drawn


def _picture(title: str, lines: Sequence[Sequence[tuple[float, float]]]) -> str:
    steps = [step for line in lines for step, _ in line]
    values = [value for line in lines for _, value in line]
    first, last, low, high = min(steps), max(steps), min(values), max(values)

    def x(step: float) -> float:
        return LEFT + (step - first) / ((last - first) or 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in (low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="faint" x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2g}</text>')
    parts += [
        f'<text class="faint" x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step:.0f}</text>'
        for step in (first, last)
    ]
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">steps</text>')
    for line, kind in zip(lines, ("line", "line dotted"), strict=True):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in line)
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
    said = escape(f"{title} over the steps")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}"><title>{said}</title>'
        f'<text x="4" y="14">{escape(title)}</text>{"".join(parts)}</svg>'
    )
