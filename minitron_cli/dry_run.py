"""Forecast of a recipe from family tables and configs: shapes, counts and work. Nothing is run or downloaded."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from minitron_cli.checkpoint import model_names
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.distill.config import DistillConfig
from minitron_cli.inputs.source_model import open_checkpoint, published_shape
from minitron_cli.model.shape import Shape
from minitron_cli.recipe import Recipe
from minitron_cli.search import feasible, halving, space
from minitron_cli.search.config import SearchConfig


@dataclass(frozen=True)
class Plan:
    """Forecast of a recipe."""

    model: str
    parent: Shape
    children: Mapping[str, Shape]
    """Name -> shape of the child, or of each candidate where the shape is still to be chosen."""
    steps: Mapping[str, str]
    """Stage -> description of its work."""


def plan(recipe: Recipe) -> Plan:
    """Forecast of a recipe. Reads model configs and checkpoint headers only; an alias needs no network.

    In a chain, a step whose shape is still to be chosen passes its first candidate on as the next parent.
    """
    model = recipe.smallest_parent(lambda name, budget: shape_of(name)[0].parameters(budget.count))
    parent, _ = shape_of(model)
    original = parent if model == recipe.model else shape_of(recipe.model)[0]
    if not recipe.steps:
        return _plan(recipe, model, parent, original)
    plans = {}
    for step in recipe.steps:
        plans[step.label] = _plan(recipe.at(step), model, parent, original)
        parent = next(iter(plans[step.label].children.values()))
    children = {f"{label}: {name}": c for label, one in plans.items() for name, c in one.children.items()}
    steps = {f"{label}: {name}": what for label, one in plans.items() for name, what in one.steps.items()}
    return Plan(recipe.model, original, children, steps)


def _plan(recipe: Recipe, model: str, parent: Shape, original: Shape) -> Plan:
    prunable = parent.untied() if recipe.prune.untie else parent
    children = _children(recipe, replace(prunable, kinds=()) if recipe.prune.serving_lint == "warn" else prunable)
    largest = max(children.values(), key=Shape.parameters)
    teacher = {"original": original, "parent": parent}.get(recipe.teacher) or shape_of(recipe.teacher)[0]
    return Plan(model, parent, children, dict(_steps(recipe, parent, teacher, largest, len(children))))


def shape_of(model: str) -> tuple[Shape, Checkpoint | None]:
    """Shape of a model, and its checkpoint if the files are on this machine. Downloads and hashes nothing."""
    if published := published_shape(model):
        return published, None
    checkpoint, _, shape = open_checkpoint(model_names.resolve(model, offline=True).path)
    return shape, checkpoint


def _children(recipe: Recipe, parent: Shape) -> dict[str, Shape]:
    prune = recipe.prune
    if recipe.search:
        found = _searched(recipe.search, parent)
    elif prune.budget:
        found = feasible.feasible(parent, dict.fromkeys(prune.axes, ()), prune.budget, prune.candidates)
    else:
        sizes = {str(axis): size for axis, size in (prune.shape or {}).items()}
        return {"child": space.named(parent, sizes, prune.drop_layers)}
    return {f"candidate {i + 1}": candidate.shape for i, candidate in enumerate(found)}


def _searched(search: SearchConfig, parent: Shape) -> list[feasible.Candidate]:
    """Most evenly scaled feasible shapes, in place of those that retain most importance, which needs scores."""
    found = [feasible.admitted(parent, search.axes, search.constraints_of(label)) for label in search.labels]
    return [c for some in found for c in feasible.by_evenness(parent, search.axes, some)[: search.candidates]]


def _steps(recipe: Recipe, parent: Shape, teacher: Shape, child: Shape, candidates: int) -> Iterator[tuple[str, str]]:
    length = recipe.data.sequence_length
    scoring = recipe.scoring()
    removal = f", {min(scoring.removal_samples, scoring.samples):,} of them without each layer or block"
    yield "importance", f"{scoring.samples:,} samples of {length:,} tokens{removal * bool(scoring.removal_lengths)}"
    if recipe.correct:
        yield "correct", _training(recipe.correct, teacher, teacher, length)
    if recipe.search:
        blocks = recipe.search.score_blocks
        yield "search", f"{candidates} shapes scored on {blocks} blocks{_retraining(recipe.search, candidates, length)}"
    changes = [f"{a} {size:,} to {child.sizes[a]:,}" for a, size in parent.prunable.items() if child.sizes[a] != size]
    yield "prune", ", ".join(changes) if candidates == 1 else f"the best of {candidates} shapes"
    if recipe.distill:
        yield "distill", _training(recipe.distill, teacher, child, length)
    yield from (
        (f"distill {control.label}", "control, the same training with one change") for control in recipe.controls
    )
    yield (
        "eval",
        ", ".join(
            [
                *["loss and KL to the parent"] * recipe.evaluate.perplexity,
                *["choice among continuations"] * (recipe.evaluate.cloze is not None),
                *(task.name for task in recipe.evaluate.requested(allow_code=False)),
                *["speed"] * (recipe.evaluate.speed is not None),
            ]
        ),
    )


def _retraining(search: SearchConfig, candidates: int, length: int) -> str:
    """Description of the retraining: candidates and total tokens of all rungs, as if for a single target."""
    retrain = search.retrain
    if retrain is None or candidates < 2:
        return ""
    running = min(retrain.top, candidates)
    if retrain.rungs == 1:
        return f", the best {running} retrained on {retrain.tokens:,} tokens"
    total = math.ceil(retrain.tokens / (retrain.batch_size * length))
    steps, left = [0, *halving.rung_steps(total, retrain.rungs, retrain.keep)], []
    for _ in steps[1:]:
        left.append(running)
        running = halving.survivors(running, retrain.keep)
    trained = sum(n * (b - a) for n, a, b in zip(left, steps, steps[1:], strict=False))
    counts = ", then ".join(map(str, left))
    return (
        f", the best {counts} retrained on up to {retrain.tokens:,} tokens: {trained * retrain.batch_size * length:,}"
    )


def _training(config: DistillConfig, teacher: Shape, student: Shape, length: int) -> str:
    steps = config.total_steps(length)
    tokens = steps * config.batch_size * length
    # A backward pass costs twice its forward pass; the teacher runs forward only.
    per_token = 3 * student.flops_per_token(length // 2) + config.needs_teacher * teacher.flops_per_token(length // 2)
    losses = " + ".join(loss.kind for loss in config.losses)
    return (
        f"{steps:,} steps of {config.batch_size:,} x {length:,} tokens, {losses}: "
        f"{tokens:,} tokens, {tokens * per_token:.2g} FLOP"
    )
