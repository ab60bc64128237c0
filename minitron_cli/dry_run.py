"""What a recipe comes to, computed from the family's table and the dimensions alone: nothing is run or downloaded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.distill.config import DistillConfig
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.recipe import Recipe
from minitron_cli.search import feasible, space
from minitron_cli.search.config import SearchConfig
from minitron_cli.stages.parent import published_shape


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to, computed from the family's table and the dimensions alone."""

    model: str
    parent: Shape
    children: Mapping[str, Shape]
    """The shape that will be cut; or, where one is to be chosen, those it is chosen from."""
    steps: Mapping[str, str]
    """Stage -> what it does."""


def plan(recipe: Recipe) -> Plan:
    """Shapes, counts and work of a recipe. Reads a config at most; needs no network for an alias."""
    parent, _ = shape_of(recipe.model)
    children = _children(recipe, parent.untied() if recipe.prune.untie else parent)
    largest = max(children.values(), key=Shape.parameters)
    return Plan(recipe.model, parent, children, dict(_steps(recipe, parent, largest, len(children))))


def shape_of(model: str) -> tuple[Shape, Checkpoint | None]:
    """A model's shape, and its headers if its files are on this machine. Downloads nothing, hashes nothing."""
    if published := published_shape(model):
        return published, None
    path = Path(model) if Path(model).is_dir() else hf.resolve(model, offline=True).path
    checkpoint = Checkpoint.open(path)
    config = hf.load_config(path)
    shape = Shape.of(family_of(config), config)
    shape.check(checkpoint.shapes)
    return shape, checkpoint


def _children(recipe: Recipe, parent: Shape) -> dict[str, Shape]:
    cut = recipe.prune
    if recipe.search:
        found = _searched(recipe.search, parent)
    elif cut.budget:
        found = feasible.feasible(parent, dict.fromkeys(cut.axes, ()), cut.budget, cut.candidates)
    else:
        return {
            "child": space.named(parent, {str(axis): size for axis, size in (cut.shape or {}).items()}, cut.drop_layers)
        }
    return {f"candidate {i + 1}": candidate.shape for i, candidate in enumerate(found)}


def _searched(search: SearchConfig, parent: Shape) -> list[feasible.Candidate]:
    """Shapes that would be scored: which ones keep most importance is not known yet, so the most even cuts."""
    found = [feasible.admitted(parent, search.axes, search.constraints_of(label)) for label in search.labels]
    return [c for some in found for c in feasible.evenly(parent, search.axes, some)[: search.candidates]]


def _steps(recipe: Recipe, parent: Shape, child: Shape, candidates: int) -> Iterator[tuple[str, str]]:
    length = recipe.data.sequence_length
    samples = recipe.importance.samples
    yield "importance", f"{samples:,} samples of {length:,} tokens"
    if recipe.search:
        retrain = recipe.search.retrain
        lightly = f", the best {min(retrain.top, candidates)} retrained on {retrain.tokens:,} tokens" if retrain else ""
        yield "search", f"{candidates} shapes scored on {recipe.search.score_blocks} blocks{lightly}"
    cut = [f"{a} {size:,} to {child.sizes[a]:,}" for a, size in parent.prunable.items() if child.sizes[a] != size]
    yield "prune", ", ".join(cut) if candidates == 1 else f"the best of {candidates} shapes"
    if recipe.distill:
        yield "distill", _training(recipe.distill, parent, child, length)
    yield from ((f"distill {control.label}", "the same, as a control") for control in recipe.controls)
    yield (
        "eval",
        ", ".join(
            [
                *["loss and KL to the parent"] * recipe.evaluate.perplexity,
                *(task.name for task in recipe.evaluate.tasks),
            ]
        ),
    )


def _training(config: DistillConfig, teacher: Shape, student: Shape, length: int) -> str:
    steps = config.total_steps(length)
    tokens = steps * config.batch_size * length
    # A backward pass costs twice its forward pass; the teacher has the forward pass alone.
    per_token = 3 * student.flops_per_token(length // 2) + config.needs_teacher * teacher.flops_per_token(length // 2)
    losses = " + ".join(loss.kind for loss in config.losses)
    return (
        f"{steps:,} steps of {config.batch_size:,} x {length:,} tokens, {losses}: "
        f"{tokens:,} tokens, {tokens * per_token:.2g} FLOP"
    )
