"""The user's intent for a whole run: one section per stage, each owned by its package. Importable without torch."""

import difflib
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from minitron_cli import yaml_document
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill.config import OBJECTIVES, CorrectConfig, DistillConfig, Objective
from minitron_cli.errors import RecipeError
from minitron_cli.evaluate.config import EvaluateConfig
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.prune.config import Budget, PruneConfig
from minitron_cli.search.config import SearchConfig
from minitron_cli.spec import Spec


class Control(Spec):
    """The same distillation with one thing changed, to show what that thing is worth."""

    label: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Its name in tables, such as random-init."""
    init: Literal["student", "random"] | None = None
    """Where training starts, if not where the student's does; random: fresh weights of the student's shape."""
    objective: Objective | None = None
    """kl: distillation; ce: conventional training on the text alone, without the teacher."""
    cut: Literal["random"] | None = None
    """random: start from as large a cut that chose its channels, heads and neurons at random."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.init is None and self.objective is None and self.cut is None:
            raise ValueError("nothing is changed; give it an init, an objective or a cut")
        if self.label in ("parent", "pruned", "corrected", "distilled"):
            raise ValueError(f"the label {self.label!r} is taken by another model of the run; choose another")
        return self

    def applied_to(self, distill: DistillConfig) -> DistillConfig:
        changes: dict[str, Any] = {"init": self.init} if self.init else {}
        if self.objective:
            changes |= {
                "losses": OBJECTIVES[self.objective],
                "hidden": None if self.objective == "ce" else distill.hidden,
            }
        return distill.model_copy(update=changes)


class Step(Spec):
    """One cut of a chain: what it does otherwise than the recipe. Its parent is what the step before it made."""

    label: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Its name, such as 8b."""
    importance: ImportanceConfig | None = None
    """How its parent is scored, if not as the recipe says."""
    search: SearchConfig | None = None
    """How its shape is searched; with search or prune given, the recipe's own ones do not hold."""
    prune: PruneConfig | None = None
    """What it cuts."""
    distill: DistillConfig | None = None
    """How what was cut is retrained, if not as the recipe says."""
    teacher: str | None = None
    """Who teaches, if not whom the recipe says."""


class Recipe(Spec):
    """A model, the text to work with, and what each stage does."""

    model: str
    """The parent: a directory, a hub id, or an alias such as llama-3.1-8b."""
    relatives: tuple[str, ...] = ()
    """Smaller models with its tokenizer that may be cut in its place: whichever is closest to the target is
    (Muralidharan et al. 2024, best practice 8), and `model` teaches it."""
    teacher: str = "original"
    """Who teaches a student that was cut from another model than `model`. original: `model`, which the paper found
    better in the last step of its chain (15B, 8B, 4B); parent: what was cut. Or any model by its directory or id."""
    data: DataConfig
    """The text to calibrate, train and validate on."""
    importance: ImportanceConfig = ImportanceConfig()
    """How channels, heads and layers are scored."""
    search: SearchConfig | None = None
    """Look for the best shape within a budget; without it, `prune` says the shape."""
    prune: PruneConfig = PruneConfig()
    """What is cut."""
    distill: DistillConfig | None = None
    """How the pruned model is retrained; null to stop after the cut."""
    correct: CorrectConfig | None = None
    """Train the teacher on the text first, and learn from what comes of it; without it, from the teacher as it is."""
    controls: tuple[Control, ...] = ()
    """Further distillations to compare with."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured on the parent and on everything made from it."""
    steps: tuple[Step, ...] = ()
    """Cut and retrain several times, each time what the last step made; what a step leaves out is as above."""
    report: bool = True
    """Whether the HTML page is made at the end."""

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        for step in self.steps:
            self.at(step)._says_what_to_cut(f" in step {step.label}")
        if not self.steps:
            self._says_what_to_cut()
        labels = [step.label for step in self.steps]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two steps are labelled {twice[0]!r}; rename one")
        if self.relatives and not self._goal():
            raise ValueError("relatives are compared by the target; give it as a number of parameters, in a budget")
        if self.controls and self.distill is None:
            raise ValueError("controls are distillations, and there is no distill section; add one or remove them")
        if self.correct and self.distill is None:
            raise ValueError("correct makes a teacher, and there is no distill section; add one or remove it")
        labels = [control.label for control in self.controls]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two controls are labelled {twice[0]!r}; rename one")
        return self

    def _says_what_to_cut(self, where: str = "") -> None:
        cut = self.prune
        has_shape = bool(cut.shape or cut.budget or cut.drop_layers)
        if self.search is None and not has_shape:
            raise ValueError(f"nothing says how much to cut{where}; add prune.shape, prune.budget or a search section")
        if self.search is not None and has_shape:
            raise ValueError(
                f"both search and prune choose a shape{where}; remove search, or the shape or budget under prune"
            )
        if self.search is not None and self.search.targets and cut.size is None:
            raise ValueError(f"the search has several winners{where}; say which to cut with prune.size")

    def at(self, step: Step) -> Self:
        """The recipe of one step."""
        given = {name: getattr(step, name) for name in ("importance", "distill", "teacher") if getattr(step, name)}
        if step.search or step.prune:
            given |= {"search": step.search, "prune": step.prune or PruneConfig()}
        elif self.prune.untie and step != self.steps[0]:  # by then it has a head of its own
            given["prune"] = self.prune.model_copy(update={"untie": False})
        return self.model_copy(update=given | {"steps": ()})

    def _goal(self) -> Budget | None:
        """The number of parameters that relatives are compared by."""
        first = self.at(self.steps[0]) if self.steps else self
        budget = first.search.budget if first.search else first.prune.budget
        return budget if budget and not isinstance(budget.target, str) else None

    def closest(self, parameters: Callable[[str, Budget], int]) -> str:
        """The smallest of the model and its relatives that has as many parameters as the target, or the model."""
        goal = self._goal()
        if not self.relatives or goal is None:
            return self.model
        counts = {name: parameters(name, goal) for name in (self.model, *self.relatives)}
        enough = [name for name, count in counts.items() if count >= goal.goal()]
        return min(enough, key=lambda name: counts[name], default=self.model)

    def seeded(self, seed: int) -> Self:
        """The same with one seed for everything that draws, in every step."""
        steps = tuple(step.model_copy(update=_reseeded(step, seed)) for step in self.steps)
        return self.model_copy(update=_reseeded(self, seed) | {"steps": steps})


def _reseeded(part: Spec, seed: int) -> dict[str, Any]:
    names = ("data", "importance", "search", "correct", "distill")
    sections = {name: getattr(part, name, None) for name in names}
    return {name: section.model_copy(update={"seed": seed}) for name, section in sections.items() if section}


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or one that ships with the package, with `key=value` changes made to it."""
    return yaml_document.check(Recipe, yaml_document.read(find(name)).changed(overrides))


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Recipe.model_json_schema()


def shipped() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package."""
    packaged = Path(str(resources.files("minitron_cli"))) / "recipes"
    directory = packaged if packaged.is_dir() else packaged.parents[1] / "recipes"  # a checkout keeps them at its top
    return {path.stem: path for path in sorted(directory.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that ships."""
    known = shipped()
    if name in known:
        return known[name]
    if Path(name).exists():
        return Path(name)
    close = difflib.get_close_matches(Path(name).name.removesuffix(".yaml"), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"give a file, or one of {', '.join(known)}"
    raise RecipeError(f"recipe {name!r} does not exist: {hint}")
