"""Heads of state spaces (Mamba-2) and the channels of these heads are pruned as a masked parent computes.

What is masked are the inputs x of a head: its rows of in_proj, and its biases of that matrix and of the convolution.
The output of a state that begins at zero and gets nothing is zero.
"""

from dataclasses import replace

import pytest
import torch

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import InputError
from minitron_cli.importance.magnitude import magnitude
from minitron_cli.model.families import FAMILIES
from minitron_cli.model.layout import Layout, parse
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.iterative_pruning import shapes_between
from minitron_cli.prune.limits import refusal
from minitron_cli.prune.plan import PrunePlan, make_plan
from minitron_cli.scores.metric import Activation, Flap, Magnitude
from minitron_cli.search import space
from tests.anatomy import anatomy
from tests.conformance.masked import Survivors
from tests.conformance.masked import masked as masked_axes
from tests.conformance.test_families import (
    assert_same,
    check_streamed,
    logits_of,
    reload,
    shape_of,
    unique_parameters,
    write,
)
from tests.quick import case_of
from tests.tiny import tiny_model
from tests.unit.importance.calibration import samples, score, split

HEADS, GROUPS, DIM = 12, 2, 6
STATE_SPACES = sorted(name for name, family in FAMILIES.items() if "mamba_head" in family.sizes)
EVERY = pytest.mark.parametrize("model_type", [n if n == "falcon_h1" else case_of(n) for n in STATE_SPACES])
PRUNINGS = {
    "heads": {"mamba_head": 8},
    "head channels": {"mamba_dim": 4},
    "both": {"mamba_head": 4, "mamba_dim": 3},
}
WITH_HIDDEN = {
    "heads": {"mamba_head": 8},
    "heads and hidden": {"mamba_head": 8, "hidden": 16},
    "head channels and hidden": {"mamba_dim": 6, "hidden": 24},
    "both": {"mamba_head": 8, "mamba_dim": 4},
}
"""Of families whose config states the expansion as a whole number."""
NORMS = {
    "no norm": {},
    "norm first": {"mamba_rms_norm": True},
    "gate first": {"mamba_rms_norm": True, "mamba_norm_before_gate": False},
}
OF_FALCON = [pytest.param("falcon_h1", options, id=f"falcon_h1-{name}") for name, options in NORMS.items()]
OF_OTHERS = [case_of(name, {}) for name in STATE_SPACES if name != "falcon_h1"]
EPSILON = 1e-12  # the norm's, whose share of the mean changes with the number of channels


def saved(path, model_type="falcon_h1", **options):
    model = tiny_model(model_type, **{anatomy(model_type).epsilon: EPSILON}, **options)
    model.save_pretrained(path)
    return model, Checkpoint.open(path)


class Drawn:
    """Random scores of every entry."""

    def __init__(self, sizes, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.sizes = sizes

    def select(self, axis, metric):
        shape = (self.sizes[axis],) if axis == "hidden" else (4, self.sizes[axis])
        return torch.rand(shape, generator=self.generator)


def plan_of(model, sizes):
    parent = shape_of(model)
    return make_plan(parent, parent.resize(**sizes), Drawn(parent.sizes), Ranking())


def mixers(model):
    """(layer, state space) of the layers that have one."""
    parts = anatomy(model.config.model_type)
    found = ((i, getattr(layer, parts.state_space, None)) for i, layer in enumerate(parts.layers(model)))
    return [(i, mixer) for i, mixer in found if hasattr(mixer, "in_proj")]


@torch.no_grad()
def masked(parent, plan):
    """A copy whose lost heads and channels get no input; the norm's gain is the one that the child's channels need."""
    hidden = plan.at("hidden")
    model = masked_axes(parent, Survivors(hidden=None if hidden is None else hidden.tolist()))
    heads_of, dims_of = (plan.parent.sizes[axis] for axis in ("mamba_head", "mamba_dim"))
    count = heads_of * dims_of
    for i, mixer in mixers(model):
        heads, dims = (plan.at(axis, i) for axis in ("mamba_head", "mamba_dim"))
        kept = torch.zeros(heads_of, dims_of, dtype=torch.bool)
        rows = torch.arange(heads_of) if heads is None else heads
        columns = torch.arange(dims_of) if dims is None else dims
        kept[rows[:, None], columns] = True
        lost = ~kept.flatten()
        x = slice(count, 2 * count)
        mixer.in_proj.weight[x][lost] = 0
        mixer.in_proj.bias[x][lost] = 0
        mixer.conv1d.bias[:count][lost] = 0
    return model


@pytest.mark.parametrize(("model_type", "options"), [*OF_FALCON, *OF_OTHERS])
def test_a_child_computes_what_its_masked_parent_computes(model_type, options, tokens, tmp_path, subtests):
    model, checkpoint = saved(tmp_path / "parent", model_type, **options)
    assert mixers(model)
    for name, sizes in (WITH_HIDDEN if FAMILIES[model_type].quotients else PRUNINGS).items():
        with subtests.test(pruning=name):
            plan = plan_of(model, sizes)
            child = reload(write(checkpoint, plan, tmp_path / name))
            assert_same(logits_of(child, tokens), logits_of(masked(model, plan), tokens))
            assert unique_parameters(child) == plan.child.parameters()
            check_streamed(checkpoint, plan, tmp_path / f"{name} again")


@EVERY
def test_a_head_of_another_group_would_be_another_head(model_type, tokens, tmp_path):
    """What the test above could not see if groups did not matter: in the child, head 3 reads the second's B and C."""
    model, checkpoint = saved(tmp_path / "parent", model_type)
    kept = [0, 1, 2, 3, 4, 5, 7, 8] if FAMILIES[model_type].quotients else [0, 1, 2, 3, 7, 8]
    plan = PrunePlan(shape_of(model), {"mamba_head": torch.tensor([kept]).expand(4, -1)})
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    wanted = logits_of(masked(model, plan), tokens)
    assert (logits_of(child, tokens) - wanted).norm() > 1e-2 * wanted.norm()


@EVERY
def test_the_parts_of_the_first_matrix_are_in_their_order(model_type, tokens, tmp_path):
    """A table with z and x, or with B and C, in each other's place would write another child, or the same one."""
    model, checkpoint = saved(tmp_path / "parent", model_type)
    plan = plan_of(model, {"mamba_head": 8})
    family = plan.parent.family
    name = next(t for t in family.tensors if t.endswith("in_proj.weight"))
    z, x, b, c, dt = parse(family.tensors[name]).dims[0]
    wanted = logits_of(masked(model, plan), tokens)
    for place, parts in enumerate([(dt, z, x, b, c), (b, c, z, x, dt), (z, b, c, x, dt)]):
        permuted = str(Layout((parts, *parse(family.tensors[name]).dims[1:])))
        other = replace(family, tensors={**family.tensors, name: permuted})
        turned = PrunePlan(replace(plan.parent, family=other), plan.kept)
        child = reload(write(checkpoint, turned, tmp_path / f"child {place}"))
        assert (logits_of(child, tokens) - wanted).norm() > 1e-3 * wanted.norm(), permuted


@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [1, 3], [0, 3]], ids=str)
@EVERY
def test_attention_is_never_pruned_away(model_type, kept):
    """Where only some layers have it, one stays, whatever is asked for and whatever the ranking."""
    parent = shape_of(tiny_model(model_type))
    if not parent.family.layers:
        return
    child = parent.of_layers(kept)
    kinds = set(child.family.layers)
    reason = refusal(parent, child, kept)
    assert (reason is None) == (kinds == set(parent.family.layers))
    for count in range(len(set(parent.family.layers)), 4):
        assert ("full_attention",) in parent.resize(layer=count).family.layers


