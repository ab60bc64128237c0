"""Gates that are all 0 or 1 make every family compute what its pruned child computes, and others have gradients."""

import pytest
import torch

from minitron_cli.checkpoint import hf
from minitron_cli.errors import InputError
from minitron_cli.learned.gated_model import gated
from minitron_cli.learned.gates import Gates, targets
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.stream import prune_in_memory
from tests.anatomy import anatomy
from tests.conformance.masked import random_survivors
from tests.conformance.test_families import assert_same, logits_of, plan_of, pruned_sizes, shape_of
from tests.quick import each_family, without
from tests.tiny import tiny_model

OF_KINDS = (
    "bamba",
    "deepseek_v2",
    "deepseek_v3",
    "ernie4_5_moe",
    "falcon_h1",
    "glm4_moe",
    "glm4_moe_lite",
    "granitemoehybrid",
    "jamba",
    "lfm2",
    "llama4_text",
    "nemotron_h",
    "qwen3_5_text",
    "qwen3_next",
)
"""Families with layers of several kinds, which have no gates."""
OF_ONE_KIND = {
    "deepseek_v2": {"first_k_dense_replace": 0},
    "deepseek_v3": {"first_k_dense_replace": 0},
    "glm4_moe": {"first_k_dense_replace": 0},
    "glm4_moe_lite": {"mlp_layer_types": ["sparse"] * 4},
}
"""Options with which all layers of such a family are of one kind."""
EACH_WITH_GATES = each_family(without(*OF_KINDS))
TOKENS = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(3))
PRUNINGS = ("all", "all and groups")


def sizes_of(model_type, pruning):
    """Sizes that have gates; where kinds of layers repeat, the pattern is another matter."""
    without = {"expert", "q_rank", "kv_rank"} | ({"ffn"} if anatomy(model_type).experts else set())
    without |= {"layer"} if anatomy(model_type).pattern else set()
    return {axis: n for axis, n in pruned_sizes(model_type, pruning).items() if axis not in without}


def binary(plan, parent):
    """Gates that are 1 for what a plan keeps."""
    layers, groups = parent.sizes["layer"], parent.groups
    found = {}
    for axis, target in targets(parent, plan.child).items():
        values = torch.zeros(target.shape)
        for i in range(layers):
            heads = plan.at("head", i)
            if axis == "ffn":
                values[i, plan.at("ffn", i)] = 1
            elif axis == "group":
                values[i, (heads // (parent.sizes["head"] // groups)).unique()] = 1
            elif axis == "head":
                values.view(layers, -1)[i, heads] = 1
                lost = values[i].sum(-1) == 0  # groups that their own gate closes
                values[i, lost] = 1
        if axis in ("hidden", "layer"):
            values[plan.at(axis)] = 1
        found[axis] = values
    return found


@EACH_WITH_GATES
def test_closed_gates_are_pruning(model_type):
    check_closed_gates(model_type, tiny_model(model_type))


@pytest.mark.parametrize("model_type", OF_ONE_KIND)
def test_gates_of_heads_leave_shared_experts_and_latents_alone(model_type):
    """Where all layers have experts: the inputs of other matrices than the heads' are no heads."""
    check_closed_gates(model_type, tiny_model(model_type, **OF_ONE_KIND[model_type]))


def check_closed_gates(model_type, model):
    for seed, pruning in enumerate(PRUNINGS):
        plan = plan_of(model, random_survivors(model.config, seed, **sizes_of(model_type, pruning)))
        parent = plan.parent
        gates = Gates(targets(parent, plan.child))
        tensors = hf.stored_tensors(model, parent.tensors())
        child = hf.model_of(
            child_config(model.config.to_dict(), plan), prune_in_memory(plan, tensors, tensors.__getitem__)
        )
        with gated(model, parent.family, gates):
            gates.values = binary(plan, parent)
            found = logits_of(model, TOKENS)
            gates.values = {}
            whole = logits_of(model, TOKENS)
        assert_same(found, logits_of(child.eval(), TOKENS))
        assert torch.equal(whole, logits_of(model, TOKENS)), "the model is as it was"
        assert (found - whole).norm() > 0.1 * whole.norm()


@EACH_WITH_GATES
def test_every_gate_has_a_gradient(model_type):
    model = tiny_model(model_type).requires_grad_(False)
    plan = plan_of(model, random_survivors(model.config, 0, **sizes_of(model_type, "all")))
    gates = Gates(targets(plan.parent, plan.child))
    gates.values = {axis: torch.full(t.shape, 0.7).requires_grad_() for axis, t in gates.targets.items()}
    with gated(model, plan.parent.family, gates):
        model(TOKENS, use_cache=False).logits.square().mean().backward()
    for axis, values in gates.values.items():
        assert values.grad.isfinite().all(), axis
        assert values.grad.abs().gt(0).float().mean() > (0.6 if axis == "ffn" else 0.99), axis  # relu neurons may rest


@pytest.mark.parametrize("model_type", OF_KINDS)
def test_layers_of_several_kinds_are_refused(model_type):
    parent = shape_of(tiny_model(model_type))
    with pytest.raises(InputError, match=f"no masks for a {model_type} model, whose layers are of several kinds"):
        targets(parent, parent.resize(head=6))


def test_a_hook_is_left_nowhere():
    model = tiny_model("llama")
    with pytest.raises(ZeroDivisionError), gated(model, plan_of_nothing(model).family, Gates({})):
        raise ZeroDivisionError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def plan_of_nothing(model):
    return plan_of(model, random_survivors(model.config, 0, ffn=20)).parent
