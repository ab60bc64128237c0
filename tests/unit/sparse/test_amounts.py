"""Amounts by outliers, against every choice that there is."""

import itertools
import math
from fractions import Fraction

import pytest

from minitron_cli.sparse.amounts import Owl, by_outliers
from minitron_cli.sparse.pattern import Pattern

OUTLIERS, WEIGHTS = (0.02, 0.07, 0.031, 0.0), (100, 130, 130, 90)


def mean(values, weights=WEIGHTS):
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


@pytest.mark.parametrize("text", ["50%", "12.5%", "33.3%"])
def test_shares_fall_in_proportion_to_outliers_and_their_mean_is_the_pattern_s(text):
    whole = Pattern.parse(text)
    shares = [pattern.zeros for pattern in by_outliers(whole, Owl(), OUTLIERS, WEIGHTS)]
    assert abs(mean(shares) - whole.zeros) * sum(WEIGHTS) < Fraction(1, 10**6), "of one weight"
    average = mean(OUTLIERS)
    wanted = [whole.zeros - 0.08 * (share - average) / max(abs(d - average) for d in OUTLIERS) for share in OUTLIERS]
    assert [float(share) for share in shares] == pytest.approx([float(share) for share in wanted], abs=1e-11)
    assert max(abs(share - whole.zeros) for share in shares) == pytest.approx(0.08)
    assert [Pattern.parse(str(Pattern(share))).zeros for share in shares] == shares, "as masks record them"


def test_layers_with_equal_outliers_have_the_pattern():
    assert set(by_outliers(Pattern.parse("33.333%"), Owl(), (0.1,) * 4, WEIGHTS)) == {Pattern.parse("33.333%")}


def shares_of(whole, spread, weights):
    """Share of zeros of each layer before rounding."""
    average = mean(OUTLIERS, weights)
    widest = max(abs(d - average) for d in OUTLIERS)
    return [float(whole.zeros) - spread * (d - average) / widest for d in OUTLIERS]


def test_a_small_layer_keeps_no_more_than_its_share_rounded_up():
    found = by_outliers(Pattern.parse("8:16"), Owl(), (0.03, 0.01), (100, 300))
    assert list(map(str, found)) == ["10:16", "7:16"], "shares of 9.28 and 7.57, and no room for one more of the second"


@pytest.mark.parametrize("text", ["2:4", "4:8", "1:4", "7:8", "3:3"])
@pytest.mark.parametrize("spread", [0.08, 0.25, 0.49])
@pytest.mark.parametrize("weights", [(7,) * 4, WEIGHTS])
def test_of_all_choices_of_n_the_nearest_is_taken(text, spread, weights):
    whole = Pattern.parse(text)
    size = whole.group
    found = by_outliers(whole, Owl(spread=spread), OUTLIERS, weights)
    kept = [int(size * (1 - pattern.zeros)) for pattern in found]
    assert {pattern.group for pattern in found} == {size}
    allowed = float(size * (1 - whole.zeros)) * sum(weights)
    total = sum(n * w for n, w in zip(kept, weights, strict=True))
    assert total <= allowed
    wanted = [size * (1 - share) for share in shares_of(whole, spread, weights)]
    least = round(size * (1 - float(whole.zeros))) if max(wanted) > size else 1
    most = [min(size, max(least, math.ceil(share - 1e-9))) for share in wanted]
    assert all(n <= m for n, m in zip(kept, most, strict=True)), "its share, rounded up"
    assert all(total + w > allowed for n, m, w in zip(kept, most, weights, strict=True) if n < m), "not one more fits"
    if len(set(weights)) == 1:
        choices = [c for c in itertools.product(range(1, size + 1), repeat=4) if sum(c) * 7 == allowed]
        distances = [sum((n - w) ** 2 for n, w in zip(choice, wanted, strict=True)) for choice in choices]
        distance = sum((n - w) ** 2 for n, w in zip(kept, wanted, strict=True))
        assert distance == pytest.approx(min(distances))
