import itertools
import random

import pytest
import scipy.stats
from transformers import LlamaConfig

from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.search import rank
from minitron_cli.search.space import Candidate


@pytest.fixture(scope="module")
def candidates() -> list[Candidate]:
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=8)
    parent = Shape.of(family_of(config), config)
    return [Candidate(parent.resize(layer=n), n, 0.0) for n in range(1, 7)]


def test_lowest_zero_shot_loss_is_first(candidates):
    ranked = rank.by_zero_shot(candidates, lambda c: -c.parameters)
    assert [r.candidate.parameters for r in ranked] == [6, 5, 4, 3, 2, 1]


def test_retraining_reorders_the_best_few_and_touches_no_other(candidates):
    ranked = rank.by_zero_shot(candidates, lambda c: c.parameters)
    asked = []

    def retrain(candidate: Candidate) -> float:
        asked.append(candidate.parameters)
        return -candidate.parameters

    again = rank.by_retraining(ranked, 3, retrain)
    assert asked == [1, 2, 3]
    assert [r.candidate.parameters for r in again] == [3, 2, 1, 4, 5, 6]
    assert [r.retrained_loss for r in again] == [-3, -2, -1, None, None, None]


def test_equal_losses_are_ordered_by_shape_not_by_chance(candidates):
    shuffled = random.Random(0).sample(candidates, len(candidates))
    assert rank.by_zero_shot(shuffled, lambda c: 1.0) == rank.by_zero_shot(candidates, lambda c: 1.0)


@pytest.mark.parametrize("order", itertools.permutations(range(4)))
def test_kendall_tau_is_scipys_where_nothing_ties(order):
    assert rank.kendall_tau(range(4), order) == pytest.approx(scipy.stats.kendalltau(range(4), order).statistic)


def test_one_candidate_has_no_rank_correlation():
    assert rank.kendall_tau([1.0], [2.0]) is None
