"""Metrics against brute force: sorting by hand, a loop over tokens, and one exact solve for every weight that goes."""

# O output, I input, T token

import pytest
import torch

from minitron_cli.errors import CheckpointError
from minitron_cli.sparse.metrics import Magnitude, SparseGPT, Wanda, sparsegpt
from minitron_cli.sparse.metrics.base import InputSums
from minitron_cli.sparse.metrics.sparsegpt import inverse_factor
from minitron_cli.sparse.pattern import Pattern


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def correlated(tokens, inputs, seed=1):
    return normal(tokens, inputs, seed=seed) @ (torch.eye(inputs) + 0.5 * normal(inputs, inputs, seed=seed + 1))


def sums(inputs_TI):
    return InputSums(inputs_TI.square().sum(0), inputs_TI.T @ inputs_TI)


def kept_by_hand(scores_OI, kept, group):
    """Mask by sorting every group, ties to the lower index."""
    mask_OI = torch.zeros(scores_OI.shape, dtype=torch.bool)
    for o, row in enumerate(scores_OI.tolist()):
        for start in range(0, len(row), group):
            best = sorted(range(start, start + group), key=lambda i: (-row[i], i))[:kept]
            mask_OI[o, best] = True
    return mask_OI


@pytest.mark.parametrize(("text", "kept", "group"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:3", 1, 3), ("50%", 12, 24)])
def test_wanda_is_magnitude_times_the_norm_over_all_tokens(text, kept, group):
    weight_OI, inputs_TI = normal(5, 24), correlated(40, 24)
    scores_OI = torch.zeros(5, 24)
    for i in range(24):
        square = 0.0
        for token in inputs_TI.tolist():
            square += token[i] ** 2
        for o in range(5):
            scores_OI[o, i] = abs(weight_OI[o, i].item()) * square**0.5
    found = Wanda().sparse(weight_OI, sums(inputs_TI), Pattern.parse(text))
    assert found.weight_OI is None
    assert torch.equal(found.mask_OI, kept_by_hand(scores_OI, kept, group))


def test_a_share_by_magnitude_is_taken_of_the_whole_matrix():
    weight_OI = normal(6, 8)
    weight_OI[0] *= 100  # every weight of this row is larger than all others
    mask_OI = Magnitude().sparse(weight_OI, None, Pattern.parse("50%")).mask_OI
    smallest = sorted(weight_OI.abs().flatten().tolist())[:24]
    assert mask_OI[0].all()
    assert torch.equal(mask_OI, weight_OI.abs() > max(smallest))


@pytest.mark.parametrize("metric", [Magnitude(), Wanda(), SparseGPT(), SparseGPT(block=3)])
def test_a_matrix_pruned_by_magnitude_can_be_pruned_further_by_the_metric(metric):
    """As an expert that few tokens came to in the first round, and more in the second."""
    weight_OI, inputs_TI = normal(6, 8), normal(40, 8)
    weight_OI[:, :4] /= 100  # the first block's weights are smaller than those of the second
    first, second = Pattern.parse("25%"), Pattern.parse("50%")
    lost_OI = ~metric.largest(weight_OI, first)
    assert int(lost_OI.sum()) == 12
    mask_OI = metric.sparse(weight_OI, sums(inputs_TI), second, lost_OI).mask_OI
    assert not (mask_OI & lost_OI).any()
    assert int((~mask_OI).sum()) == 24
    assert torch.equal(~metric.largest(weight_OI, second, lost_OI) | ~lost_OI, torch.ones_like(lost_OI))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("entry", [torch.inf, torch.nan])
def test_second_moments_that_are_not_finite_are_refused(entry):
    gram_II = torch.eye(8)
    gram_II[3, 3] = entry
    with pytest.raises(CheckpointError, match="the inputs of a matrix are too large to be multiplied"):
        inverse_factor(gram_II, 0.01)


@pytest.mark.timeout(60)
def test_a_matrix_that_no_damping_makes_positive_is_refused():
    gram_II = torch.eye(8)
    gram_II[0, 1] = gram_II[1, 0] = 1e30
    with pytest.raises(CheckpointError, match="the inputs of a matrix are too large to be multiplied"):
        inverse_factor(gram_II, 0.01)


def one_weight_at_a_time(weight_OI, hessian_II, pattern):
    """SparseGPT by its definition: column by column, each lost weight is made up for by the later ones, exactly."""
    weight_OI, group = weight_OI.clone(), pattern.group
    outputs, inputs = weight_OI.shape
    mask_OI = torch.ones(weight_OI.shape, dtype=torch.bool)
    for c in range(inputs):
        if c % group == 0:  # the cost of each of the group's weights if those after it were refitted
            costs_OG = torch.zeros(outputs, group, dtype=weight_OI.dtype)
            for g in range(group):
                inverse = torch.linalg.inv(hessian_II[c + g :, c + g :])
                costs_OG[:, g] = weight_OI[:, c + g] ** 2 / inverse[0, 0]
            mask_OI[:, c : c + group] = kept_by_hand(costs_OG, group - pattern.lost(group), group)
        later = slice(c + 1, inputs)
        for o in range(outputs):
            if not mask_OI[o, c]:
                refit = torch.linalg.solve(hessian_II[later, later], hessian_II[later, c])
                weight_OI[o, later] += weight_OI[o, c] * refit
                weight_OI[o, c] = 0
    return mask_OI, weight_OI


@pytest.mark.parametrize("text", ["2:4", "1:4", "4:8", "1:2"])
@pytest.mark.parametrize("block", [128, 4])
@pytest.mark.parametrize("step", [16, 4])
def test_sparsegpt_is_optimal_brain_surgery_column_by_column(text, block, step, monkeypatch):
    monkeypatch.setattr(sparsegpt, "STEP", step)
    monkeypatch.setattr(sparsegpt, "SOLVED", step // 2)
    weight_OI, inputs_TI = normal(8, 8), correlated(30, 8)
    gram_II = inputs_TI.T @ inputs_TI
    hessian_II = gram_II + 0.01 * gram_II.diagonal().mean() * torch.eye(8)
    mask_OI, wanted_OI = one_weight_at_a_time(weight_OI, hessian_II, Pattern.parse(text))
    found = SparseGPT(block=block).sparse(weight_OI, sums(inputs_TI), Pattern.parse(text))
    assert torch.equal(found.mask_OI, mask_OI)
    torch.testing.assert_close(found.weight_OI, wanted_OI, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solved", [256, 3, 1])
def test_the_factor_is_the_cholesky_factor_of_the_inverse(solved, monkeypatch):
    monkeypatch.setattr(sparsegpt, "SOLVED", solved)
    monkeypatch.setattr(sparsegpt, "STRIP", solved)
    inputs_TI = correlated(30, 12)
    gram_II = inputs_TI.T @ inputs_TI
    hessian_II = gram_II + 0.01 * gram_II.diagonal().mean() * torch.eye(12)
    wanted_II = torch.linalg.cholesky(torch.linalg.inv(hessian_II), upper=True)
    torch.testing.assert_close(inverse_factor(gram_II, 0.01), wanted_II)


@pytest.mark.parametrize("solved", [256, 2])
def test_a_matrix_that_is_not_positive_definite_is_damped_more(solved, monkeypatch):
    monkeypatch.setattr(sparsegpt, "SOLVED", solved)
    monkeypatch.setattr(sparsegpt, "STRIP", solved)
    gram_II = torch.diag(torch.tensor([4.0, 4.0, 4.0, -1.0, 4.0], dtype=torch.float64))
    factor_II = inverse_factor(gram_II, 0.1)
    damped_II = gram_II + 3.0 * torch.eye(5)  # 0.1 times the mean, and ten times that
    torch.testing.assert_close(factor_II.T @ factor_II, torch.linalg.inv(damped_II))


@pytest.mark.parametrize("text", ["2:4", "37%"])
def test_steps_of_columns_change_nothing(text, monkeypatch):
    weight_OI, inputs_TI = normal(20, 80), correlated(120, 80)
    found = [SparseGPT(block=40).sparse(weight_OI, sums(inputs_TI), Pattern.parse(text))]
    monkeypatch.setattr(sparsegpt, "STEP", 1)
    found.append(SparseGPT(block=40).sparse(weight_OI, sums(inputs_TI), Pattern.parse(text)))
    assert torch.equal(found[0].mask_OI, found[1].mask_OI)
    torch.testing.assert_close(found[0].weight_OI, found[1].weight_OI)


def test_blocks_of_sparsegpt_lose_together_what_the_matrix_has_to():
    weight_OI, inputs_TI, pattern = normal(5, 13), correlated(30, 13), Pattern.parse("37%")
    mask_OI = SparseGPT(block=4).sparse(weight_OI, sums(inputs_TI), pattern).mask_OI
    assert pattern.holds(mask_OI, None)
    for end in (4, 8, 12, 13):
        assert int((~mask_OI[:, :end]).sum()) == pattern.lost(5 * end)


def test_an_input_that_never_was_is_lost_first_and_its_weights_are_not_changed():
    inputs_TI = correlated(30, 8)
    inputs_TI[:, [1, 2]] = 0
    weight_OI = normal(6, 8) + 5
    weight_OI[:, [1, 2]] *= 1000  # which the damping alone would keep
    found = SparseGPT().sparse(weight_OI, sums(inputs_TI), Pattern.parse("3:4"))
    assert not found.mask_OI[:, 2].all() or not found.mask_OI[:, 1].all()
    assert (~found.mask_OI[:, [1, 2]]).sum() == 6  # one of four goes in each row, and it is one of these
    kept_OI = torch.where(found.mask_OI, weight_OI, 0)
    torch.testing.assert_close(found.weight_OI[:, [1, 2]], kept_OI[:, [1, 2]])


@pytest.mark.parametrize("metric", [Wanda(), SparseGPT()])
def test_second_moments_that_are_all_zero_still_give_the_pattern(metric):
    nothing = InputSums(torch.zeros(8), torch.zeros(8, 8))
    found = metric.sparse(normal(4, 8, dtype=torch.float32), nothing, Pattern.parse("2:4"))
    assert Pattern.parse("2:4").holds(found.mask_OI)
