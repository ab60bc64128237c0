import random

import pytest
from transformers import LlamaConfig

from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.search import halving
from minitron_cli.search.feasible import Candidate
from minitron_cli.search.rank import RankedCandidate


@pytest.fixture(scope="module")
def ranked() -> list[RankedCandidate]:
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=12)
    parent = Shape.of(family_of(config), config)
    return [RankedCandidate(Candidate(parent.resize(layer=n), n, 0.0), zero_shot=float(n)) for n in range(1, 11)]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [((400, 3, 0.5), [100, 200, 400]), ((400, 1, 0.5), [400]), ((10, 3, 1 / 3), [2, 4, 10]), ((2, 4, 0.5), [1, 2])],
)
def test_rungs_are_spaced_by_the_share_that_goes_on(arguments, steps):
    assert halving.rung_steps(*arguments) == steps


@pytest.mark.parametrize(("count", "keep", "left"), [(8, 0.5, 4), (5, 0.5, 3), (3, 0.1, 2), (2, 0.5, 2), (1, 0.5, 1)])
def test_two_at_least_go_on(count, keep, left):
    assert halving.survivors(count, keep) == left


def trained(ranked, loss_at):
    """The order, which candidates were brought to which rung, and who was dropped when."""
    calls, dropped = [], []

    def train(running, rung):
        calls.extend((entry.candidate.parameters, rung) for entry in running)
        return [loss_at(entry.candidate.parameters, rung) for entry in running]

    order = halving.halve(
        ranked, 8, 3, 0.5, train, lambda out: dropped.append(sorted(e.candidate.parameters for e in out))
    )
    return order, calls, dropped


def test_the_better_half_goes_further(ranked):
    order, _, dropped = trained(ranked, lambda n, rung: -n if rung else abs(n - 4.1))
    assert dropped == [[1, 2, 7, 8], [3, 4], []]
    assert [e.candidate.parameters for e in order] == [6, 5, 4, 3, 2, 7, 1, 8, 9, 10]
    assert [len(e.rungs) for e in order] == [3, 3, 2, 2, 1, 1, 1, 1, 0, 0]


def test_nobody_is_brought_to_a_rung_twice(ranked):
    draw = random.Random(0)
    _, calls, _ = trained(ranked, lambda n, rung: draw.random())
    assert len(calls) == len(set(calls)) == 8 + 4 + 2


def test_the_order_does_not_depend_on_chance_where_scores_tie(ranked):
    first, *_ = trained(ranked, lambda n, rung: 1.0)
    assert first == trained(ranked, lambda n, rung: 1.0)[0]
