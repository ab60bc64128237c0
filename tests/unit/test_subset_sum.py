"""The demonstration of subset sums: exact subsets, and a layer that is made of a random network without training."""

from itertools import product

import numpy as np
import pytest

from scripts import subset_sum


@pytest.mark.parametrize("count", range(8))
def test_the_subset_is_the_best_of_all(count: int) -> None:
    draw = np.random.default_rng(count)
    for _ in range(5):
        candidates, target = draw.uniform(-1, 1, count), draw.uniform(-0.5, 0.5)
        chosen = subset_sum.best_subset(candidates, target)
        assert (chosen.dtype, chosen.shape) == (bool, (count,))
        all_errors = [abs(sum(c for c, kept in zip(candidates, some, strict=True) if kept) - target)
                      for some in product((False, True), repeat=count)]  # fmt: skip
        assert abs(candidates[chosen].sum() - target) == pytest.approx(min(all_errors), abs=1e-12)


def test_a_subset_that_hits_the_target_is_found() -> None:
    candidates = np.array([0.5, -0.25, 0.125, 0.0625, 0.75])
    assert candidates[subset_sum.best_subset(candidates, 0.5625)].sum() == 0.5625


def test_each_further_candidate_brings_about_a_bit_with_subsets_and_not_alone() -> None:
    found = {
        choice: subset_sum.slopes({n: [subset_sum.bits(choice, n, 0, 60)] for n in (6, 10, 14)})
        for choice in subset_sum.CHOICES
    }
    subset, of_products, single = (slope for (slope,) in found.values())
    assert -1.3 < subset < -0.7
    assert -1.3 < of_products < -0.6
    assert -0.3 < single < 0


def test_a_pruned_random_network_computes_the_layer_within_the_error_of_its_weights() -> None:
    draw = np.random.default_rng(0)
    weights = draw.uniform(-0.5, 0.5, (3, 2))
    network = subset_sum.pruned(weights, 26, draw)
    assert (network.kept_first_HI.sum(axis=1) == 1).all()
    error = abs(network.weights() - weights).max()
    assert error < 0.02
    x = draw.standard_normal((50, 2))
    assert (abs(network(x) - x @ weights.T) <= error * abs(x).sum(axis=1, keepdims=True) + 1e-12).all()
    assert 0 < network.share_kept < 0.6


def test_a_wider_network_is_closer() -> None:
    few, many = (np.mean([subset_sum.layer_errors(n, seed).median for seed in range(2)]) for n in (4, 16))
    assert many < few / 8


@pytest.mark.slow
def test_the_page_has_both_parts() -> None:
    text = "\n\n".join(subset_sum.page(subset_sum.QUICK, "python scripts/subset_sum.py"))
    assert text.count("| each further one |") == 2
    assert "<svg" in subset_sum.plots.sheet([subset_sum.plot(subset_sum.QUICK.lemma)])
