"""Means and their intervals, curves over steps, and the step at which a curve reaches a value."""

from __future__ import annotations

import bisect
import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Probability that an interval holds the true mean.
LEVEL = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean with its interval. With one number there is no interval, and both ends are None."""

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Curve:
    """The mean of curves with an interval at each step."""

    steps: list[float]
    means: list[Mean]


def mean_of(values: Sequence[float]) -> Mean | None:
    """Returns the mean and its interval by Student's t; None without numbers."""
    if not values:
        return None
    # A mean of floats can lie outside of them by a rounding error, and a difference of equal numbers must be zero.
    mean = values[0] if min(values) == max(values) else math.fsum(values) / len(values)
    if len(values) == 1:
        return Mean(mean, None, None, 1)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(mean, mean - half, mean + half, len(values))


@functools.cache
def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """Returns the number t such that Student's t with these degrees of freedom lies within ±t with the probability `level`."""
    low, high = 0.0, 1.0
    while t_probability(high, degrees) < level:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if t_probability(middle, degrees) < level else (low, middle)
    return high


def t_probability(t: float, degrees: int) -> float:
    """Returns the probability that Student's t with whole degrees of freedom lies within ±t, by its finite sum in the angle atan(t/√ν)."""
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term, total = (cosine if is_odd else 1.0), 0.0
    for number in range(1 + is_odd, degrees, 2):
        total += term
        term *= cosine * cosine * number / (number + 1)
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> Curve | None:
    """Returns the mean of curves, each a list of steps and values in order of step; None without curves.

    Curves may have different steps: values in between are interpolated linearly. The mean covers the steps that all curves cover.
    """
    if not curves or not all(curves):
        return None
    first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    steps = sorted({step for curve in curves for step, _ in curve if first <= step <= last})
    means = [mean_of([_value_at(curve, step) for curve in curves]) for step in steps]
    return Curve(steps, [mean for mean in means if mean is not None]) if steps else None


def _value_at(curve: Sequence[tuple[float, float]], step: float) -> float:
    place = bisect.bisect_left(curve, step, key=lambda point: point[0])
    after_step, after = curve[place]
    if after_step == step:
        return after
    before_step, before = curve[place - 1]
    return before + (after - before) * (step - before_step) / (after_step - before_step)


def first_step(points: Sequence[tuple[float, float]], target: float, is_higher_better: bool) -> float | None:
    """Returns the step at which a curve first is as good as the target, interpolated linearly; None if it never is."""

    def lacking(value: float) -> float:
        return target - value if is_higher_better else value - target

    for place, (step, value) in enumerate(points):
        if lacking(value) <= 0:
            if place == 0:
                return step
            before_step, before = points[place - 1]
            return before_step + (step - before_step) * lacking(before) / (lacking(before) - lacking(value))
    return None
