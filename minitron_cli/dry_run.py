"""Forecast of a recipe from family tables and configs: shapes, counts and work. Nothing is run or downloaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minitron_cli import recipe_check
from minitron_cli.checkpoint import model_names
from minitron_cli.checkpoint.aliases import aliases
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.choices import ServingLint
from minitron_cli.distill import short_runs
from minitron_cli.distill.between_rounds import training
from minitron_cli.distill.config import DistillConfig
from minitron_cli.inputs.source_model import open_checkpoint, published_shape
from minitron_cli.model.shape import Shape
from minitron_cli.recipe import Recipe
from minitron_cli.search import feasible, halving
from minitron_cli.search.config import SearchConfig

if TYPE_CHECKING:
    from minitron_cli.cost.budgets import Trained
    from minitron_cli.price.work import Subject
    from minitron_cli.results.price import Price


@dataclass(frozen=True)
class PlannedStep:
    """One step of a recipe, and the models that it is about."""

    recipe: Recipe
    """The step's own, whose model is the one that its parent descends from."""
    parent: Shape
    teacher: str
    """Name of the model that teaches."""
    shapes: tuple[Shape, ...]
    """Shape of the child, or of each candidate."""
    targets: Mapping[str, Sequence[Shape]]
    """Label of each of the search's targets, or one empty label -> those of its own."""
    is_compared: bool = False
    """Whether its models are compared with the chain's original, too."""


@dataclass(frozen=True)
class Plan:
    """Forecast of a recipe."""

    model: str
    parent: Shape
    children: Mapping[str, Shape]
    """Name -> shape of the child, or of each candidate where the shape is still to be chosen."""
    steps: Mapping[str, str]
    """Stage -> description of its work."""
    planned: Mapping[str, PlannedStep]
    """Label -> step; one without a label where the recipe is no chain."""


def plan(recipe: Recipe) -> Plan:
    """Forecast of a recipe. Reads model configs and checkpoint headers only; an alias needs no network.

    In a chain, a step whose shape is still to be chosen passes its first candidate on as the next parent.
    """
    model = recipe.smallest_parent(lambda name, budget: shape_of(name)[0].parameters(budget.count))
    parent, _ = shape_of(model)
    original = parent if model == recipe.model else shape_of(recipe.model)[0]
    recipe_check.check(recipe, parent)
    if not recipe.steps:
        return _plan(recipe, model, parent)
    plans = {}
    for step in recipe.steps:
        plans[step.label] = _plan(recipe.at(step), model, parent)
        parent = next(iter(plans[step.label].children.values()))
    children = {f"{label}: {name}": c for label, one in plans.items() for name, c in one.children.items()}
    steps = {f"{label}: {name}": what for label, one in plans.items() for name, what in one.steps.items()}
    is_compared = recipe.compares_with_original
    planned = {
        label: replace(step, is_compared=is_compared) for label, one in plans.items() for step in one.planned.values()
    }
    return Plan(recipe.model, original, children, steps, planned)


def _plan(recipe: Recipe, model: str, parent: Shape) -> Plan:
    child = recipe_check.child(recipe, parent)
    targets = {"": [child]} if child else _candidates(recipe, parent)
    shapes = tuple(shape for some in targets.values() for shape in some)
    children = {"child" if child else f"candidate {i + 1}": shape for i, shape in enumerate(shapes)}
    largest = max(children.values(), key=Shape.parameters)
    taught_by = {"original": recipe.model, "parent": model}.get(recipe.teacher, recipe.teacher)
    steps = dict(_steps(recipe, parent, largest, len(children)))
    located = recipe.model_copy(update={"model": model, "pretraining": recipe.known_pretraining})
    return Plan(model, parent, children, steps, {"": PlannedStep(located, parent, taught_by, shapes, targets)})


def prices(plan: Plan, device: str, directory: Path) -> dict[str, "Price"]:
    """Stage -> its price on a device, from a probe of seconds for each model whose speed is not known yet."""
    from minitron_cli.price import estimate
    from minitron_cli.recipe_work import RecipeWork

    place = estimate.Place(device, directory)
    found: dict[str, Price] = {}
    trained: tuple[Trained, ...] = ()
    for label, step in plan.planned.items():
        parent = _subject(step.recipe.model, step.parent)
        original = _subject(plan.model) if step.is_compared and found else None  # the first step's parent is it
        work = RecipeWork(
            step.recipe, parent, _subject(step.teacher), step.shapes, device, original, trained, step.targets
        )
        trained = work.trainings()
        found |= {f"{label}: {name}" if label else name: estimate.price(one, place) for name, one in work.stages()}
    return found


def _subject(model: str, shape: Shape | None = None) -> "Subject":
    """A model, or one of this shape that descends from it, as far as prices go."""
    from minitron_cli.price import subject

    own, checkpoint = shape_of(model)
    found = subject.of_config(checkpoint.config if checkpoint else aliases()[model].config, own)
    is_same = shape is None or shape.sizes == own.sizes
    return found if is_same or shape is None else subject.child_of(found, shape)


