"""Losses from signals against the live loss, autograd of their formula, and the average over many draws."""

# N token, V vocab, K stored id, D draw of a whole set of signals

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from minitron_cli.distill.fused.objective import HeadInput, fused_objective
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.distill.losses.forward_kl import ForwardKL
from minitron_cli.model.lm_head import Head
from minitron_cli.signals import draws
from minitron_cli.signals.config import Sampled
from minitron_cli.signals.encoding import Encoding
from minitron_cli.signals.rows import SignalRows

N, V, WIDTH = 11, 37, 7
DRAWS, REPEATS, MANY = 50, 10_000, 48
low_memory_too = pytest.mark.parametrize("low_memory", [False, True])


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def student(**more: float) -> HeadInput:
    parts = [normal(1, N, WIDTH), normal(2, V, WIDTH), normal(3, V)]
    hidden_ND, weight_VD, bias_V = (part.requires_grad_() for part in parts)
    return HeadInput(hidden_ND, Head(weight_VD, bias_V, **more))


def gradients(side: HeadInput, total: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(total, [side.hidden_ND, side.head.weight_VD, side.head.bias_V]))


def top_k(logits_NV: Tensor, k: int, temperature: float = 1.0) -> SignalRows:
    top = F.log_softmax(logits_NV / temperature, -1).topk(k, -1)
    return SignalRows(top.indices, top.values.exp(), logits_NV.shape[1], temperature)


@low_memory_too
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_ids_are_the_live_loss(low_memory: bool, temperature: float) -> None:
    loss, side, teacher = (
        ForwardKL(temperature=temperature),
        student(softcap=9.0),
        HeadInput(normal(4, N, V), Head(torch.eye(V, dtype=torch.float64))),
    )
    live = fused_objective([loss], side, teacher, None, low_memory=low_memory)
    stored = fused_objective([loss], side, top_k(teacher.hidden_ND, V, temperature), None, low_memory=low_memory)
    torch.testing.assert_close(stored.total, live.total, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(side, stored.total), gradients(side, live.total), rtol=1e-6, atol=1e-6)


@low_memory_too
@pytest.mark.parametrize("wider", [0, 5])
def test_the_rest_is_one_event_more(low_memory: bool, wider: int) -> None:
    """KL over k + 1 events by autograd, next to cross-entropy over all the student's entries."""
    side, labels_N = student(softcap=9.0), torch.arange(N)
    vocab = V - wider
    signals = top_k(normal(4, N, vocab), 5)
    losses = [ForwardKL(weight=0.7), CrossEntropy(weight=0.4)]
    found = fused_objective(losses, side, signals, labels_N, low_memory=low_memory, chunk_tokens=3)
    logits_NV = side.head.logits(side.hidden_ND)
    p_NV = logits_NV[:, :vocab].softmax(-1)
    own_NK = p_NV.gather(1, signals.ids_NK)
    events = torch.cat([own_NK, 1 - own_NK.sum(-1, keepdim=True)], -1)
    asked = torch.cat([signals.weights_NK, 1 - signals.weights_NK.sum(-1, keepdim=True)], -1)
    kl, ce = F.kl_div(events.log(), asked, reduction="batchmean"), F.cross_entropy(logits_NV, labels_N)
    torch.testing.assert_close(found.each_L, torch.stack([kl, ce]).detach())
    torch.testing.assert_close(gradients(side, found.total), gradients(side, 0.7 * kl + 0.4 * ce))


