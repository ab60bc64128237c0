"""The user's intent for a whole run: one section per stage, each owned by its package. Importable without torch."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from minitron_cli import document
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill.config import OBJECTIVES, CorrectConfig, DistillConfig, Objective
from minitron_cli.errors import RecipeError
from minitron_cli.evaluate.config import EvaluateConfig
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.search.config import SearchConfig
from minitron_cli.spec import Spec
from minitron_cli.trim.spec import PruneConfig


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


class Recipe(Spec):
    """A model, the text to work with, and what each stage does."""

    model: str
    """The parent: a directory, a hub id, or an alias such as llama-3.1-8b."""
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
    """Train the model itself on the text first, and let the pruned one learn from that; without it, from the model."""
    teacher: str | None = None
    """Another model to learn from: a directory, a hub id or an alias."""
    controls: tuple[Control, ...] = ()
    """Further distillations to compare with."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured on the parent and on everything made from it."""
    report: bool = True
    """Whether the HTML page is made at the end."""

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        cut = self.prune
        if self.search is None and not (cut.shape or cut.budget or cut.drop_layers):
            raise ValueError("nothing says how much to cut; add prune.shape, prune.budget or a search section")
        if self.search is not None and (cut.shape or cut.budget or cut.drop_layers):
            raise ValueError("both search and prune choose a shape; remove search, or the shape or budget under prune")
        if self.controls and self.distill is None:
            raise ValueError("controls are distillations, and there is no distill section; add one or remove them")
        if (self.correct or self.teacher) and self.distill is None:
            raise ValueError("a teacher is named or corrected, and there is no distill section; add one or remove it")
        if self.correct and self.teacher:
            raise ValueError("correct makes the teacher, and teacher names another; remove one")
        labels = [control.label for control in self.controls]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two controls are labelled {twice[0]!r}; rename one")
        return self

    def seeded(self, seed: int) -> Self:
        """The same with one seed for everything that draws."""
        sections = {name: getattr(self, name) for name in ("data", "importance", "search", "correct", "distill")}
        return self.model_copy(update={n: s.model_copy(update={"seed": seed}) for n, s in sections.items() if s})


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or one that ships with the package, with `key=value` changes made to it."""
    return document.check(Recipe, document.read(find(name)).changed(overrides))


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
