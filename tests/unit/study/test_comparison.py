"""Paired differences and their adjustment, against scipy and an example worked by hand."""

import pytest
from scipy import stats

from minitron_cli.study.comparison import Paired, holm

HIGHER, LOWER = (2.61, 2.58, 2.66, 2.60), (2.55, 2.57, 2.56, 2.59)


def test_a_paired_difference_is_that_of_scipys_paired_t_test():
    pair = Paired(tuple(h - low for h, low in zip(HIGHER, LOWER, strict=True)))
    expected = stats.ttest_rel(HIGHER, LOWER)
    assert pair.p_value == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert (pair.mean - pair.half_width, pair.mean + pair.half_width) == pytest.approx((low, high))
    assert pair.as_expected == 4


def test_runs_that_no_seed_changes_say_nothing_of_other_seeds():
    assert Paired((0.0, 0.0)).p_value == 1.0
    assert Paired((0.25, 0.25)).p_value == 1.0
    assert not Paired((0.25, 0.25)).is_drawn
    assert (Paired((0.25,)).p_value, Paired((0.25,)).mean) == (1.0, 0.25)
    assert not Paired((0.25,)).is_drawn
    assert Paired((0.25, 0.26)).is_drawn


@pytest.mark.parametrize("differences", [(0.1, 0.3), (0.1, 0.3, 0.2), (0.1, 0.3, 0.2, 0.25, 0.05, 0.3)])
@pytest.mark.parametrize("orders", [1, 2, 9])
def test_the_difference_that_is_seen_is_found_four_times_in_five(differences, orders):
    """At the level that Holm's first step asks of the lowest p-value; against the noncentral t of another routine."""
    pair = Paired(differences)
    freedom = len(differences) - 1
    smallest = stats.t.isf(0.025 / orders, freedom)
    power = stats.nct.sf(smallest, freedom, pair.smallest_seen(orders) / pair.stderr)
    assert power == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize(("seeds", "errors"), [(2, 16.334), (3, 5.653), (5, 3.761)])
def test_few_seeds_see_large_differences_only(seeds, errors):
    """Not the sum of two quantiles of t, which is 14.08, 5.36 and 3.72 standard errors."""
    pair = Paired(tuple(0.1 * i for i in range(seeds)))
    assert pair.smallest_seen(1) / pair.stderr == pytest.approx(errors, abs=1e-3)


@pytest.mark.parametrize("differences", [(0.4, 0.4 + 4e-15, 0.4), (1e-17, 0.0, -1e-17), (-0.3, -0.3 - 1e-16)])
def test_seeds_that_differ_by_rounding_say_nothing_of_others(differences):
    assert not Paired(differences).is_drawn
    assert Paired(differences).p_value == 1.0
    assert Paired((0.4, 0.4 + 1e-6)).is_drawn


def test_holms_example():
    """0.01 * 4, 0.02 * 3, 0.03 * 2 and 0.04, none lower than the one before."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
