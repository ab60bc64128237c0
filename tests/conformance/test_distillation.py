"""Every registered family: one step of distillation brings a pruned child nearer to its parent on the same text."""

import pytest
import torch
from torch import Tensor

from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import Batch
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.losses.forward_kl import ForwardKL
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.targets import targets
from tests.by_table import opened
from tests.conformance.test_families import plan_of, some_survivors, write
from tests.quick import each_family
from tests.tiny import tiny_model

LENGTH = 2e-3
"""Of a step against the gradient, in norm: short beside weights of norm 5 to 50."""


@pytest.fixture
def pair_of(tmp_path):
    """Model type -> a child without a part of every axis, and its parent, as the training loop loads and runs them."""

    def get(model_type: str) -> ModelPair:
        model = tiny_model(model_type)
        model.save_pretrained(tmp_path / "parent")
        plan = plan_of(model, some_survivors(model, 7, "all and groups"))
        child = write(opened(tmp_path / "parent"), plan, tmp_path / "child")
        student, teacher = (hf.load_model(path) for path in (child, tmp_path / "parent"))
        config = DistillConfig(steps=1, losses=(ForwardKL(),), precision="fp32")
        return ModelPair(student, teacher, config, (), ProcessGroup("cpu"), "fp32")

    return get


def loss(pair: ModelPair, batch: Batch) -> Tensor:
    target = targets(batch)
    pair.student.train()
    torch.manual_seed(0)  # Phi MoE draws experts while it is trained
    return pair.losses(batch, target, len(target.labels_N), 0.0).total


@each_family()
def test_a_step_against_the_gradient_lowers_the_divergence(model_type, pair_of, tokens):
    pair = pair_of(model_type)
    batch = Batch(tokens, torch.arange(tokens.shape[1]).expand_as(tokens), (0, 1, 2), torch.ones_like(tokens).bool())
    before = loss(pair, batch)
    before.backward()
    gradients = [(p, p.grad) for p in pair.trained().values() if p.grad is not None]
    norm = torch.stack([gradient.norm() for _, gradient in gradients]).norm()
    assert before > 0.01
    with torch.no_grad():
        for parameter, gradient in gradients:
            parameter -= LENGTH / norm * gradient
    after = loss(pair, batch)
    expected = LENGTH * norm  # to the first order
    assert before - after > 0.3 * expected
