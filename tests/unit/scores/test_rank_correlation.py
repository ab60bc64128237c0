"""Rank correlation against scipy-free arithmetic on small orders."""

import pytest
import torch

from minitron_cli.scores.rank_correlation import METRICS, agreement
from minitron_cli.scores.scores import Scores


def scores(**rows):
    """Every aggregation scores ffn alike, but for those given."""
    same = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    return Scores({metric.key("ffn"): rows.get(way.replace(" ", "_"), same) for way, metric in METRICS.items()})


def test_the_same_order_agrees_whatever_the_scale():
    found = agreement(scores(var_of_l2=torch.tensor([[0.1, 0.2, 30.0, 4e9]])), "ffn")
    assert found["var of l2"]["l2 of mean"] == pytest.approx(1)


def test_the_opposite_order_disagrees():
    found = agreement(scores(var_of_l2=torch.tensor([[4.0, 3.0, 2.0, 1.0]])), "ffn")
    assert found["l2 of mean"]["var of l2"] == pytest.approx(-1)


def test_one_swap_of_neighbours_costs_six_times_the_squared_steps_over_n3_less_n():
    found = agreement(scores(mean_of_mean=torch.tensor([[2.0, 1.0, 3.0, 4.0]])), "ffn")
    assert found["mean of mean"]["l2 of mean"] == pytest.approx(1 - 6 * 2 / (4**3 - 4))


def test_equal_scores_share_a_rank():
    found = agreement(scores(mean_of_mean=torch.tensor([[1.0, 1.0, 2.0, 2.0]])), "ffn")
    assert found["mean of mean"]["l2 of mean"] == pytest.approx(2 / 5**0.5)


def test_rows_that_are_all_equal_have_no_say():
    rows = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]])
    found = agreement(Scores({metric.key("ffn"): rows for metric in METRICS.values()}), "ffn")
    assert found["mean of mean"]["l2 of mean"] == pytest.approx(1)
