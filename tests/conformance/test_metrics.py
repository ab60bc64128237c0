"""Every registered way to score heads, neurons, hidden channels and layers: what any of them must do."""

import itertools
from typing import Literal, get_args, get_origin

import pytest
import torch

from minitron_cli.checkpoint import hf
from minitron_cli.errors import InputError
from minitron_cli.importance.collapse import collapse_order
from minitron_cli.importance.magnitude import magnitude
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.layout import parse
from minitron_cli.model.shape import Shape
from minitron_cli.prune.config import BLOCK_RANKINGS, Ranking
from minitron_cli.scores.metric import Learned, Metric, Random
from minitron_cli.scores.scores import Scores
from tests.quick import EVERY_MIXTURE, each_family
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


KINDS = [kind for kind in get_args(Metric) if kind is not Learned]  # whose gates have tests/conformance/test_learned.py
METRICS = [metric for kind in KINDS for metric in variants(kind)]
CHOICES = [(axis, metric) for axis in SHAPES for metric in METRICS if axis in metric.axes]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.model_fields["kind"].default)
EVERY_AXIS = pytest.mark.parametrize("axis", SHAPES)
UNSCORED = [(axis, metric) for axis in (*SHAPES, "expert") for metric in METRICS if axis not in metric.axes]
NOT_OF_A_PASS = {*BLOCK_RANKINGS, "learned"}
LAYER_METRICS = [name for name in get_args(Ranking.model_fields["layers"].annotation) if name not in NOT_OF_A_PASS]


def measure(model, batches):
    scores = score(model, batches, pre_activation=True, blocks=(2,), block_distances=(2,))
    order = collapse_order(model, family_of(model.config), batches, 1, lambda _, compute: compute())
    scores = scores | Scores({"layer.collapse": order})
    shape = Shape.of(family_of(model.config), model.config)
    return scores | magnitude(hf.stored_tensors(model, shape.tensors()).__getitem__, shape)


@pytest.fixture(scope="module")
def measured():
    """model type -> scores of its tiny model, from two batches."""
    known = {}

    def get(model_type, **how):
        key = (model_type, str(how))
        if key not in known:
            batches = split(samples(4), how.get("sizes", [2, 2]))
            known[key] = measure(tiny_model(model_type), batches[::-1] if how.get("backwards") else batches)
        return known[key]

    return get


@each_family()
def test_every_channel_has_a_finite_score(measured, model_type):
    shapes = SHAPES | EXPERT_SHAPES if "expert" in FAMILIES[model_type].sizes else SHAPES
    for axis, metric in CHOICES:
        scores = measured(model_type).select(axis, metric)
        assert scores.shape == shapes[axis], f"{axis}: {metric}"
        assert scores.isfinite().all(), f"{axis}: {metric}"
        assert len(scores.unique()) > 1, f"{axis}: {metric} tells no channel from another"


@pytest.mark.slow
@EVERY_MIXTURE
def test_every_expert_has_a_finite_score(measured, model_type):
    for metric in (metric for metric in METRICS if "expert" in metric.axes):
        scores = measured(model_type).select("expert", metric)
        assert scores.shape == EXPERT_SHAPES["expert"], metric
        assert scores.isfinite().all(), metric
        assert len(scores.unique()) > 12, f"{metric}: only an expert without a token may score 0"


@each_family()
def test_every_layer_has_a_finite_score(measured, model_type):
    for metric in LAYER_METRICS:
        scores = measured(model_type).layers(metric)
        assert scores.shape == (4,), metric
        assert scores.isfinite().all(), metric


@each_family()
def test_every_block_of_layers_has_a_finite_score(measured, model_type):
    for kind in {*BLOCK_RANKINGS} - {"block_task"}:
        scores = measured(model_type).layers(f"{kind}=2")
        assert scores.shape == (3,), kind
        assert scores.isfinite().all(), kind


@pytest.mark.parametrize(("axis", "metric"), UNSCORED, ids=str)
def test_an_axis_without_scores_is_refused(measured, axis, metric):
    with pytest.raises(InputError, match=f"{metric.kind} does not score {axis}: prune .* or rank by"):
        measured("llama").select(axis, metric)


@EVERY_KIND
@pytest.mark.parametrize("how", [{"sizes": [4]}, {"sizes": [1, 3]}, {"backwards": True}], ids=str)
def test_batches_do_not_matter(measured, kind, how):
    for axis, metric in itertools.product(SHAPES, variants(kind)):
        if axis not in kind.axes:
            continue
        expected, found = measured("llama").select(axis, metric), measured("llama", **how).select(axis, metric)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7, msg=lambda m, at=(axis, metric): f"{at}: {m}")


@EVERY_KIND
def test_scores_are_deterministic(measured, kind):
    for axis, metric in itertools.product(SHAPES, variants(kind)):
        if axis not in kind.axes:
            continue
        again = measured("llama", again=True).select(axis, metric)
        assert torch.equal(again, measured("llama").select(axis, metric)), f"{axis}: {metric}"


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


@EVERY_AXIS
def test_dead_channels_score_lowest(with_dead_channels, axis):
    measured, dead = with_dead_channels(axis)
    for metric in METRICS:
        if isinstance(metric, Random) or axis not in metric.axes:  # random is an order of its own
            continue
        scores = measured.select(axis, metric)
        is_dead = torch.zeros(scores.shape[-1], dtype=torch.bool)
        is_dead[dead] = True
        assert scores[..., is_dead].max() == 0, metric
        assert scores[..., ~is_dead].min() > 0, metric
