"""Which parameters weight decay applies to, and which trainings have another key for it."""

import pytest
import torch

from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.optimizer import Optimizer
from minitron_cli.distill.weight_decay import decayed, key_inputs
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from tests import tiny
from tests.quick import every_family

CONFIG = DistillConfig(steps=1, weight_decay=0.1)
NO_MATRICES = {
    "gpt_oss": ("gate_up_proj_bias", "down_proj_bias", "norm.weight", "sinks", "_proj.bias", "router.bias"),
    "jamba": ("A_log", "D", "conv1d.weight", "norm.weight", "bias"),
    "llama": ("norm.weight", "bias"),
}


@pytest.mark.parametrize("model_type", NO_MATRICES)
def test_a_step_without_gradient_shrinks_matrices_and_nothing_else(model_type: str) -> None:
    model = tiny.tiny_model(model_type)
    pair = ModelPair(model, None, CONFIG, (), ProcessGroup("cpu", alone=True), "fp32")
    optimizer = Optimizer(pair.trained(), CONFIG, None, pair.decayed())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step_(1.0)
    for name, p in model.named_parameters():
        stays = name.endswith(NO_MATRICES[model_type])
        torch.testing.assert_close(p.detach(), before[name] * (1 if stays else 0.9), msg=name)


@every_family()
def test_a_model_has_another_key_if_other_parameters_are_decayed_than_before(model_type: str) -> None:
    """Those of at least two dims were."""
    model = tiny.tiny_model(model_type)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    family = family_of(model.config)
    shape = Shape.of(family, model.config)
    is_other = decayed(family, parameters) != {name for name, p in parameters.items() if p.ndim >= 2}
    assert bool(key_inputs(CONFIG, shape)) == is_other
    assert key_inputs(CONFIG.model_copy(update={"weight_decay": 0.0}), shape) == {}
