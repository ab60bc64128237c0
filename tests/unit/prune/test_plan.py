import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_cli.errors import CheckpointError, InputError
from minitron_cli.model.families.gemma3_text import GEMMA3_TEXT
from minitron_cli.model.families.mistral import MISTRAL
from minitron_cli.model.shape import Shape
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.plan import PrunePlan, make_plan
from minitron_cli.scores.metric import Activation
from tests.tiny import tiny_config

QUICK = settings(deadline=None, derandomize=True, max_examples=40)
SIZES = {"hidden": 32, "layer": 4, "ffn": 48, "head": 8, "kv_head": 2}


@pytest.fixture(scope="module")
def parent():
    return Shape.of(MISTRAL, tiny_config("mistral"))  # takes any sizes


class Given:
    """Scores that are simply what the test says."""

    def __init__(self, **by_axis):
        self.by_axis, self.asked = by_axis, []

    def select(self, axis, metric):
        self.asked.append((axis, metric))
        return torch.as_tensor(self.by_axis[axis])

    def layers(self, metric):
        self.asked.append(("layer", metric))
        return torch.as_tensor(self.by_axis["layer"])


def random_scores(seed, levels=5):
    """Few levels, so that there are many ties."""
    draw = np.random.default_rng(seed)
    shapes = {"hidden": (32,), "layer": (4,), "ffn": (4, 48), "head": (4, 8)}
    return Given(**{axis: draw.integers(0, levels, shape).astype(np.float32) for axis, shape in shapes.items()})


def best(scores, count, invert=False):
    """Positions of the best, ties to the lower position, by sorting in Python."""
    sign = 1 if invert else -1
    return sorted(sorted(range(len(scores)), key=lambda i: (sign * scores[i], i))[:count])


@QUICK
@given(seed=st.integers(0, 10**6), hidden=st.integers(1, 32), ffn=st.integers(1, 48), layer=st.integers(1, 4))
@pytest.mark.parametrize("invert", [False, True])
def test_the_best_survive_in_ascending_order(parent, invert, seed, hidden, ffn, layer):
    scores = random_scores(seed)
    child = parent.resize(hidden=hidden, ffn=ffn, layer=layer)
    plan = make_plan(parent, child, scores, Ranking(invert=invert))
    found = {axis: kept.tolist() for axis, kept in plan.kept.items()}
    wanted = {
        "hidden": best(scores.by_axis["hidden"], hidden, invert),
        "ffn": [best(row, ffn, invert) for row in scores.by_axis["ffn"]],
        "layer": best(scores.by_axis["layer"], layer, invert),
    }
    sizes = {"hidden": hidden, "ffn": ffn, "layer": layer}
    assert found == {axis: kept for axis, kept in wanted.items() if sizes[axis] < SIZES[axis]}
    assert plan.child == child


@QUICK
@given(seed=st.integers(0, 10**6), groups=st.integers(1, 2), per_group=st.integers(1, 4))
@pytest.mark.parametrize("invert", [False, True])
def test_heads_are_ranked_inside_their_group(parent, invert, seed, groups, per_group):
    scores = random_scores(seed)
    child = parent.resize(head=groups * per_group, kv_head=groups)
    plan = make_plan(parent, child, scores, Ranking(invert=invert))
    assert plan.child == child
    if child == parent:
        assert not plan.kept
        return
    for layer, row in enumerate(scores.by_axis["head"]):
        by_group = row.reshape(2, 4)
        kept_groups = best(by_group.sum(1), groups, invert)
        heads = [4 * g + q for g in kept_groups for q in best(by_group[g], per_group, invert)]
        assert plan.at("head", layer).tolist() == heads
        assert (plan.at("kv_head", layer).tolist() if groups < 2 else [0, 1]) == kept_groups
    assert ("kv_head" in plan.kept) == (groups < 2)


