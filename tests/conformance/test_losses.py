"""What every loss of the union must keep; a new one is covered by being in it."""

# N token, V vocab

from collections.abc import Iterable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from minitron_cli.distill.fused import vocab_chunks
from minitron_cli.distill.fused.objective import HeadInput, fused_objective
from minitron_cli.distill.losses import KDLoss
from minitron_cli.model.lm_head import Head

LOSSES = get_args(get_args(KDLoss)[0])
TEMPERATURES = [0.5, 1.0, 3.0]
N, V, STUDENT, TEACHER = 11, 17, 5, 7


def variants(classes: Iterable[Any]) -> list[Any]:
    return [
        pytest.param(cls(**options), id=f"{cls.__name__}-{options}")
        for cls in classes
        for options in ([{"temperature": t} for t in TEMPERATURES] if "temperature" in cls.model_fields else [{}])
    ]


every_loss = pytest.mark.parametrize("loss", variants(LOSSES))
every_comparison = pytest.mark.parametrize("loss", variants(cls for cls in LOSSES if cls.needs_teacher))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sides() -> tuple[HeadInput, HeadInput, Tensor]:
    student = HeadInput(normal(N, STUDENT, seed=0).requires_grad_(), Head(normal(V, STUDENT, seed=1).requires_grad_()))
    teacher = HeadInput(normal(N, TEACHER, seed=2).requires_grad_(), Head(normal(V, TEACHER, seed=3).requires_grad_()))
    return student, teacher, torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(4))


def gradients(loss: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher, labels_N = sides()
    total = fused_objective([loss], student, teacher, labels_N, **options).total
    total.backward()
    assert student.hidden_ND.grad is not None
    assert student.head.weight_VD.grad is not None
    return total.detach(), student.hidden_ND.grad, student.head.weight_VD.grad


@every_loss
def test_the_gradient_is_that_of_the_value(loss: Any) -> None:
    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, student_NV: Tensor) -> Tensor:
            value_N, grad_NV = loss.value_and_grad(student_NV.clone(), teacher_NV.clone(), labels_N)
            ctx.save_for_backward(grad_NV)
            return value_N

        @staticmethod
        def backward(ctx: Any, *outer: Tensor) -> Tensor:
            return ctx.saved_tensors[0] * outer[0][:, None]

    teacher_NV = normal(N, V, seed=1)
    labels_N = torch.arange(N) % V
    torch.autograd.gradcheck(Loss.apply, (normal(N, V, seed=0).requires_grad_(),))


@every_loss
def test_never_below_zero(loss: Any) -> None:
    for scale in (0.01, 1, 30):
        value_N, _ = loss.value_and_grad(
            scale * normal(100, V, seed=0), scale * normal(100, V, seed=1), torch.arange(100) % V
        )
        assert value_N.min() >= -1e-14  # a rounding of logits around 60
        assert value_N.isfinite().all()


@every_loss
def test_extreme_logits_in_fp32_stay_finite(loss: Any) -> None:
    """Certain of different tokens, by a factor of e**400."""
    student_NV, teacher_NV = 200 * torch.eye(4), 200 * torch.eye(4).roll(1, 0)
    value_N, grad_NV = loss.value_and_grad(student_NV, teacher_NV, torch.arange(4))
    assert value_N.isfinite().all()
    assert grad_NV.isfinite().all()


@every_comparison
def test_zero_with_zero_gradient_where_the_student_is_the_teacher(loss: Any) -> None:
    logits_NV = 5 * normal(N, V, seed=0)
    value_N, grad_NV = loss.value_and_grad(logits_NV.clone(), logits_NV.clone(), None)
    torch.testing.assert_close(value_N, torch.zeros(N, dtype=torch.float64), atol=1e-15, rtol=0)
    torch.testing.assert_close(grad_NV, torch.zeros(N, V, dtype=torch.float64), atol=1e-15, rtol=0)


@every_loss
def test_a_shift_of_all_logits_changes_nothing(loss: Any) -> None:
    student_NV, teacher_NV, labels_N = normal(N, V, seed=0), normal(N, V, seed=1), torch.arange(N) % V
    expected = loss.value_and_grad(student_NV.clone(), teacher_NV.clone(), labels_N)
    shifted = loss.value_and_grad(student_NV + 40, teacher_NV - 40, labels_N)
    torch.testing.assert_close(shifted, expected)


@every_loss
def test_reaches_the_student_and_not_the_teacher(loss: Any) -> None:
    student, teacher, labels_N = sides()
    fused_objective([loss], student, teacher, labels_N).total.backward()
    for tensor in (student.hidden_ND, student.head.weight_VD):
        assert tensor.grad is not None
        assert tensor.grad.norm() > 0.001
    assert teacher.hidden_ND.grad is None
    assert teacher.head.weight_VD.grad is None


@every_loss
def test_masked_tokens_are_ignored(loss: Any) -> None:
    mask_N = torch.arange(N) % 3 != 1
    total, hidden_ND, weight_VD = gradients(loss, mask_N=mask_N)
    student, teacher, labels_N = sides()
    few = HeadInput(student.hidden_ND.detach()[mask_N].requires_grad_(), student.head)
    alone = fused_objective([loss], few, HeadInput(teacher.hidden_ND[mask_N], teacher.head), labels_N[mask_N]).total
    alone.backward()
    torch.testing.assert_close(total, alone.detach())
    torch.testing.assert_close(hidden_ND[mask_N], few.hidden_ND.grad)
    torch.testing.assert_close(weight_VD, student.head.weight_VD.grad)
    assert hidden_ND[~mask_N].abs().max() == 0


@every_loss
def test_a_chunk_at_a_time_is_the_whole(loss: Any, subtests: pytest.Subtests) -> None:
    whole = gradients(loss)
    for size in (1, 7, N, 100):
        with subtests.test(chunk_tokens=size):
            torch.testing.assert_close(gradients(loss, chunk_tokens=size), whole, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("loss", variants(cls for cls in LOSSES if hasattr(cls, "by_vocab")))
def test_a_part_of_the_vocabulary_at_a_time_is_the_whole(
    loss: Any, subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gradients(loss)
    for size in (1, 5, V, 100):
        with subtests.test(size=size):
            monkeypatch.setitem(vocab_chunks.VOCAB, "cpu", size)
            low = gradients(loss, chunk_tokens=4, low_memory=True)
            torch.testing.assert_close(low, whole, atol=1e-14, rtol=1e-12)


@every_loss
def test_parts_divided_by_the_whole_count_add_up_to_the_whole(loss: Any) -> None:
    first_N = torch.arange(N) < 4
    parts = [gradients(loss, mask_N=mask_N, count=N) for mask_N in (first_N, ~first_N)]
    summed = tuple(a + b for a, b in zip(*parts, strict=True))
    torch.testing.assert_close(summed, gradients(loss))


@every_loss
def test_a_weight_multiplies_value_and_gradient(loss: Any) -> None:
    weighted = gradients(loss.model_copy(update={"weight": 2.5}))
    torch.testing.assert_close(weighted, tuple(2.5 * t for t in gradients(loss)))


@every_loss
def test_a_figure_presents_it(loss: Any) -> None:
    assert loss.figure.title
    assert loss.figure.better == "lower"


def test_kinds_are_unique() -> None:
    kinds = [cls.model_fields["kind"].default for cls in LOSSES]
    assert len(set(kinds)) == len(kinds) > 1
