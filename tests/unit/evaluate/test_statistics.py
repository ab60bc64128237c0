import math
from fractions import Fraction

import numpy as np
import pytest

from minitron_cli.evaluate.statistics import Items, compare, compare_exponentials, interval, mcnemar, student_t

DRAWS = 4000


def clustered(seed, groups=60, largest=12, weighted=False):
    """Two models on items in groups of unequal sizes; each has a difficulty and a gap of its own."""
    source = np.random.default_rng(seed)
    sizes = source.integers(1, largest + 1, groups)
    groups_I = np.repeat(np.arange(groups), sizes)
    difficulty, gap = source.normal(0, 1, groups)[groups_I], source.normal(0.3, 0.5, groups)[groups_I]
    parent_I = difficulty + source.normal(2, 0.3, len(groups_I))
    weights = source.integers(1, 50, len(groups_I)).tolist() if weighted else None
    model = Items((parent_I + gap + source.normal(0, 0.2, len(groups_I))).tolist(), weights, groups_I.tolist())
    return model, Items(parent_I.tolist(), weights, groups_I.tolist())


def bootstrap(model, parent, statistic):
    """The spread of a statistic of both models' means when whole groups are drawn again."""
    source = np.random.default_rng(1)
    weights = np.ones(len(model.values)) if model.weights is None else np.array(model.weights, float)
    groups = np.arange(len(model.values)) if model.groups is None else np.array(model.groups)
    count = groups.max() + 1

    def sums(values):
        return np.array([(values * weights)[groups == g].sum() for g in range(count)])

    totals = np.array([weights[groups == g].sum() for g in range(count)])
    drawn = source.integers(count, size=(DRAWS, count))
    means = [sums(np.array(items.values))[drawn].sum(1) / totals[drawn].sum(1) for items in (model, parent)]
    return statistic(*means).std()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_standard_errors_are_those_of_a_bootstrap_over_groups(seed, weighted):
    model, parent = clustered(seed, weighted=weighted)
    found = compare(model, parent)
    assert found.stderr == pytest.approx(bootstrap(model, parent, np.subtract), rel=0.1)
    assert found.ratio_stderr == pytest.approx(bootstrap(model, parent, np.divide), rel=0.1)
    assert model.stderr == pytest.approx(bootstrap(model, parent, lambda m, p: m), rel=0.1)


@pytest.mark.parametrize("seed", [0, 1])
def test_standard_errors_of_independent_right_and_wrong_answers_are_those_of_a_bootstrap(seed):
    source = np.random.default_rng(seed)
    parent = (source.random(400) < 0.7).astype(float)
    model = np.where(source.random(400) < 0.15, 1 - parent, parent)
    model, parent = Items(model.tolist()), Items(parent.tolist())
    found = compare(model, parent)
    assert found.stderr == pytest.approx(bootstrap(model, parent, np.subtract), rel=0.1)
    assert found.ratio_stderr == pytest.approx(bootstrap(model, parent, np.divide), rel=0.1)


def test_errors_that_ignore_groups_or_pairs_are_far_off():
    """What the test above would not forgive."""
    model, parent = clustered(0)
    truth = bootstrap(model, parent, np.subtract)
    alone = compare(Items(model.values), Items(parent.values))
    assert alone.stderr < 0.7 * truth
    assert math.hypot(model.stderr, parent.stderr) > 1.5 * truth


def test_the_difference_is_that_of_the_weighted_means():
    found = compare(Items([1.0, 5.0], [3, 1]), Items([0.0, 1.0], [3, 1]))
    assert found.difference == pytest.approx(2 - 0.25)
    assert found.ratio == pytest.approx(8)


def test_equal_models_are_not_apart_and_a_single_group_has_no_error():
    items = Items([0.0, 1.0, 1.0])
    found = compare(items, items)
    assert (found.difference, found.stderr, found.ratio, found.mcnemar) == (0, 0, 1, 1)
    alone = compare(Items([0.0], groups=[4]), Items([1.0], groups=[4]))
    assert (alone.difference, alone.stderr, alone.low, alone.clusters) == (-1, None, None, 1)


def leave_one_out(values, weights, groups):
    """Standard error by the jackknife, as its definition says: the mean again without each group."""
    values, weights, groups = np.array(values), np.array(weights, float), np.array(groups)
    mean, names = np.average(values, weights=weights), sorted(set(groups.tolist()))
    others = [np.average(values[groups != g], weights=weights[groups != g]) for g in names]
    return math.sqrt((len(names) - 1) / len(names) * sum((other - mean) ** 2 for other in others))


