"""Batch, warm-up and learning rate that fit short runs, for every training whose settings have them."""

import itertools

import pytest

from minitron_cli import dry_run
from minitron_cli.distill.config import CorrectConfig, DistillConfig
from minitron_cli.distill.short_runs import MIN_STEPS, fit, fitted
from minitron_cli.errors import RecipeError
from minitron_cli.inputs.source_model import published_shape
from minitron_cli.recipe import Recipe
from minitron_cli.search.config import Retrain
from minitron_cli.ticket.config import TicketTraining

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
    assert fitted(config, 8192, 12_000_000, 500_000_000) == (config, None)


BIG, SMALL = 500_000_000, 4_000_000


@pytest.mark.parametrize(
    ("settings", "parameters", "peak", "last"),
    [
        (DistillConfig(tokens=50_000), BIG, 1e-5, 1e-6),
        (DistillConfig(steps=10, batch_size=8), BIG, 1e-5, 1e-6),  # the root of 8 / 1152 is less
        (DistillConfig(steps=10, batch_size=288), BIG, 5e-5, 5e-6),  # a quarter of the published batch
        (DistillConfig(steps=10, batch_size=2304), BIG, 1e-4, 1e-5),
        (DistillConfig(tokens=50_000), SMALL, 1e-4, 1e-5),
        (CorrectConfig(tokens=50_000), BIG, 1e-5, 1e-6),
        (CorrectConfig(steps=10, batch_size=512), BIG, 1.3e-5, 1.3e-6),
        (CorrectConfig(tokens=50_000), SMALL, 2e-5, 2e-6),
        (Retrain(tokens=50_000), BIG, 1e-5, None),
        (Retrain(tokens=50_000), SMALL, 1e-4, None),
        (DistillConfig(tokens=50_000, init="random"), BIG, 1e-4, 1e-5),  # not a trained model's weights
        (DistillConfig(tokens=50_000, learning_rate=3e-4), BIG, 3e-4, 1e-5),
        (DistillConfig(tokens=50_000, min_learning_rate=3e-5), BIG, 3e-5, 3e-5),
        (DistillConfig(tokens=50_000, min_learning_rate=0), BIG, 1e-5, 0),
        (DistillConfig(tokens=50_000, learning_rate=5e-6), BIG, 5e-6, 5e-7),  # not above its peak at the end
        (DistillConfig(tokens=50_000, learning_rate=5e-6, init="random"), None, 5e-6, 5e-7),
        (TicketTraining(steps=10), BIG, 2e-3, 1e-4),
        (DistillConfig(tokens=50_000), None, 1e-4, 1e-5),
    ],
)
def test_the_learning_rate_follows_the_batch_as_far_as_the_size_of_the_model_asks(settings, parameters, peak, last):
    found, remark = fitted(settings, 128, 10_000, parameters)
    assert found.learning_rate == peak
    assert getattr(found, "min_learning_rate", None) == last
    is_changed = peak != settings.learning_rate
    assert is_changed == (f"learning_rate is {peak:g} instead of {settings.learning_rate:g}" in (remark or ""))
    assert fitted(found, 128, 10_000, parameters) == (found, None)


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
    said = dry_run._training(DistillConfig(tokens=1_000_000), 2048, published_shape("llama-3.2-1b"))
    assert said.startswith("123 steps of 4 x 2,048 tokens")
    assert (
        "distill: batch_size is 4 instead of 1,152, warmup_steps is 12 instead of 40, learning_rate is 1e-05 instead "
        "of 0.0001 and min_learning_rate is 1e-06 instead of 1e-05, to fit 123 steps; set distill.batch_size, "
        "distill.warmup_steps, distill.learning_rate and distill.min_learning_rate to choose yourself"
    ) in said


def test_a_recipe_keeps_what_it_sets_through_its_chain():
    """What the user set is known by the keys of the recipe, which copies of its sections keep."""
    step = {"label": "half", "prune": {"shape": {"ffn": 8}}}
    text = {"sources": [{"kind": "files", "paths": ["*.txt"]}]}
    distill = {"tokens": "1M", "batch_size": 8}
    recipe = Recipe.model_validate({"model": "m", "data": text, "distill": distill, "steps": [step]})
    config, _ = fitted(recipe.at(recipe.steps[0]).distill, 2048)
    assert config.batch_size == 8


def test_a_batch_of_fewer_sequences_than_processes_is_refused_before_anything_is_loaded():
    says = "batch_size is 4, fitted to the run, and 8 processes share a batch: start at most 4 of them"
    with pytest.raises(RecipeError, match=says):
        fit(DistillConfig(tokens=1_000_000), 2048, 5_000, BIG, processes=8)
    with pytest.raises(RecipeError, match=r"batch_size is 4, and 8 processes share a batch: .* or set a larger"):
        fit(DistillConfig(tokens=1_000_000, batch_size=4), 2048, 5_000, BIG, processes=8)
    assert fit(DistillConfig(tokens=1_000_000), 2048, 5_000, BIG, processes=4).batch_size == 4