def shape_of(model: str) -> tuple[Shape, Checkpoint | None]:
    """Shape of a model, and its checkpoint if the files are on this machine. Downloads and hashes nothing."""
    if published := published_shape(model):
        return published, None
    checkpoint, _, shape = open_checkpoint(model_names.resolve(model, offline=True).path)
    return shape, checkpoint


def _candidates(recipe: Recipe, parent: Shape) -> dict[str, list[Shape]]:
    """Label of each of a search's targets, or one empty label -> candidates for it.

    These are the most evenly scaled feasible shapes, in place of those that retain most importance, which needs scores.
    """
    prune, prunable = recipe.prune, recipe_check.prunable(recipe, parent)
    if recipe.search is None:
        return {"": [one.shape for one in feasible.within_budget(prunable, prune)[: prune.candidates]]}
    found = {label: _searched(recipe.search, prunable, label, prune.serving_lint) for label in recipe.search.labels}
    return {label: [one.shape for one in some] for label, some in found.items()}


def _searched(search: SearchConfig, parent: Shape, label: str, lint: ServingLint) -> list[feasible.Candidate]:
    return feasible.by_evenness(parent, *feasible.searched(parent, search, label, lint))[: search.candidates]


def _steps(recipe: Recipe, parent: Shape, child: Shape, candidates: int) -> Iterator[tuple[str, str]]:
    length = recipe.data.sequence_length
    if recipe.prunes:
        scoring = recipe.scoring()
        removal = f", {min(scoring.removal_samples, scoring.samples):,} of them without each layer or block"
        yield "importance", f"{scoring.samples:,} samples of {length:,} tokens{removal * bool(scoring.removal_lengths)}"
    if recipe.correct:
        yield "correct", _training(recipe.correct, length, parent)
    if recipe.teach:
        yield "teach", f"{recipe.teach.signals} of each position of the training text"
    if recipe.prunes:
        yield from _pruning(recipe, parent, child, candidates)
    if recipe.sparsify:
        yield "sparsify", f"{recipe.sparsify.zeros_by}{_rounds(recipe, child)}"
    if recipe.distill:
        yield "distill", _training(recipe.distill, length, child)
    yield from (
        (f"distill {control.label}", f"control, {control.length or 'the same training with one change'}")
        for control in recipe.controls
        if control.trained
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


def _rounds(recipe: Recipe, model: Shape) -> str:
    """Description of the rounds in which a model becomes sparse, and of the training between two of them."""
    sparsify = recipe.sparsify
    if sparsify is None or sparsify.rounds == 1 or recipe.distill is None:
        return ""
    between = _training(training(sparsify, recipe.distill), recipe.data.sequence_length, model)
    return f" in {sparsify.rounds} rounds, between two {between}"


def _pruning(recipe: Recipe, parent: Shape, child: Shape, candidates: int) -> Iterator[tuple[str, str]]:
    length = recipe.data.sequence_length
    if recipe.search:
        blocks = recipe.search.score_blocks
        yield (
            "search",
            f"{candidates} shapes scored on {blocks} blocks{_retraining(recipe.search, parent, candidates, length)}",
        )
    changes = [f"{a} {size:,} to {child.sizes[a]:,}" for a, size in parent.prunable.items() if child.sizes[a] != size]
    score_blocks = recipe.prune.fitted(length).score_blocks
    among = f"the best of {candidates} shapes" + ("" if recipe.search else f", on {score_blocks} blocks")
    yield "prune", ", ".join(changes) if candidates == 1 else among


def _retraining(search: SearchConfig, parent: Shape, candidates: int, length: int) -> str:
    """Description of the retraining: candidates and total tokens of all rungs, as if for a single target."""
    retrain = search.retrain
    if retrain is None or candidates < 2:
        return ""
    retrain, remark = short_runs.fitted(retrain, length, parameters=parent.parameters())
    running = min(retrain.top, candidates)
    if retrain.rungs == 1:
        return f", the best {running} retrained on {retrain.tokens:,} tokens{_fitted(remark)}"
    total = retrain.total_steps(length)
    steps, left = [0, *halving.rung_steps(total, retrain.rungs, retrain.keep)], []
    for _ in steps[1:]:
        left.append(running)
        running = halving.survivors(running, retrain.keep)
    trained = sum(n * (b - a) for n, a, b in zip(left, steps, steps[1:], strict=False))
    counts = ", then ".join(map(str, left))
    return (
        f", the best {counts} retrained on up to {retrain.tokens:,} tokens: {trained * retrain.batch_size * length:,}"
        f"{_fitted(remark)}"
    )


def _training(config: DistillConfig, length: int, model: Shape) -> str:
    config, remark = short_runs.fitted(config, length, parameters=model.parameters())
    steps = config.total_steps(length)
    tokens = steps * config.batch_size * length
    losses = " + ".join(loss.kind for loss in config.losses)
    return f"{steps:,} steps of {config.batch_size:,} x {length:,} tokens, {losses}: {tokens:,} tokens{_fitted(remark)}"


def _fitted(remark: str | None) -> str:
    """Remark on settings that were fitted to the length of a run, as a further sentence. The text is not read here, so
    its size may lower a batch further."""
    return f"; {remark}" if remark else ""
