"""Work of a recipe's stages before anything is run or downloaded: from configs and shapes alone.

No text is read, so that as many held-out blocks are taken to be there as a stage uses at most.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from minitron_cli.cost import budgets
from minitron_cli.cost.budgets import Trained
from minitron_cli.cost.compute import model_size
from minitron_cli.distill import short_runs
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.control import Control
from minitron_cli.model.shape import Shape
from minitron_cli.price import evaluation, importance, prune, search, sparsify_rounds, subject, teach, training
from minitron_cli.price.offer import compute_dtype
from minitron_cli.price.sparsify_rounds import HELD_OUT_BLOCKS
from minitron_cli.price.work import Subject, Work
from minitron_cli.prune.config import PruneConfig, ScoreRepair
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.recipe import Recipe
from minitron_cli.repair import repaired_plan
from minitron_cli.repair.acceptance import EFFECT_BLOCKS
from minitron_cli.results.evaluation import ORIGINAL, PARENT
from minitron_cli.retraining import RetrainingConfig
from minitron_cli.search.candidate_repair import FULL
from minitron_cli.signals.config import TeachConfig
from minitron_cli.sparse.config import SparsifyConfig


@dataclass(frozen=True)
class RecipeWork:
    """One step of a recipe, with the models that it is about."""

    recipe: Recipe
    parent: Subject
    teacher: Subject
    shapes: Sequence[Shape]
    """Shape of the child, or of each candidate."""
    device: str
    original: Subject | None = None
    """The model that the chain started from, if the step's models are compared with it and it is not the parent."""
    earlier: tuple[Trained, ...] = ()
    """Trainings of the chain's earlier steps."""
    targets: Mapping[str, Sequence[Shape]] = field(default_factory=dict)
    """Label of each of the search's targets -> those of the shapes that are its own."""

    @property
    def length(self) -> int:
        return self.recipe.data.sequence_length

    @property
    def _pruning(self) -> PruneConfig:
        """The pruning, with the numbers of blocks that it takes of this length."""
        return self.recipe.prune.fitted(self.length)

    @property
    def child(self) -> Subject:
        """The largest child that may be chosen."""
        return subject.child_of(self.parent, max(self.shapes, key=Shape.parameters))

    def stages(self) -> Iterator[tuple[str, Work]]:
        """Name of each stage, and its work."""
        recipe = self.recipe
        if recipe.prunes:
            yield "importance", importance.work(self.parent, recipe.scoring(), self.length)
        if recipe.correct:
            yield "correct", self._training(self.teacher, None, recipe.correct)
        if recipe.teach and recipe.distill:
            yield "teach", self._teach(recipe.teach, recipe.distill)
        if recipe.search:
            yield "search", self._search()
        if recipe.prunes:
            yield "prune", self._prune()
        if recipe.sparsify:
            yield from self._sparsify(recipe.sparsify)
        if recipe.distill:
            yield "distill", self._taught(recipe.distill)
            for control in filter(lambda control: control.trained, recipe.controls):
                yield f"distill {control.label}", self._taught(self._of(control))
        yield "eval", self._evaluation()

    def trainings(self, *, before_last: bool = False) -> tuple[Trained, ...]:
        """Trainings of this step and of the earlier ones, without its controls; or of what the last one starts from."""
        alone = replace(self, recipe=self.recipe.model_copy(update={"controls": ()}))
        of_teacher = () if self.recipe.search else ("correct",)  # which a search has behind it
        own = [
            one
            for name, work in alone.stages()
            if not before_last or name not in (budgets.STUDENT, *of_teacher)
            for one in budgets.of_entries(name.partition(" ")[0], work.passes)
        ]
        return (*self.earlier, *own)

    def _of(self, control: Control) -> DistillConfig:
        """Configuration of a control, whose length may follow from the trainings of the student."""
        assert self.recipe.distill
        fitted, _ = short_runs.fitted(self.recipe.distill, self.length)
        config = control.beside(self.recipe.distill, fitted.batch_size)
        if control.equality is None:
            return control.applied_to(config)
        given, teacher = self.recipe.known_pretraining, model_size(self.teacher.shape, self.length)
        needs_teacher = control.applied_to(config).needs_teacher
        ledger, reads_signals = self.trainings(), needs_teacher and self.recipe.teach is not None
        if reads_signals:
            ledger = tuple(budgets.without_signals(ledger))
        per_token = budgets.flops_per_token(
            model_size(self.child.shape, self.length), teacher if needs_teacher and not reads_signals else None
        )
        is_random = control.init == "random"
        behind = () if is_random or control.prune_from else self.trainings(before_last=True)
        tokens = budgets.length(
            control.equality,
            ledger,
            behind=behind,
            given=given.tokens if given and is_random else 0,
            per_token=per_token,
        )
        return control.applied_to(config, tokens=tokens)

    def _taught(self, config: DistillConfig) -> Work:
        """Training of the child. Signals stand for the teacher of losses that need one, not in evaluations alone."""
        reads_signals = self.recipe.teach is not None and config.needs_teacher
        return self._training(self.child, None if reads_signals else self.teacher, config)

    def _training(self, student: Subject, teacher: Subject | None, config: DistillConfig) -> Work:
        config, _ = short_runs.fitted(config, self.length)
        blocks = config.eval_blocks or HELD_OUT_BLOCKS
        dtype = compute_dtype(config, self.device)
        return training.work(student, teacher, config, self.length, blocks, compute_dtype=dtype, device=self.device)

    def _teach(self, config: TeachConfig, training_of: DistillConfig) -> Work:
        fitted, _ = short_runs.fitted(training_of, self.length)
        blocks = fitted.total_steps(self.length) * fitted.batch_size
        held_out = training_of.eval_blocks or HELD_OUT_BLOCKS
        epochs, dtype = config.epochs or 1, compute_dtype(config, self.device)
        return teach.work(teach.Teaching(self.teacher, config, self.length, blocks, held_out, epochs, dtype))

    def _search(self) -> Work:
        config = self.recipe.search
        assert config
        retraining = None
        if config.retrain:
            retrain, _ = short_runs.fitted(config.retrain, self.length)
            config = config.model_copy(update={"retrain": retrain})
            retraining = RetrainingConfig.of(retrain, config.seed)
        return search.work(
            search.Searching(
                parent=self.parent,
                teacher=self.teacher,
                targets=self.targets,
                config=config,
                length=self.length,
                score_blocks=config.score_blocks,
                retraining=retraining,
                repairs={str(shape): self._repairs(shape, config.score_repair) for shape in self.shapes},
                retrained_repairs={str(shape): self._repairs(shape, FULL) for shape in self.shapes},
                repair_samples=self._pruning.repair_samples if self._pruning.repairs else 0,
                compute_dtype=compute_dtype(retraining, self.device) if retraining else "float32",
            )
        )

    def _prune(self) -> Work:
        config, calibration = self._pruning, self.recipe.scoring()
        shapes = self.shapes if config.budget and not self.recipe.search else [self.child.shape]
        return prune.work(
            prune.Pruning(
                parent=self.parent,
                given=self.parent.shape,
                candidates=shapes,
                score_repairs=[self._repairs(shape, config.score_repair) for shape in shapes],
                repairs=[repaired_plan.applicable(self._plan(shape), config) for shape in shapes],
                length=self.length,
                repair_samples=config.repair_samples if config.repairs else 0,
                score_blocks=config.score_blocks if len(shapes) > 1 else 0,
                effect_blocks=EFFECT_BLOCKS if config.repairs else 0,
                batch_size=calibration.batch_size,
                activation_budget=calibration.activation_budget,
            )
        )

    def _sparsify(self, config: SparsifyConfig) -> Iterator[tuple[str, Work]]:
        training = self.recipe.distill or DistillConfig()
        yield from sparsify_rounds.works(self.child, self.teacher, config, training, self.length, self.device)

    def _repairs(self, shape: Shape, setting: ScoreRepair) -> frozenset[str]:
        """Repairs of a candidate with this setting."""
        return repaired_plan.of_candidate(self._plan(shape), self._pruning, setting)

    def _plan(self, shape: Shape) -> PrunePlan:
        return subject.plan_to(self.parent.shape, shape)

    def _evaluation(self) -> Work:
        config = self.recipe.evaluate
        labels = ["pruned"] * self.recipe.prunes + ["sparse"] * (self.recipe.sparsify is not None)
        labels += ["distilled"] * (self.recipe.distill is not None) + [c.label for c in self.recipe.controls]
        known = {PARENT: self.parent} | ({ORIGINAL: self.original} if self.original else {})
        models = known | dict.fromkeys(labels, self.child)
        models |= {"corrected": self.teacher} if self.recipe.correct else {}
        blocks = (config.blocks or HELD_OUT_BLOCKS) if config.perplexity else 0
        tasks = config.requested(allow_code=False)
        config = config.model_copy(update={"tasks": tasks})
        return evaluation.work(models, config, self.length, blocks, reused=tuple(known) if self.original else ())
