import pytest
from pydantic import ValidationError
from transformers import LlamaConfig

from minitron_cli.errors import InputError
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.search import space
from minitron_cli.search.axis_sizes import Choices, FfnMultiple, HeadsOfHidden, Range
from minitron_cli.search.config import SearchConfig


@pytest.fixture(scope="module")
def llama() -> Shape:
    config = LlamaConfig(hidden_size=4096, intermediate_size=14_336, num_attention_heads=32, num_key_value_heads=8)
    return Shape.of(family_of(config), config)


@pytest.mark.parametrize(
    ("axis", "wanted", "sizes"),
    [
        ("hidden", Range(multiple_of=1024), (1024, 2048, 3072, 4096)),
        ("hidden", Range(multiple_of=512, max_pruned=0.25), (3072, 3584, 4096)),
        ("hidden", Range(multiple_of=512, min=2600, max=3600), (3072, 3584)),
        ("ffn", Range(multiple_of=4000, max_pruned=0.5), (8000, 12_000, 14_336)),
        ("layer", Range(max_pruned=0.1), (29, 30, 31, 32)),
        ("head", Range(max_pruned=0.5), (16, 24, 32)),
        ("kv_head", Range(min=4), (4, 5, 6, 7, 8)),
    ],
)
def test_a_range_is_cut_by_size(llama, axis, wanted, sizes):
    assert space.choices(llama, axis, wanted) == sizes


def test_an_expansion_follows_the_childs_hidden_size(llama):
    found = space.grid(llama, {"ffn": FfnMultiple(of_hidden=(2.5, 3.5)), "hidden": (2048, 4096)})
    assert [(s.sizes["hidden"], s.sizes["ffn"]) for s in found] == [
        (2048, 5120),
        (2048, 7168),
        (4096, 10_240),
        (4096, 14_336),
    ]
    wide = space.grid(llama, {"ffn": FfnMultiple(of_hidden=(3.0, 4.0)), "hidden": (4096,)})
    assert [s.sizes["ffn"] for s in wide] == [12_288], "4 x 4096 is wider than the parent"


def test_heads_fill_the_childs_hidden_size(llama):
    found = space.grid(llama, {"hidden": (512, 1024, 1040, 3000, 4096), "head": HeadsOfHidden(fills="hidden")})
    assert [(s.sizes["hidden"], s.sizes["head"]) for s in found] == [(1024, 8), (4096, 32)]  # 8 groups, heads of 128
    with pytest.raises(InputError, match="only head can fill hidden"):
        space.grid(llama, {"ffn": HeadsOfHidden(fills="hidden")})


def test_depth_and_width_vary_jointly(llama):
    found = space.grid(llama, {"layer": (24, 32), "hidden": (2048, 4096)})
    assert {(s.sizes["layer"], s.sizes["hidden"]) for s in found} == {(24, 2048), (24, 4096), (32, 2048), (32, 4096)}


def test_only_neurons_are_given_as_a_multiple(llama):
    with pytest.raises(InputError, match="only ffn can be a multiple of hidden"):
        space.grid(llama, {"head": FfnMultiple(of_hidden=(2.0,))})


def test_an_axis_that_the_model_lacks(llama):
    with pytest.raises(InputError, match="no axis 'expert': choose among layer, hidden"):
        space.grid(llama, {"expert": (2,)})


def test_spaces_are_read_as_they_are_written():
    written = {"hidden": [3072, 4096], "ffn": {"of_hidden": [2.5, 3]}, "layer": {"max_pruned": 0.2}, "head": []}
    config = SearchConfig.model_validate({"budget": {"target": "4B"}, "space": written})
    assert config.axes == {
        "hidden": (3072, 4096),
        "ffn": FfnMultiple(of_hidden=(2.5, 3)),
        "layer": Range(max_pruned=0.2),
        "head": (),
    }
    preset = SearchConfig.model_validate({"budget": {"target": "4B"}, "space": "nemotron-15b-to-4b"})
    assert preset.axes["hidden"] == Choices(among=(2560, 3072, 3584, 4096, 4608))


def test_a_published_space_serves_a_smaller_parent(llama):
    found = space.grid(llama.resize(hidden=3072), {"hidden": Choices(among=(2560, 3072, 3584)), "layer": (32,)})
    assert [s.sizes["hidden"] for s in found] == [2560, 3072]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({}, "the size is unbounded; give budget.target or constraints"),
        ({"targets": ["50%"], "constraints": [{"kind": "flops", "at_most": "50%"}]}, "give the first one there"),
        ({"budget": {"target": "50%"}, "targets": ["50 %"]}, "a target is given twice"),
        ({"budget": {"target": "4B"}, "space": {}}, "the space names no axis"),
        ({"budget": {"target": "4B"}, "space": "nemotron"}, "not a published space; use one of nemotron-15b-to-8b"),
        ({"budget": {"target": "4B"}, "space": {"ffn": 8}}, "8 is not a choice of sizes; write"),
        ({"constraints": [{"kind": "memory"}]}, "give at_least or at_most"),
        ({"constraints": [{"kind": "parameters", "target": "4B", "at_most": "5B"}]}, "not both"),
        ({"constraints": [{"kind": "memory", "at_most": "16 gigs"}]}, "write 16GiB, 24GB, 80% or a number of bytes"),
        ({"budget": {"target": "-5%"}}, "is not a quantity"),
        ({"budget": {"target": "4B"}, "objective": {"kind": "loss", "metric": "f1"}}, "loss has no metric"),
    ],
)
def test_what_makes_no_sense_is_refused(written, message):
    with pytest.raises(ValidationError, match=message):
        SearchConfig.model_validate(written)


@pytest.mark.parametrize(
    ("written", "name", "better"),
    [
        ("winogrande:5", "winogrande:5 acc", "higher"),
        ({"task": "wikitext", "metric": "word_perplexity"}, "wikitext word_perplexity", "lower"),
        ({"task": "mine", "metric": "regret", "better": "lower"}, "mine regret", "lower"),
        ({"kind": "task", "task": "mine"}, "mine acc", "higher"),
        ({"kind": "winogrande:5", "metric": "f1"}, "winogrande:5 f1", "higher"),
    ],
)
def test_a_task_can_be_the_objective(written, name, better):
    objective = SearchConfig.model_validate({"budget": {"target": "4B"}, "objective": written}).objective
    assert (objective.name, objective.figure.better) == (name, better)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"ffn": {"of_hidden": [0, 1]}}, "greater than 0"),
        ({"ffn": {"of_hidden": [-1]}}, "greater than 0"),
        ({"layer": {"among": [0, 2]}}, "greater than or equal to 1"),
        ({"head": {"among": [0]}}, "greater than or equal to 1"),
        ({"layer": [0, 2]}, "greater than or equal to 1"),
        ({"ffn": {"max_cut": 0.5}}, "the key max_cut is now called max_pruned; write max_pruned: 0.5"),
    ],
)
def test_sizes_below_one_are_refused(space, message):
    with pytest.raises(ValidationError, match=message):
        SearchConfig.model_validate({"budget": {"target": "4B"}, "space": space})


def test_a_multiple_that_rounds_to_nothing_is_no_size(llama):
    found = space.grid(llama, {"ffn": FfnMultiple(of_hidden=(1e-5, 1.0)), "hidden": (4096,)})
    assert [s.sizes["ffn"] for s in found] == [4096]
