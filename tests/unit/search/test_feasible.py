"""Which shapes meet all constraints; the published counts are the oracle where there are some."""

import itertools
import re

import pytest
from transformers import LlamaConfig, NemotronConfig, Qwen2Config, Qwen3Config

from minitron_cli.errors import InfeasibleError
from minitron_cli.model.families import family_of
from minitron_cli.model.serving import deriving_head_size
from minitron_cli.model.shape import Shape
from minitron_cli.prune.config import Budget, PruneConfig
from minitron_cli.search.axis_sizes import PRESETS
from minitron_cli.search.config import SearchConfig
from minitron_cli.search.constraints import Flops, Latency, Memory, Parameters, Serving, Throughput
from minitron_cli.search.constraints.base import Timing
from minitron_cli.search.feasible import Candidate, admitted, searched, timed, within_budget
from tests.tiny import tiny_config


def shape_of(config) -> Shape:
    return Shape.of(family_of(config), config)


@pytest.fixture(scope="module")
def nemotron_15b() -> Shape:
    return shape_of(
        NemotronConfig(
            vocab_size=256_000,
            hidden_size=6144,
            intermediate_size=24_576,
            num_hidden_layers=32,
            num_attention_heads=48,
            num_key_value_heads=8,
            head_dim=128,
        )
    )


@pytest.fixture(scope="module")
def qwen3_8b() -> Shape:
    return shape_of(
        Qwen3Config(
            vocab_size=151_936,
            hidden_size=4096,
            intermediate_size=12_288,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
        )
    )


@pytest.mark.parametrize(
    ("sizes", "total", "without_embeddings"),
    [
        ({}, 15.63, 12.48),
        ({"hidden": 4096, "ffn": 16_384}, 8.272, 6.175),
        ({"hidden": 3072, "ffn": 9216, "head": 24}, 4.191, 2.618),
    ],
)
def test_the_papers_models_have_the_papers_counts(nemotron_15b, sizes, total, without_embeddings):
    """Muralidharan et al. 2024, table 5, in billions."""
    shape = nemotron_15b.resize(**sizes)
    assert shape.parameters() / 1e9 == pytest.approx(total, abs=0.005)
    assert shape.parameters("non_embedding") / 1e9 == pytest.approx(without_embeddings, abs=0.005)


def paper_count(layers: int, heads: int, ffn: int, hidden: int) -> int:
    """Non-gated MLP, biased layer norms, 8 groups, heads of 128, a head of its own; written out by hand."""
    layer = 2 * hidden * heads * 128 + 2 * hidden * 8 * 128 + 2 * hidden * ffn + 4 * hidden
    return 2 * 256_000 * hidden + layers * layer + 2 * hidden


def test_the_papers_4b_space_has_eighteen_feasible_shapes(nemotron_15b):
    space = PRESETS["nemotron-15b-to-4b"]
    found = admitted(nemotron_15b, space, [Parameters(target="4B")])
    by_hand = [
        (layers, heads, round(times * hidden), hidden)
        for layers, heads, times, hidden in itertools.product(
            range(29, 33), (24, 32, 48), (2.5, 3, 3.5, 4), (2560, 3072, 3584, 4096, 4608)
        )
        if abs(paper_count(layers, heads, round(times * hidden), hidden) / 4e9 - 1) <= 0.05
    ]
    shapes = [tuple(c.shape.sizes[axis] for axis in ("layer", "head", "ffn", "hidden")) for c in found]
    assert sorted(shapes) == sorted(by_hand)
    assert len(found) == 18


def test_the_papers_8b_table_is_in_its_space(nemotron_15b):
    found = {str(c.shape) for c in admitted(nemotron_15b, PRESETS["nemotron-15b-to-8b"], [Parameters(target="8B")])}
    table_19 = [(32, 32, 13_824, 4608), (31, 48, 16_384, 4096), (30, 32, 16_128, 4608), (29, 48, 13_824, 4608)]
    for layer, head, ffn, hidden in table_19:
        assert str(nemotron_15b.resize(layer=layer, head=head, ffn=ffn, hidden=hidden)) in found


