"""The hard concrete distribution against draws of it, written out from Louizos et al. 2018."""

import pytest
import torch

from minitron_cli.learned import hard_concrete

DRAWS = 100_000
VALUES = torch.tensor([-8.0, -2.5, -1.0, 0.0, 0.7, 2.0, 8.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def drawn():
    """Draws of a gate for every value of log alpha, [draws, value]."""
    u = torch.rand(DRAWS, len(VALUES), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = 1 / (1 + torch.exp(-(torch.log(u) - torch.log(1 - u) + VALUES) / (2 / 3)))
    return torch.clamp(s * (1.1 + 0.1) - 0.1, 0, 1)


def assert_near(found, draws):
    """Within five standard errors of the mean of the draws."""
    error = draws.std(0) / DRAWS**0.5
    assert ((found - draws.mean(0)).abs() <= 5 * error + 1e-5).all()


def test_probabilities_and_means_are_those_of_draws(drawn):
    assert_near(hard_concrete.above(VALUES, 0.0), (drawn > 0).double())
    assert_near(hard_concrete.above(VALUES, 0.4), (drawn > 0.4).double())
    assert_near(hard_concrete.above(VALUES, 1 - 1e-12), (drawn == 1).double())
    assert_near(hard_concrete.expected(VALUES), drawn)


def test_sampled_gates_have_that_distribution(drawn):
    rows = VALUES.expand(DRAWS, -1)
    found = hard_concrete.sampled(rows, torch.Generator().manual_seed(1))
    for wanted, got in ((drawn, found), ((drawn == 0).double(), (found == 0).double())):
        assert ((wanted.mean(0) - got.mean(0)).abs() <= 5 * (2 / DRAWS) ** 0.5 * wanted.std(0) + 1e-5).all()


def test_means_order_gates_as_log_alpha_does():
    means = hard_concrete.expected(torch.linspace(-8, 8, 200))  # fp32, in which they are stored
    assert (means.diff() > 0).all()


def test_gates_start_as_open_as_they_should():
    at = torch.tensor(hard_concrete.log_alpha_of(0.95), dtype=torch.float64)
    assert float(hard_concrete.above(at, 0.0)) == pytest.approx(0.95)
