import pytest
import torch

from minitron_cli.repair.gram import NormMoments
from minitron_cli.repair.norm_rescale import scale, scales, strengths

HIDDEN, KEPT = 10, torch.tensor([1, 2, 5, 9])


def stream(seed=0):
    """[samples, tokens, hidden], tokens of very different sizes and channels too."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-2, 2, 3 * 7).view(3, 7, 1)
    return torch.randn(3, 7, HIDDEN, generator=generator) * sizes * torch.linspace(0.2, 3, HIDDEN)


def moments_of(x_BTD):
    moments = NormMoments.empty(HIDDEN, x_BTD.device)
    moments.add_(x_BTD[:2])
    moments.add_(x_BTD[2:])
    return moments


def test_channels():
    x = stream().double()
    expected = (x[..., KEPT].square().mean(-1) / x.square().mean(-1)).mean().sqrt()
    assert scale(moments_of(x), KEPT) == pytest.approx(float(expected), rel=1e-5)


def test_directions():
    x = stream().double()
    basis = torch.linalg.qr(torch.randn(HIDDEN, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    expected = ((x @ basis).square().mean(-1) / x.square().mean(-1)).mean().sqrt()
    assert scale(moments_of(x), basis.float()) == pytest.approx(float(expected), rel=1e-5)


def test_nothing_pruned_changes_nothing():
    assert scale(moments_of(stream()), torch.arange(HIDDEN)) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("x", [torch.zeros(3, 7, HIDDEN), stream().index_fill(2, KEPT, 0.0)], ids=["all", "kept"])
def test_where_nothing_is_seen_nothing_is_scaled(x):
    assert scale(moments_of(x), KEPT) == 1.0


def test_each_kind_gets_the_strength_that_brings_the_child_nearest():
    kinds = {"first": {"a.0": 0.5, "a.1": 0.25}, "second": {"b": 2.0}, "third": {"c": 3.0}}
    ideal = {"a.0": 0.5, "a.1": 0.25, "b": 2**0.5, "c": 0.1}

    def distance(by_name):
        return sum(abs(by_name.get(name, 1.0) - value) for name, value in ideal.items())

    found = strengths(kinds, distance)
    assert found == {"first": 1.0, "second": 0.5, "third": 0.0}
    assert scales(kinds, found) == {"a.0": 0.5, "a.1": 0.25, "b": 2**0.5}


def test_a_token_of_zeros_spoils_nothing():
    x = stream()
    others = moments_of(x).sum_DD - torch.outer(x[1, 3], x[1, 3]) / x[1, 3].square().mean()
    x[1, 3] = 0
    torch.testing.assert_close(moments_of(x).sum_DD, others, rtol=1e-4, atol=1e-4)
