import random
from dataclasses import replace

import pytest

from minitron_cli.figures import Figure
from minitron_cli.results.base import ModelSize
from minitron_cli.results.search import CandidateResult
from minitron_cli.search.constraints import figure_of
from minitron_cli.search.pareto import comparable, cost_of, pareto_optimal

SIZE = ModelSize(sizes={}, parameters=1, non_embedding=1, decoder_flops=1, head_flops=1)
LOWER, HIGHER = Figure("loss", better="lower"), Figure("acc", better="higher")


def candidates(points):
    return [
        CandidateResult(shape={}, parameters=x, costs={"throughput": x}, zero_shot=y, model=SIZE) for x, y in points
    ]


def test_a_shape_that_is_larger_and_worse_is_not_pareto_optimal():
    some = candidates([(1, 3.0), (2, 2.0), (3, 2.5), (2, 2.0), (1, 4.0)])
    assert pareto_optimal(some, "parameters", LOWER) == [True, True, False, True, False]


@pytest.mark.parametrize(("cost", "objective"), [("parameters", LOWER), ("parameters", HIGHER), ("throughput", LOWER)])
def test_the_front_is_what_no_other_row_beats(cost, objective):
    draw = random.Random(1)
    points = [(draw.randrange(6), draw.randrange(6)) for _ in range(40)]
    found = {p for p, best in zip(points, pareto_optimal(candidates(points), cost, objective), strict=True) if best}
    x, y = -1 if cost == "throughput" else 1, 1 if objective is LOWER else -1
    by_sweep, best = set(), float("inf")
    for point in sorted(set(points), key=lambda p: (x * p[0], y * p[1])):
        if y * point[1] < best:
            by_sweep.add(point)
            best = y * point[1]
    assert found == by_sweep


def test_those_that_were_retrained_are_compared_after_equal_training():
    some = candidates([(1, 3.0), (2, 2.0), (3, 9.0)])
    some[:2] = [c.model_copy(update={"rungs": r}) for c, r in zip(some, [(1.5,), (2.5, 1.0)], strict=False)]
    assert comparable(some) == some[:2]
    assert pareto_optimal(some[:2], "parameters", LOWER) == [True, False], "at the first rung the small one is better"
    assert comparable(some[2:]) == some[2:]


def test_costs_are_found_by_the_kind_of_their_constraint():
    (one,) = candidates([(7, 1.0)])
    assert (cost_of(one, "parameters"), cost_of(one, "throughput")) == (7, 7)


def test_a_cost_with_settings_in_its_name_is_presented_as_its_kind_is():
    name = "throughput: throughput of decode at 8 x 512 tokens"
    assert figure_of(name) == replace(figure_of("throughput"), title="throughput of decode at 8 x 512 tokens")
    some = [CandidateResult(shape={}, parameters=1, costs={name: x}, zero_shot=1.0, model=SIZE) for x in (1.0, 2.0)]
    assert pareto_optimal(some, name, LOWER) == [False, True], "more is better"
