"""Line charts as SVG, with labels at the ends of the lines.

Colours stand in attributes, so that a chart is complete as a file of its own. A page overrides them by class for its dark form.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .runs import shown_rate
from .scales import log_ticks, spread, ticks, value_range, widened

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
    + "\n  svg .ink { fill: #e6e9ed; } svg .quiet { fill: #9aa4b0; }"
    "\n  svg .grid { stroke: #363d46; } svg .axis, svg .leader { stroke: #9aa4b0; }\n}\n"
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


@dataclass
class Frame:
    """The place of the lines in a chart: `LEFT` and `TOP` from its corner, with its size in pixels and the ranges of its axes."""

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    is_log: bool

    def across(self, x: float) -> float:
        """Returns the distance from the left edge."""
        low, high = self.x_range
        return self.width * ((math.log10(x) if self.is_log else x) - low) / (high - low)

    def down(self, y: float) -> float:
        """Returns the distance from the upper edge."""
        low, high = self.y_range
        # A number far outside of the chart is as good as another one, and some programs cannot read long ones.
        return max(-9 * self.height, min(9 * self.height, self.height * (high - y) / (high - low)))


def chart(lines: Sequence[Line], axes: Axes, is_alone: bool) -> str:
    """Returns a chart as an `svg` element. `is_alone` makes it a file of its own, with a white background."""
    lines = [line for line in lines if line.points]
    height = max(HEIGHT, TOP + BOTTOM + LABEL_HEIGHT * len(lines))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escaped(axes.title)}</title>",
    ]
    if is_alone:
        parts.append(f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>')
    parts.append(_text(LEFT, 18, axes.title, size=14, weight=600))
    if lines:
        xs = [math.log10(x) if axes.is_log else x for line in lines for x, _ in line.points]
        values = [y for line in lines for _, y in line.points]
        *y_range, is_cut = value_range(values, [end for line in lines for band in line.band for end in band], axes.is_low_better)
        x_range = widened(min(xs), max(xs), 0.03 if axes.is_log else 0.0)
        frame = Frame(WIDTH - LEFT - RIGHT, height - TOP - BOTTOM, x_range, (y_range[0], y_range[1]), axes.is_log)
        parts += _axes(frame, axes, is_cut)
        ends = [min(max(frame.down(line.points[-1][1]), 0.0), frame.height) for line in lines]
        labels = spread(ends, LABEL_HEIGHT, 0.0, frame.height)
        # The baseline is drawn last, over the others.
        for line, end, label in sorted(zip(lines, ends, labels, strict=True), key=lambda entry: entry[0].place == 0):
            band_opacity = 0.16 if len(lines) <= 4 or line.place == 0 else 0.08
            parts += _line(frame, line, band_opacity, axes.has_dots, end, label)
    else:
        parts.append(_text(LEFT, TOP + 30, "There are no runs yet.", kind="quiet"))
    return "\n".join([*parts, "</svg>"])


def _axes(frame: Frame, axes: Axes, is_cut: bool) -> list[str]:
    """Returns the lines, numbers and names of the axes."""
    parts = []
    right, foot = LEFT + frame.width, TOP + frame.height
    for value in ticks(*frame.y_range):
        y = TOP + frame.down(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{value:.10g}", anchor="end", kind="quiet", size=11))
    low, high = frame.x_range
    for value in log_ticks(10**low, 10**high) if axes.is_log else ticks(low, high):
        x = LEFT + frame.across(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{foot}" y2="{foot + 5}" stroke="{QUIET}"/>')
        parts.append(_text(x, foot + 18, shown_rate(value) if axes.is_log else f"{value:.10g}", anchor="middle", kind="quiet", size=11))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{foot}" y2="{foot}" stroke="{QUIET}"/>')
    parts.append(_text(LEFT + frame.width / 2, foot + 38, axes.x_name, anchor="middle"))
    if is_cut:
        parts.append(_text(right, foot + 38, "worse values are cut off", anchor="end", kind="quiet", size=11))
    middle = TOP + frame.height / 2
    parts.append(
        f'<text class="ink" transform="translate(14 {middle:.1f}) rotate(-90)" text-anchor="middle" fill="{INK}">'
        f"{escaped(axes.y_name)}</text>"
    )
    return parts


def _line(frame: Frame, line: Line, band_opacity: float, has_dots: bool, end: float, label: float) -> list[str]:
    """Returns a line with its band and dots, and its name beside its end. `label` is the height of the name."""
    look, colour = _look(line.place), _colour(line.place)
    places = [(frame.across(x), frame.down(y)) for x, y in line.points]
    # An inner drawing cuts what lies outside of the frame.
    parts = [
        f'<g class="start"><title>{escaped(line.note or line.name)}</title>',
        f'<svg x="{LEFT}" y="{TOP}" width="{frame.width}" height="{frame.height}" overflow="hidden">',
    ]
    if line.band:
        upper = [(x, frame.down(high)) for (x, _), (_, high) in zip(places, line.band, strict=True)]
        lower = [(x, frame.down(low)) for (x, _), (low, _) in zip(places, line.band, strict=True)]
        area = _path(upper + lower[::-1]) + "Z"
        parts.append(f'<path class="area{colour}" d="{area}" fill="{LIGHT[colour]}" fill-opacity="{band_opacity}"/>')
    parts += [f'<path d="{_path(places)}" {look}/>', "</svg>"]
    if has_dots:
        parts += [
            f'<circle class="area{colour}" cx="{LEFT + x:.1f}" cy="{TOP + y:.1f}" r="3" fill="{LIGHT[colour]}"/>'
            for x, y in places if 0 <= y <= frame.height
        ]
    right, last = LEFT + frame.width, LEFT + places[-1][0]
    leader = [(last + 4, TOP + end), (right + 8, TOP + end), (right + 20, TOP + label)]
    parts.append(f'<path class="leader" d="{_path(leader)}" fill="none" stroke="{QUIET}" stroke-width=".6"/>')
    parts.append(f'<path d="M{right + 22} {TOP + label:.1f}h24" {look}/>')
    parts.append(_text(right + 52, TOP + label + 4, _shortened(line.name)))
    return [*parts, "</g>"]


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
    width = 2.6 if place == 0 else 1.8
    return f'class="line{colour}" fill="none" stroke="{LIGHT[colour]}" stroke-width="{width}" stroke-linejoin="round"{dashes}'


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
