"""Which runs a comparison needs, which rate it chooses, and what it concludes, on runs made up for the purpose."""

import pytest

from cntlora.comparison.plan import Key, count_ahead, grid_of, missing
from cntlora.comparison.results import Comparison
from cntlora.comparison.summary import results_of
from cntlora.comparison.table import number
from compared import made_runs

NAN = "diverged at step 4: loss is nan"


def tuned(*values):
    """Returns tuning runs: at the rate 0.1 and so on, both seeds end with the value."""
    rates = (0.1, 1.0, 10.0)
    return {rate: {seed: value if isinstance(value, str) else [9.0, value] for seed in (0, 1)} for rate, value in zip(rates, values)}


def reported(rate, ends):
    return {rate: {seed: end if isinstance(end, str) else [8.0, (8.0 + end) / 2, end] for seed, end in zip((2, 3, 4), ends)}}


def compared(ends, other=None, **changes):
    """Returns the result of the start `other`, whose report runs end with `ends`; the baseline ends with 1, 2 and 3."""
    values = {
        "lora": {"tuning": tuned(5.0, 4.0), "report": reported(1.0, other or (1.0, 2.0, 3.0))},
        "other": {"tuning": tuned(3.0, 7.0), "report": reported(0.1, ends)},
    }
    return results_of(made_runs(values, **changes))["other"]


def test_differences_are_paired_by_seed():
    """The starts spread over seeds far more than they differ, so only pairs can tell them apart."""
    result = compared((0.9, 1.8, 2.9))
    assert result.rate == 0.1 and result.last.mean == pytest.approx(5.6 / 3)
    assert result.difference.mean == pytest.approx(-0.4 / 3) and result.difference.count == 3
    # Deviation of -0.1, -0.2 and -0.1 is 0.057735; Student's t with two degrees of freedom is 4.30265.
    assert result.difference.high - result.difference.mean == pytest.approx(4.30265 * 0.0577350 / 3**0.5, rel=1e-5)
    assert result.verdict == "not distinguished"
    assert compared((0.9, 1.89, 2.9)).verdict == "better"
    assert compared((0.9, 1.89, 2.9), better="higher").verdict is None, "the other rate is better then, and has no runs"
    assert compared((1.1, 2.11, 3.1)).verdict == "worse"


def test_better_can_be_higher():
    values = {
        "lora": {"tuning": tuned(5.0, 4.0), "report": reported(0.1, (1.0, 2.0, 3.0))},
        "other": {"tuning": tuned(3.0, 7.0), "report": reported(1.0, (1.1, 2.11, 3.1))},
    }
    results = results_of(made_runs(values, better="higher"))
    assert (results["lora"].rate, results["other"].rate, results["other"].verdict) == (0.1, 1.0, "better")


def test_lost_runs_cannot_make_a_start_better():
    """Without the run that diverged, the start would look better by its other runs."""
    assert compared((0.9, NAN, 2.9)).verdict == "not distinguished"
    assert compared((0.9, 1.8, 2.9), other=(1.0, 2.0, NAN)).verdict == "not distinguished"
    assert compared((1.1, NAN, 3.1001)).verdict == "worse"
    assert compared((1.1, 2.1, 3.1001), other=(1.0, 2.0, NAN)).verdict == "not distinguished"
    lost = compared((NAN, NAN, "the training failed: OSError"))
    assert (lost.verdict, lost.last, lost.difference, lost.steps) == ("worse", None, None, None)
    assert lost.failures == {"diverged": 2, "the training failed: OSError": 1}
    assert compared((1.0, 1.0, 1.0), other=(NAN, NAN, NAN)).verdict is None


def test_there_is_no_verdict_before_all_report_runs_exist():
    result = compared((0.9, 1.89))
    assert result.difference.count == 2 and result.verdict is None and (result.runs, result.wanted) == (2, 3)
    assert compared((0.9, 1.89, 2.9), other=(1.0, 2.0)).verdict is None


