"""Heads of state spaces (Mamba-2) and the channels of these heads are pruned as a masked parent computes.

What is masked are the inputs x of a head: its rows of in_proj, and its biases of that matrix and of the convolution.
The output of a state that begins at zero and gets nothing is zero.
"""

import copy

import pytest
import torch
from transformers.utils import logging

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import InputError
from minitron_cli.importance.magnitude import magnitude
from minitron_cli.model.families import FAMILIES
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.iterative_pruning import shapes_between
from minitron_cli.prune.limits import refusal
from minitron_cli.prune.plan import PrunePlan, make_plan
from minitron_cli.scores.metric import Activation, Flap, Magnitude
from minitron_cli.search import space
from tests.conformance.test_families import (
    assert_same,
    check_streamed,
    logits_of,
    reload,
    shape_of,
    unique_parameters,
    write,
)
from tests.tiny import BASE, tiny_model
from tests.unit.importance.calibration import samples, score, split

HEADS, GROUPS, DIM = 12, 2, 6
STATE_SPACES = sorted(name for name, family in FAMILIES.items() if "mamba_head" in family.sizes)
PRUNINGS = {
    "heads": {"mamba_head": 8},
    "head channels": {"mamba_dim": 4},
    "both": {"mamba_head": 4, "mamba_dim": 3},
}
NORMS = {
    "no norm": {},
    "norm first": {"mamba_rms_norm": True},
    "gate first": {"mamba_rms_norm": True, "mamba_norm_before_gate": False},
}
EPSILON = 1e-12  # the norm's, whose share of the mean changes with the number of channels


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    logging.disable_progress_bar()


@pytest.fixture
def tokens():
    return torch.randint(1, BASE["vocab_size"], (3, 17), generator=torch.Generator().manual_seed(5))


def saved(path, **options):
    model = tiny_model("falcon_h1", rms_norm_eps=EPSILON, **options)
    model.save_pretrained(path)
    return model, Checkpoint.open(path)


class Drawn:
    """Random scores of every entry."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)

    def select(self, axis, metric):
        sizes = {"mamba_head": HEADS, "mamba_dim": DIM, "ffn": 48, "head": 8}
        return torch.rand(4, sizes[axis], generator=self.generator)


def plan_of(model, sizes):
    parent = shape_of(model)
    return make_plan(parent, parent.resize(**sizes), Drawn(), Ranking())


@torch.no_grad()
def masked(parent, plan):
    """A copy whose lost heads and channels get no input; the norm's gain is the one that the child's channels need."""
    model = copy.deepcopy(parent)
    for i, layer in enumerate(model.model.layers):
        lost = torch.ones(HEADS, DIM, dtype=torch.bool)
        heads, dims = (plan.at(axis, i) for axis in ("mamba_head", "mamba_dim"))
        kept = torch.zeros(HEADS, DIM, dtype=torch.bool)
        rows = torch.arange(HEADS) if heads is None else heads
        columns = torch.arange(DIM) if dims is None else dims
        kept[rows[:, None], columns] = True
        lost = ~kept.flatten()
        x = slice(HEADS * DIM, 2 * HEADS * DIM)
        layer.mamba.in_proj.weight[x][lost] = 0
        layer.mamba.in_proj.bias[x][lost] = 0
        layer.mamba.conv1d.bias[: HEADS * DIM][lost] = 0
    return model


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
def test_a_child_computes_what_its_masked_parent_computes(options, tokens, tmp_path, subtests):
    model, checkpoint = saved(tmp_path / "parent", **options)
    for name, sizes in PRUNINGS.items():
        with subtests.test(pruning=name):
            plan = plan_of(model, sizes)
            child = reload(write(checkpoint, plan, tmp_path / name))
            assert_same(logits_of(child, tokens), logits_of(masked(model, plan), tokens))
            assert unique_parameters(child) == plan.child.parameters()
            check_streamed(checkpoint, plan, tmp_path / f"{name} again")


def test_a_head_of_another_group_would_be_another_head(tokens, tmp_path):
    """What the test above could not see if groups did not matter: in the child, head 3 reads the second's B and C."""
    model, checkpoint = saved(tmp_path / "parent")
    plan = PrunePlan(shape_of(model), {"mamba_head": torch.tensor([[0, 1, 2, 3, 7, 8]]).expand(4, -1)})
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    wanted = logits_of(masked(model, plan), tokens)
    assert (logits_of(child, tokens) - wanted).norm() > 1e-2 * wanted.norm()


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


def test_a_child_generates_the_same_with_and_without_cache(tokens, tmp_path):
    model, checkpoint = saved(tmp_path / "parent", mamba_rms_norm=True)
    plan = plan_of(model, {"mamba_head": 8, "mamba_dim": 4, "ffn": 20, "head": 4})
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    same = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "attention_mask": torch.ones_like(tokens)}
    assert torch.equal(child.generate(tokens, use_cache=True, **same), child.generate(tokens, use_cache=False, **same))
