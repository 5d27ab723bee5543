"""The ranges of axes, round numbers on them, and places of labels."""

from __future__ import annotations

import math
from collections.abc import Sequence


def value_range(values: Sequence[float], ends: Sequence[float], is_low_better: bool) -> tuple[float, float, bool]:
    """Returns the ends of the axis for the values of lines and the ends of their bands, and True if worse values lie beyond it.

    The axis ends at three times the distance between the best value and the middle one, so that a few bad values do not flatten the rest.
    """
    sign = 1.0 if is_low_better else -1.0
    ordered = sorted(sign * value for value in values)
    best, middle, worst = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    limit = min(worst, best + 3 * (middle - best)) if middle > best else worst
    # Bands may need more room on the better side, but no more than the lines have.
    best_end = min([best, *(sign * end for end in ends if sign * end >= best - (limit - best))])
    low, high = sorted((sign * best_end, sign * limit))
    return *widened(low, high, 0.04), worst > limit


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


def widened(low: float, high: float, share: float) -> tuple[float, float]:
    """Returns a range with some more room. A range of one number gets room as well."""
    if high <= low:
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    return low - share * (high - low), high + share * (high - low)