def test_steps_to_reach_the_end_of_the_baseline():
    """The baseline ends with 2 on average. The mean curve of the start is 8, 4.5, 1: it crosses 2 between the steps 10 and 20."""
    assert compared((1.0, 1.0, 1.0)).steps == pytest.approx(10 + 10 * 2.5 / 3.5)
    assert compared((2.0, 2.0, 2.1)).steps is None
    assert compared((1.0, 1.0, NAN)).steps is None


def test_the_area_covers_shared_rates_and_finished_runs_only():
    values = {"lora": {"tuning": {
        0.1: {0: [5.0], 1: [3.0]}, 1.0: {0: [1.0], 1: NAN}, 0.01: {0: [100.0], 1: [100.0]}, 10.0: {0: [4.0], 1: [4.0]},
    }}}
    result = results_of(made_runs(values, extend=1))["lora"]
    # The rate with a run that diverged is worse than any other, so the best one is 0.1, and 0.01 was added.
    assert result.rate == 0.1 and result.area == pytest.approx((5 + 3 + 1) / 3)
    assert [(entry.rate, entry.mean, entry.values) for entry in result.grid] == [
        (0.01, 100.0, [100.0, 100.0]), (0.1, 4.0, [5.0, 3.0]), (1.0, 1.0, [1.0, None]),
    ]
    assert result.failures == {"diverged": 1} and result.seconds == 1.5 and result.parameters == 12


def test_the_tuning_seeds_alone_choose_the_rate():
    """The report runs say otherwise, and a run of the other phase must not count."""
    values = {"lora": {"tuning": tuned(5.0, 4.0), "report": {0.1: {2: [0.0], 3: [0.0], 4: [0.0]}}}}
    runs = made_runs(values)
    assert grid_of(runs, "lora").chosen == 1.0
    assert missing(runs) == [Key("report", "lora", 1.0, seed) for seed in (2, 3, 4)]
    assert results_of(runs)["lora"].last is None


def test_ties_go_to_the_lower_rate():
    assert grid_of(made_runs({"lora": {"tuning": tuned(4.0, 4.0)}}), "lora").chosen == 0.1
    assert grid_of(made_runs({"lora": {"tuning": tuned(4.0, 4.0)}}, better="higher"), "lora").chosen == 0.1


def test_the_grid_grows_while_the_best_rate_lies_at_an_end():
    runs = made_runs({"lora": {"tuning": tuned(5.0, 4.0)}}, extend=2)
    assert grid_of(runs, "lora").missing == [10.0] and grid_of(runs, "lora").chosen is None
    assert missing(runs) == [Key("tuning", "lora", 10.0, seed) for seed in (0, 1)]
    grown = grid_of(made_runs({"lora": {"tuning": tuned(5.0, 4.0, 4.5)}}, extend=2), "lora")
    assert (grown.rates, grown.chosen, grown.is_at_end) == ([0.1, 1.0, 10.0], 1.0, False)
    # The grid stops to grow after `extend` rates, and the result says so.
    ended = grid_of(made_runs({"lora": {"tuning": tuned(5.0, 4.0, 3.0)}}, extend=1), "lora")
    assert (ended.rates, ended.chosen, ended.is_at_end) == ([0.1, 1.0, 10.0], 10.0, True)
    runs = made_runs({"lora": {"tuning": tuned(5.0, 4.0, 3.0)}}, extend=1)
    comparison = Comparison(runs.plan, runs)
    assert "The best rate of lora, 10, lies at the end of its grid" in str(comparison)


def test_a_start_that_diverges_everywhere_gets_lower_rates():
    runs = made_runs({"lora": {"tuning": tuned(NAN, NAN)}}, extend=2)
    assert grid_of(runs, "lora").missing == [0.01]
    ended = made_runs({"lora": {"tuning": tuned(NAN, NAN)}})
    assert grid_of(ended, "lora").chosen is None and missing(ended) == [] and count_ahead(ended) == 0
    text = str(Comparison(ended.plan, ended))
    assert "No run of lora finished." in text and "lora: 4 runs: diverged" in text


