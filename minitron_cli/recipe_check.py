"""What cannot work in a recipe, found from configs and shapes before anything is trained."""

from collections.abc import Iterator
from contextlib import contextmanager

from minitron_cli.distill import short_runs
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.control import Control
from minitron_cli.errors import InputError, RecipeError
from minitron_cli.evaluate import gate
from minitron_cli.model.shape import Shape
from minitron_cli.recipe import Recipe
from minitron_cli.search import space


def check(recipe: Recipe, parent: Shape) -> None:
    """Raise RecipeError for a gate, a training or a shape that cannot work, and name the step or control.

    `parent`: shape of the model that the first step prunes. Shapes are checked up to the first step whose shape is
    still to be chosen. Reads the baselines of gates.
    """
    gate.check(recipe.evaluate.gates)
    known: Shape | None = parent
    for step in recipe.steps or (None,):
        asked = recipe.at(step) if step else recipe
        with _named(f"step {step.label}: " if step else ""):
            before, known = known, known and child(asked, known)
            for name, shape in (("correct", before), ("sparsify", known), ("distill", known)):
                section = getattr(asked, name)
                if section and shape:
                    with _named(f"{name}: "):
                        shape.written_as(section.write_as)
            if asked.distill:
                student, _ = short_runs.fitted(asked.distill, asked.data.sequence_length)
                for control in asked.controls:
                    _check_length(control, student, asked)


def prunable(recipe: Recipe, parent: Shape) -> Shape:
    """Shape that a step prunes, with what its prune section adds to the parent or does not ask of a child."""
    found = recipe.prune.prepared(parent)
    return found.with_biases() if recipe.prune.adds_biases else found


def child(recipe: Recipe, parent: Shape) -> Shape | None:
    """Shape of a step's child; None where it is still to be chosen. InputError if the parent has no such child."""
    prune = recipe.prune
    if not recipe.prunes:
        return parent
    if recipe.search or prune.budget:
        return None
    sizes = {str(axis): size for axis, size in (prune.shape or {}).items()}
    return space.named(prunable(recipe, parent), sizes, prune.drop_layers)


def _check_length(control: Control, student: DistillConfig, recipe: Recipe) -> None:
    """Refuse a control whose own length is less than a step, or than its warm-up."""
    assert recipe.distill
    if control.equality or not (control.trained and control.has_own_length):
        return
    config = control.applied_to(control.beside(recipe.distill, student.batch_size))
    batch = config.batch_size * recipe.data.sequence_length
    if config.tokens is not None and config.tokens < batch:
        raise RecipeError(
            f"control {control.label}: {config.tokens:,} tokens are less than a step of {config.batch_size:,} x "
            f"{recipe.data.sequence_length:,} tokens: raise its tokens, or give it a smaller batch_size"
        )
    with _named(f"control {control.label}: "):
        short_runs.fitted(config, recipe.data.sequence_length)


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Put the place in the recipe before an error."""
    try:
        yield
    except InputError as e:
        raise RecipeError(f"{where}{e}") from None
