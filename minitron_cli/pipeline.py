"""Runs every stage of a recipe in order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from minitron_cli import progress, recipe_check
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import pretraining_of
from minitron_cli.cost import budgets
from minitron_cli.cost.lineage import lineage
from minitron_cli.distill import training_run
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.control import Control
from minitron_cli.evaluate.gate import Outcome
from minitron_cli.inputs.source_model import SourceModel, open_source_model, published_shape
from minitron_cli.model.shape import Shape
from minitron_cli.prune import controls
from minitron_cli.prune.config import PruneConfig
from minitron_cli.recipe import Recipe, prunes_layers
from minitron_cli.results.training import CorrectionResult, TrainingResult
from minitron_cli.stages import (
    correct,
    distill,
    evaluate,
    family,
    importance,
    prune,
    report,
    search,
    sparsify,
    sparsify_rounds,
    teach,
)

PRUNED, SPARSE, DISTILLED = "pruned", "sparse", "distilled"  # labels of models in the evaluation
MAKING = (importance, search, prune, sparsify, correct, teach, distill)
VERSIONS = {stage.STAGE: stage.VERSION for stage in MAKING}
"""Stage -> version, of the stages on which the models of a recipe depend."""


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
    """Label -> trained model: `distilled`, then the controls that are trained."""
    evaluate: Artifact
    report: Artifact | None
    untrained: Mapping[str, Artifact] = field(default_factory=dict)
    """Label -> control that is not trained."""
    family: Artifact | None = None
    """The page of a whole chain, after its last step."""

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
        some = [*before, *self.untrained.values(), *self.distilled.values(), self.evaluate, self.report, self.family]
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
        models = _opened(context, original, parent, teacher, is_compared=recipe.compares_with_original)
        if not made:
            recipe_check.check(recipe, models.parent.shape)
        located = asked.model_copy(update={"model": parent, "pretraining": recipe.known_pretraining})
        label = step.label if step else ""
        made.append(_run_step(located, context, models, label=label, fail_if_worse=fail_if_worse))
        parent = str(made[-1].product.path)
        if len(made) < len(recipe.steps) and made[-1].distilled and made[-1].product is made[-1].start:
            progress.warn(f"training made the model of step {label} worse: the next step starts from {parent}")
    if recipe.report and len(made) > 1:
        steps = [
            family.Made(step.label, one.product, one.evaluate) for step, one in zip(recipe.steps, made, strict=True)
        ]
        made[-1] = replace(made[-1], family=family.run(context, models.original, steps))
    return made


def _opened(context: Context, original: str, parent: str, teacher: str, *, is_compared: bool) -> "_Models":
    """Models of a step by name, each opened once."""
    names = {original: None, parent: None, teacher: None}
    found = {name: open_source_model(name, offline=context.offline) for name in names}
    return _Models(found[original], found[parent], found[teacher], is_compared)


def _is_above_start(trained: Artifact) -> bool:
    worse = trained.result(TrainingResult).worse
    return bool(worse and worse.is_above_start)


def _shape(model: str, context: Context) -> Shape:
    return published_shape(model) or open_source_model(model, offline=context.offline).shape


def _run_step(recipe: Recipe, context: Context, models: "_Models", *, label: str, fail_if_worse: bool) -> Results:
    """Score, search, prune, train and evaluate one parent."""
    parent, teacher = models.parent, models.teacher
    scores = importance.run(context, parent, recipe.data, recipe.scoring()) if recipe.prunes else None
    context.workspace.save_settings(model=recipe.model, data=recipe.data.model_dump(mode="json"))
    if recipe.pretraining:
        context.record({pretraining_of(models.original.fingerprint): recipe.pretraining.model_dump()})
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
    distilled, untrained = dict[str, Artifact](), dict[str, Artifact]()
    if recipe.distill:
        before = [made for made in (scores, pruned, made_sparse) if made]
        training = _Training(recipe, recipe.distill, context, replace(models, teacher=teacher), before)
        distilled, untrained = training.run(fail_if_worse=fail_if_worse)
    made = {**untrained, PRUNED: pruned, SPARSE: made_sparse, correct.LABEL: corrected, **distilled}
    labelled = [(label, artifact.path) for label, artifact in made.items() if artifact]
    original = models.original if models.is_compared else None
    measured = evaluate.run(context, labelled, parent, recipe.data, recipe.evaluate, original=original)
    page = report.run(context) if recipe.report else None
    return Results(scores, found, pruned, made_sparse, corrected, taught, distilled, measured, page, untrained)


def _sparse(recipe: Recipe, context: Context, teacher: SourceModel, dense: SourceModel, label: str = "") -> Artifact:
    assert recipe.sparsify
    training = recipe.distill or DistillConfig()  # not read where there is one round
    return sparsify_rounds.run(
        context, dense, recipe.sparsify, recipe.data, teacher=teacher, training=training, name=label
    )


def gate_outcomes(results: Results, recipe: Recipe) -> list[Outcome]:
    """Outcome of every gate for the final model."""
    made = DISTILLED if results.product is not results.start else SPARSE if results.sparsify else PRUNED
    return evaluate.gate_outcomes(results.evaluate, recipe.evaluate.gates, made)


@dataclass(frozen=True)
class _Models:
    """Models that a step starts from."""

    original: SourceModel
    """The recipe's model, from which a chain starts."""
    parent: SourceModel
    """The model that the step prunes."""
    teacher: SourceModel
    is_compared: bool
    """Whether the step's models are compared with the original, too."""


