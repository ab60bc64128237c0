"""The fused objective against autograd through full logits, in fp64 and with torch's own losses."""

# N token, D hidden, V vocab, B sequence, T token of one

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from minitron_cli.distill.fused import token_chunks, vocab_chunks
from minitron_cli.distill.fused.objective import HeadInput, fused_objective
from minitron_cli.distill.losses import KDLoss
from minitron_cli.distill.losses.cosine import Cosine
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.distill.losses.forward_kl import ForwardKL
from minitron_cli.distill.losses.jsd import JSD
from minitron_cli.distill.losses.mse import MSE
from minitron_cli.distill.losses.reverse_kl import ReverseKL
from minitron_cli.distill.losses.two_pass import TwoPassLoss
from minitron_cli.model.lm_head import Head
from tests.quick import first_quick

N, V, STUDENT, TEACHER = 13, 29, 6, 9

low_memory_too = pytest.mark.parametrize("low_memory", [False, True])


class Case(NamedTuple):
    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor
    teacher_ND: Tensor
    teacher_VD: Tensor
    labels_N: Tensor

    def leaves(self) -> list[Tensor]:
        return [self.hidden_ND, self.weight_VD, self.bias_V]


def case(dtype: torch.dtype = torch.float64) -> Case:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    student = [t.requires_grad_() for t in (normal(N, STUDENT), normal(V, STUDENT), normal(V))]
    return Case(*student, normal(N, TEACHER), normal(V, TEACHER), torch.randint(0, V, (N,), generator=generator))


def log_p(logits_NV: Tensor, temperature: float) -> Tensor:
    return F.log_softmax(logits_NV / temperature, -1)


