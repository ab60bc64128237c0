"""Recipe of a whole run: one section per stage, each defined by the stage's package. Imports no torch."""

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from minitron_cli import yaml_document
from minitron_cli.checkpoint.aliases import aliases
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill import between_rounds
from minitron_cli.distill.config import CorrectConfig, DistillConfig
from minitron_cli.distill.control import Control as Control
from minitron_cli.errors import InputError
from minitron_cli.evaluate.config import EvaluateConfig
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.prune.config import Budget, PruneConfig
from minitron_cli.results.evaluation import ORIGINAL, PARENT
from minitron_cli.search.config import SearchConfig
from minitron_cli.signals.config import TeachConfig
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.spec import Quantity, Spec


class Pretraining(Spec):
    """Training of the original model before it was pruned, which is given and no part of the cost of pruning."""

    tokens: Quantity
    """Tokens that it was trained on."""
    source: str = ""
    """Where that is published."""


class Step(Spec):
    """One step of a chain: the sections that differ from the recipe. Its parent is the product of the step before."""

    label: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Name of the step, such as 8b."""
    importance: ImportanceConfig | None = None
    """Scoring of its parent; default: the recipe's."""
    search: SearchConfig | None = None
    """Search for its shape. If a step has search or prune, neither section of the recipe applies to it."""
    prune: PruneConfig | None = None
    """How its parent is pruned."""
    distill: DistillConfig | None = None
    """How the pruned model is trained; default: the recipe's."""
    teacher: str | None = None
    """Teacher of the step; default: the recipe's."""