@pytest.mark.parametrize("seed", range(5))
def test_the_standard_error_is_that_of_leaving_out_one_document_after_the_other(seed):
    """One document has half of the tokens, and items of a document are far from each other in the order."""
    source = np.random.default_rng(seed)
    groups = source.permutation(np.repeat(np.arange(12), source.integers(1, 9, 12))) * 7
    weights = source.integers(1, 50, len(groups))
    weights[groups == 0] = -(-weights[groups != 0].sum() // (groups == 0).sum())
    model, parent = (Items(v.tolist(), weights.tolist(), groups.tolist()) for v in source.normal(size=(2, len(groups))))
    found = compare(model, parent)
    assert model.stderr == pytest.approx(leave_one_out(model.values, weights, groups))
    apart = np.subtract(model.values, parent.values)
    assert found.stderr == pytest.approx(leave_one_out(apart, weights, groups))
    totals = np.bincount(groups // 7, weights)
    effective = totals.sum() ** 2 / (totals**2).sum()
    assert 2 < effective < 5
    assert found.degrees_of_freedom == pytest.approx(effective - 1)
    reach = student_t(0.95, effective - 1) * found.stderr
    assert (found.low, found.high) == pytest.approx((found.difference - reach, found.difference + reach))
    assert (found.clusters, found.unit) == (12, "document")


def test_parts_of_a_document_that_outweighs_the_others_are_independent():
    values, groups = [1.0, 2.0, 4.0, 3.0, 7.0, 5.0], [0, 1, 2, 2, 2, 2]
    for weight, unit in ((1, "document"), (2, "block")):  # effective documents: 36 / 18 = 2, and 100 / 66
        items = Items(values, [1, 1] + 4 * [weight], groups, "block")
        assert items.unit == unit
        assert items.clusters == (3 if unit == "document" else 6)
        assert items.documents == 3
        numbers = groups if unit == "document" else range(6)
        assert items.stderr == pytest.approx(leave_one_out(values, items.weights, numbers))
        assert items.degrees_of_freedom == pytest.approx(1 if unit == "document" else 100 / 18 - 1)


def test_there_is_no_ratio_to_nothing():
    found = compare(Items([1.0, 0.0]), Items([0.0, 0.0]))
    assert (found.ratio, found.ratio_stderr) == (None, None)


def test_nine_intervals_in_ten_hold_the_truth():
    """Of many small experiments, at 90 %."""
    source, held = np.random.default_rng(0), 0
    for _ in range(1000):
        items = Items(source.normal(1, 2, 6).tolist())
        low, high = interval(items.mean, items.stderr, items.degrees_of_freedom, 0.9)
        held += low < 1 < high
    assert held == pytest.approx(900, abs=30)


@pytest.mark.parametrize("seed", [0, 1])
def test_errors_of_perplexities_are_those_of_a_bootstrap(seed):
    model, parent = clustered(seed, weighted=True)
    found = compare_exponentials(model, parent)
    assert found.difference == pytest.approx(math.exp(model.mean) - math.exp(parent.mean))
    assert found.ratio == pytest.approx(math.exp(model.mean - parent.mean))
    assert found.stderr == pytest.approx(bootstrap(model, parent, lambda m, p: np.exp(m) - np.exp(p)), rel=0.1)
    assert found.ratio_stderr == pytest.approx(bootstrap(model, parent, lambda m, p: np.exp(m - p)), rel=0.1)
    loss = compare(model, parent)
    ends = [math.exp(parent.mean + end) - math.exp(parent.mean) for end in (loss.low, loss.high)]
    assert (found.low, found.high) == pytest.approx(ends)


def test_perplexities_and_losses_never_contradict_each_other():
    source, decided = np.random.default_rng(5), 0
    for _ in range(200):
        parent = source.normal(2, 1, 8)
        model = Items((parent + source.normal(0.8, 1, 8)).tolist())
        loss, perplexity = (f(model, Items(parent.tolist())) for f in (compare, compare_exponentials))
        assert (perplexity.low > 0, perplexity.high < 0) == (loss.low > 0, loss.high < 0)
        assert perplexity.low > -math.exp(parent.mean())  # no perplexity below 0
        decided += loss.low > 0
    assert 20 < decided < 180


@pytest.mark.parametrize(
    ("degrees_of_freedom", "confidence", "published"),
    [
        (1, 0.95, 12.706),
        (2, 0.95, 4.303),
        (3, 0.95, 3.182),
        (3, 0.99, 5.841),
        (3, 0.999, 12.924),
        (5, 0.95, 2.571),
        (5, 0.999, 6.869),
        (10, 0.999, 4.587),
        (30, 0.95, 2.042),
        (10**6, 0.95, 1.960),
    ],
)
def test_quantiles_are_those_of_the_printed_table(degrees_of_freedom, confidence, published):
    assert student_t(confidence, degrees_of_freedom) == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (3, 11), (11, 3), (7, 7), (40, 21)])
def test_mcnemar_is_the_exact_binomial_test(better, worse):
    total = better + worse
    tail = sum(Fraction(math.comb(total, k), 2**total) for k in range(min(better, worse) + 1))
    assert mcnemar(better, worse) == pytest.approx(float(min(Fraction(1), 2 * tail)))


def test_mcnemar_of_many_items_does_not_overflow():
    assert mcnemar(20_000, 20_000) == 1
    assert 0 < mcnemar(5_300, 5_000) < 0.005


def test_mcnemar_is_left_out_where_items_are_not_right_or_wrong_or_not_independent():
    right, wrong = [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]
    assert compare(Items(right), Items(wrong)).mcnemar == 1
    grouped = compare(Items(right, groups=[0, 0, 1]), Items(wrong, groups=[0, 0, 1]))
    assert (grouped.better, grouped.worse, grouped.mcnemar) == (1, 0, None)
    assert compare(Items([0.5, 1.0]), Items([1.0, 1.0])).better is None
