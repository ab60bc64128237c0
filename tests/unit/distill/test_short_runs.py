"""Batch and warm-up that fit short runs, for every training whose settings have them."""

import itertools

import pytest

from minitron_cli import dry_run
from minitron_cli.distill.config import CorrectConfig, DistillConfig
from minitron_cli.distill.short_runs import MIN_STEPS, fitted
from minitron_cli.errors import RecipeError
from minitron_cli.recipe import Recipe
from minitron_cli.search.config import Retrain

KINDS = (DistillConfig, CorrectConfig, Retrain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [16, 512, 8192])
def test_a_short_run_has_enough_steps_and_a_short_warm_up(kind, length):
    """The batch is the largest that leaves the steps, found here by trying all."""
    for tokens, blocks in itertools.product((1, 1_000, 50_000, 3_000_000, 200_000_000), (1, 7, 400, 10**6)):
        found, remark = fitted(kind(tokens=tokens), length, blocks)
        usual = kind(tokens=tokens)
        sizes = [n for n in range(1, usual.batch_size + 1) if n <= blocks and tokens // (n * length) >= MIN_STEPS]
        assert found.batch_size == max(sizes, default=1)
        assert found.warmup_steps == min(usual.warmup_steps, found.total_steps(length) // 10)
        assert fitted(found, length, blocks) == (found, None)
        for name in ("batch_size", "warmup_steps"):
            assert (f"{usual.section}.{name}" in (remark or "")) == (getattr(found, name) != getattr(usual, name))


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_run_stays_as_it_is(kind):
    config = kind(tokens=94_000_000_000)
    assert fitted(config, 8192, 12_000_000) == (config, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "blocks", "message"),
    [
        ({"tokens": 4_000, "batch_size": 64}, 1000, r"batch_size 64 x 100 tokens is more than .*\.tokens 4,000"),
        ({"tokens": 10_000, "batch_size": 64}, 63, r"batch_size 64 is more than the 63 blocks of the training text"),
        ({"tokens": 10_000, "warmup_steps": 101}, 1000, r"warmup_steps 101 is more than the run's 100 steps"),
    ],
)
def test_what_the_user_set_is_refused_where_it_cannot_work(kind, given, blocks, message):
    with pytest.raises(RecipeError, match=rf"^{kind.section}\.{message}") as caught:
        fitted(kind(**given), 100, blocks)
    assert f"lower {kind.section}." in str(caught.value)
    assert "leave" in str(caught.value)


def test_what_the_user_set_is_kept_where_it_works():
    config = DistillConfig(tokens=30_000, batch_size=64, warmup_steps=4)
    assert fitted(config, 100, 1000) == (config, None)


def test_a_dry_run_says_what_is_fitted():
    said = dry_run._training(DistillConfig(tokens=1_000_000), 2048)
    assert said.startswith("123 steps of 4 x 2,048 tokens")
    assert "batch_size is 4 instead of 1,152 and warmup_steps is 12 instead of 40, to fit 123 steps" in said


def test_a_recipe_keeps_what_it_sets_through_its_chain():
    """What the user set is known by the keys of the recipe, which copies of its sections keep."""
    step = {"label": "half", "prune": {"shape": {"ffn": 8}}}
    text = {"sources": [{"kind": "files", "paths": ["*.txt"]}]}
    distill = {"tokens": "1M", "batch_size": 8}
    recipe = Recipe.model_validate({"model": "m", "data": text, "distill": distill, "steps": [step]})
    config, _ = fitted(recipe.at(recipe.steps[0]).distill, 2048)
    assert config.batch_size == 8