class Recipe(Spec):
    """A model, text, and one section per stage."""

    model: str
    """The parent: a directory, a hub id, or an alias such as llama-3.1-8b."""
    relatives: tuple[str, ...] = ()
    """Smaller models with the same tokenizer that may be pruned in place of `model`. The smallest one with at least the
    target's parameters, less its tolerance, is pruned (Muralidharan et al. 2024, best practice 8); `model` teaches."""
    teacher: str = "original"
    """Teacher of a student that was pruned from another model than `model`. original: `model`, which the paper found
    better in the last step of its chain (15B, 8B, 4B); parent: the model that was pruned. Or a directory or hub id."""
    data: DataConfig
    """Text for calibration, training and validation."""
    importance: ImportanceConfig = ImportanceConfig()
    """How channels, heads and layers are scored."""
    search: SearchConfig | None = None
    """Search for the best shape within a budget; without it, `prune` gives the shape."""
    prune: PruneConfig = PruneConfig()
    """How the parent is pruned."""
    sparsify: SparsifyConfig | None = None
    """Zeros among the weights of the pruned model; of the parent, where nothing says how much to prune."""
    distill: DistillConfig | None = None
    """How the pruned model is trained; null to stop after pruning."""
    correct: CorrectConfig | None = None
    """Train the teacher on the text first; without it, the student learns from the teacher as it is."""
    teach: TeachConfig | None = None
    """Store what the teacher says of the text, and train on that; without it, the teacher runs in every training."""
    controls: tuple[Control, ...] = ()
    """Further distillations, for comparison."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured of the parent and of every model made from it."""
    steps: tuple[Step, ...] = ()
    """Prune and train several times, each time the product of the previous step; sections default to the recipe's."""
    compare_with: Literal["original", "step"] | None = None
    """Model that every model of a chain is compared with, in tables and by gates. original: `model`, besides the one
    that the step pruned, and the default of several steps; step: only the one that the step pruned."""
    pretraining: Pretraining | None = None
    """Training that `model` has behind it; known for some aliases. For controls with `equal: total_tokens`."""
    report: bool = True
    """Whether to write the HTML report and the model card at the end."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for step in self.steps:
            self.at(step)._check_one_shape(f" in step {step.label}")
        if not self.steps:
            self._check_one_shape()
        labels = [step.label for step in self.steps]
        if taken := sorted({ORIGINAL, PARENT} & set(labels)):
            raise ValueError(f"the label {taken[0]!r} of a step is that of another model in tables; choose another")
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two steps have the label {twice[0]!r}; rename one")
        if self.relatives and not self._goal():
            raise ValueError("relatives need a target; give a budget whose target is a number of parameters")
        if self.sparsify and self.steps:
            raise ValueError("a sparse model cannot be pruned further; remove sparsify, or the steps")
        if self.sparsify and self.sparsify.rounds > 1:
            self._check_rounds(self.sparsify)
        if self.controls and not (self.prunes or self.steps):
            raise ValueError("controls start from a pruned model, and nothing is pruned; remove them")
        if self.controls and self.distill is None and not any(step.distill for step in self.steps):
            raise ValueError(
                "controls repeat the distillation, but there is no distill section; add one or remove them"
            )
        if self.correct and self.distill is None and not any(step.distill for step in self.steps):
            raise ValueError("correct trains a teacher, but there is no distill section; add one or remove correct")
        self._check_teach()
        self._check_controls()
        for one in [self.at(step) for step in self.steps] or [self]:
            one._check_unrepaired()
        self._check_trained()
        if (
            self.evaluate.gates.name_the_original
            and not self.compares_with_original
            and (len(self.steps) > 1 or self.relatives)
        ):
            raise ValueError("a gate is of: original, which is not compared with; write compare_with: original")
        return self

    def _check_controls(self) -> None:
        labels = [control.label for control in self.controls]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two controls have the label {twice[0]!r}; rename one")
        steps = [step.label for step in self.steps]
        for control in self.controls:
            if absent := [label for label in control.in_steps or () if label not in steps]:
                raise ValueError(f"control {control.label} is in step {absent[0]!r}, which the recipe does not have")
            if control.prune_from and len(steps) < 2:
                raise ValueError(f"control {control.label} prunes the original, which only differs in a chain of steps")
            if control.equal == "total_tokens" and self.known_pretraining is None:
                raise ValueError(
                    f"control {control.label} is equal in total tokens, and those of {self.model} are not known; add "
                    "pretraining: {tokens: 15T}"
                )
            for training in filter(None, (self.distill, *(step.distill for step in self.steps))):
                control.applied_to(training).check_rates()

    def _check_trained(self) -> None:
        """Refuse a control in a step that is not trained."""
        for step in self.steps:
            if (asked := self.at(step)).controls and asked.distill is None:
                raise ValueError(
                    f"control {asked.controls[0].label} is in step {step.label}, which has no distill section; add "
                    "one, or name the control's steps with in_steps"
                )

    def _check_unrepaired(self) -> None:
        """Refuse a control without the repair where there is none to leave out."""
        for control in self.controls:
            if control.repair and not self.prune.repairs:
                raise ValueError(f"control {control.label} leaves the repair out, and prune.repair is none; remove it")

    @property
    def compares_with_original(self) -> bool:
        """Whether every model is also compared with `model`, where the step prunes another one."""
        default = "original" if len(self.steps) > 1 else "step"
        return (self.compare_with or default) == "original"

    @property
    def known_pretraining(self) -> Pretraining | None:
        """Training that `model` has behind it: as given, or as its alias has it; None if it is not known."""
        if self.pretraining or self.model not in aliases():
            return self.pretraining
        known = aliases()[self.model].pretraining
        return Pretraining(**known) if known else None

    def _check_rounds(self, sparsify: SparsifyConfig) -> None:
        """Refuse rounds without a training between them."""
        if self.distill is None:
            raise ValueError("sparsify.rounds trains between rounds, but there is no distill section; add one")
        try:
            between_rounds.training(sparsify, self.distill)
        except InputError as e:
            raise ValueError(str(e)) from None

    def _check_teach(self) -> None:
        """Refuse signals that no training reads."""
        if self.teach is None:
            return
        trained = [self.distill, *(step.distill for step in self.steps)]
        configs = [config for config in trained if config and config.needs_teacher]
        if not configs:
            raise ValueError("teach stores what a distillation reads, and there is none with a teacher; remove teach")
        if reason := next((config.needs_whole_teacher for config in configs if config.needs_whole_teacher), ""):
            raise ValueError(f"teach makes signals that {reason}; remove teach, or change the losses")

    def _check_one_shape(self, where: str = "") -> None:
        """Refuse a recipe in which nothing, or more than one section, gives the shape of the child."""
        prune = self.prune
        has_shape = bool(prune.shape or prune.budget or prune.drop_layers)
        if not self.prunes and self.sparsify is None:
            raise ValueError(f"nothing says how much to prune{where}; add prune.shape, prune.budget or search")
        if self.search is not None and has_shape:
            raise ValueError(
                f"both search and prune choose a shape{where}; remove search, or the shape or budget under prune"
            )
        if self.search is not None and self.search.targets and prune.size is None:
            raise ValueError(f"the search has several targets{where}; choose one with prune.size")

    @property
    def prunes(self) -> bool:
        """Whether a smaller shape is given, or searched for; otherwise the parent only becomes sparse."""
        prune = self.prune
        return bool(self.search or prune.shape or prune.budget or prune.drop_layers)

    def at(self, step: Step) -> Self:
        """Recipe of one step."""
        given = {name: getattr(step, name) for name in ("importance", "distill", "teacher") if getattr(step, name)}
        if step.search or step.prune:
            given |= {"search": step.search, "prune": step.prune or PruneConfig()}
        elif self.prune.untie and step != self.steps[0]:  # the first step has untied the head
            given["prune"] = self.prune.model_copy(update={"untie": False})
        last = self.steps[-1].label
        given["controls"] = tuple(x for x in self.controls if step.label in (x.in_steps or (last,)))
        return self.model_copy(update=given | {"steps": ()})

    def scoring(self) -> ImportanceConfig:
        """Settings of the importance stage, of which `layer_removal` is settled."""
        return self.importance.settled(removes_layers=prunes_layers(self.prune, self.search))

    def _goal(self) -> Budget | None:
        """Budget of the first step, if its target is a number of parameters."""
        first = self.at(self.steps[0]) if self.steps else self
        budget = first.search.budget if first.search else first.prune.budget
        return budget if budget and not isinstance(budget.target, str) else None

    def smallest_parent(self, parameters: Callable[[str, Budget], int]) -> str:
        """Smallest of `model` and `relatives` with at least the target's parameters, less the budget's tolerance.

        `model` if none has. `parameters` returns a model's number of parameters as the budget counts them.
        """
        goal = self._goal()
        if not self.relatives or goal is None:
            return self.model
        counts = {name: parameters(name, goal) for name in (self.model, *self.relatives)}
        enough = [name for name, count in counts.items() if count >= goal.goal() * (1 - goal.tolerance)]
        return min(enough, key=lambda name: counts[name], default=self.model)

    def seeded(self, seed: int) -> Self:
        """The recipe with one seed for all that its stages draw, in every step.

        A control keeps a seed of its own, and evaluations keep theirs: models of all seeds get the same questions.
        """
        steps = tuple(step.model_copy(update=_sections_of_seed(step, seed)) for step in self.steps)
        return self.model_copy(update=_sections_of_seed(self, seed) | {"steps": steps})


def prunes_layers(prune: PruneConfig, search: SearchConfig | None) -> bool:
    """Whether layers are removed, or ranked by the perplexity without them."""
    shaped = "layer" in (prune.shape or {}) or bool(prune.drop_layers)
    within_budget = prune.budget is not None and "layer" in prune.axes
    searched = search is not None and "layer" in search.axes
    return shaped or within_budget or searched or prune.ranking.layers == "perplexity"


def _sections_of_seed(part: Spec, seed: int) -> dict[str, Spec]:
    names = ("importance", "search", "prune", "sparsify", "correct", "teach", "distill")
    sections = {name: getattr(part, name, None) for name in names}
    return {name: _reseeded(section, seed) for name, section in sections.items() if section}


def _reseeded(spec: Spec, seed: int) -> Spec:
    """The same with this seed, also in the sections within it that have one."""
    changed: dict[str, Any] = {}
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        new = seed if name == "seed" else _reseeded(value, seed) if isinstance(value, Spec) else value
        changed |= {} if new is value else {name: new}
    return spec.model_copy(update=changed) if changed else spec


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Recipe from a file or of a shipped name, with `key=value` overrides applied. RecipeError if it is invalid."""
    return yaml_document.check(Recipe, yaml_document.read(find(name)).changed(overrides))


def schema() -> dict[str, Any]:
    """JSON schema of a recipe, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Recipe.model_json_schema()


def shipped() -> dict[str, Path]:
    """Name -> file of each recipe that ships with the package."""
    packaged = Path(str(resources.files("minitron_cli"))) / "recipes"
    directory = packaged if packaged.is_dir() else packaged.parents[1] / "recipes"  # a checkout keeps them at its top
    return {path.stem: path for path in sorted(directory.glob("*.yaml"))}


def find(name: str) -> Path:
    """File of a recipe, given its path or the name of one that ships. RecipeError if there is none."""
    return yaml_document.find(name, shipped(), "recipe")
