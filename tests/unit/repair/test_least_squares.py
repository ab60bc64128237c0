"""Against torch's own least squares over the stacked activations themselves."""

import pytest
import torch

from minitron_cli.repair import gram, least_squares
from minitron_cli.repair.gram import HELD_OUT, SplitGramPair
from minitron_cli.repair.least_squares import RIDGES, channel_gains, solve
from minitron_cli.sparse.statistics import InputStatistics

INPUTS, OUTPUTS = 7, 5


def activations(samples=8, tokens=30, *, seed=0, rank=INPUTS):
    """[samples, tokens, inputs] that lean on each other and are not centred."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank, INPUTS, generator=generator)
    return torch.randn(samples, tokens, rank, generator=generator) @ mixing + 0.5


def matrix(seed=1):
    return torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(seed))


def wanted(inputs_BTI, seed=2, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    return inputs_BTI @ matrix(seed).T + noise * torch.randn(*inputs_BTI.shape[:2], OUTPUTS, generator=generator)


def sums_of(inputs_BTI, outputs_BTO, batch=3):
    return SplitGramPair.of(zip(inputs_BTI.split(batch), outputs_BTO.split(batch), strict=True))


def ridge_regression(inputs_NI, outputs_NO, start_OI, ridge):
    """By `lstsq` over the tokens and, for the ridge, one row more for every input; the start scaled by `lstsq` too."""
    inputs, outputs, start = inputs_NI.double(), outputs_NO.double(), start_OI.double()
    made = (inputs @ start.T).reshape(-1, 1)
    start = start * torch.linalg.lstsq(made, outputs.reshape(-1, 1)).solution
    if ridge == float("inf"):
        return start.float()
    strength = (ridge * inputs.square().sum(0).mean()).sqrt() * torch.eye(INPUTS, dtype=torch.float64)
    left, right = torch.cat([inputs, strength]), torch.cat([outputs, strength @ start.T])
    return torch.linalg.lstsq(left, right).solution.T.float()


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_it_is_ridge_regression_that_pulls_toward_the_start(ridge, monkeypatch):
    monkeypatch.setattr(least_squares, "RIDGES", (ridge,))
    inputs, start = activations(), matrix()
    found = solve(start, sums_of(inputs, wanted(inputs)))
    expected = ridge_regression(inputs.flatten(0, 1), wanted(inputs).flatten(0, 1), start, ridge)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # moments are summed in fp32
    assert not torch.allclose(found, start, atol=1e-2)


def held(inputs):
    return torch.arange(len(inputs)) % HELD_OUT == HELD_OUT - 1


def test_the_ridge_is_the_one_that_errs_least_on_the_samples_left_out():
    inputs, start = activations(samples=4, tokens=3), matrix()  # fewer tokens than would fix the fit
    outputs = wanted(inputs, noise=2.0)
    out = held(inputs)

    def error(ridge):
        c = ridge_regression(inputs[~out].flatten(0, 1), outputs[~out].flatten(0, 1), start, ridge)
        return (outputs[out] - inputs[out] @ c.T).square().sum()

    best = min((*RIDGES, float("inf")), key=error)
    assert best not in (RIDGES[0], float("inf")), "the case must ask for a choice"
    assert error(best) < (outputs[out] - inputs[out] @ start.T).square().sum()
    expected = ridge_regression(inputs.flatten(0, 1), outputs.flatten(0, 1), start, best)
    torch.testing.assert_close(solve(start, sums_of(inputs, outputs)), expected, rtol=1e-4, atol=1e-4)


def test_with_much_text_and_little_noise_the_ridge_is_the_smallest():
    inputs, start = activations(samples=8, tokens=60), matrix()
    outputs = wanted(inputs, noise=1e-3)
    expected = ridge_regression(inputs.flatten(0, 1), outputs.flatten(0, 1), start, RIDGES[0])
    torch.testing.assert_close(solve(start, sums_of(inputs, outputs)), expected, rtol=1e-4, atol=1e-4)


def test_next_to_no_text_still_gives_the_size(monkeypatch):
    """Of a matrix that is right but for a factor, on about as many tokens as it has inputs, amid noise."""
    monkeypatch.setattr(least_squares, "RIDGES", (1e-3,))
    inputs, start = activations(samples=8, tokens=1), matrix()
    outputs = 1.5 * inputs @ start.T + 3.0 * torch.randn(8, 1, OUTPUTS, generator=torch.Generator().manual_seed(9))
    expected = ridge_regression(inputs.flatten(0, 1), outputs.flatten(0, 1), start, float("inf"))
    torch.testing.assert_close(solve(start, sums_of(inputs, outputs)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_routed", [False, True])
def test_a_token_far_larger_than_the_others_counts_no_more_than_a_large_one(is_routed):
    """Scaled down to 10 times the median square of its sample, together with what is wanted of it."""
    inputs = activations()
    inputs[:, 0] *= 80
    outputs = wanted(inputs)
    squares = inputs.square().sum(-1)
    bound = 10 * squares.median(dim=1, keepdim=True).values
    factors = (bound / squares).clamp(max=1).sqrt()[..., None]
    assert (factors[:, 0] < 0.5).all()
    if is_routed:
        sums = SplitGramPair.empty(OUTPUTS, INPUTS, inputs.device)
        for i, (sample, of_sample) in enumerate(zip(inputs, outputs, strict=True)):
            sums.add_(sample, of_sample, torch.full((len(sample),), i))
    else:
        sums = sums_of(inputs, outputs)
    both, tokens = sums.fit + sums.held_out, (factors * inputs).flatten(0, 1)
    torch.testing.assert_close(both.inputs_II, tokens.T @ tokens, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(both.outputs_OI, (factors * outputs).flatten(0, 1).T @ tokens, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("fits", [True, False])
def test_what_is_routed_counts_by_its_sample_whatever_the_batch(fits):
    """An expert gets few tokens of one sample and many of another, whose sizes differ: each has a median of its own."""
    counts = [3, 30, 9, 40, 2, 25, 1, 300]
    samples = torch.arange(8).repeat_interleave(torch.tensor(counts))
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(len(samples), INPUTS, generator=generator) * (1.0 + 9 * (samples % 3))[:, None]
    outputs = torch.randn(len(samples), OUTPUTS, generator=generator)

    def collected(sizes):
        sums = SplitGramPair.empty(OUTPUTS, INPUTS, inputs.device)
        seen = InputStatistics(INPUTS, inputs.device, "second_moments", fits=fits, samples=32)
        tokens = [int(batch.sum()) for batch in torch.tensor(counts).split(sizes)]
        for batch in zip(*(t.split(tokens) for t in (inputs, outputs, samples)), strict=True):
            sums.add_(*batch)
            seen.add_(batch[0], batch[2])
        parts = [sums.fit, sums.held_out, *([seen.split.fit, seen.split.held_out] if seen.split else [])]
        both = [matrix for part in parts for matrix in (part.upper_II, part.outputs_OI)]
        return [*both, seen.held_out(), seen.sums().squares_I, seen.sums().gram_II]

    one_by_one, at_once = collected([1] * 8), collected([5, 3])
    assert all(torch.equal(a, b) for a, b in zip(one_by_one, at_once, strict=True))


def test_a_wide_symmetric_sum_is_that_of_all_its_entries():
    inputs = torch.randn(2, 6, 3 * gram.ROWS // 2, generator=torch.Generator().manual_seed(0))
    sums = SplitGramPair.of([(inputs, inputs[..., :2])])
    tokens = inputs.flatten(0, 1)
    torch.testing.assert_close(sums.fit.inputs_II, tokens.T @ tokens, rtol=1e-5, atol=1e-4)


def test_where_the_start_does_best_on_the_samples_left_out_it_stays():
    inputs, start = activations(), matrix()
    outputs = inputs @ start.T
    outputs[~held(inputs)] += 1.0  # what is fitted on says otherwise
    assert torch.equal(solve(start, sums_of(inputs, outputs)), start)


@pytest.mark.parametrize(
    "inputs",
    [
        torch.zeros(8, 30, INPUTS),
        activations().index_fill(2, torch.tensor([0, 3]), 0.0),
        activations(rank=2),
        activations(samples=1, tokens=2),
        1e15 * activations(),
        1e-15 * activations(),
    ],
    ids=["nothing", "two dead", "rank 2", "two tokens", "huge", "tiny"],
)
def test_poor_statistics_give_numbers_no_worse_than_the_start(inputs):
    start, outputs = matrix(), wanted(inputs, noise=0.0)
    found = solve(start, sums_of(inputs, outputs))
    assert found.isfinite().all()
    fitted, plain = (inputs.double() @ w.double().T - outputs.double() for w in (found, start))
    assert fitted.norm() <= plain.norm() * (1 + 1e-6)


def test_without_samples_to_judge_by_the_ridge_is_careful():
    inputs, start = activations(samples=HELD_OUT - 1), matrix()
    expected = ridge_regression(inputs.flatten(0, 1), wanted(inputs).flatten(0, 1), start, least_squares.CAUTIOUS_RIDGE)
    torch.testing.assert_close(solve(start, sums_of(inputs, wanted(inputs))), expected, rtol=1e-4, atol=1e-4)


def test_how_samples_are_batched_does_not_matter():
    inputs = activations()
    one, other = (sums_of(inputs, wanted(inputs), batch) for batch in (1, 5))
    for part in ("fit", "held_out"):
        assert torch.equal(getattr(one, part).inputs_II, getattr(other, part).inputs_II)
        assert torch.equal(getattr(one, part).outputs_OI, getattr(other, part).outputs_OI)


def test_gains_fit_each_channel_by_itself():
    inputs = activations().index_fill(2, torch.tensor([2]), 0.0)
    factors = torch.linspace(-1, 2, INPUTS)
    expected = factors.index_fill(0, torch.tensor([2]), 1.0)
    torch.testing.assert_close(channel_gains(sums_of(inputs, inputs * factors)), expected, rtol=1e-4, atol=1e-4)
