"""Line charts as SVG, with labels at the ends of the lines.

Colours stand in attributes, so that a chart is complete as a file of its own. A page overrides them by class for its dark form.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .runs import shown_rate

# The baseline, and the colours of Okabe and Ito without yellow, which people with any kind of colour vision can tell apart.
LIGHT = ("#1b1f24", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DARK = ("#f2f4f7", "#4da3e0", "#ff8a4c", "#33c99b", "#e39bc4", "#f2b134", "#9ad4f5")
# Lines of the same colour differ in their dashes.
DASHES = ("", "7 3", "2 2", "9 3 2 3")

WIDTH, HEIGHT = 780, 430
LEFT, TOP, RIGHT, BOTTOM = 66, 34, 200, 50
LABEL_HEIGHT = 15
INK, QUIET, GRID = "#1b1f24", "#5c6570", "#d8dde3"

STYLE = (
    ".start { transition: opacity .1s; } svg:has(.start:hover) .start:not(:hover) { opacity: .2; }\n"
    "@media (prefers-color-scheme: dark) {\n"
    + "\n".join(f"  .line{place} {{ stroke: {colour}; }} .area{place} {{ fill: {colour}; }}" for place, colour in enumerate(DARK))
    + "\n  svg .ink { fill: #e6e9ed; } svg .quiet { fill: #9aa4b0; } svg .grid { stroke: #363d46; } svg .axis, svg .leader { stroke: #9aa4b0; }\n}\n"
)
"""Rules for a page that holds charts."""


@dataclass
class Line:
    """A line of a chart. `place` decides its colour and dashes; 0 is the baseline."""

    name: str
    place: int
    points: list[tuple[float, float]]
    # The lower and the upper end of a band at each point; empty without a band.
    band: list[tuple[float, float]] = field(default_factory=list)
    # A text that a browser shows when the mouse is over the line.
    note: str = ""


@dataclass
class Axes:
    """The names of the axes and their kind. `is_low_better` decides which side is cut if some values are far from the others."""

    title: str
    x_name: str
    y_name: str
    is_log: bool = False
    is_low_better: bool = True
    has_dots: bool = False


def chart(lines: Sequence[Line], axes: Axes, is_alone: bool) -> str:
    """Returns a chart as an `svg` element. `is_alone` makes it a file of its own, with a white background."""
    lines = [line for line in lines if line.points]
    height = max(HEIGHT, TOP + BOTTOM + LABEL_HEIGHT * len(lines))
    inner_width, inner_height = WIDTH - LEFT - RIGHT, height - TOP - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escaped(axes.title)}</title>",
    ]
    if is_alone:
        parts.append(f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>')
    parts.append(_text(LEFT, 18, axes.title, size=14, weight=600))
    if not lines:
        parts += [_text(LEFT, TOP + 30, "There are no runs yet.", kind="quiet"), "</svg>"]
        return "\n".join(parts)

    xs = [math.log10(x) if axes.is_log else x for line in lines for x, _ in line.points]
    low_x, high_x = _widened(min(xs), max(xs), 0.03 if axes.is_log else 0.0)
    low_y, high_y, is_cut = value_range(lines, axes.is_low_better)

    def across(x: float) -> float:
        return inner_width * ((math.log10(x) if axes.is_log else x) - low_x) / (high_x - low_x)

    def down(y: float) -> float:
        # A number far outside of the chart is as good as another one, and some programs cannot read long ones.
        return max(-9.0 * height, min(9.0 * height, inner_height * (high_y - y) / (high_y - low_y)))

    for value in ticks(low_y, high_y):
        y = TOP + down(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + inner_width}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{value:.10g}", anchor="end", kind="quiet", size=11))
    for value in log_ticks(10**low_x, 10**high_x) if axes.is_log else ticks(low_x, high_x):
        x, foot = LEFT + across(value), TOP + inner_height
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{foot}" y2="{foot + 5}" stroke="{QUIET}"/>')
        parts.append(_text(x, foot + 18, shown_rate(value) if axes.is_log else f"{value:.10g}", anchor="middle", kind="quiet", size=11))
    foot = TOP + inner_height
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{LEFT + inner_width}" y1="{foot}" y2="{foot}" stroke="{QUIET}"/>')
    parts.append(_text(LEFT + inner_width / 2, foot + 38, axes.x_name, anchor="middle"))
    if is_cut:
        parts.append(_text(LEFT + inner_width, foot + 38, "worse values are cut off", anchor="end", kind="quiet", size=11))
    parts.append(f'<text class="ink" transform="translate(14 {TOP + inner_height / 2:.1f}) rotate(-90)" text-anchor="middle" fill="{INK}">'
                 f"{escaped(axes.y_name)}</text>")

    ends = [min(max(down(line.points[-1][1]), 0.0), float(inner_height)) for line in lines]
    heights = spread(ends, LABEL_HEIGHT, 0.0, float(inner_height))
    # The baseline is drawn last, over the others.
    for line, end, label in sorted(zip(lines, ends, heights, strict=True), key=lambda entry: entry[0].place == 0):
        places = [(across(x), down(y)) for x, y in line.points]
        look, colour = _look(line.place), _colour(line.place)
        parts.append(f'<g class="start"><title>{escaped(line.note or line.name)}</title>')
        parts.append(f'<svg x="{LEFT}" y="{TOP}" width="{inner_width}" height="{inner_height}" overflow="hidden">')
        if line.band:
            upper = [(across(x), down(high)) for (x, _), (_, high) in zip(line.points, line.band, strict=True)]
            lower = [(across(x), down(low)) for (x, _), (low, _) in zip(line.points, line.band, strict=True)]
            opacity = 0.16 if len(lines) <= 4 or line.place == 0 else 0.08
            parts.append(f'<path class="area{colour}" d="{_path(upper + lower[::-1])}Z" fill="{LIGHT[colour]}" fill-opacity="{opacity}"/>')
        parts.append(f'<path d="{_path(places)}" {look}/>')
        parts.append("</svg>")
        if axes.has_dots:
            parts += [
                f'<circle class="area{colour}" cx="{LEFT + x:.1f}" cy="{TOP + y:.1f}" r="3" fill="{LIGHT[colour]}"/>'
                for x, y in places if 0 <= y <= inner_height
            ]
        right = LEFT + inner_width
        first = LEFT + min(places[-1][0], inner_width)
        parts.append(f'<path class="leader" d="M{first + 4:.1f} {TOP + end:.1f}L{right + 8} {TOP + end:.1f}L{right + 20} {TOP + label:.1f}" '
                     f'fill="none" stroke="{QUIET}" stroke-width=".6"/>')
        parts.append(f'<path d="M{right + 22} {TOP + label:.1f}h24" {look}/>')
        parts.append(_text(right + 52, TOP + label + 4, _shortened(line.name)))
        parts.append("</g>")
    parts.append("</svg>")
    return "\n".join(parts)


def value_range(lines: Sequence[Line], is_low_better: bool) -> tuple[float, float, bool]:
    """Returns the ends of the axis of values, and True if worse values lie beyond it.

    The axis ends at three times the distance between the best value and the middle one, so that a few bad values do not flatten the rest.
    """
    sign = 1.0 if is_low_better else -1.0
    values = sorted(sign * y for line in lines for _, y in line.points)
    best, middle, worst = values[0], values[len(values) // 2], values[-1]
    limit = min(worst, best + 3 * (middle - best)) if middle > best else worst
    inside = [sign * end for line in lines for band in line.band for end in band if best - (limit - best) <= sign * end <= limit]
    low, high = sorted((sign * min([best, *(sign * value for value in inside)]), sign * limit))
    return *_widened(low, high, 0.04), worst > limit


def ticks(low: float, high: float) -> list[float]:
    """Returns four to ten round numbers between two numbers."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns powers of ten between two positive numbers; with fewer than three of them, also their multiples by 2 and 5."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"1e{power}") for power in powers if low <= 10.0**power <= high]
    if len(found) < 3:
        found = [value for power in powers for factor in (1, 2, 5) if low <= (value := float(f"{factor}e{power}")) <= high]
    return found


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Returns places near the given ones, in the same order, that are at least `gap` apart, and between two ends if they have room."""
    order = sorted(range(len(places)), key=lambda number: places[number])
    found = list(places)
    before = low - gap
    for number in order:
        before = found[number] = max(found[number], before + gap)
    after = high + gap
    for number in reversed(order):
        after = found[number] = min(found[number], after - gap)
    return found


def escaped(text: str) -> str:
    """Returns a text for HTML and XML. Characters that XML cannot hold become question marks."""
    allowed = (char if char in "\t\n" or " " <= char < "\ud800" or "\ue000" <= char < "\ufffe" or char > "\uffff" else "?" for char in text)
    return html.escape("".join(allowed))


def _colour(place: int) -> int:
    return (place - 1) % (len(LIGHT) - 1) + 1 if place else 0


def _look(place: int) -> str:
    colour = _colour(place)
    dash = DASHES[(place - 1) // (len(LIGHT) - 1) % len(DASHES)] if place else ""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'class="line{colour}" fill="none" stroke="{LIGHT[colour]}" stroke-width="{2.6 if place == 0 else 1.8}" stroke-linejoin="round"{dashes}'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "ink", size: int = 12, weight: int = 400) -> str:
    colour = INK if kind == "ink" else QUIET
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}">{escaped(text)}</text>'
    )


def _shortened(name: str) -> str:
    return name if len(name) <= 22 else name[:21] + "…"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    """Returns a range with some more room. A range of one number gets room as well."""
    if high <= low:
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    return low - share * (high - low), high + share * (high - low)
