"""Supermasks: which weights they keep, and scores that learn while weights stay."""

from fractions import Fraction

import pytest
import torch

from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.ticket import masks, supermask
from minitron_cli.ticket.popup import PopUp, popped_up
from tests.tiny import tiny_config

DRAW = torch.Generator().manual_seed(0)
FIRST, FINAL = torch.randn(40, 30, generator=DRAW), torch.randn(40, 30, generator=DRAW)


def kept(criterion, keep=Fraction(1, 4), first=FIRST, final=FINAL):
    return supermask.mask(criterion, first, final, keep, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("criterion", [*supermask.SCORES, "random"])
def test_every_criterion_keeps_its_share(criterion):
    assert int(kept(criterion).sum()) == 300


def test_the_sign_mask_never_keeps_a_flipped_weight():
    for keep in (Fraction(1, 10), Fraction(1, 2), Fraction(9, 10)):
        mask = kept("large_final_same_sign", keep)
        assert (FIRST.sign() == FINAL.sign())[mask].all()
        assert int(mask.sum()) == min(int(keep * 1200), int((FIRST.sign() == FINAL.sign()).sum()))
    assert not (FIRST.sign() == FINAL.sign())[kept("large_final")].all()


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [("large_final", [True, True, False, False]), ("large_final_same_sign", [True, False, False, True]),
     ("magnitude_increase", [False, True, True, False])],
)  # fmt: skip
def test_criteria_on_four_weights(criterion, expected):
    first, final = torch.tensor([[4.0, -1.0, 0.1, 2.0]]), torch.tensor([[4.1, 3.0, 1.0, 1.5]])
    if criterion == "large_final_same_sign":
        first[0, 2] = -0.1
    assert kept(criterion, Fraction(1, 2), first, final).tolist() == [expected]


def test_signed_constants_have_the_signs_and_one_size():
    found = supermask.values(FIRST, signed_constant=True)
    assert torch.equal(found.sign(), FIRST.sign())
    torch.testing.assert_close(found.abs(), torch.full_like(FIRST, float(FIRST.std())))
    assert supermask.values(FIRST, signed_constant=False) is FIRST


def popup_of(shape=(8, 6), keep=Fraction(1, 3)):
    layer = torch.nn.Linear(shape[1], shape[0], bias=False)
    choose = lambda name, scores: masks.highest_share(scores, 1 - keep)  # noqa: E731
    return torch.nn.Sequential(layer), choose


def test_scores_get_the_straight_through_gradient_and_weights_none():
    model, choose = popup_of()
    weight, inputs = model[0].weight.detach().clone(), torch.randn(5, 6)
    with popped_up(model, ["0.weight"], choose, 0) as popups:
        popup = popups["0.weight"]
        assert int(popup.mask.sum()) == 16
        assert torch.equal(model[0].weight, weight * popup.mask)
        model(inputs).square().sum().backward()
        assert all(p.grad is None for name, p in model.named_parameters() if "original" in name)
        effective = (weight * popup.mask).requires_grad_()
        (inputs @ effective.T).square().sum().backward()
        expected = effective.grad * weight * popup.scores.detach().sign()
        torch.testing.assert_close(popup.scores.grad, expected)
        assert popup.scores.grad[~popup.mask].any(), "lost weights can come back"
    assert torch.equal(model[0].weight, weight)
    assert [name for name, _ in model.named_parameters()] == ["0.weight"]


def test_the_density_is_exact_after_every_step():
    model, choose = popup_of()
    with popped_up(model, ["0.weight"], choose, 0) as popups:
        optimizer = torch.optim.Adam([popups["0.weight"].scores], lr=0.3)
        seen = set()
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(5, 6, generator=DRAW)).square().sum().backward()
            optimizer.step()
            seen.add(int(popups["0.weight"].mask.sum()))
            assert int(model[0].weight.count_nonzero()) == 16
    assert seen == {16}


def test_scores_are_those_of_their_seed():
    scores = [PopUp(FIRST, lambda s: s > 0, torch.Generator().manual_seed(seed)).scores for seed in (0, 0, 1)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_masks_of_joined_experts_have_the_density_in_every_stored_matrix(tmp_path):
    typed = tiny_config("mixtral")
    shape = Shape.of(family_of(typed), typed)
    shares = {n: masks.highest_share(m.float(), Fraction(1, 2)) for n, m in masks.all_kept(shape).items()}
    pattern = masks.written(shares, tmp_path / "masks", shape)
    name = "model.layers.0.mlp.experts.down_proj"
    assert pattern.covers(name)
    whole = pattern.by_magnitude(name, torch.rand(6, 32, 48))
    assert [int(part.sum()) for part in whole] == [32 * 48 // 2] * 6
