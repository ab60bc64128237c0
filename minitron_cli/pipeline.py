"""Runs every stage of a recipe in order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from minitron_cli import progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.distill import training_run
from minitron_cli.distill.config import DistillConfig
from minitron_cli.inputs.source_model import SourceModel, open_source_model, published_shape
from minitron_cli.model.shape import Shape
from minitron_cli.recipe import Recipe
from minitron_cli.results.training import CorrectionResult, TrainingResult
from minitron_cli.stages import correct, distill, evaluate, importance, prune, report, search, sparsify_rounds, teach

PRUNED, SPARSE, DISTILLED = "pruned", "sparse", "distilled"  # labels of models in the evaluation


@dataclass(frozen=True)
class Results:
    """Artifacts of one step of a recipe."""

    importance: Artifact | None
    """None where nothing is pruned, as `prune` is."""
    search: Artifact | None
    prune: Artifact | None
    sparsify: Artifact | None
    correct: Artifact | None
    teach: Artifact | None
    distilled: Mapping[str, Artifact]
    """Label -> trained model: `distilled`, then the controls."""
    evaluate: Artifact
    report: Artifact | None

    @property
    def product(self) -> Artifact:
        """Final model: the distilled one; what training starts from if there was none, or if it made it worse."""
        trained = self.distilled.get(DISTILLED)
        return self.start if trained is None or _is_above_start(trained) else trained

    @property
    def start(self) -> Artifact:
        """Model that training starts from: the sparse one, else the pruned one."""
        found = self.sparsify or self.prune
        assert found
        return found

    def artifacts(self) -> list[Artifact]:
        """All artifacts, in the order in which they were made."""
        before = [self.importance, self.correct, self.teach, self.search, self.prune, self.sparsify]
        some = [*before, *self.distilled.values(), self.evaluate, self.report]
        return [artifact for artifact in some if artifact]


def run(recipe: Recipe, context: Context, *, fail_if_worse: bool = False) -> list[Results]:
    """Results of every step of a recipe; the product of a step is the parent of the next.

    A stage whose artifact is up to date is not run again. With `fail_if_worse`, RunFailed after a correction or a
    distillation that made its objective worse on held-out text.
    """
    original = recipe.model
    parent = recipe.smallest_parent(lambda model, budget: _shape(model, context).parameters(budget.count))
    if parent != original:
        progress.say(f"pruning {parent}, the smallest of the given models that is large enough for the target")
    made: list[Results] = []
    for step in recipe.steps or (None,):
        asked = recipe.at(step) if step else recipe
        teacher = {"original": original, "parent": parent}.get(asked.teacher, asked.teacher)
        located = asked.model_copy(update={"model": parent})
        label = step.label if step else ""
        made.append(_run_step(located, context, teacher, label=label, fail_if_worse=fail_if_worse))
        parent = str(made[-1].product.path)
        if len(made) < len(recipe.steps) and made[-1].distilled and made[-1].product is made[-1].start:
            progress.warn(f"training made the model of step {label} worse: the next step starts from {parent}")
    return made


def _is_above_start(trained: Artifact) -> bool:
    worse = trained.result(TrainingResult).worse
    return bool(worse and worse.is_above_start)


def _shape(model: str, context: Context) -> Shape:
    return published_shape(model) or open_source_model(model, offline=context.offline).shape


def _run_step(recipe: Recipe, context: Context, teacher_name: str, *, label: str, fail_if_worse: bool) -> Results:
    """Score, search, prune, train and evaluate one parent."""
    parent = open_source_model(recipe.model, offline=context.offline)
    teacher = parent if teacher_name == recipe.model else open_source_model(teacher_name, offline=context.offline)
    scores = importance.run(context, parent, recipe.data, recipe.scoring()) if recipe.prunes else None
    context.workspace.save_settings(model=recipe.model, data=recipe.data.model_dump(mode="json"))
    corrected = correct.run(context, teacher, recipe.data, recipe.correct) if recipe.correct else None
    if corrected and fail_if_worse:
        training_run.check_not_worse(corrected.result(CorrectionResult), correct.STAGE)
    teacher = open_source_model(corrected.path) if corrected and correct.is_better(corrected) else teacher
    taught = None
    if recipe.teach and recipe.distill:
        taught = teach.run(context, teacher, recipe.data, recipe.teach, training=recipe.distill)
    found = pruned = made_sparse = None
    if scores and recipe.search:
        found = search.run(context, parent, scores, recipe.data, recipe.search, teacher=teacher, prune=recipe.prune)
    if scores:
        pruned = prune.run(context, parent, recipe.prune, scores=scores, data=recipe.data, search=found, label=label)
    if recipe.sparsify:
        dense = open_source_model(pruned.path) if pruned else parent
        made_sparse = _sparse(recipe, context, teacher, dense)

    def prune_at_random(label: str) -> Artifact:
        assert scores
        assert pruned
        dense = prune.run(context, parent, prune.at_random(recipe.prune, pruned), scores=scores, label=label)
        if recipe.sparsify is None:
            return dense
        return _sparse(recipe, context, teacher, open_source_model(dense.path), label)

    starts = [start for start in (pruned, made_sparse) if start]
    distilled = _distilled(recipe, context, teacher, starts, prune_at_random, fail_if_worse=fail_if_worse)
    models = {PRUNED: pruned, SPARSE: made_sparse, correct.LABEL: corrected, **distilled}
    labelled = [(label, artifact.path) for label, artifact in models.items() if artifact]
    measured = evaluate.run(context, labelled, parent, recipe.data, recipe.evaluate)
    page = report.run(context) if recipe.report else None
    return Results(scores, found, pruned, made_sparse, corrected, taught, distilled, measured, page)


def _sparse(recipe: Recipe, context: Context, teacher: SourceModel, dense: SourceModel, label: str = "") -> Artifact:
    assert recipe.sparsify
    training = recipe.distill or DistillConfig()  # not read where there is one round
    return sparsify_rounds.run(
        context, dense, recipe.sparsify, recipe.data, teacher=teacher, training=training, name=label
    )


def check_gates(results: Results, recipe: Recipe) -> None:
    """Raise GateMissed unless the final model meets every gate."""
    made = DISTILLED if results.product is not results.start else SPARSE if results.sparsify else PRUNED
    evaluate.check_gates(results.evaluate, recipe.evaluate.gates, made)


def _distilled(
    recipe: Recipe,
    context: Context,
    teacher: SourceModel,
    starts: Sequence[Artifact],
    prune_at_random: Callable[[str], Artifact],
    *,
    fail_if_worse: bool,
) -> dict[str, Artifact]:
    """Student and controls by label. The student and what it was made from stay the workspace's current artifacts.

    Training starts from the last of `starts`: the pruned model, and the sparse one.
    """
    if recipe.distill is None:
        return {}
    student = distill.run(context, teacher, starts[-1].path, recipe.data, recipe.distill)
    if fail_if_worse:
        training_run.check_not_worse(student.result(TrainingResult), distill.STAGE)
    trained = {DISTILLED: student}
    for control in recipe.controls:
        start = prune_at_random(control.label) if control.prune else starts[-1]
        config = control.applied_to(recipe.distill)
        trained[control.label] = distill.run(context, teacher, start.path, recipe.data, config, label=control.label)
    for current in (*starts, student):
        context.workspace.point(current)
    return trained
