"""Least squares on a mask, against `torch.linalg.lstsq` for every row on the inputs themselves."""

# O output, I input, T token

import pytest
import torch

from minitron_cli.sparse import least_squares
from minitron_cli.sparse.least_squares import by_conjugate_gradients, exact, fitted, squared_error
from minitron_cli.sparse.metrics import SparseGPT, Wanda
from minitron_cli.sparse.metrics.base import InputSums
from minitron_cli.sparse.pattern import Pattern
from tests.unit.sparse.test_metrics import correlated, normal


def case(text="2:4", outputs=7, inputs=16, tokens=60):
    weight_OI, inputs_TI = normal(outputs, inputs), correlated(tokens, inputs)
    sums = InputSums(inputs_TI.square().sum(0))
    mask_OI = Wanda().sparse(weight_OI, sums, Pattern.parse(text)).mask_OI
    return weight_OI, inputs_TI, mask_OI


def by_lstsq(weight_OI, inputs_TI, mask_OI):
    found_OI = torch.zeros_like(weight_OI)
    for o, mask_I in enumerate(mask_OI):
        wanted_T = inputs_TI @ weight_OI[o]
        found_OI[o, mask_I] = torch.linalg.lstsq(inputs_TI[:, mask_I], wanted_T[:, None]).solution[:, 0]
    return found_OI


def solved(solver, weight_OI, inputs_TI, mask_OI, ridge=0.0):
    gram_II, start_OI = inputs_TI.T @ inputs_TI, weight_OI * mask_OI
    return start_OI + solver((weight_OI - start_OI) @ gram_II, mask_OI, gram_II, ridge)


def tightly(*arguments):
    return by_conjugate_gradients(*arguments, tolerance=1e-10, steps=500)


@pytest.mark.parametrize("solver", [exact, tightly])
@pytest.mark.parametrize("text", ["2:4", "4:8", "50%", "3:4"])
def test_without_a_ridge_it_is_the_least_squares_solution(solver, text):
    weight_OI, inputs_TI, mask_OI = case(text)
    wanted_OI = by_lstsq(weight_OI, inputs_TI, mask_OI)
    torch.testing.assert_close(solved(solver, weight_OI, inputs_TI, mask_OI), wanted_OI, rtol=1e-6, atol=1e-8)


def test_rows_may_keep_different_numbers_of_weights(monkeypatch):
    weight_OI, inputs_TI, _ = case()
    mask_OI = normal(7, 16, seed=5) > 0
    mask_OI[0], mask_OI[1] = False, True
    monkeypatch.setattr(least_squares, "BATCH_BYTES", 2 * 16 * 16 * 8)  # two rows at a time
    found_OI = solved(exact, weight_OI, inputs_TI, mask_OI)
    torch.testing.assert_close(found_OI, by_lstsq(weight_OI, inputs_TI, mask_OI), rtol=1e-6, atol=1e-8)
    assert torch.equal(found_OI[1], weight_OI[1])


def test_conjugate_gradients_stop_at_their_tolerance_near_the_exact_solution():
    weight_OI, inputs_TI, mask_OI = case(inputs=32, tokens=200)
    gram_II = inputs_TI.T @ inputs_TI
    ridge = float(1e-2 * gram_II.diagonal().mean())
    wanted_OI = (weight_OI - weight_OI * mask_OI) @ gram_II
    found = by_conjugate_gradients(wanted_OI, mask_OI, gram_II, ridge, tolerance=1e-2, steps=200)
    best = exact(wanted_OI, mask_OI, gram_II, ridge)
    system = gram_II + ridge * torch.eye(32)
    scale_I = system.diagonal().rsqrt()
    residual_OI = (wanted_OI - found @ system) * mask_OI * scale_I
    assert (residual_OI.norm(dim=1) <= 1e-2 * (wanted_OI * mask_OI * scale_I).norm(dim=1)).all()
    start = squared_error(weight_OI * ~mask_OI, gram_II)
    gained = [start - squared_error(weight_OI * ~mask_OI - d, gram_II) for d in (found, best)]
    assert gained[0] > 0.99 * gained[1]


def halves(tokens, inputs=16):
    both_TI = correlated(2 * tokens, inputs).float()
    return both_TI[:tokens], both_TI[tokens:]


def test_the_ridge_is_chosen_on_tokens_that_are_held_out():
    weight_OI, mask_OI = normal(7, 16).float(), case()[2]
    fit_TI, held_out_TI = halves(200)
    start_OI = weight_OI * mask_OI
    found_OI = fitted(weight_OI, start_OI, mask_OI, fit_TI.T @ fit_TI, held_out_TI.T @ held_out_TI)
    assert torch.equal(found_OI != 0, mask_OI)
    before, after = ((held_out_TI @ (weight_OI - c).T).norm() for c in (start_OI, found_OI))
    assert after < 0.8 * before


def test_weights_stay_where_a_fit_is_worse_on_held_out_tokens():
    weight_OI, mask_OI = normal(7, 16).float(), case()[2]
    fit_TI, held_out_TI = normal(3, 16, seed=8).float(), normal(500, 16, seed=9).float()  # three tokens tell nothing
    start_OI = weight_OI * mask_OI
    assert torch.equal(fitted(weight_OI, start_OI, mask_OI, fit_TI.T @ fit_TI, held_out_TI.T @ held_out_TI), start_OI)


def test_it_brings_the_mask_of_sparsegpt_nearer_too():
    weight_OI = normal(16, 32).float()
    fit_TI, held_out_TI = halves(400, 32)
    gram_II = fit_TI.T @ fit_TI
    made = SparseGPT().sparse(weight_OI, InputSums(gram_II.diagonal(), gram_II), Pattern.parse("2:4"))
    found_OI = fitted(weight_OI, made.weight_OI, made.mask_OI, gram_II, held_out_TI.T @ held_out_TI)
    before, after = ((held_out_TI @ (weight_OI - c).T).norm() for c in (made.weight_OI, found_OI))
    assert after < before