def kl(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """[N]. kl_div(input, target) is KL(target || input): the teacher is the target."""
    s_NV, t_NV = log_p(student_NV, temperature), log_p(teacher_NV, temperature)
    return F.kl_div(s_NV, t_NV, reduction="none", log_target=True).sum(-1) * temperature**2


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    return kl(teacher_NV, student_NV, temperature)


def jsd(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """Agarwal et al. 2024, eq. 1, on probabilities."""
    s_NV, t_NV = log_p(student_NV, temperature).exp(), log_p(teacher_NV, temperature).exp()
    m_NV = beta * t_NV + (1 - beta) * s_NV
    of_teacher_N = (t_NV * (t_NV / m_NV).log()).sum(-1)
    of_student_N = (s_NV * (s_NV / m_NV).log()).sum(-1)
    return (beta * of_teacher_N + (1 - beta) * of_student_N) * temperature**2


def mse(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    apart_NV = log_p(student_NV, temperature).exp() - log_p(teacher_NV, temperature).exp()
    return (apart_NV**2).sum(-1) * temperature**2


def cosine(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    s_NV, t_NV = log_p(student_NV, temperature).exp(), log_p(teacher_NV, temperature).exp()
    return (1 - F.cosine_similarity(s_NV, t_NV, dim=-1)) * temperature**2


ORACLES: dict[Any, Callable[..., Tensor]] = {
    ForwardKL: kl,
    ReverseKL: reverse_kl,
    JSD: jsd,
    MSE: mse,
    Cosine: cosine,
}


class Differentiable(torch.autograd.Function):
    """A loss's own value and gradient over full logits, for a loss without a formula in plain torch."""

    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, teacher_NV: Tensor, loss: Any) -> Tensor:
        value_N, grad_NV = loss.value_and_grad(student_NV.clone(), teacher_NV.clone(), None)
        ctx.save_for_backward(grad_NV)
        return value_N

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * outer[0][:, None], None, None


def values(loss: Any, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Each token's loss, [N], from full logits and differentiable."""
    if type(loss) not in ORACLES:
        return Differentiable.apply(student_NV, teacher_NV, loss)
    return ORACLES[type(loss)](student_NV, teacher_NV, **loss.model_dump(exclude={"kind", "weight"}))


def gradients(total: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(total, leaves))


def assert_close(ours: Any, theirs: Any) -> None:
    """To the millionth part, in fp64."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-13)


VARIANTS = [
    *(cls(temperature=t) for cls in get_args(get_args(KDLoss)[0]) if cls.needs_teacher for t in (0.5, 1.0, 3.0)),
    JSD(beta=0.1),
    JSD(beta=0.9, temperature=2.0),
]
MODES = [
    *(pytest.param(loss, False, id=f"{loss}") for loss in VARIANTS),
    *(pytest.param(loss, True, id=f"{loss} low memory") for loss in VARIANTS if isinstance(loss, TwoPassLoss)),
]


@pytest.mark.parametrize("chunk", first_quick([7, 1, 100]))
@pytest.mark.parametrize(("loss", "low_memory"), MODES)
def test_equals_autograd_through_full_logits(
    loss: Any, low_memory: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, with and without a mask, untied and tied, whatever is done at a time."""
    monkeypatch.setitem(vocab_chunks.VOCAB, "cpu", chunk)
    for masked, tied in product([False, True], [False, True]):
        c = case()
        mask_N = torch.arange(N) % 4 != 2 if masked else None
        hidden_ND = embedded(c) if tied else c.hidden_ND
        student, teacher = HeadInput(hidden_ND, Head(c.weight_VD)), HeadInput(c.teacher_ND, Head(c.teacher_VD))
        ours = fused_objective([loss], student, teacher, None, mask_N, chunk_tokens=chunk, low_memory=low_memory)
        value_N = values(loss, hidden_ND @ c.weight_VD.T, c.teacher_ND @ c.teacher_VD.T)
        theirs = value_N.mean() if mask_N is None else value_N[mask_N].mean()
        assert_close(ours.total, theirs)
        assert_close(ours.each_L[0], theirs.detach())
        leaves = [c.weight_VD] if tied else [c.hidden_ND, c.weight_VD]
        expected = torch.autograd.grad(theirs, leaves, retain_graph=True)
        assert_close(torch.autograd.grad(ours.total, leaves), expected)
        assert all(gradient.norm() > 1e-3 for gradient in expected)


def embedded(c: Case) -> Tensor:
    """Hidden states made from the head's own weight, as in a tied model."""
    mix_DD = torch.randn(STUDENT, STUDENT, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.tanh(F.embedding(c.labels_N.roll(1), c.weight_VD) @ mix_DD)


@pytest.mark.parametrize(("beta", "limit", "factor"), [(1e-6, kl, 1e-6), (1 - 1e-6, reverse_kl, 1e-6)])
def test_jsd_becomes_either_kl_at_its_ends(beta: float, limit: Any, factor: float) -> None:
    student_NV, teacher_NV = case().hidden_ND.detach(), case().teacher_ND[:, :STUDENT]
    value_N, _ = JSD(beta=beta).value_and_grad(student_NV.clone(), teacher_NV.clone(), None)
    torch.testing.assert_close(value_N / factor, limit(student_NV, teacher_NV), rtol=1e-3, atol=0)


def test_the_direction_is_teacher_to_student() -> None:
    """Forward KL is mass-covering: a teacher's token that the student rules out is expensive, not the converse."""
    two, one = torch.tensor([[0.0, 0.0, -30.0]]), torch.tensor([[0.0, -15.0, -30.0]])
    student_misses, _ = ForwardKL().value_and_grad(one.clone(), two.clone(), None)
    student_adds, _ = ForwardKL().value_and_grad(two.clone(), one.clone(), None)
    assert student_misses.item() == pytest.approx(7.5 - 0.6931, abs=1e-3)
    assert student_adds.item() == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize("chunk", [1, 7, 100])
@low_memory_too
def test_cross_entropy(chunk: int, low_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vocab_chunks.VOCAB, "cpu", chunk)
    c = case()
    student = HeadInput(c.hidden_ND, Head(c.weight_VD))
    ours = fused_objective([CrossEntropy()], student, None, c.labels_N, chunk_tokens=chunk, low_memory=low_memory)
    theirs = F.cross_entropy(c.hidden_ND @ c.weight_VD.T, c.labels_N)
    torch.testing.assert_close(ours.total, theirs)
    leaves = c.leaves()[:2]
    torch.testing.assert_close(gradients(ours.total, leaves), gradients(theirs, leaves), atol=1e-14, rtol=1e-9)


@pytest.mark.parametrize("order", [1, -1])
@low_memory_too
def test_a_mixture_through_biased_scaled_and_capped_heads(
    order: int, low_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vocab_chunks.VOCAB, "cpu", 8)
    c = case()
    student = HeadInput(c.hidden_ND, Head(c.weight_VD, c.bias_V, softcap=5.0, scale=1.7))
    teacher_bias_V = torch.linspace(-1, 1, V, dtype=torch.float64)
    teacher = HeadInput(c.teacher_ND, Head(c.teacher_VD, teacher_bias_V, softcap=7.0, scale=0.6))
    losses = [ForwardKL(temperature=2.0, weight=0.7), CrossEntropy(weight=0.3)][::order]
    ours = fused_objective(losses, student, teacher, c.labels_N, chunk_tokens=4, low_memory=low_memory)
    student_NV = 5 * torch.tanh(1.7 * (c.hidden_ND @ c.weight_VD.T + c.bias_V) / 5)
    teacher_NV = 7 * torch.tanh(0.6 * (c.teacher_ND @ c.teacher_VD.T + teacher_bias_V) / 7)
    each = [kl(student_NV, teacher_NV, 2.0).mean(), F.cross_entropy(student_NV, c.labels_N)]
    theirs = 0.7 * each[0] + 0.3 * each[1]
    torch.testing.assert_close(ours.total, theirs)
    torch.testing.assert_close(ours.each_L, torch.stack(each[::order]).detach())
    torch.testing.assert_close(gradients(ours.total, c.leaves()), gradients(theirs, c.leaves()), atol=1e-14, rtol=1e-9)


def test_two_losses_that_both_read_the_teacher() -> None:
    c = case()
    student, teacher = HeadInput(c.hidden_ND, Head(c.weight_VD)), HeadInput(c.teacher_ND, Head(c.teacher_VD))
    ours = fused_objective([ForwardKL(temperature=3.0), ForwardKL()], student, teacher, None).total
    logits = c.hidden_ND @ c.weight_VD.T, c.teacher_ND @ c.teacher_VD.T
    theirs = kl(*logits, 3.0).mean() + kl(*logits).mean()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, c.leaves()[:2]), gradients(theirs, c.leaves()[:2]))


@low_memory_too
def test_a_part_without_counted_tokens_adds_nothing(low_memory: bool) -> None:
    c = case()
    student, teacher = HeadInput(c.hidden_ND, Head(c.weight_VD)), HeadInput(c.teacher_ND, Head(c.teacher_VD))
    none_N = torch.zeros(N, dtype=torch.bool)
    total = fused_objective([ForwardKL()], student, teacher, None, none_N, count=5, low_memory=low_memory).total
    assert total == 0
    for gradient in gradients(total, c.leaves()[:2]):
        assert gradient.abs().max() == 0


@low_memory_too
def test_the_hidden_gradient_is_added_up_in_fp32(low_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 512 chunks of one entry each: the same, along the vocabulary."""
    monkeypatch.setitem(vocab_chunks.VOCAB, "cpu", 1)
    hidden_ND = torch.zeros(1, 4, dtype=torch.bfloat16, requires_grad=True)
    weight_VD = torch.ones(513, 4, dtype=torch.bfloat16)
    weight_VD[0] = 0
    student = HeadInput(hidden_ND, Head(weight_VD))
    fused_objective([CrossEntropy()], student, None, torch.tensor([0]), low_memory=low_memory).total.backward()
    assert hidden_ND.grad is not None
    torch.testing.assert_close(hidden_ND.grad[0].float(), torch.full((4,), 512 / 513), rtol=1e-2, atol=0)


def test_a_scaled_head_without_cap() -> None:
    c = case()
    student, teacher = HeadInput(c.hidden_ND, Head(c.weight_VD, scale=0.3)), HeadInput(c.teacher_ND, Head(c.teacher_VD))
    ours = fused_objective([ForwardKL()], student, teacher, None).total
    theirs = kl(0.3 * c.hidden_ND @ c.weight_VD.T, c.teacher_ND @ c.teacher_VD.T).mean()
    torch.testing.assert_close(gradients(ours, c.leaves()[:2]), gradients(theirs, c.leaves()[:2]))


def test_a_factor_on_the_loss_reaches_the_gradient() -> None:
    c = case()
    student, teacher = HeadInput(c.hidden_ND, Head(c.weight_VD)), HeadInput(c.teacher_ND, Head(c.teacher_VD))
    once = gradients(fused_objective([ForwardKL()], student, teacher, None).total, c.leaves()[:2])
    thrice = gradients(3 * fused_objective([ForwardKL()], student, teacher, None).total, c.leaves()[:2])
    torch.testing.assert_close(thrice, [3 * g for g in once])


def test_a_second_backward_pass_is_refused() -> None:
    c = case()
    total = fused_objective([CrossEntropy()], HeadInput(c.hidden_ND, Head(c.weight_VD)), None, c.labels_N).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call backward once"):
        total.backward()


def test_a_frozen_head_gets_no_gradient() -> None:
    c = case()
    frozen = Head(c.weight_VD.detach())
    total = fused_objective([CrossEntropy()], HeadInput(c.hidden_ND, frozen), None, c.labels_N).total
    theirs = F.cross_entropy(c.hidden_ND @ frozen.weight_VD.T, c.labels_N)
    torch.testing.assert_close(gradients(total, [c.hidden_ND]), gradients(theirs, [c.hidden_ND]))


def test_blocks_smaller_than_a_chunk_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    c = case()

    def all_of_it() -> list[Tensor]:
        student, teacher = HeadInput(c.hidden_ND, Head(c.weight_VD)), HeadInput(c.teacher_ND, Head(c.teacher_VD))
        ours = fused_objective([ForwardKL(), CrossEntropy()], student, teacher, c.labels_N, chunk_tokens=5)
        return [ours.each_L, *gradients(ours.total, c.leaves()[:2])]

    expected = all_of_it()
    monkeypatch.setattr(token_chunks, "BLOCK_BYTES", 2 * V * 8)
    torch.testing.assert_close(all_of_it(), expected)


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
)
@low_memory_too
def test_lower_precisions_differ_by_their_rounding_only(
    dtype: torch.dtype, autocast: bool, low_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 keeps 24 bits. bf16 keeps 8, so a product's logit of size x is off by up to x / 256: some per cent here.

    Softmax and sums are in fp32 in both, so more tokens do not make it worse (the next test).
    """
    monkeypatch.setitem(vocab_chunks.VOCAB, "cpu", 8)
    exact, rounded = case(), case(dtype)

    def all_of_it(c: Case) -> list[Tensor]:
        student, teacher = HeadInput(c.hidden_ND, Head(c.weight_VD)), HeadInput(c.teacher_ND, Head(c.teacher_VD))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and c is rounded):
            total = fused_objective([ForwardKL()], student, teacher, None, chunk_tokens=4, low_memory=low_memory).total
        return [total.detach(), *gradients(total, c.leaves()[:2])]

    tolerance = 1e-5 if dtype == torch.float32 and not autocast else 0.03
    for ours, expected in zip(all_of_it(rounded), all_of_it(exact), strict=True):
        assert ours.dtype in (dtype, torch.float32)
        assert (ours.double() - expected).norm() <= tolerance * expected.norm()


@low_memory_too
def test_the_head_gradient_is_added_up_in_fp32(low_memory: bool) -> None:
    """512 chunks of one token. Added in bf16, sums stop growing at 256 terms of equal size."""
    many = 512
    hidden_ND = torch.ones(many, 4, dtype=torch.bfloat16)
    weight_VD = torch.zeros(8, 4, dtype=torch.bfloat16, requires_grad=True)
    labels_N = torch.zeros(many, dtype=torch.long)
    student = HeadInput(hidden_ND, Head(weight_VD))
    fused_objective([CrossEntropy()], student, None, labels_N, chunk_tokens=1, low_memory=low_memory).total.backward()
    assert weight_VD.grad is not None
    torch.testing.assert_close(weight_VD.grad[0].float(), torch.full((4,), 1 / 8 - 1), rtol=1e-2, atol=0)


@low_memory_too
def test_without_gradients_the_values_are_the_same(low_memory: bool) -> None:
    c = case()
    arguments: tuple[Any, ...] = (
        [ForwardKL(), CrossEntropy()],
        HeadInput(c.hidden_ND, Head(c.weight_VD)),
        HeadInput(c.teacher_ND, Head(c.teacher_VD)),
        c.labels_N,
    )
    with torch.no_grad():
        values = fused_objective(*arguments, low_memory=low_memory)
    assert not values.total.requires_grad
    torch.testing.assert_close(values.each_L, fused_objective(*arguments, low_memory=low_memory).each_L, rtol=0, atol=0)