def test_ties_go_to_the_lower_position(parent):
    flat = Given(hidden=np.ones(32), layer=np.ones(4), ffn=np.ones((4, 48)), head=np.ones((4, 8)))
    for invert in (False, True):
        child = parent.resize(hidden=3, layer=2, ffn=2, head=2, kv_head=1)
        plan = make_plan(parent, child, flat, Ranking(invert=invert))
        assert plan.at("hidden").tolist() == [0, 1, 2]
        assert plan.at("layer").tolist() == [0, 1]
        assert plan.at("ffn", 3).tolist() == [0, 1]
        assert plan.at("head", 3).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_close_scores_are_told_apart_in_their_own_precision(parent, dtype):
    score = torch.ones(32, dtype=dtype)
    score[7] = torch.nextafter(score[7], torch.tensor(2.0, dtype=dtype))
    assert make_plan(parent, parent.resize(hidden=1), Given(hidden=score), Ranking()).at("hidden").tolist() == [7]


def test_infinite_scores_rank_and_numbers_that_are_none_are_refused(parent):
    score = torch.arange(4.0)
    score[1] = torch.inf  # the perplexity after the first layer is removed may overflow
    assert make_plan(parent, parent.resize(layer=2), Given(layer=score), Ranking()).at("layer").tolist() == [1, 3]
    for axis, shape in {"layer": (4,), "hidden": (32,), "ffn": (4, 48), "head": (4, 8)}.items():
        score = torch.zeros(shape)
        score[-1] = torch.nan
        child = parent.resize(**{axis: SIZES[axis] // 2})
        with pytest.raises(InputError, match="the scores hold NaN and cannot be ranked: run `minitron importance`"):
            make_plan(parent, child, Given(**{axis: score}), Ranking())


def test_scores_of_the_asked_metric_are_read_and_no_others(parent):
    scores, metric = random_scores(0), Activation(batch="mean", sequence="var")
    make_plan(parent, parent.resize(ffn=5), scores, Ranking(width=metric))
    assert scores.asked == [("ffn", metric)]
    scores = random_scores(0)
    make_plan(parent, parent.resize(layer=3), scores, Ranking(layers="perplexity"))
    assert scores.asked == [("layer", "perplexity")]


@pytest.mark.parametrize("kind", ["block_perplexity", "block_task"])
@pytest.mark.parametrize(("invert", "kept"), [(False, [0, 3]), (True, [2, 3])])
def test_the_block_of_layers_that_costs_least_goes(parent, kind, invert, kept):
    scores = Given(layer=[0.5, 0.1, 0.3])  # of layers 0 and 1, 1 and 2, 2 and 3
    plan = make_plan(parent, parent.resize(layer=2), scores, Ranking(layers=kind, invert=invert))
    assert plan.at("layer").tolist() == kept
    assert scores.asked == [("layer", f"{kind}=2")]


def test_named_layers_are_dropped(parent):
    plan = make_plan(parent, parent.resize(layer=2), Given(), Ranking(), drop_layers=(3, 1))
    assert plan.at("layer").tolist() == [0, 2]
    assert plan.child.sizes["layer"] == 2


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"hidden": 33}, "hidden=33 is not within 1 to the parent's 32: choose another size"),
        ({"ffn": 0}, "ffn=0 is not within 1 to the parent's 48"),
        ({"layer": -1}, "layer=-1 is not within"),
        ({"vocab": 63}, "vocab cannot be pruned: choose among layer, hidden, head, kv_head and ffn"),
        ({"head_dim": 4}, "head_dim cannot be pruned"),
        ({"head": 3}, "head=3 with kv_head=2: keep a multiple of kv_head, at most 4 a group"),
        ({"head": 1}, "head=1 with kv_head=2: keep a multiple"),
        ({"kv_head": 1}, "head=8 with kv_head=1: keep a multiple of kv_head, at most 4 a group"),
    ],
)
def test_sizes_that_cannot_be_met(parent, sizes, says):
    with pytest.raises(InputError, match=says):
        make_plan(parent, parent.resize(**sizes), random_scores(0), Ranking())


