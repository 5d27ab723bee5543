"""Intervals, mean curves and steps to reach a value, against published numbers and values worked out by hand."""

import math
import random
import statistics as standard

import pytest

from cntlora.comparison.statistics import first_step, mean_curve, mean_of, t_probability, t_quantile

# The two-sided 95 % and 99 % points of Student's t, from the tables of textbooks.
POINTS = {
    1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604), 5: (2.571, 4.032), 9: (2.262, 3.250),
    10: (2.228, 3.169), 19: (2.093, 2.861), 30: (2.042, 2.750), 60: (2.000, 2.660), 120: (1.980, 2.617),
}


@pytest.mark.parametrize("degrees", POINTS)
def test_quantiles_of_t_are_those_of_published_tables(degrees):
    assert t_quantile(degrees) == pytest.approx(POINTS[degrees][0], abs=6e-4)
    assert t_quantile(degrees, 0.99) == pytest.approx(POINTS[degrees][1], abs=6e-4)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 8, 25])
def test_the_probability_of_t_is_the_integral_of_its_density(degrees):
    """The density, integrated by Simpson's rule, shares nothing with the finite sums."""
    factor = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    for t in (0.3, 1.0, 2.5, 6.0):
        count = 4000
        values = [factor * (1 + (t * place / count) ** 2 / degrees) ** (-(degrees + 1) / 2) for place in range(count + 1)]
        integral = t / count / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))
        assert t_probability(t, degrees) == pytest.approx(2 * integral, abs=1e-9)


def test_quantiles_approach_those_of_the_normal_distribution():
    assert t_quantile(5000) == pytest.approx(1.9604, abs=1e-4)
    assert all(t_quantile(degrees) > t_quantile(degrees + 1) for degrees in range(1, 60))


def test_a_mean_and_its_interval():
    """The numbers 1 to 5: mean 3, deviation √2.5, half of the interval 2.776 · √2.5 / √5."""
    mean = mean_of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean.mean, mean.count) == (3.0, 5)
    assert mean.high - 3 == pytest.approx(1.9632, abs=1e-3) and 3 - mean.low == pytest.approx(1.9632, abs=1e-3)


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    rng = random.Random(1)
    samples = [mean_of([rng.gauss(2.0, 3.0) for _ in range(5)]) for _ in range(4000)]
    assert 0.94 < standard.fmean(mean.low <= 2.0 <= mean.high for mean in samples) < 0.96


def test_few_numbers():
    assert mean_of([]) is None
    one = mean_of([0.1])
    assert (one.mean, one.low, one.high, one.count) == (0.1, None, None, 1)
    # The sum of equal numbers must leave no rounding error.
    same = mean_of([0.1, 0.1, 0.1])
    assert (same.mean, same.low, same.high) == (0.1, 0.1, 0.1)


def test_a_mean_curve():
    curve = mean_curve([[(0, 4.0), (10, 2.0)], [(0, 2.0), (10, 0.0)]])
    assert curve.steps == [0, 10] and [mean.mean for mean in curve.means] == [3.0, 1.0]
    # Student's t with one degree of freedom: 12.706 · √2 / √2.
    assert curve.means[0].high - 3.0 == pytest.approx(12.706, abs=1e-3)
    assert mean_curve([]) is None and mean_curve([[]]) is None


def test_a_mean_curve_of_different_steps_covers_what_all_cover():
    curve = mean_curve([[(0, 0.0), (10, 10.0)], [(5, 1.0), (20, 1.0)]])
    assert curve.steps == [5, 10]
    assert [mean.mean for mean in curve.means] == [3.0, 5.5]
    assert mean_curve([[(0, 1.0)], [(5, 1.0)]]) is None


@pytest.mark.parametrize("points, target, is_higher_better, wanted", [
    ([(0, 4.0), (10, 2.0), (20, 1.0)], 3.0, False, 5.0),
    ([(0, 4.0), (10, 2.0), (20, 1.0)], 1.0, False, 20.0),
    ([(0, 4.0), (10, 2.0), (20, 1.0)], 0.9, False, None),
    ([(0, 4.0), (10, 2.0), (20, 3.5)], 2.5, False, 7.5),
    ([(3, 0.9), (10, 2.0)], 1.0, False, 3),
    ([(0, 0.0), (10, 0.5), (20, 1.0)], 0.75, True, 15.0),
    ([(0, 0.0), (10, 0.5)], 0.6, True, None),
    # A flat part at the target has no slope to divide by.
    ([(0, 1.0), (10, 1.0)], 1.0, True, 0),
    ([], 1.0, True, None),
])
def test_the_first_step_that_reaches_a_value(points, target, is_higher_better, wanted):
    assert first_step(points, target, is_higher_better) == wanted
