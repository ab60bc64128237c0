"""Rounds: patterns of each, and masks that only ever lose weights."""

import itertools
from typing import Any, get_args

import pytest
import torch

from minitron_cli.distill import between_rounds
from minitron_cli.distill.config import DistillConfig
from minitron_cli.errors import InputError
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.sparse.layer_pass import check_continued
from minitron_cli.sparse.mask_file import MaskSpec
from minitron_cli.sparse.metrics import AnyMetric
from minitron_cli.sparse.metrics.base import InputSums
from minitron_cli.sparse.pattern import Pattern

METRICS = [metric() for metric in get_args(get_args(AnyMetric)[0])]
EVERY_METRIC = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.kind)


def texts(rounds: int, **config: Any) -> list[str]:
    whole = SparsifyConfig(rounds=rounds, **config)
    return [whole.of_round(number).pattern for number in range(1, rounds + 1)]


def test_rounds_lose_equal_parts() -> None:
    assert texts(4, pattern="50%") == ["12.5%", "25%", "37.5%", "50%"]
    assert texts(3, pattern="50%") == ["16.6666666667%", "33.3333333333%", "50%"]
    assert texts(2, pattern="2:4") == ["3:4", "2:4"]
    assert texts(3, pattern="3:8") == ["6:8", "4:8", "3:8"]
    listed = SparsifyConfig(pattern="4:8", layer_amounts=("4:8", "6:8", "8:8"), rounds=2)
    assert [listed.of_round(number).layer_amounts for number in (1, 2)] == [("6:8", "7:8", "8:8"), listed.layer_amounts]


def test_every_round_s_pattern_continues_the_one_before() -> None:
    for text, of in itertools.product(["50%", "33.3%", "99.9%", "2:4", "1:8", "5:16"], (1, 2, 3, 7)):
        parts = [Pattern.parse(text).part(number, of) for number in range(1, of + 1)]
        assert parts[-1] == Pattern.parse(text)
        for before, after in itertools.pairwise(parts):
            assert after.continues(before)
            assert Pattern.parse(str(after)) == after
    assert not Pattern.parse("2:4").continues(Pattern.parse("50%"))
    assert not Pattern.parse("4:8").continues(Pattern.parse("2:4"))
    assert Pattern.parse("60%").continues(Pattern.parse("2:4"))
    whole, lines = (MaskSpec((4, 8), Pattern.parse("50%"), axis) for axis in (None, 1))
    assert whole.continues(lines)
    assert not lines.continues(whole), "all of a line may be pruned"


def test_later_rounds_continue_the_shares_that_outliers_gave() -> None:
    config = SparsifyConfig(pattern="60%", layer_amounts={"kind": "owl", "spread": 0.3}, rounds=3)
    first = config.of_round(1)
    assert first.owl
    assert (first.pattern, first.owl.spread) == ("20%", pytest.approx(0.1))
    assert config.of_round(2, ["10%", "30%"]).layer_amounts == ("20%", "60%")
    assert config.of_round(3, ["10%", "30%"]).layer_amounts == ("30%", "90%")


@EVERY_METRIC
@pytest.mark.parametrize("patterns", [("3:4", "2:4", "1:4"), ("10%", "40%", "70%"), ("2:4", "60%")], ids=str)
def test_what_is_pruned_stays_pruned_whatever_the_scores_are(metric: Any, patterns: tuple[str, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs_TI = torch.randn(64, 32, generator=draw)
    sums = InputSums(inputs_TI.double().square().sum(0), inputs_TI.T @ inputs_TI)
    lost_OI = torch.zeros(24, 32, dtype=torch.bool)
    for text in patterns:
        pattern = Pattern.parse(text)
        weight_OI = torch.randn(24, 32, generator=draw).round(decimals=1).masked_fill(lost_OI, 0)
        weight_OI[0] = 0  # ties of pruned weights with others
        found = metric.sparse(weight_OI, sums, pattern, lost_OI)
        assert pattern.holds(found.mask_OI, metric.axis(pattern, 1))
        assert not (found.mask_OI & lost_OI).any()
        lost_OI = ~found.mask_OI


@EVERY_METRIC
def test_nothing_pruned_before_changes_nothing(metric: Any) -> None:
    weight_OI, inputs_TI = torch.randn(8, 32), torch.randn(64, 32)
    sums = InputSums(inputs_TI.double().square().sum(0), inputs_TI.T @ inputs_TI)
    plain = metric.sparse(weight_OI, sums, Pattern.parse("2:4"))
    found = metric.sparse(weight_OI, sums, Pattern.parse("2:4"), torch.zeros(8, 32, dtype=torch.bool))
    assert torch.equal(found.mask_OI, plain.mask_OI)


def test_more_pruned_weights_in_one_place_than_the_pattern_has_are_refused() -> None:
    lost_OI = torch.tensor([[True, True, True, False], [False] * 4])
    found = METRICS[0].sparse(torch.ones(2, 4), None, Pattern.parse("2:4"), lost_OI)
    with pytest.raises(InputError, match=r"^w has more pruned weights in one place than the new pattern: use the met"):
        check_continued("w", found.mask_OI, lost_OI)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rounds": 3}, "2:4 in 3 rounds: a group loses 2 weights, so set at most 2"),
        ({"round_tokens": 10}, "round_tokens is of the training between rounds, and there is one round; set rounds"),
        ({"pattern": "4:8", "rounds": 2, "layer_amounts": "owl"}, "N:M by outliers is chosen at once"),
    ],
)
def test_rounds_that_cannot_be(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparsifyConfig(**config)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({}, "nothing says how long: set sparsify.round_tokens"),
        ({"tokens": 100, "mask": "none"}, "keeps what is pruned once: remove distill.mask"),
        ({"tokens": 100, "mask": {"refresh": 2}}, "keeps what is pruned once: remove distill.mask"),
        ({"tokens": 100, "init": "random"}, "from the weights of the round before: remove distill.init"),
    ],
)
def test_a_training_between_rounds_that_cannot_be(training: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        between_rounds.training(SparsifyConfig(rounds=2), DistillConfig(**training))


def test_the_training_between_rounds_is_as_long_as_it_is_set() -> None:
    whole = DistillConfig(steps=7)
    assert between_rounds.training(SparsifyConfig(rounds=2), whole) == whole
    between = between_rounds.training(SparsifyConfig(rounds=2, round_tokens="1k"), whole)
    assert (between.steps, between.tokens) == (None, 1000)