class TestPeriods:
    """Eight layers of kinds S S F S S F S S: two whole periods, and two layers over."""

    @pytest.fixture(scope="class")
    def gemma(self):
        config = tiny_config("gemma3_text", num_hidden_layers=8, sliding_window_pattern=3)
        return Shape.of(GEMMA3_TEXT, config)

    @pytest.mark.parametrize(("worst", "kept"), [(1, [3, 4, 5, 6, 7]), (5, [0, 1, 2, 6, 7])])
    @pytest.mark.parametrize("invert", [False, True])
    def test_the_period_with_the_smallest_sum_goes(self, gemma, worst, kept, invert):
        score = torch.tensor([2.0, 2, 2, 2, 2, 2, 0, 0])  # the layers over are the least, and stay
        score[worst] = 3 if invert else 1
        plan = make_plan(gemma, gemma.resize(layer=5), Given(layer=score), Ranking(invert=invert))
        assert plan.at("layer").tolist() == kept

    def test_all_periods_may_go(self, gemma):
        plan = make_plan(gemma, gemma.resize(layer=2), Given(layer=torch.zeros(8)), Ranking())
        assert plan.at("layer").tolist() == [6, 7]

    @pytest.mark.parametrize("layers", [1, 3, 4, 6, 7])
    def test_other_numbers_are_refused(self, gemma, layers):
        with pytest.raises(InputError, match=rf"layer={layers}: .* drop a multiple of 3 of the 8 layers"):
            make_plan(gemma, gemma.resize(layer=layers), Given(layer=torch.zeros(8)), Ranking())

    @pytest.mark.parametrize("dropped", [(7,), (6, 7), (0, 1, 2), (1, 2, 3), (2, 4, 6), (5, 6, 7)])
    def test_named_layers_may_go_where_the_pattern_stays(self, gemma, dropped):
        kinds = "SSFSSFSS"
        left = "".join(kinds[i] for i in range(8) if i not in dropped)
        child = gemma.resize(layer=8 - len(dropped))
        if kinds.startswith(left):
            plan = make_plan(gemma, child, Given(), Ranking(), dropped)
            assert plan.at("layer").tolist() == [i for i in range(8) if i not in dropped]
        else:
            with pytest.raises(InputError, match="drop whole periods, such as layers 0 to 2"):
                make_plan(gemma, child, Given(), Ranking(), dropped)


def test_a_layer_that_is_not_there(parent):
    with pytest.raises(InputError, match="drop_layers names layer 4: the model's layers are 0 to 3"):
        make_plan(parent, parent.resize(layer=3), Given(), Ranking(), drop_layers=(4,))


def test_all_layers_are_not_dropped(parent):
    with pytest.raises(InputError, match="drop_layers names all of them; leave one out"):
        make_plan(parent, parent.resize(layer=3), Given(), Ranking(), drop_layers=(0, 1, 2, 3))


class TestNames:
    @pytest.fixture
    def plan(self, parent):
        return PrunePlan(parent, {"layer": torch.tensor([0, 2, 3]), "ffn": torch.arange(4 * 5).reshape(4, 5)})

    @pytest.mark.parametrize(("layer", "new"), [(0, 0), (1, None), (2, 1), (3, 2)])
    def test_layers_are_renumbered(self, plan, layer, new):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert plan.child_name(name.format(layer)) == (None if new is None else name.format(new))

    def test_other_names_stay(self, plan):
        assert plan.child_name("model.norm.weight") == "model.norm.weight"

    def test_unknown_names_are_refused(self, plan):
        with pytest.raises(CheckpointError, match="has no layout"):
            plan.child_name("model.extra")

    def test_a_layers_own_survivors_are_taken(self, plan):
        rows, columns = plan.indices("model.layers.2.mlp.up_proj.weight")
        assert rows.tolist() == [10, 11, 12, 13, 14]
        assert columns is None

    def test_it_is_stored_as_integers(self, plan):
        assert {name: (t.dtype, t.shape) for name, t in plan.tensors().items()} == {
            "layer": (torch.int32, (3,)),
            "ffn": (torch.int32, (4, 5)),
        }
