"""Mean, L2 norm and variance of a stream."""

import pytest
import torch

from minitron_cli.importance.running_moments import Moments


def test_pieces_merge_to_the_whole():
    values = torch.randn(11, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    merged = Moments.of(values[:1], 0).merge(Moments.of(values[1:7], 0)).merge(Moments.of(values[7:], 0))
    assert merged.count == 11
    torch.testing.assert_close(merged.mean, values.mean(0))
    torch.testing.assert_close(merged.aggregate("l2"), values.norm(dim=0))
    torch.testing.assert_close(merged.aggregate("var"), values.var(0, correction=0))


@pytest.mark.parametrize("pieces", [1, 4])
def test_variance_survives_values_far_from_zero(pieces):
    # 64 + k/2048 is exact in fp32 and its square is not: sums of squares are wrong by 100 times this variance.
    values = 64 + torch.randint(0, 8, (64,), generator=torch.Generator().manual_seed(0)) / 2048
    moments = [Moments.of(piece, 0) for piece in values.chunk(pieces)]
    while len(moments) > 1:
        moments = [moments[0].merge(moments[1]), *moments[2:]]
    expected = values.double().var(correction=0)
    torch.testing.assert_close(moments[0].aggregate("var").double(), expected, rtol=1e-3, atol=0)


def test_a_single_value_has_no_variance():
    moments = Moments.of(torch.tensor([[3.0, -4.0]]), 0)
    assert moments.aggregate("var").tolist() == [0, 0]
    assert moments.aggregate("l2").tolist() == [3, 4]


def test_tensors_hold_all_of_it():
    moments = Moments.of(torch.tensor([1.0, 2.0, 4.0]), 0)
    again = Moments.from_tensors(moments.tensors())
    assert again.count == 3
    assert again.aggregate("var") == moments.aggregate("var")
