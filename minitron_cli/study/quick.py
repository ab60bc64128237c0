"""A recipe with a few steps in every training, to see that all of it runs. No torch."""

from typing import Any

from minitron_cli.recipe import Recipe, Step


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with so many optimizer steps in every training: of students, controls, a teacher, candidates, masks.

    Where the batch of a search's retraining is left to be fitted, it is one sequence.
    """
    length = recipe.data.sequence_length
    parts = tuple(part.model_copy(update=_changes(part, steps, length)) for part in recipe.steps)
    controls = tuple(
        control.model_copy(update={"steps": steps, "tokens": None, "equal": None}) if control.trained else control
        for control in recipe.controls
    )
    return recipe.model_copy(update=_changes(recipe, steps, length) | {"steps": parts, "controls": controls})


def _changes(part: Recipe | Step, steps: int, length: int) -> dict[str, Any]:
    """Sections of a recipe, or of one of its steps, that train; blocks have `length` tokens."""
    found: dict[str, Any] = {}
    warmup = {"warmup_steps": steps // 10}
    if part.distill:
        found["distill"] = part.distill.model_copy(update={"steps": steps, "tokens": None, **warmup})
    if part.search and (retrain := part.search.retrain):
        batch = retrain.batch_size if "batch_size" in retrain.model_fields_set else 1
        shorter = retrain.model_copy(update={"tokens": steps * batch * length, **warmup})
        found["search"] = part.search.model_copy(update={"retrain": shorter})
    if part.importance and (learned := part.importance.learned):
        few = learned.model_copy(update={"tokens": steps * learned.batch_size * length})
        found["importance"] = part.importance.model_copy(update={"learned": few})
    if isinstance(part, Recipe) and part.correct:
        found["correct"] = part.correct.model_copy(update={"steps": steps, "tokens": None, **warmup})
    if isinstance(part, Recipe) and part.sparsify:
        found["sparsify"] = part.sparsify.model_copy(update={"round_tokens": None})
    return found