def test_a_start_that_fails_is_left_alone():
    runs = made_runs({"lora": {}, "other": {"tuning": {0.1: {0: "the start failed: OSError: no\n\x1b[31mfile"}}}})
    assert {key.start for key in missing(runs)} == {"lora"}
    text = str(Comparison(runs.plan, runs))
    assert "other: 1 run: the start failed: OSError: no ?[31mfile" in text
    # A start that failed once and trained once is not given up.
    both = made_runs({"lora": {"tuning": {0.1: {0: "the start failed: OSError", 1: [1.0]}}}})
    assert [key.rate for key in missing(both)] == [1.0, 1.0]


def test_partial_results_are_of_use():
    """All starts and rates come for one tuning seed, then for the next; then the report seeds one after another."""
    runs = made_runs({"lora": {}, "other": {}})
    keys = missing(runs)
    assert keys[:4] == [Key("tuning", start, rate, 0) for rate in (0.1, 1.0) for start in ("lora", "other")]
    assert [key.seed for key in keys] == [0] * 4 + [1] * 4 and count_ahead(runs) == 8 + 6
    runs = made_runs({"lora": {"tuning": tuned(5.0, 4.0)}, "other": {"tuning": tuned(3.0, 7.0)}})
    assert missing(runs)[:2] == [Key("report", "lora", 1.0, 2), Key("report", "other", 0.1, 2)] and count_ahead(runs) == 6
    text = str(Comparison(runs.plan, runs))
    assert "0 of 3 runs" in text and "at least 6 runs are missing" in text


def test_the_table_orders_starts_by_their_result():
    values = {
        "lora": {"tuning": tuned(5.0, 4.0), "report": reported(1.0, (1.0, 2.0, 3.0))},
        "none": {"tuning": tuned(NAN, NAN)},
        "other": {"tuning": tuned(3.0, 7.0), "report": reported(0.1, (0.9, 1.89, 2.9))},
    }
    runs = made_runs(values)
    lines = str(Comparison(runs.plan, runs)).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["start", "other", "lora", "none"]
    assert lines[1].split("  ")[0] == "other" and "1.9 ± 2.5" in lines[1] and "−0.103" in lines[1] and "better" in lines[1]
    assert "baseline" in lines[2]
    assert repr(Comparison(runs.plan, runs)) == "<cntlora.Comparison: 3 starts, 18 runs, 0 missing>"


def test_another_baseline():
    """The same runs, compared with another start."""
    values = {
        "lora": {"tuning": tuned(5.0, 4.0), "report": reported(1.0, (1.0, 2.0, 3.0))},
        "other": {"tuning": tuned(3.0, 7.0), "report": reported(0.1, (0.9, 1.89, 2.9))},
    }
    runs = made_runs(values)
    found = Comparison(runs.plan, runs).against("other")
    assert found.results["lora"].difference.mean == pytest.approx(0.31 / 3) and found.results["lora"].verdict == "worse"
    assert found.results["other"].verdict is None and "difference from other" in str(found)
    with pytest.raises(ValueError, match="the comparison has no start 'third': it has 'lora', 'other'"):
        found.against("third")


@pytest.mark.parametrize("value, digits, text", [
    (None, 4, "–"), (0.0, 4, "0"), (12.0, 4, "12"), (400, 4, "400"), (0.34, 4, "0.3400"), (0.65551, 4, "0.6555"), (-0.5, 3, "−0.500"), (123456.0, 4, "1.235e+05"),
    (0.0001234, 2, "0.00012"), (1.2e-12, 3, "1.2e-12"),
])
def test_numbers_in_tables(value, digits, text):
    assert number(value, digits) == text


def test_against_another_baseline_the_differences_change_sides():
    values = {
        "lora": {"tuning": tuned(5.0, 4.0), "report": reported(1.0, (1.0, 2.0, 3.0))},
        "other": {"tuning": tuned(3.0, 7.0), "report": reported(0.1, (0.9, 1.89, 2.9))},
    }
    runs = made_runs(values)
    comparison = Comparison(runs.plan, runs)
    turned = comparison.against("other").results
    assert comparison.results["other"].verdict == "better" and turned["lora"].verdict == "worse"
    assert turned["lora"].difference.mean == pytest.approx(-comparison.results["other"].difference.mean)
    assert turned["other"].difference is None
    with pytest.raises(ValueError, match="the comparison has no start 'third': it has 'lora', 'other'"):
        comparison.against("third")
