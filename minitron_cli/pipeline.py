"""The chain, readable as a paragraph."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from minitron_cli.checkpoint.artifact import Artifact
from minitron_cli.recipe import Recipe
from minitron_cli.stages import correct, distill, evaluate, importance, prune, report, search
from minitron_cli.stages.parent import Parent, open_parent
from minitron_cli.stages.produce import Context


@dataclass(frozen=True)
class Results:
    """What a run has made."""

    importance: Artifact
    search: Artifact | None
    prune: Artifact
    correct: Artifact | None
    distilled: Mapping[str, Artifact]
    """Label -> trained model: `distilled`, then the controls."""
    evaluate: Artifact
    report: Artifact | None

    def artifacts(self) -> list[Artifact]:
        """All of them, in the order they were made."""
        before = [self.importance, self.search, self.prune, self.correct]
        some = [*before, *self.distilled.values(), self.evaluate, self.report]
        return [artifact for artifact in some if artifact]


def run(recipe: Recipe, context: Context) -> Results:
    """Every stage of a recipe. A stage that is up to date is not run again."""
    parent = open_parent(recipe.model, offline=context.offline)
    scores = importance.run(context, parent, recipe.data, recipe.importance)
    context.workspace.save_settings(model=recipe.model, data=recipe.data.model_dump(mode="json"))
    found = search.run(context, parent, scores, recipe.data, recipe.search) if recipe.search else None
    pruned = prune.run(context, parent, recipe.prune, scores=scores, data=recipe.data, search=found)
    corrected = correct.run(context, parent, recipe.data, recipe.correct) if recipe.correct else None
    teacher = _teacher(recipe, context, parent, corrected)

    def cut_at_random(label: str) -> Artifact:
        return prune.run(context, parent, prune.at_random(recipe.prune, pruned), scores=scores, label=label)

    distilled = _distilled(recipe, context, teacher, pruned, cut_at_random)
    made = {"pruned": pruned} | ({correct.LABEL: corrected} if corrected else {}) | distilled
    models = [(label, artifact.path) for label, artifact in made.items()]
    measured = evaluate.run(context, models, parent, recipe.data, recipe.evaluate)
    page = report.run(context) if recipe.report else None
    return Results(scores, found, pruned, corrected, distilled, measured, page)


def check_gates(results: Results, recipe: Recipe) -> None:
    """Raise GateMissed unless the run's last product, distilled or only pruned, meets every gate."""
    made = "distilled" if "distilled" in results.distilled else "pruned"
    evaluate.check_gates(results.evaluate, recipe.evaluate.gates, made)


def _teacher(recipe: Recipe, context: Context, parent: Parent, corrected: Artifact | None) -> Parent:
    named = corrected.path if corrected else recipe.teacher
    return open_parent(named, offline=context.offline) if named else parent


def _distilled(
    recipe: Recipe, context: Context, teacher: Parent, pruned: Artifact, cut_at_random: Callable[[str], Artifact]
) -> dict[str, Artifact]:
    """The student and the controls. The student and its cut stay the workspace's current ones."""
    if recipe.distill is None:
        return {}
    student = distill.run(context, teacher, pruned.path, recipe.data, recipe.distill)
    trained = {"distilled": student}
    for control in recipe.controls:
        start = cut_at_random(control.label) if control.cut else pruned
        config = control.applied_to(recipe.distill)
        trained[control.label] = distill.run(context, teacher, start.path, recipe.data, config, label=control.label)
    for current in (pruned, student):
        context.workspace.point(current)
    return trained