@low_memory_too
def test_drawn_ids_are_cross_entropy_with_their_shares_less_the_entropy(low_memory: bool) -> None:
    side, teacher_NV = student(softcap=9.0), normal(4, N, V)
    encoding = Encoding(Sampled(draws=9), V, seed=3)
    signals = encoding.decoded(encoding.encoded([teacher_NV.clone()], 0, np.arange(N), 1)[0])
    found = fused_objective([ForwardKL()], side, signals, None, low_memory=low_memory, chunk_tokens=3)
    shares_NV = torch.zeros(N, V, dtype=torch.float64).scatter_add_(1, signals.ids_NK, signals.weights_NK.double())
    torch.testing.assert_close(shares_NV.sum(1), torch.ones(N, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    entropy = torch.distributions.Categorical(logits=teacher_NV).entropy().mean()
    wanted = F.cross_entropy(side.head.logits(side.hidden_ND), shares_NV) - entropy
    torch.testing.assert_close(found.total, wanted, rtol=1e-3, atol=1e-3)  # entropy is stored in fp16
    torch.testing.assert_close(gradients(side, found.total), gradients(side, wanted), rtol=1e-6, atol=1e-6)


@low_memory_too
def test_extreme_logits_stay_finite(low_memory: bool) -> None:
    """A student that is sure of another id than the teacher, to the end of what fp32 holds."""
    logits_NV = torch.full((2, V), -200.0)
    logits_NV[0, 3] = logits_NV[1, 4] = 200.0
    side = HeadInput(logits_NV.requires_grad_(), Head(torch.eye(V)))
    for signals in (top_k(-logits_NV.detach(), 5), top_k(logits_NV.detach(), V)):
        found = fused_objective([ForwardKL()], side, signals, None, low_memory=low_memory)
        assert math.isfinite(found.total.detach())
        (grad,) = torch.autograd.grad(found.total, [side.hidden_ND])
        assert grad.isfinite().all()


def shares(teacher_V: Tensor, repeats: int) -> Tensor:
    """Shares of the draws of one distribution, drawn anew `repeats` times, [D, V]."""
    at_DJ = torch.from_numpy(draws.thresholds(0, 0, 0, np.arange(repeats), DRAWS))
    ids_DJ = torch.cat([draws.draw(teacher_V.repeat(len(some_DJ), 1), some_DJ)[0] for some_DJ in at_DJ.split(500)])
    ones = torch.ones(ids_DJ.shape, dtype=torch.float64)
    return torch.zeros(repeats, len(teacher_V), dtype=torch.float64).scatter_add_(1, ids_DJ, ones) / DRAWS


@pytest.fixture(scope="module")
def shares_DV() -> Tensor:
    """Shares of many draws at one position."""
    return shares(one_position()[0], REPEATS)


def largest_z(gradients_DV: Tensor, live_V: Tensor, hits_V: Tensor) -> float:
    """Standard errors between the mean of gradients and the live one, at most, where there were more than 30 hits."""
    error_V = gradients_DV.std(0) / math.sqrt(len(gradients_DV)) + 1e-12
    return float(((gradients_DV.mean(0) - live_V) / error_V).abs()[hits_V > 30].max())


def one_position() -> tuple[Tensor, Tensor, Tensor]:
    """Teacher's logits, the student's softmax, and the gradient of the live loss."""
    teacher_V, p_student_V = normal(6, MANY) * 2, normal(7, MANY).softmax(-1)
    return teacher_V, p_student_V, p_student_V - teacher_V.softmax(-1)


@pytest.mark.slow
def test_drawn_gradients_are_the_live_gradient_on_average(shares_DV: Tensor) -> None:
    _, p_student_V, live_V = one_position()
    assert largest_z(p_student_V - shares_DV, live_V, (shares_DV * DRAWS).sum(0)) < 4.5


@pytest.mark.slow
def test_renormalized_top_8_fails_the_same_test(shares_DV: Tensor) -> None:
    """The test above can see a bias: the one of every renormalized top-k is far outside."""
    teacher_V, p_student_V, live_V = one_position()
    kept_V = torch.zeros_like(teacher_V)
    kept_V[teacher_V.topk(8).indices] = 1
    renormalized_DV = shares_DV * kept_V / (shares_DV * kept_V).sum(-1, keepdim=True)
    assert largest_z(p_student_V - renormalized_DV, live_V, (shares_DV * DRAWS).sum(0)) > 45


@pytest.mark.slow
def test_draws_differ_less_than_independent_ones() -> None:
    teacher_V, _, _ = one_position()
    p_V = teacher_V.softmax(-1)
    error = (shares(teacher_V, 2000) - p_V).square().sum(-1).mean()
    independent = (p_V * (1 - p_V) / DRAWS).sum()
    assert error < 0.5 * independent


def test_kl_of_drawn_ids_is_the_live_kl_on_average() -> None:
    teacher_NV, student_NV = normal(8, 400, MANY) * 2, normal(9, 400, MANY)
    encoding = Encoding(Sampled(draws=DRAWS), MANY)
    signals = encoding.decoded(encoding.encoded([teacher_NV.clone()], 5, np.arange(400), 1)[0])
    kl_N, _ = ForwardKL().value_and_grad_of_signals(student_NV.clone(), signals)
    live_N, _ = ForwardKL().value_and_grad(student_NV.clone(), teacher_NV.clone(), None)
    difference_N = kl_N - live_N
    assert abs(difference_N.mean()) < 4 * difference_N.std() / 20
    assert difference_N.std() < 0.3 * live_N.std()


def test_an_id_of_no_probability_is_never_drawn() -> None:
    logits_NV = torch.full((1, 6), float("-inf"))
    logits_NV[0, 2] = logits_NV[0, 4] = 0.0
    at_NJ = torch.tensor([[0.0, 0.25, 0.5, 1 - 2**-53]], dtype=torch.float64)
    ids_NJ, _ = draws.draw(logits_NV.nan_to_num(neginf=-1e30), at_NJ)
    assert ids_NJ.tolist() == [[2, 2, 4, 4]]


def test_draws_depend_on_the_place_alone() -> None:
    whole = draws.thresholds(7, 1, 3, np.arange(20), 5)
    np.testing.assert_array_equal(whole[4:9], draws.thresholds(7, 1, 3, np.arange(4, 9), 5))
    others = [draws.thresholds(*place, np.arange(20), 5) for place in [(8, 1, 3), (7, 0, 3), (7, 1, 2), (-7, 1, 3)]]
    assert all(not np.array_equal(whole, other) for other in others)
    uniform = (draws.thresholds(0, 0, 0, np.arange(20_000), 5) * 5 - np.arange(5)).reshape(-1)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert np.abs(np.histogram(uniform, 20)[0] / 5000 - 1).max() < 0.06
