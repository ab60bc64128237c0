import pytest
import torch

from minitron_cli.repair.gram import NormMoments
from minitron_cli.repair.pca_rotation import diagonalizing, head_moments, leading_directions


def moments(size=9, seed=0):
    x = torch.randn(200, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x * torch.linspace(0.1, 2, size) @ torch.linalg.qr(x[:size]).Q
    return x, x.T @ x


def test_the_directions_lose_the_least_energy():
    """Eckart and Young: as little as the smallest singular values of the stacked states."""
    x, m = moments()
    basis = leading_directions(m, 4).double()
    lost = (x - x @ basis @ basis.T).square().sum()
    torch.testing.assert_close(lost, torch.linalg.svdvals(x)[4:].square().sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_they_are_orthonormal_and_largest_first(count):
    x, m = moments()
    basis = leading_directions(m, count)
    assert basis.dtype == torch.float32
    torch.testing.assert_close(basis.T @ basis, torch.eye(count), rtol=0, atol=1e-6)
    energy = (x @ basis.double()).square().sum(0)
    assert (energy.diff() < 0).all()


def test_signs_do_not_depend_on_the_solver():
    basis = leading_directions(moments()[1], 9)
    assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()


def test_a_stream_of_low_rank_still_gives_a_basis():
    direction = torch.zeros(9, dtype=torch.float64)
    direction[2] = 1
    basis = leading_directions(torch.outer(direction, direction), 5)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(basis[:, 0], direction.float())


def test_in_a_diagonalizing_basis_one_weight_per_direction_is_the_whole_norm():
    """The projected diag(g) is diag(a) there, on the subspace of the basis that was given, negative gains too."""
    basis, gain = leading_directions(moments()[1], 5), torch.linspace(-0.5, 9, 9)[torch.randperm(9)]
    turned = diagonalizing(basis, gain).double()
    torch.testing.assert_close(turned @ turned.T, (basis @ basis.T).double(), rtol=0, atol=1e-6)
    projected = turned.T @ (gain.double()[:, None] * turned)
    torch.testing.assert_close(projected, projected.diagonal().diag(), rtol=0, atol=1e-6)
    assert (diagonalizing(basis, gain).gather(0, turned.abs().argmax(0, keepdim=True)) > 0).all()


def test_the_moments_of_the_head_are_those_of_its_inputs_at_the_size_of_the_norms():
    x, gain = moments()[0], torch.linspace(-2, 3, 9)
    final = NormMoments.empty(9, x.device)
    final.add_(x.float()[None])
    normed = x / x.square().mean(1, keepdim=True).sqrt()
    read = normed * gain
    expected = read.T @ read * (normed.square().sum() / read.square().sum())
    torch.testing.assert_close(head_moments(final, gain), expected, rtol=1e-4, atol=1e-3)
