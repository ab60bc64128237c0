import itertools
import random
from dataclasses import replace

import pytest
import scipy.stats
from transformers import LlamaConfig

from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.search import rank
from minitron_cli.search.feasible import Candidate


@pytest.fixture(scope="module")
def candidates() -> list[Candidate]:
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=8)
    parent = Shape.of(family_of(config), config)
    return [Candidate(parent.resize(layer=n), n, 0.0) for n in range(1, 7)]


def test_lowest_zero_shot_loss_is_first(candidates):
    ranked = rank.by_zero_shot(candidates, lambda c: -c.parameters)
    assert [r.candidate.parameters for r in ranked] == [6, 5, 4, 3, 2, 1]


def test_who_got_furthest_is_first_and_who_was_not_retrained_keeps_its_place(candidates):
    ranked = rank.by_zero_shot(candidates, lambda c: c.parameters)
    rungs = [(5.0, 4.0), (3.0,), (6.0, 3.5), (), (), ()]
    ranked = [replace(entry, rungs=scores) for entry, scores in zip(ranked, rungs, strict=True)]
    again = rank.by_retraining(ranked)
    assert [r.candidate.parameters for r in again] == [3, 1, 2, 4, 5, 6]
    assert [r.retrained for r in again] == [3.5, 4.0, 3.0, None, None, None]


def test_stability_compares_those_that_have_both_scores(candidates):
    zero_shot = {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}
    ranked = rank.by_zero_shot(candidates[:4], lambda c: zero_shot[c.parameters])
    rungs = [(0.9, 0.7), (0.8, 0.8), (1.1,), (1.0,)]  # after rung 1: 2, 1, 4, 3; then 1 is before 2
    found = rank.stability(rank.by_retraining([replace(e, rungs=r) for e, r in zip(ranked, rungs, strict=True)]))
    assert [(row.before, row.after, row.candidates) for row in found] == [
        ("zero-shot", "rung 1", 4),
        ("rung 1", "rung 2", 2),
        ("zero-shot", "final order", 4),
    ]
    first = scipy.stats.kendalltau([1, 2, 3, 4], [0.9, 0.8, 1.1, 1.0]).statistic
    assert [row.tau for row in found] == pytest.approx([first, -1.0, 4 / 6])  # 1, 2, 4, 3


def test_equal_losses_are_ordered_by_shape_not_by_chance(candidates):
    shuffled = random.Random(0).sample(candidates, len(candidates))
    assert rank.by_zero_shot(shuffled, lambda c: 1.0) == rank.by_zero_shot(candidates, lambda c: 1.0)


@pytest.mark.parametrize("order", itertools.permutations(range(4)))
def test_kendall_tau_is_scipys_where_nothing_ties(order):
    assert rank.kendall_tau(range(4), order) == pytest.approx(scipy.stats.kendalltau(range(4), order).statistic)


@pytest.mark.parametrize(
    ("a", "b", "tau"), [([1, 1, 2], [1, 2, 3], 2 / 3), ([1, 1, 2], [1, 1, 2], 2 / 3), ([5, 5, 5], [1, 2, 3], 0)]
)
def test_a_tied_pair_agrees_with_nothing(a, b, tau):
    assert rank.kendall_tau(a, b) == pytest.approx(tau)


def test_one_candidate_has_no_rank_correlation():
    assert rank.kendall_tau([1.0], [2.0]) is None
