"""Against torch's own least squares over the stacked activations themselves."""

import pytest
import torch

from minitron_cli.trim.repair import least_squares
from minitron_cli.trim.repair.gram import HELD_OUT, Gram
from minitron_cli.trim.repair.least_squares import RIDGES, STREAM_RIDGE, reading, solve

CHANNELS, OUTPUTS, KEPT = 12, 5, torch.tensor([0, 2, 3, 7, 10])
DROPPED = torch.tensor([1, 4, 5, 6, 8, 9, 11])


def activations(samples=8, tokens=30, *, seed=0, rank=CHANNELS):
    """[samples, tokens, channels] whose channels lean on each other and are not centred."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank, CHANNELS, generator=generator)
    return torch.randn(samples, tokens, rank, generator=generator) @ mixing + 0.5


def weight(seed=1):
    return torch.randn(OUTPUTS, CHANNELS, generator=torch.Generator().manual_seed(seed))


def gram_of(inputs_BTC, batch=3):
    gram, first = Gram.empty(CHANNELS, inputs_BTC.device), 0
    for part in inputs_BTC.split(batch):
        gram.add_(part, first)
        first += len(part)
    return gram


def ridge_regression(inputs_NC, weight_HC, ridge):
    """W_K + C by `lstsq` over the tokens and, for the ridge, one row more for every kept channel."""
    kept, dropped = inputs_NC[:, KEPT].double(), inputs_NC[:, DROPPED].double()
    strength = (ridge * kept.square().sum(0).mean()).sqrt()
    left = torch.cat([kept, strength * torch.eye(len(KEPT), dtype=torch.float64)])
    right = torch.cat(
        [dropped @ weight_HC[:, DROPPED].double().T, torch.zeros(len(KEPT), OUTPUTS, dtype=torch.float64)]
    )
    return (weight_HC[:, KEPT].double() + torch.linalg.lstsq(left, right).solution.T).float()


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_the_columns_are_those_of_ridge_regression(ridge, monkeypatch):
    monkeypatch.setattr(least_squares, "RIDGES", (ridge,))
    inputs = activations()
    found = solve(weight(), gram_of(inputs), KEPT)
    expected = ridge_regression(inputs.flatten(0, 1), weight(), ridge)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # moments are summed in fp32
    assert not torch.allclose(found, weight()[:, KEPT], atol=1e-2)


def test_the_ridge_is_the_one_that_errs_least_on_the_samples_left_out():
    inputs = activations(samples=4, tokens=8)  # fewer tokens than would fix the fit
    held = torch.arange(len(inputs)) % HELD_OUT == HELD_OUT - 1

    def error(ridge):
        columns = ridge_regression(inputs[~held].flatten(0, 1), weight(), ridge)
        missing = inputs[held].flatten(0, 1) @ weight().T - inputs[held].flatten(0, 1)[:, KEPT] @ columns.T
        return missing.square().sum()

    best = min(RIDGES, key=error)
    assert best != RIDGES[0], "the case must ask for a choice"
    found = solve(weight(), gram_of(inputs), KEPT)
    torch.testing.assert_close(found, ridge_regression(inputs.flatten(0, 1), weight(), best), rtol=1e-4, atol=1e-4)


def test_what_the_kept_channels_know_is_mended_completely():
    """Dropped channels that are sums of kept ones cost nothing."""
    inputs = activations(samples=40)
    inputs[..., DROPPED] = inputs[..., KEPT] @ torch.randn(
        len(KEPT), len(DROPPED), generator=torch.Generator().manual_seed(3)
    )
    found = solve(weight(), gram_of(inputs), KEPT)
    output, mended = inputs @ weight().T, inputs[..., KEPT] @ found.T
    plain = inputs[..., KEPT] @ weight()[:, KEPT].T
    assert (mended - output).norm() < 0.02 * (plain - output).norm()  # the least ridge is left


@pytest.mark.parametrize(
    "inputs",
    [
        torch.zeros(8, 30, CHANNELS),
        activations().index_fill(2, KEPT, 0.0),
        activations().index_fill(2, KEPT[:2], 0.0),
        activations(rank=2),
        activations(samples=1, tokens=2),
        1e15 * activations(),
        1e-15 * activations(),
    ],
    ids=["nothing", "kept are dead", "two dead", "rank 2", "two tokens", "huge", "tiny"],
)
def test_poor_statistics_give_numbers_no_worse_than_the_plain_cut(inputs):
    found = solve(weight(), gram_of(inputs), KEPT)
    assert found.isfinite().all()
    output = inputs.double() @ weight().double().T
    mended, plain = (inputs[..., KEPT].double() @ w.double().T for w in (found, weight()[:, KEPT]))
    assert (mended - output).norm() <= (plain - output).norm() * (1 + 1e-6)


def test_without_samples_to_judge_by_the_ridge_is_careful():
    inputs = activations(samples=HELD_OUT - 1)
    expected = ridge_regression(inputs.flatten(0, 1), weight(), least_squares.CAREFUL)
    torch.testing.assert_close(solve(weight(), gram_of(inputs), KEPT), expected, rtol=1e-4, atol=1e-4)


def test_how_samples_are_batched_does_not_matter():
    one, other = gram_of(activations(), 1), gram_of(activations(), 5)
    assert torch.equal(one.fit_CC, other.fit_CC)
    assert torch.equal(one.held_CC, other.held_CC)


def test_the_result_has_the_weights_dtype():
    assert solve(weight().bfloat16(), gram_of(activations()), KEPT).dtype == torch.bfloat16


@pytest.mark.parametrize("is_turned", [False, True], ids=["channels", "directions"])
def test_a_norms_output_is_made_of_what_is_left_as_well_as_can_be(is_turned):
    """Ridge regression, by `lstsq`, of every coordinate that is lost on those that are kept."""
    x = activations().flatten(0, 1).double()
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    noise = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    axes = torch.linalg.qr(noise).Q if is_turned else torch.eye(CHANNELS, dtype=torch.float64)
    kept, lost = axes[:, KEPT], axes[:, DROPPED]
    left, missing = x @ kept, x @ lost
    strength = (STREAM_RIDGE * left.square().sum(0).mean()).sqrt()
    rows = torch.cat([left, strength * torch.eye(len(KEPT), dtype=torch.float64)])
    target = torch.cat([missing, torch.zeros(len(KEPT), len(DROPPED), dtype=torch.float64)])
    expected = kept + lost @ torch.linalg.lstsq(rows, target).solution.T
    found = reading((x.T @ x).float(), kept.float())
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    assert (found.double() - kept).norm() > 0.1


def test_a_norm_that_saw_nothing_is_read_as_it_is():
    kept = torch.eye(CHANNELS)[:, KEPT]
    assert torch.equal(reading(torch.zeros(CHANNELS, CHANNELS), kept), kept)
