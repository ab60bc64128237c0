"""What a study compares, as data: a recipe, arms that change a part of it, and what the papers found. No torch.

An arm is a set of sections laid over the study's recipe, so that whatever a recipe can say can be an arm, and a user's
own study is a YAML file beside the shipped ones in `recipes/studies/`.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from minitron_cli import recipe as recipes
from minitron_cli import yaml_document
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill.config import DistillConfig
from minitron_cli.errors import RecipeError
from minitron_cli.recipe import Recipe
from minitron_cli.spec import Quantity, Spec
from minitron_cli.yaml_document import YamlDocument

Figure = Literal["kl", "loss"]
When = Literal["before", "after"]
GIVEN = {
    "model": "names as its MODEL",
    "data": "names with --data",
    "report": "leaves out for the study's own page",
}
"""Key of a recipe that is none of a study's -> what the command does about it."""
TRIAL_SEED = 100
"""Seed of the short runs that choose a learning rate, which no compared run has."""


class Expected(Spec):
    """Order of two arms, or of two differences between arms, that a paper found."""

    lower: str | tuple[str, str]
    """Arm with the lower figure; or two arms, and the first one's figure minus the second one's is lower."""
    higher: str | tuple[str, str]
    """The same of what is higher."""
    when: When = "after"
    """Whether it is the figure before or after training."""
    published: str = ""
    """What was found, in words or numbers."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Arms whose figures are subtracted from each other."""
        if isinstance(self.lower, str) and isinstance(self.higher, str):
            return ((self.lower, self.higher),)
        return tuple(side for side in (self.lower, self.higher) if not isinstance(side, str))

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if isinstance(self.lower, str) != isinstance(self.higher, str):
            raise ValueError("lower and higher must both be an arm, or both two arms")
        return self


class Tuning(Spec):
    """Learning rates that are tried for every arm in short runs, whose lowest figure chooses."""

    rates: tuple[float, ...] = Field(min_length=2)
    """Peak learning rates. Each ends at a tenth of itself."""
    tokens: Quantity
    """Tokens of a short run."""


class StudyDefinition(Spec):
    """One study."""

    question: str
    """What it answers, in a sentence."""
    source: str
    """The paper, with its table or section."""
    figure: Figure = "loss"
    """What arms are compared by, on held-out text, in nats per token: the loss, or the KL from the parent."""
    recipe: dict[str, Any]
    """Sections that all arms share: a recipe without model and data."""
    arms: dict[str, dict[str, Any]] = Field(min_length=2)
    """Label -> sections that differ from the recipe."""
    expected: tuple[Expected, ...] = ()
    """Orders that were published."""
    are_candidates: bool = False
    """Whether the arms are shapes of one size, among which a look before training would choose: also report how well
    the order before training agrees with that after it, and what the choice costs."""
    tuning: Tuning | None = None
    """Choice of each arm's learning rate; without it, all have the recipe's."""
    sequence_length: int | None = Field(None, ge=2)
    """Tokens of a block where the command names no length; None for what the workspace has, or 2,048."""
    seeds: int = Field(3, ge=2)
    """Number of runs of each arm. A seed draws calibration blocks, the order of the text and random choices."""
    fewer_seeds: Mapping[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Arm -> number of its runs, if that is less: of arms that cost much."""

    def seeds_of(self, arm: str, seeds: int) -> int:
        """Number of runs of an arm where the others have `seeds`."""
        return min(seeds, self.fewer_seeds.get(arm, seeds))

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        named = [arm for order in self.expected for pair in order.pairs for arm in pair] + list(self.fewer_seeds)
        if unknown := [arm for arm in named if arm not in self.arms]:
            raise ValueError(f"{unknown[0]!r} is no arm; the arms are {', '.join(self.arms)}")
        for place, sections in {"recipe": self.recipe, **{f"arms.{arm}": self.arms[arm] for arm in self.arms}}.items():
            if given := next((key for key in GIVEN if key in sections), ""):
                raise ValueError(f"{place} has {given}, which the command {GIVEN[given]}; remove it")
        if self.tuning:
            self._check_tuned()
        return self

    def _check_tuned(self) -> None:
        """Refuse a step whose training has a learning rate of its own, beside those that are tried."""
        for arm, sections in self.arms.items():
            for step in merged(self.recipe, sections).get("steps") or ():
                if isinstance(step, Mapping) and step.get("distill"):
                    raise ValueError(
                        f"step {step.get('label')} of arm {arm} has its own distill, whose rate tuning does not "
                        "choose; leave it to the arm's distill, or remove tuning"
                    )

    def trains(self, arm: str) -> bool:
        """Whether an arm has a training, be it one without a setting of its own."""
        return merged(self.recipe, self.arms[arm]).get("distill") is not None

    def recipe_of(self, arm: str, model: str, data: DataConfig, seed: int, changes: Mapping[str, Any]) -> Recipe:
        """Recipe of one run: the study's, the arm's sections over it, then `changes`. RecipeError if it is invalid."""
        given = {"model": model, "data": data.model_dump(mode="json"), "report": False, **self.recipe}
        values = merged(merged(given, self.arms[arm]), changes)
        try:
            found = yaml_document.check(Recipe, YamlDocument(values))
        except RecipeError as e:
            raise RecipeError(f"arm {arm}: {e}") from None
        seeded = found.seeded(seed)
        return seeded if found.teach else _without_signals(seeded)


def _without_signals(recipe: Recipe) -> Recipe:
    """The recipe, in which no training reads the signals that another arm has stored."""
    steps = tuple(step.model_copy(update=_of_the_teacher(step.distill)) for step in recipe.steps)
    return recipe.model_copy(update=_of_the_teacher(recipe.distill) | {"steps": steps})


def _of_the_teacher(distill: DistillConfig | None) -> dict[str, DistillConfig]:
    """Changes by which a training has the teacher run, unless it names signals."""
    return {"distill": distill.model_copy(update={"signals": "never"})} if distill and distill.signals == "auto" else {}


def named_models(recipe: Recipe) -> set[str]:
    """Models that a recipe names besides the one that is pruned."""
    teachers = {recipe.teacher, *(step.teacher for step in recipe.steps if step.teacher)}
    return {*recipe.relatives, *(teachers - {"original", "parent"})}


def merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings with those of `over` laid on top. A mapping with another `kind` replaces the one below."""
    found = copy.deepcopy(dict(values))
    for name, value in over.items():
        below = found.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and _is_one_kind(value, below):
            found[name] = merged(below, value)
        else:
            found[name] = copy.deepcopy(value)
    return found


def _is_one_kind(value: Mapping[str, Any], below: Mapping[str, Any]) -> bool:
    return "kind" not in value or value["kind"] == below.get("kind")


def load(name: str) -> StudyDefinition:
    """Study from a file, or of a shipped name. RecipeError if there is none or it is invalid."""
    file = yaml_document.find(name, shipped(), "study")
    return yaml_document.check(StudyDefinition, yaml_document.read(file))


def shipped() -> dict[str, Path]:
    """Name -> file of each study that ships with the package."""
    directory = next(iter(recipes.shipped().values())).parent / "studies"
    return {path.stem: path for path in sorted(directory.glob("*.yaml"))}
