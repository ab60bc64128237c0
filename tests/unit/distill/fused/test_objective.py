"""What must agree before step 0, and which way the losses go through a model."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor

from minitron_cli.distill.fused import token_chunks, vocab_chunks
from minitron_cli.distill.fused.objective import HeadInput, Objective, fused_objective
from minitron_cli.distill.losses import KDLoss
from minitron_cli.distill.losses.two_pass import TwoPassLoss
from minitron_cli.model.lm_head import Head
from tests.unit.distill import small

WORDS, PADDING, WIDTH, TOKENS = 11, 5, 6, 9
LOSSES = TypeAdapter(list[KDLoss]).validate_python(
    [
        {"kind": "forward_kl", "temperature": 2.0},
        {"kind": "cross_entropy", "weight": 0.3},
        {"kind": "reverse_kl", "weight": 0.5},
        {"kind": "jsd"},
        {"kind": "mse"},
        {"kind": "cosine"},
    ]
)
TWO_PASS = [loss for loss in LOSSES if isinstance(loss, TwoPassLoss)]


def head_input(seed: int, entries: int, **more: float) -> HeadInput:
    """Hidden states and a head whose last entries are large: padding that would take the mass."""
    source = torch.Generator().manual_seed(seed)
    weight_VD = torch.randn(entries, WIDTH, generator=source, dtype=torch.float64)
    weight_VD[WORDS:] *= 5
    bias_V = torch.randn(entries, generator=source, dtype=torch.float64)
    hidden_ND = torch.randn(TOKENS, WIDTH, generator=source, dtype=torch.float64)
    return HeadInput(hidden_ND, Head(weight_VD, bias_V, **more))


def reference(loss: KDLoss, student: HeadInput, teacher: HeadInput, labels_N: Tensor) -> Tensor:
    """Loss from all logits by autograd: with a teacher, over the entries that both heads have."""
    own_NV, its_NV = student.head.logits(student.hidden_ND), teacher.head.logits(teacher.hidden_ND)
    if loss.kind == "cross_entropy":
        return F.cross_entropy(own_NV, labels_N)
    common = min(own_NV.shape[1], its_NV.shape[1])
    own_NV, its_NV = own_NV[:, :common], its_NV[:, :common]
    value_N, grad_NV = loss.value_and_grad(own_NV.detach().clone(), its_NV.detach().clone(), labels_N)
    return (value_N + ((own_NV - own_NV.detach()) * grad_NV).sum(-1)).mean()


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize(("own", "its"), [(0, PADDING), (PADDING, 0), (2, PADDING), (PADDING, PADDING)])
def test_models_of_other_padding_are_compared_on_what_both_have(own: int, its: int, low_memory: bool) -> None:
    student, teacher = head_input(0, WORDS + own, softcap=20.0), head_input(1, WORDS + its)
    labels_N = torch.arange(TOKENS) % WORDS
    inputs = [student.hidden_ND, student.head.weight_VD, student.head.bias_V]
    losses = TWO_PASS if low_memory else LOSSES

    def gradients(total: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(total, inputs, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]

    for tensor in inputs:
        tensor.requires_grad_()
    found = fused_objective(losses, student, teacher, labels_N, low_memory=low_memory)
    each = [reference(loss, student, teacher, labels_N) for loss in losses]
    torch.testing.assert_close(found.each_L, torch.stack(each).detach())
    total = sum(loss.weight * value for loss, value in zip(losses, each, strict=True))
    torch.testing.assert_close(found.total, total)
    torch.testing.assert_close(gradients(found.total), gradients(total))


def test_padding_of_the_teacher_changes_nothing() -> None:
    """Each loss is that of the two models without it."""
    student, teacher = head_input(0, WORDS), head_input(1, WORDS + PADDING)

    def objective(its: HeadInput) -> Objective:
        return fused_objective(LOSSES, student, its, torch.arange(TOKENS) % WORDS)

    without = teacher.head._replace(weight_VD=teacher.head.weight_VD[:WORDS], bias_V=teacher.head.bias_V[:WORDS])
    torch.testing.assert_close(objective(teacher), objective(HeadInput(teacher.hidden_ND, without)))


@pytest.mark.slow
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_run_takes_the_way_that_is_asked_for(low_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two differ in nothing but rounding, so training goes the same way."""
    settings = {"losses": [{"kind": "forward_kl"}, {"kind": "cross_entropy", "weight": 0.3}], "steps": 3}
    expected, _ = small.run(None, small.configured(**settings, low_memory=not low_memory), held_out=None)
    monkeypatch.setattr(token_chunks if low_memory else vocab_chunks, "run", None)
    student, _ = small.run(None, small.configured(**settings, low_memory=low_memory), held_out=None)
    torch.testing.assert_close(small.state(student), small.state(expected), rtol=1e-3, atol=1e-5)
