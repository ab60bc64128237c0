import random

import pytest

from minitron_cli.search.pareto import judged, pareto_optimal


def rows(points):
    return [{"parameters": x, "costs": {"throughput": x}, "zero_shot": y, "rungs": []} for x, y in points]


def test_a_shape_that_is_larger_and_worse_is_surpassed():
    assert pareto_optimal(rows([(1, 3.0), (2, 2.0), (3, 2.5), (2, 2.0), (1, 4.0)]), "parameters", True) == [
        True,
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("cost", "is_lower_better"), [("parameters", True), ("parameters", False), ("throughput", True)]
)
def test_the_front_is_what_no_other_row_beats(cost, is_lower_better):
    draw = random.Random(1)
    points = [(draw.randrange(6), draw.randrange(6)) for _ in range(40)]
    found = {p for p, best in zip(points, pareto_optimal(rows(points), cost, is_lower_better), strict=True) if best}
    x, y = -1 if cost == "throughput" else 1, 1 if is_lower_better else -1
    by_sweep, best = set(), float("inf")
    for point in sorted(set(points), key=lambda p: (x * p[0], y * p[1])):
        if y * point[1] < best:
            by_sweep.add(point)
            best = y * point[1]
    assert found == by_sweep


def test_those_that_were_retrained_are_compared_after_equal_training():
    some = rows([(1, 3.0), (2, 2.0), (3, 9.0)])
    some[0]["rungs"], some[1]["rungs"] = [1.5], [2.5, 1.0]
    assert judged(some) == some[:2]
    assert pareto_optimal(some[:2], "parameters", True) == [True, False], "at the first rung the small one is better"
    assert judged(some[2:]) == some[2:]