@pytest.mark.parametrize(("layers", "mib"), [(36, 126_214.6), (22, 78_054.4)])
def test_memory_of_qwen3_8b_is_that_of_nvidias_guide(qwen3_8b, layers, mib):
    memory = Memory(batch=96, length=8192, at_most="100%")
    assert memory.cost(qwen3_8b.resize(layer=layers)) / 2**20 == pytest.approx(mib, abs=0.05)


def test_constraints_combine(qwen3_8b):
    space = {"layer": (22, 28, 36), "ffn": (8192, 12_288)}
    memory = Memory(batch=96, length=8192, at_most="100GiB")
    by_hand = {
        (layer, ffn)
        for layer, ffn in itertools.product(*space.values())
        if (shape := qwen3_8b.resize(layer=layer, ffn=ffn)).sizes != qwen3_8b.sizes
        and 2 * shape.parameters() + 4 * layer * 8 * 128 * 96 * 8192 <= 100 * 2**30
        and shape.parameters() >= 5e9
    }
    found = admitted(qwen3_8b, space, [memory, Parameters(at_least="5B")])
    assert {(c.shape.sizes["layer"], c.shape.sizes["ffn"]) for c in found} == by_hand
    assert by_hand
    assert len(by_hand) < 5
    assert all(c.error is None and c.costs["memory"] == memory.cost(c.shape) for c in found)


def test_constraints_of_one_kind_have_a_cost_each(qwen3_8b):
    one, many = Memory(at_most="60GiB"), Memory(batch=96, at_most="200GiB")
    narrow = Memory(weights="int4", cache="fp8", at_most="60GiB")
    found = admitted(qwen3_8b, {"layer": (28, 30)}, [one, many, narrow])
    costs = {f"memory: {each.quantity}": each.cost for each in (one, many, narrow)}
    assert list(costs) == [
        "memory: memory at 1 x 8,192 tokens",
        "memory: memory at 96 x 8,192 tokens",
        "memory: memory at 1 x 8,192 tokens, weights in int4, cache in fp8",
    ]
    assert len(found) == 2
    for candidate in found:
        assert {name: candidate.costs[name] for name in costs} == {
            n: cost(candidate.shape) for n, cost in costs.items()
        }
        assert len({candidate.costs[name] for name in costs}) == 3


def test_two_limits_of_one_quantity_are_one_cost(qwen3_8b):
    found = admitted(qwen3_8b, {"layer": (28, 30)}, [Memory(at_most="60GiB"), Memory(at_least="1GiB")])
    assert [set(candidate.costs) for candidate in found] == [{"memory"}] * 2


def test_a_share_is_one_of_the_parents(qwen3_8b):
    half = admitted(qwen3_8b, {"hidden": (), "ffn": ()}, [Parameters(target="50%", count="non_embedding")])
    whole = qwen3_8b.parameters("non_embedding")
    assert half
    assert all(abs(c.shape.parameters("non_embedding") / whole - 0.5) <= 0.025 for c in half)
    (flops,) = admitted(qwen3_8b, {"ffn": (6144, 11_264)}, [Flops(at_most="80%")])
    assert flops.shape.sizes["ffn"] == 6144


def test_the_binding_constraint_is_named_with_the_nearest_shapes(qwen3_8b):
    space = {"layer": (28, 32, 36)}
    tight = [Parameters(at_least="50%"), Memory(batch=1, length=1024, at_most="8GiB")]
    with pytest.raises(InfeasibleError) as refused:
        admitted(qwen3_8b, space, tight)
    said = str(refused.value)
    assert ": 2 miss only at most 8 GiB memory at 1 x 1,024 tokens; nearest layer=28," in said
    assert said.endswith("relax it or allow more sizes")
    bytes_28 = 2 * qwen3_8b.resize(layer=28).parameters() + 4 * 28 * 8 * 128 * 1024
    assert f"has {bytes_28 / 2**30:.2f} GiB ({bytes_28 / 2**33 - 1:+.1%})" in said