@dataclass(frozen=True)
class _Training:
    """The student's training and its controls."""

    recipe: Recipe
    config: DistillConfig
    context: Context
    models: _Models
    before: Sequence[Artifact]
    """Scores, the pruned model and the sparse one, as far as there are any; training starts from the last."""

    def run(self, *, fail_if_worse: bool) -> tuple[dict[str, Artifact], dict[str, Artifact]]:
        """By label, the student and the controls that are trained, and those that are not.

        The student and what it was made from stay the workspace's current ones, also if a control fails.
        """
        student = self._train(self.before[-1], self.config, DISTILLED)
        if fail_if_worse:
            training_run.check_not_worse(student.result(TrainingResult), distill.STAGE)
        trained, untrained = {DISTILLED: student}, dict[str, Artifact]()
        beside = replace(self, context=replace(self.context, is_between=True))
        for control in self.recipe.controls:
            start, label = beside._start(control), control.label
            if control.trained:
                trained[label] = beside._train(start, self._of(control, student, start), label)
            else:
                untrained[label] = start
        return trained, untrained

    def _train(self, start: Artifact, config: DistillConfig, label: str) -> Artifact:
        return distill.run(self.context, self.models.teacher, start.path, self.recipe.data, config, label=label)

    def _start(self, control: Control) -> Artifact:
        """Model that a control is trained from."""
        _, pruned, *_ = self.before
        if control.prune:
            return self._pruned_otherwise(controls.at_random(self.recipe.prune, pruned), control.label)
        if control.repair:
            return self._pruned_otherwise(controls.unrepaired(self.recipe.prune, pruned), control.label)
        return self._pruned_at_once(control.label) if control.prune_from else self.before[-1]

    def _pruned_otherwise(self, config: PruneConfig, label: str) -> Artifact:
        scores, *_ = self.before
        data = self.recipe.data if config.rounds > 1 else None
        dense = prune.run(self.context, self.models.parent, config, scores=scores, data=data, label=label)
        if self.recipe.sparsify is None:
            return dense
        return _sparse(self.recipe, self.context, self.models.teacher, open_source_model(dense.path), label)

    def _pruned_at_once(self, label: str) -> Artifact:
        original, (_, pruned, *_) = self.models.original, self.before
        config = controls.at_once(self.recipe.prune, original, open_source_model(pruned.path).shape)
        scoring = self.recipe.importance.settled(removes_layers=prunes_layers(config, None))
        scores = importance.run(self.context, original, self.recipe.data, scoring)
        return prune.run(self.context, original, config, scores=scores, data=self.recipe.data, label=label)

    def _of(self, control: Control, student: Artifact, start: Artifact) -> DistillConfig:
        """Configuration of a control that is trained from `start`."""
        config = control.beside(self.config, student.manifest.config["batch_size"])
        if control.equality is None:
            return control.applied_to(config)
        is_random, needs_teacher = control.init == "random", control.applied_to(config).needs_teacher
        trained, given = student.result(TrainingResult), self.recipe.known_pretraining
        ledger, reads_signals = self._trainings(student), needs_teacher and trained.signals is not None
        if reads_signals:
            ledger = budgets.without_signals(ledger)
        tokens = budgets.length(
            control.equality,
            ledger,
            behind=() if is_random else self._trainings(start),
            given=given.tokens if given and is_random else 0,
            per_token=budgets.flops_per_token(
                trained.student, trained.teacher if needs_teacher and not reads_signals else None
            ),
        )
        progress.say(f"{control.label}: {tokens:,} tokens, {control.length}")
        return control.applied_to(config, tokens=tokens)

    def _trainings(self, made: Artifact) -> list[budgets.Trained]:
        return budgets.training_of(lineage(self.context.workspace, made))
