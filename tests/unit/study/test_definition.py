"""Studies as data: what is laid over what, and that every recipe of every shipped study can be run."""

import pytest

from minitron_cli import dry_run
from minitron_cli.data.sources import DataConfig, PythonStdlib
from minitron_cli.distill import short_runs
from minitron_cli.errors import RecipeError
from minitron_cli.study import definition
from minitron_cli.study.definition import StudyDefinition, merged
from minitron_cli.study.quick import shortened
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


def test_an_arm_without_signals_reads_none_of_another_arms():
    recipe = GIVEN["recipe"] | {"distill": {"tokens": "64k"}}
    arms = {"stored": {"teach": {}}, "whole": {}, "in steps": {"steps": STEPS}}
    study = StudyDefinition.model_validate(GIVEN | {"recipe": recipe, "arms": arms})
    found = {arm: study.recipe_of(arm, "m", DATA, 0, {}) for arm in arms}
    assert {arm: one.distill.signals for arm, one in found.items()} == {
        "stored": "auto",
        "whole": "never",
        "in steps": "never",
    }
    assert found["in steps"].steps[0].distill.signals == "never"


@pytest.mark.parametrize("key", ["model", "data", "report"])
@pytest.mark.parametrize("place", ["recipe", "arms.a"])
def test_what_the_command_names_is_no_part_of_a_study(key, place):
    recipe, arm = ({key: None} if place == name else {} for name in ("recipe", "arms.a"))
    sections = {"recipe": GIVEN["recipe"] | recipe, "arms": {"a": arm, "b": {}}}
    with pytest.raises(ValueError, match=rf"{place} has {key}, which the command "):
        StudyDefinition.model_validate(GIVEN | sections)


STEPS = [
    {"label": "first", "prune": {"shape": {"ffn": 48}}, "distill": {"tokens": "64k"}},
    {"label": "second", "prune": {"shape": {"ffn": 32}}},
]


def test_rates_are_not_tried_where_a_step_has_a_training_of_its_own():
    tuning = {"rates": [1e-3, 1e-2], "tokens": "16k"}
    arms = {"at once": {}, "in steps": {"steps": STEPS}}
    given = GIVEN | {"recipe": {"prune": {}, "distill": {"tokens": "128k"}}, "arms": arms}
    StudyDefinition.model_validate(given)
    with pytest.raises(ValueError, match="step first of arm in steps has its own distill, whose rate tuning does not"):
        StudyDefinition.model_validate(given | {"tuning": tuning})


def test_an_arm_that_leaves_its_training_as_it_is_trains():
    arms = {"a": {}, "empty": {"distill": {}}, "none": {"distill": None}, "own": {"distill": {"tokens": "64k"}}}
    study = StudyDefinition.model_validate(
        GIVEN | {"recipe": {"prune": {}, "distill": {"tokens": "128k"}}, "arms": arms}
    )
    assert [study.trains(arm) for arm in arms] == [True, True, False, True]
    untrained = StudyDefinition.model_validate(GIVEN | {"arms": {"a": {}, "empty": {"distill": {}}}})
    assert [untrained.trains(arm) for arm in untrained.arms] == [False, True]


def test_a_quick_study_shortens_every_training():
    search = {"budget": {"target": "50%"}, "retrain": {"tokens": "1M", "batch_size": 4, "warmup_steps": 100}}
    arms = {
        "in steps": {"steps": STEPS, "correct": {"tokens": "1M", "warmup_steps": 50}, "prune": {"shape": None}},
        "searched": {"prune": {"shape": None}, "search": search},
        "at once": {
            "importance": {"learned": {"shape": {"ffn": 32}}},
            "sparsify": {"rounds": 2, "round_tokens": "1M"},
            "controls": [{"label": "longer", "tokens": "2M"}, {"label": "random", "prune": "random", "trained": False}],
        },
    }
    recipe = GIVEN["recipe"] | {"distill": {"tokens": "1M", "warmup_steps": 40}}
    study = StudyDefinition.model_validate(GIVEN | {"recipe": recipe, "arms": arms})
    found = {arm: shortened(study.recipe_of(arm, "m", DATA, 0, {}), 20) for arm in arms}
    steps, searched, once = (found[arm] for arm in arms)
    for training in (steps.distill, steps.correct, steps.steps[0].distill, once.distill):
        assert (training.steps, training.tokens, training.warmup_steps) == (20, None, 2)
    assert steps.steps[1].distill is None
    assert searched.search.retrain.total_steps(256) == 20
    assert searched.search.retrain.warmup_steps == 2
    assert once.importance.learned.tokens == 20 * 8 * 256
    assert once.sparsify.round_tokens is None
    assert [(one.steps, one.tokens) for one in once.controls] == [(20, None), (None, None)]


def test_a_quick_retraining_whose_batch_is_fitted_has_as_many_steps():
    search = {"budget": {"target": "50%"}, "retrain": {}}
    study = StudyDefinition.model_validate(GIVEN | {"recipe": {"search": search}, "arms": {"a": {}, "b": {}}})
    retrain = shortened(study.recipe_of("a", "m", DATA, 0, {}), 20).search.retrain
    fitted, _ = short_runs.fitted(retrain, 256, blocks=1000)
    assert fitted.total_steps(256) == 20
    assert fitted.batch_size == 1