def test_of_constraints_that_all_bind_the_one_that_excludes_most_is_named(qwen3_8b):
    space = {"layer": (18, 28, 32)}
    both = [Parameters(at_most="70%"), Flops(at_least="95%")]  # no one shape meets either alone with the other
    with pytest.raises(InfeasibleError, match=r"1 miss only at least .* FLOPs per token .*; nearest layer=18"):
        admitted(qwen3_8b, space, both)


def test_programs_that_must_run_the_child():
    qwen2 = shape_of(
        Qwen2Config(
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=4,
            num_attention_heads=16,
            num_key_value_heads=16,
        )
    )
    free = admitted(qwen2, {"hidden": (512, 768), "ffn": (1408,)}, [Parameters(at_most="99%")])
    assert len(free) == 2
    with pytest.raises(InfeasibleError, match="2 miss only vLLM must run it"):
        admitted(qwen2, {"hidden": (512, 768), "ffn": (1408,)}, [Serving(programs=("vLLM",))])
    kept = admitted(qwen2, {"hidden": (512, 1024), "ffn": (1408,)}, [Serving(programs=("vLLM", "llama.cpp"))])
    assert [c.shape.sizes["hidden"] for c in kept] == [1024]


@pytest.fixture(scope="module")
def qwen2() -> Shape:
    return shape_of(
        Qwen2Config(
            vocab_size=4096,
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=4,
            num_attention_heads=16,
            num_key_value_heads=2,
        )
    )


@pytest.mark.parametrize("target", ["50%", "75%", "85%"])
def test_a_budget_makes_children_that_run_where_the_parent_runs(qwen2, target):
    budget = Budget(target=target)
    found = [c.shape.sizes for c in within_budget(qwen2, PruneConfig(budget=budget))]
    assert found
    assert all(sizes["head"] * 64 == sizes["hidden"] for sizes in found)
    assert min(sizes["head"] for sizes in found) < 16
    free = [c.shape.sizes for c in within_budget(qwen2, PruneConfig(budget=budget, serving_lint="warn"))]
    assert {sizes["head"] for sizes in free} == {16}
    assert min(sizes["hidden"] for sizes in free) < 1024


def test_heads_stay_where_no_program_asks_for_fewer(qwen3_8b, qwen2):
    found = within_budget(qwen3_8b, PruneConfig(budget=Budget(target="75%")))
    assert {c.shape.sizes["head"] for c in found} == {32}
    assert deriving_head_size(qwen2) == ["vLLM", "llama.cpp"]
    assert deriving_head_size(shape_of(tiny_config("phimoe", head_dim=4))) == []  # llama.cpp does not run the parent
    odd = qwen2.resize(hidden=896)  # nor does either program run this one
    assert {c.shape.sizes["head"] for c in within_budget(odd, PruneConfig(budget=Budget(target="75%")))} == {16}
    only_neurons = within_budget(qwen2, PruneConfig(budget=Budget(target="75%"), axes=("ffn",)))
    assert {(c.shape.sizes["hidden"], c.shape.sizes["head"]) for c in only_neurons} == {(1024, 16)}


def test_heads_stay_if_no_child_with_fewer_is_within_the_budget(qwen2):
    budget = Budget(target=qwen2.resize(hidden=960).parameters(), tolerance=0.001)
    (found,) = within_budget(qwen2, PruneConfig(budget=budget, axes=("hidden",)))
    assert (found.shape.sizes["hidden"], found.shape.sizes["head"]) == (960, 16)


def test_a_search_prunes_heads_with_hidden_unless_it_names_a_space(qwen2):
    config = SearchConfig(budget=Budget(target="75%"))
    found = searched(qwen2, config, "75%", "refuse")
    assert {"hidden", "ffn", "head"} == found.space.keys()
    assert all(c.shape.sizes["head"] * 64 == c.shape.sizes["hidden"] for c in found.candidates)
    named = config.model_copy(update={"space": {"hidden": (704, 768, 960), "ffn": (1408, 2816)}})
    for free in (searched(qwen2, config, "75%", "warn"), searched(qwen2, named, "75%", "refuse")):
        assert {"hidden", "ffn"} == free.space.keys()
        assert {c.shape.sizes["head"] for c in free.candidates} == {16}


