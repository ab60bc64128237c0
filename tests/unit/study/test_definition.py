"""Studies as data: what is laid over what, and that every recipe of every shipped study can be run."""

import pytest

from minitron_cli import dry_run
from minitron_cli.data.sources import DataConfig, PythonStdlib
from minitron_cli.errors import RecipeError
from minitron_cli.study import definition
from minitron_cli.study.definition import StudyDefinition, merged
from tests.quick import first_quick
from tests.tiny import write_tiny

DATA = DataConfig(sources=(PythonStdlib(),), sequence_length=256)
GIVEN = {"question": "Which?", "source": "nobody", "recipe": {"prune": {"shape": {"ffn": 32}}}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A model with the sizes of the teacher that the shipped studies are made for."""
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 6}
    directory = tmp_path_factory.mktemp("teacher")
    return write_tiny(directory, **sizes, num_key_value_heads=2, head_dim=32, vocab_size=2048)


@pytest.mark.parametrize("name", first_quick(definition.shipped(), 3))
def test_every_arm_of_a_shipped_study_has_a_feasible_shape(name, teacher):
    study = definition.load(name)
    for arm in study.arms:
        recipe = study.recipe_of(arm, str(teacher), DATA, 3, {})
        planned = dry_run.plan(recipe)
        assert planned.children, arm
        assert recipe.importance.seed == 3


def test_a_mapping_is_laid_over_one_of_its_kind_and_replaces_another():
    below = {"a": {"b": 1, "c": 2}, "width": {"kind": "activation", "batch": "mean"}}
    over = {"a": {"c": 3}, "width": {"kind": "random"}}
    assert merged(below, over) == {"a": {"b": 1, "c": 3}, "width": {"kind": "random"}}
    assert merged(below, {"width": {"batch": "l2"}})["width"] == {"kind": "activation", "batch": "l2"}
    assert merged(below, {"a": None}) == below | {"a": None}
    assert below["a"] == {"b": 1, "c": 2}


def test_a_seed_draws_a_random_choice_anew():
    arms = {"random": {"prune": {"ranking": {"width": {"kind": "random"}}}}, "other": {}}
    study = StudyDefinition.model_validate(GIVEN | {"arms": arms})
    assert study.recipe_of("random", "m", DATA, 5, {}).prune.ranking.width.seed == 5
    assert study.recipe_of("random", "m", DATA, 5, {}).data == DATA


@pytest.mark.parametrize(
    "names", ["expected: [{lower: a, higher: c}]", "fewer_seeds: {c: 1}", "expected: [{lower: [a, b], higher: [b, c]}]"]
)
def test_orders_and_numbers_of_seeds_name_arms(tmp_path, names):
    file = tmp_path / "study.yaml"
    file.write_text(f"question: Which?\nsource: nobody\nrecipe: {{}}\narms: {{a: {{}}, b: {{}}}}\n{names}\n")
    with pytest.raises(RecipeError, match="'c' is no arm; the arms are a, b"):
        definition.load(str(file))


def test_an_arm_is_not_compared_with_a_difference():
    order = {"lower": ["a", "b"], "higher": "a"}
    with pytest.raises(ValueError, match="must both be an arm, or both two arms"):
        StudyDefinition.model_validate(GIVEN | {"arms": {"a": {}, "b": {}}, "expected": [order]})


def test_an_unknown_study_is_named_with_one_that_is_near():
    with pytest.raises(RecipeError, match="study 'loses' does not exist: did you mean losses"):
        definition.load("loses")


def test_a_wrong_key_of_an_arm_is_one_sentence():
    study = StudyDefinition.model_validate(GIVEN | {"arms": {"a": {"distill": {"los": 1}}, "b": {}}})
    with pytest.raises(RecipeError, match=r"arm a: distill\.los is not a known key"):
        study.recipe_of("a", "m", DATA, 0, {})
