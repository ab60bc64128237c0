"""Every registered way to score heads, neurons, hidden channels and layers: what any of them must do."""

import itertools
from typing import Literal, get_args, get_origin

import pytest
import torch

from minitron_cli.checkpoint import hf
from minitron_cli.importance.magnitude import magnitude
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.layout import parse
from minitron_cli.model.shape import Shape
from minitron_cli.scores.layer_score import rankings
from minitron_cli.scores.metric import Metric, Random
from tests.tiny import tiny_model
from tests.unit.importance.calibration import samples, score, split

SHAPES = {"head": (4, 8), "ffn": (4, 48), "hidden": (32,)}
EXPERT_SHAPES = {"expert": (4, 6), "ffn": (4, 6, 48)}


def variants(kind):
    """One instance for every combination of a metric's choices."""
    choices = {
        name: get_args(field.annotation)
        for name, field in kind.model_fields.items()
        if get_origin(field.annotation) is Literal
    }
    return [kind(**dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


METRICS = [metric for kind in get_args(Metric) for metric in variants(kind)]
EVERY_FAMILY = pytest.mark.parametrize("model_type", sorted(FAMILIES))


def measure(model, batches):
    scores = score(model, batches, pre_activation=True, blocks=(2,))
    return scores | magnitude(hf.stored_tensors(model).__getitem__, Shape.of(family_of(model.config), model.config))


@pytest.fixture(scope="module")
def measured():
    """model type -> scores of its tiny model, from two batches."""
    known = {}

    def get(model_type, **how):
        key = (model_type, *how)
        if key not in known:
            batches = split(samples(4), how.get("sizes", [2, 2]))
            known[key] = measure(tiny_model(model_type), batches[::-1] if how.get("backwards") else batches)
        return known[key]

    return get


@EVERY_FAMILY
def test_every_channel_has_a_finite_score(measured, model_type):
    has_experts = "expert" in FAMILIES[model_type].sizes
    for (axis, shape), metric in itertools.product(
        (SHAPES | EXPERT_SHAPES if has_experts else SHAPES).items(), METRICS
    ):
        scores = measured(model_type).select(axis, metric)
        assert scores.shape == shape, (axis, metric)
        assert scores.isfinite().all(), (axis, metric)
        # an expert without a token scores 0
        assert len(scores.unique()) > (12 if axis == "expert" else 1), (axis, metric)


@EVERY_FAMILY
def test_every_layer_has_a_finite_score(measured, model_type):
    for kind in (*rankings(of_blocks=False), "block_perplexity=2"):
        scores = measured(model_type).layers(kind)
        assert scores.shape == (3 if "=" in kind else 4,), kind
        assert scores.isfinite().all(), kind


@pytest.mark.parametrize("how", [{"sizes": [4]}, {"sizes": [1, 3]}, {"backwards": True}], ids=str)
def test_batches_do_not_matter(measured, how):
    expected, found = measured("llama"), measured("llama", **how)
    for axis, metric in itertools.product(SHAPES, METRICS):
        torch.testing.assert_close(
            found.select(axis, metric), expected.select(axis, metric), rtol=1e-4, atol=1e-7, msg=f"{axis} {metric}"
        )


def test_scores_are_deterministic(measured):
    first, again = measured("llama"), measured("llama", again=True)
    for axis, metric in itertools.product(SHAPES, METRICS):
        assert torch.equal(again.select(axis, metric), first.select(axis, metric)), (axis, metric)


@pytest.fixture(scope="module")
def with_dead_channels():
    """axis -> scores of a model in which one channel of it has no weights at all, and which channels are dead."""
    known = {}

    def get(axis):
        if axis not in known:
            model, dead = tiny_model("llama"), {axis: torch.tensor([2])}
            if axis == "head":  # a head is silent when its group's values are
                dead = {"head": torch.arange(4, 8), "kv_head": torch.tensor([1])}
            known[axis] = measure(silence_(model, dead), split(samples(4), [2, 2])), dead[axis]
        return known[axis]

    return get


@torch.no_grad()
def silence_(model, dead):
    """Zero all weights of some channels, wherever the family's table says they are."""
    shape = Shape.of(family_of(model.config), model.config)
    for name, parameter in model.named_parameters():
        layout = parse(shape.family.tensors[shape.family.match(name).template])
        for dim, index in enumerate(layout.indices(dead.get, shape.sizes)):
            if index is not None:
                parameter.index_fill_(dim, index, 0)
    return model


@pytest.mark.parametrize("axis", SHAPES)
def test_dead_channels_score_lowest(with_dead_channels, axis):
    measured, dead = with_dead_channels(axis)
    for metric in (metric for metric in METRICS if not isinstance(metric, Random)):
        scores = measured.select(axis, metric)
        is_dead = torch.zeros(scores.shape[-1], dtype=torch.bool)
        is_dead[dead] = True
        assert scores[..., is_dead].max() == 0, metric
        assert scores[..., ~is_dead].min() > 0, metric
