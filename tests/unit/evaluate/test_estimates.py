"""Intervals of stored results: those of the items that they were made from, at any confidence."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from minitron_cli.evaluate.estimates import of_difference, of_metric, of_ratio, unpaired_difference, unpaired_ratio
from minitron_cli.evaluate.perplexity import PerplexityResult
from minitron_cli.evaluate.statistics import (
    Items,
    compare,
    compare_exponentials,
    errors,
    interval,
    share_interval,
)
from minitron_cli.results.evaluation import MetricResult

WEIGHTS, GROUPS = [3, 5, 40, 2, 9, 6, 8], [0, 1, 2, 2, 3, 4, 5]
LOSSES = [Items(v.tolist(), WEIGHTS, GROUPS, "block") for v in np.random.default_rng(0).normal(2, 0.3, (2, 7))]


def measured(items: Items) -> dict[str, MetricResult]:
    return PerplexityResult(items.mean, items.stderr, math.exp(items.mean), sum(WEIGHTS), items).metrics()


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_of_a_perplexity_is_that_of_its_loss(confidence: float) -> None:
    loss, perplexity = (of_metric(measured(LOSSES[0])[name]).interval(confidence) for name in ("loss", "perplexity"))
    items = LOSSES[0]
    assert loss == pytest.approx(interval(items.mean, items.stderr, items.degrees_of_freedom, confidence))
    assert loss is not None
    assert perplexity == pytest.approx(tuple(map(math.exp, loss)))


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_paired_intervals_are_those_of_the_difference_in_loss(confidence: float) -> None:
    loss, perplexity = compare(*LOSSES), compare_exponentials(*LOSSES)
    low, high = interval(loss.difference, loss.stderr, LOSSES[0].degrees_of_freedom, confidence) or (0, 0)
    parent = math.exp(LOSSES[1].mean)
    assert of_difference(loss).interval(confidence) == pytest.approx((low, high))
    expected = [parent * math.exp(end) - parent for end in (low, high)]
    assert of_difference(perplexity).interval(confidence) == pytest.approx(expected)
    assert of_ratio(perplexity).interval(confidence) == pytest.approx((math.exp(low), math.exp(high)))
    if confidence == 0.95:
        assert of_difference(perplexity).interval() == pytest.approx((perplexity.low, perplexity.high))


def test_unpaired_intervals_of_perplexities_are_those_of_the_losses() -> None:
    own, other = map(measured, LOSSES)
    low, high = unpaired_difference(own["loss"], other["loss"]).interval() or (0, 0)
    assert low < 0 < high
    ratio = unpaired_ratio(own["perplexity"], other["perplexity"]).interval()
    assert ratio == pytest.approx((math.exp(low), math.exp(high)))
    parent = math.exp(LOSSES[1].mean)
    apart = unpaired_difference(own["perplexity"], other["perplexity"]).interval()
    assert apart == pytest.approx([parent * math.exp(end) - parent for end in (low, high)])


@pytest.mark.parametrize(("right", "answers"), [(15, 20), (20, 20), (0, 10), (1, 400)])
def test_shares_of_right_answers_have_the_interval_of_wilson(right: int, answers: int) -> None:
    share = right / answers
    stderr = math.sqrt(share * (1 - share) / answers)
    expected = binomtest(right, answers).proportion_ci(method="wilson")
    assert share_interval(share, stderr, answers, math.inf) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_few_right_answers_is_wide_and_within_0_and_1() -> None:
    answers = Items([1.0] * 9 + [0.0], groups=[0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    found = MetricResult(value=answers.mean, n=10, **errors(answers))
    low, high = of_metric(found).interval() or (0, 0)
    assert 0 < low < 0.5
    assert 0.95 < high <= 1
    all_right = MetricResult(value=1.0, n=3, **errors(Items([1.0] * 3)))
    assert of_metric(all_right).interval() == pytest.approx((0.1394, 1.0), abs=1e-4)  # 1 / (1 + 4.3027^2 / 3)
    assert all_right.stderr == 0
    no_divergence = MetricResult(value=0.0, n=3, **errors(Items([0.0] * 3, part="block")))  # of a model from itself
    assert of_metric(no_divergence).interval() == (0, 0)


def test_shares_of_clustered_answers_have_their_effective_number() -> None:
    share, documents, per_document = 0.7, 400, 5
    right = np.random.default_rng(0).random(documents) < share
    answers = Items(
        np.repeat(right, per_document).astype(float).tolist(), groups=np.repeat(range(documents), 5).tolist()
    )
    alone = Items(right.astype(float).tolist())
    ends = [of_metric(MetricResult(value=x.mean, n=len(x.values), **errors(x))).interval() for x in (answers, alone)]
    assert ends[0] == pytest.approx(ends[1])


def test_equal_answers_to_few_questions_leave_room_for_a_difference() -> None:
    """By hand: one more pair each way of 20 + 2 questions gives sqrt(2) / 22, times 2.0930 of 19 degrees of freedom."""
    answers = Items([1.0] * 15 + [0.0] * 5)
    same = compare(answers, answers)
    reach = 2.0930 * math.sqrt(2) / 22
    assert (same.difference, same.stderr, same.ratio, same.ratio_stderr) == (0, 0, 1, 0)
    assert (same.low, same.high) == pytest.approx((-reach, reach), abs=1e-4)
    assert of_difference(same).interval() == pytest.approx((same.low, same.high))
    assert of_ratio(same).interval() == pytest.approx((1 - reach / 0.75, 1 + reach / 0.75), abs=1e-4)
    losses = Items([1.0, 0.5, 0.25])
    assert of_difference(compare(losses, losses)).interval() == (0, 0)
    assert of_ratio(compare(losses.times(2), losses)).interval() == (2, 2)
    apart = compare(answers, Items([1.0] * 14 + [0.0] * 6))
    assert of_difference(apart).interval() == pytest.approx(interval(0.05, apart.stderr, 19))


def test_results_of_lm_eval_have_one_degree_of_freedom_less_than_items() -> None:
    found = MetricResult(value=0.5, stderr=0.1, n=5)
    assert of_metric(found).interval() == pytest.approx((0.5 - 0.2776, 0.5 + 0.2776), abs=1e-4)
    assert of_metric(MetricResult(value=None)).value is None
    assert of_metric(MetricResult(value=0.5, n=1)).interval() is None


def test_without_the_number_of_items_the_interval_is_that_of_a_normal_distribution() -> None:
    """As in results of lm-eval that do not say it."""
    assert of_metric(MetricResult(value=0.71, stderr=0.01)).interval() == pytest.approx((0.6904, 0.7296), abs=1e-4)


def test_independent_shares_differ_by_the_interval_of_newcombe() -> None:
    """56 of 70 and 48 of 80: 0.0524 to 0.3339 (Newcombe 1998, table II, method 10); Student's t widens it a little."""
    shares = [Items([1.0] * right + [0.0] * (answers - right)) for right, answers in ((56, 70), (48, 80))]
    results = [MetricResult(value=one.mean, n=len(one.values), **errors(one)) for one in shares]
    assert unpaired_difference(*results).interval() == pytest.approx((0.0524, 0.3339), abs=4e-3)


def test_all_right_in_few_answers_leaves_room_for_a_difference() -> None:
    always = Items([1.0] * 20)
    found = MetricResult(value=1.0, n=20, **errors(always))
    low, high = unpaired_difference(found, found).interval() or (0, 0)
    assert -0.2 < low < -0.1
    assert high == -low
