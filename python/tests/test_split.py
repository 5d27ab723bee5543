"""`Statistics.split`: sites are separated when their modules begin to read different rows."""

import numpy as np
import pytest
import torch

import oracle
from cntlora._cntlora import Error, Statistics


def add(statistics, site, rows):
    statistics.add_rows(site, rows.data_ptr(), tuple(rows.shape), rows.stride(), "F32")


def saved(statistics, tmp_path):
    statistics.save(str(tmp_path / "x.moments.safetensors"), "test")
    return oracle.saved(tmp_path / "x.moments.safetensors")


def test_both_sites_keep_the_rows_before_and_have_their_own_after(tmp_path):
    """Also when the first rows come from a file, and when the sums are merged and saved later."""
    first, left, right = torch.randn(100, 4), torch.randn(3, 4), torch.randn(7, 4)
    statistics = Statistics()
    statistics.declare("q", ["q", "k", "v"], 4)
    add(statistics, "q", first)
    saved(statistics, tmp_path)
    for one in (statistics, Statistics.load([str(tmp_path / "x.moments.safetensors")])):
        one.split("q", ["v", "k"], "k")
        add(one, "q", left)
        add(one, "k", right)
        found, sites, _ = saved(one, tmp_path)
        assert sites == {"q": ["q"], "k": ["k", "v"]}
        oracle.check(found["q"], torch.cat([first, left]).double().numpy(), "q")
        oracle.check(found["k"], torch.cat([first, right]).double().numpy(), "k")
        copy = Statistics.from_bytes(one.to_bytes())
        other = Statistics()
        other.declare("k", ["k", "v"], 4)
        add(other, "k", left)
        copy.merge(other)
        assert copy.sites()["k"].rows == 110 and copy.sites()["q"].rows == 103


def test_all_modules_take_the_sums_to_a_new_name(tmp_path):
    tokens = torch.tensor([0, 2, 2])
    statistics = Statistics()
    statistics.declare("a", ["a", "b"], 4, tokens=True)
    statistics.add_tokens("a", tokens.data_ptr(), 3)
    statistics.split("a", ["a", "b"], "a")
    statistics.split("a", ["a", "b"], "b")
    found, sites, _ = saved(statistics, tmp_path)
    assert sites == {"b": ["a", "b"]} and np.array_equal(found["b"]["tokens"], [1, 0, 2, 0])
    statistics.split("b", ["a"], "a")
    statistics.add_tokens("a", tokens.data_ptr(), 1)
    assert {name: site.rows for name, site in statistics.sites().items()} == {"a": 4, "b": 3}


def test_rows_that_were_skipped_stay_counted():
    rows = torch.tensor([[1.0, 2.0], [torch.nan, 1.0]])
    statistics = Statistics(nonfinite="skip-rows")
    statistics.declare("a", ["a", "b"], 2)
    add(statistics, "a", rows)
    statistics.split("a", ["b"], "b")
    add(statistics, "b", rows)
    assert {name: (site.rows, site.skipped) for name, site in statistics.sites().items()} == {"a": (1, 1), "b": (2, 2)}


def test_a_site_without_rows_can_be_separated():
    statistics = Statistics()
    statistics.declare("a", ["a", "b"], 2)
    statistics.split("a", ["b"], "b")
    add(statistics, "b", torch.ones(3, 2))
    assert {name: site.rows for name, site in statistics.sites().items()} == {"a": 0, "b": 3}


@pytest.mark.parametrize("site, modules, new, message", [
    ("c", ["a"], "x", 'site "c": was not declared'),
    ("a", [], "x", 'site "a": no modules were given'),
    ("a", ["a", "x"], "x", 'site "a": has no module "x"'),
    ("a", ["b"], "d", 'site "a": cannot be divided: there is a site "d" already'),
    ("a", ["b"], "a", 'site "a": cannot be divided: there is a site "a" already'),
])
def test_wrong_divisions_are_refused(site, modules, new, message):
    statistics = Statistics()
    statistics.declare("a", ["a", "b"], 2)
    statistics.declare("d", ["d"], 2)
    with pytest.raises(Error) as refused:
        statistics.split(site, modules, new)
    assert (str(refused.value), refused.value.category) == (message, "usage")
    assert {name: site.modules for name, site in statistics.sites().items()} == {"a": ["a", "b"], "d": ["d"]}