def test_every_group_keeps_the_same_number_of_heads(tmp_path):
    """Also where all the best heads are in one group."""
    parent = shape_of(tiny_model("falcon_h1"))

    class Scores:
        def select(self, axis, metric):
            return torch.arange(HEADS).float().expand(4, HEADS)

    plan = make_plan(parent, parent.resize(mamba_head=4), Scores(), Ranking())
    assert plan.at("mamba_head", 2).tolist() == [4, 5, 10, 11]
    with pytest.raises(InputError, match="mamba_head=5: its 2 groups keep equally many; keep a multiple"):
        make_plan(parent, parent.resize(mamba_head=5), Scores(), Ranking())
    assert space.choices(parent, "mamba_head") == (2, 4, 6, 8, 10, 12)
    between = shapes_between(parent, parent.resize(mamba_head=4, mamba_dim=3), 3)
    assert [refusal(parent, shape) for shape in between] == [None] * 3
    assert [shape.sizes["mamba_head"] for shape in between] == [10, 8, 4]


def test_scores_are_those_of_the_inputs_x(tmp_path):
    """sqrt of the sum over samples of (mean |x|)^2: heads by their channels' norm, channels by their heads'."""
    model, batch = tiny_model("falcon_h1"), samples(4)
    seen = {}

    def hook(i):
        return lambda _, args, output: seen.update({i: output[..., 72:144]})

    hooks = [layer.mamba.in_proj.register_forward_hook(hook(i)) for i, layer in enumerate(model.model.layers)]
    with torch.no_grad():
        model(batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
    for one in hooks:
        one.remove()
    scores = score(model, split(batch, [3, 1]))
    for axis, dim in (("mamba_head", -1), ("mamba_dim", -2)):
        sizes = torch.stack([seen[i].unflatten(-1, (HEADS, DIM)).norm(dim=dim) for i in range(4)])  # [L, B, T, C]
        wanted = sizes.mean(2).norm(dim=1)
        torch.testing.assert_close(scores.select(axis, Activation(batch="l2", sequence="mean")), wanted)
        weights = magnitude(hf.stored_tensors(model).__getitem__, shape_of(model)).select(axis, Magnitude())
        assert weights.shape == wanted.shape
        assert weights.min() > 0
        with pytest.raises(InputError, match=f"flap does not score {axis}"):
            scores.select(axis, Flap())


@EVERY
def test_a_child_generates_the_same_with_and_without_cache(model_type, tokens, tmp_path):
    model, checkpoint = saved(tmp_path / "parent", model_type, mamba_rms_norm=True)
    plan = plan_of(model, {"mamba_head": 8, "mamba_dim": 4, "ffn": 20, "head": 4})
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    same = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "attention_mask": torch.ones_like(tokens)}
    assert torch.equal(child.generate(tokens, use_cache=True, **same), child.generate(tokens, use_cache=False, **same))