def test_devices_must_share_heads_and_neurons():
    llama = shape_of(LlamaConfig(num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=4))
    found = admitted(llama, {"head": (16, 24), "ffn": (8192, 8200)}, [Serving(programs=(), tensor_parallel=16)])
    assert [(c.shape.sizes["head"], c.shape.sizes["ffn"]) for c in found] == [(16, 8192)]


def test_distance_from_the_target_is_negative_below_it_and_positive_above(qwen3_8b):
    target = qwen3_8b.resize(ffn=8192).parameters()
    found = admitted(qwen3_8b, {"ffn": (8064, 8192, 8320)}, [Parameters(target=target)])
    by_size = {c.shape.sizes["ffn"]: c for c in found}
    for candidate in found:
        assert candidate.parameters == candidate.shape.parameters()
        assert candidate.error == pytest.approx(candidate.shape.parameters() / target - 1)
    assert by_size[8064].error < by_size[8192].error == 0 < by_size[8320].error


def test_a_refusal_says_on_which_side_of_the_target_the_nearest_shape_is(qwen3_8b):
    target = qwen3_8b.resize(ffn=8192).parameters()
    with pytest.raises(InfeasibleError, match=r"ffn=10240 has [\d,]+ \(\+14\.2%\); ") as refused:
        admitted(qwen3_8b, {"ffn": (4096, 10_240)}, [Parameters(target=target)])
    assert re.search(r"ffn=4096 has [\d,]+ \(-28\.4%\)", str(refused.value))


class Clock:
    """A device on which a layer takes a millisecond."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, shape, workload) -> Timing:
        self.asked.append(shape.sizes["layer"])
        return Timing(shape.sizes["layer"] / 1000, 0.036)


def candidates(parent: Shape, *layers: int) -> list[Candidate]:
    return [Candidate(parent.resize(layer=n), 0, None) for n in layers]


@pytest.mark.parametrize(
    "constraint",
    [Latency(at_most=30), Latency(at_most="84%"), Throughput(batch=3, at_least=100), Throughput(at_least="120%")],
    ids=str,
)
def test_no_more_is_timed_than_it_takes(qwen3_8b, constraint):
    clock = Clock()
    found = timed(qwen3_8b, candidates(qwen3_8b, 34, 30, 33, 28, 20, 10), [constraint], 2, clock)
    assert [c.shape.sizes["layer"] for c in found] == [30, 28]
    assert clock.asked == [34, 30, 33, 28]
    assert set(found[0].costs) == {constraint.kind}


def test_times_of_one_kind_have_a_cost_each(qwen3_8b):
    limits = [Latency(at_most=30), Latency(batch=8, phase="prefill", at_most=31)]
    found = timed(qwen3_8b, candidates(qwen3_8b, 34, 20), limits, 2, Clock())
    assert [candidate.costs for candidate in found] == [
        {
            "latency: latency of decode at 1 x 512 tokens": 20.0,
            "latency: latency of prefill at 8 x 512 tokens": 20.0,
        }
    ]


def test_a_latency_that_nothing_keeps(qwen3_8b):
    with pytest.raises(InfeasibleError, match=r"at most 5 ms latency of decode at .* has 20 ms \(\+300"):
        timed(qwen3_8b, candidates(qwen3_8b, 34, 20), [Latency(at_most=5)], 2, Clock())


@pytest.mark.parametrize("target", [10**9, "1B", "50%"])
@pytest.mark.parametrize(("error", "is_admitted"), [(0.05, True), (-0.05, True), (0.0501, False), (-0.0501, False)])
def test_a_budget_has_two_sides_a_fraction_of_the_target_away(target, error, is_admitted):
    limits = Parameters.of(Budget(target=target, tolerance=0.05)).limits(2 * 10**9)
    assert limits.admit(round(10**9 * (1 + error))) is is_admitted
