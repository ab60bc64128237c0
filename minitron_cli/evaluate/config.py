"""Configuration of an evaluation. Importable without torch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from minitron_cli.errors import RecipeError
from minitron_cli.evaluate.metric_name import MetricName, checked
from minitron_cli.evaluate.other_model import RequestedOther
from minitron_cli.spec import Spec

PERPLEXITY = "perplexity"  # name under which loss, perplexity and KL stand beside the tasks


class Task(Spec):
    """One lm-eval task or group. In a recipe `winogrande:5` is short for `{name: winogrande, num_fewshot: 5}`."""

    name: str = Field(min_length=1)
    """A task, group or tag of lm-eval, or one defined under `include_path`."""
    num_fewshot: int | None = Field(None, ge=0)
    """Solved examples shown before each question; the task's own default if absent."""
    limit: int | float | None = Field(None, gt=0)
    """Number of items, from the first; below 1 a fraction of them. All if absent."""
    document: str | None = None
    """Column of the task's data that identifies the document of an item; items of one document are not independent."""

    @classmethod
    def parse(cls, text: str) -> "Task":
        """`winogrande` or `winogrande:5`. RecipeError if what follows the colon is not a number of shots."""
        return cls(**_split_shots(text))

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name == PERPLEXITY:
            raise ValueError(f"a task cannot be called {PERPLEXITY!r}, the name of the measurements on text; rename it")
        return name

    @field_validator("limit")
    @classmethod
    def _limit_is_a_count_or_a_fraction(cls, limit: int | float | None) -> int | float | None:
        if limit is not None and limit > 1 and limit != int(limit):
            raise ValueError(f"limit {limit} is neither a whole number of items nor a fraction below 1")
        return limit


def _split_shots(text: str) -> dict[str, Any]:
    name, colon, shots = text.partition(":")
    if not name or (colon and not shots.isdecimal()):
        raise RecipeError(f"task {text!r}: write NAME or NAME:SHOTS, for example winogrande:5")
    return {"name": name, "num_fewshot": int(shots) if colon else None}


def _task(value: Any) -> Any:
    return _split_shots(value) if isinstance(value, str) else value


RequestedTask = Annotated[Task, BeforeValidator(_task, json_schema_input_type=str | Task)]


SUITES: dict[str, tuple[Task, ...]] = {
    "minitron": (
        Task(name="winogrande", num_fewshot=5),
        Task(name="arc_challenge", num_fewshot=25),
        Task(name="mmlu", num_fewshot=5),
        Task(name="hellaswag", num_fewshot=10),
        Task(name="gsm8k", num_fewshot=5),
        Task(name="truthfulqa_mc2", num_fewshot=0),
        Task(name="xlsum_en", num_fewshot=3, limit=0.2),
        Task(name="mbpp", num_fewshot=0),
        Task(name="humaneval", num_fewshot=0),
    )
}
"""Tasks of Sreenivas et al. 2024, table 1. HumanEval: 20 answers at temperature 0.2 and top-p 0.95."""
CODE_TASKS = frozenset({"mbpp", "humaneval"})  # tasks of the suites that run code that the model writes


class Cloze(Spec):
    """Multiple-choice task made from held-out text: choose the true continuation."""

    items: int = Field(200, gt=0)
    """Largest number of questions; fewer if the text is short."""
    choices: int = Field(4, ge=2)
    """Continuations per question; the wrong ones come from the same document."""
    context_words: int = Field(48, gt=0)
    """Words (or runs of punctuation) in the context."""
    continuation_words: int = Field(12, gt=0)
    """Words in each continuation."""
    seed: int = 0
    """Seed of the choice of passages and of the position of the true continuation."""


class Speed(Spec):
    """Settings of the speed measurement."""

    batch_size: int = Field(1, gt=0)
    """Sequences per batch."""
    prompt_tokens: int = Field(512, gt=0)
    """Tokens of the prompt."""
    new_tokens: int = Field(64, ge=2)
    """Tokens generated after the prompt."""
    rounds: int = Field(5, gt=0)
    """Rounds in which parent and child generate in alternation; medians are reported."""
    cache: Literal["dynamic", "static"] = "dynamic"
    """KV cache of transformers: dynamic grows token by token, static has its final size from the start."""


class _Gate(Spec):
    """Fields of every kind of gate."""

    metric: MetricName
    """Measured value, as `task.metric`: winogrande.acc, perplexity.loss."""
    confidence: float | None = Field(None, gt=0, lt=1)
    """Confidence, such as 0.95, at which the bound must hold: the near end of the value's interval is compared with the
    bound instead of the value."""

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        names = [name for name in type(self).model_fields if name.startswith(("min", "max"))]
        if all(getattr(self, name) is None for name in names):
            raise ValueError(f"a gate needs a bound; give one of {', '.join(names)}")
        return self


class Absolute(_Gate):
    """Bound on the value itself."""

    kind: Literal["absolute"] = "absolute"
    min: float | None = None
    """At least this."""
    max: float | None = None
    """At most this."""


class _Relative(_Gate):
    """Bound on the difference or the ratio to another model's value."""

    min_difference: float | None = None
    """Smallest difference: -0.01 lets an accuracy lose a point."""
    max_difference: float | None = None
    """Largest difference."""
    min_ratio: float | None = None
    """Smallest ratio: 0.95 keeps 95 % of the other's value."""
    max_ratio: float | None = None
    """Largest ratio."""


class AgainstParent(_Relative):
    """Bound relative to the parent on the same items; the paired difference has a small standard error."""

    kind: Literal["parent"] = "parent"
    of: Literal["original", "step"] | None = None
    """Model to compare with. original: the one that a chain started from; step: the one that the step pruned.
    Default: the original, where it was evaluated."""


class AgainstBaseline(_Relative):
    """Bound relative to an earlier evaluation in a file. Items are not paired, so the standard error is larger."""

    kind: Literal["baseline"] = "baseline"
    file: str
    """Output of `minitron eval --json`; the path is relative to the gate file."""
    model: str | None = None
    """Model in that file; if absent, the one of the same name, or the only one besides the parent."""


Gate = Annotated[Absolute | AgainstParent | AgainstBaseline, Field(discriminator="kind")]


class Gates(Spec):
    """Bounds on measured values, by `task.metric`; text measurements are `perplexity.loss`, `.perplexity` and `.kl`."""

    minimum: Mapping[MetricName, float] = {}
    """Smallest value: `{winogrande.acc: 0.7}`."""
    maximum: Mapping[MetricName, float] = {}
    """Largest value: `{perplexity.loss: 2.5}`."""
    rules: tuple[Gate, ...] = ()
    """Gates of every kind: absolute, relative to the parent, or to a baseline; each with or without confidence."""

    @classmethod
    def parse(cls, minimum: Sequence[str] = (), maximum: Sequence[str] = ()) -> "Gates":
        """Gates of `task.metric=value` strings, as on the command line. RecipeError for two bounds of one value."""
        return cls(minimum=_bounds(minimum), maximum=_bounds(maximum))

    @property
    def name_the_original(self) -> bool:
        """Whether a rule asks for the model that a chain started from."""
        return any(isinstance(rule, AgainstParent) and rule.of == "original" for rule in self.rules)

    def all(self) -> tuple[Absolute | AgainstParent | AgainstBaseline, ...]:
        """Every gate as a rule."""
        least = (Absolute(metric=name, min=bound) for name, bound in self.minimum.items())
        most = (Absolute(metric=name, max=bound) for name, bound in self.maximum.items())
        return (*least, *most, *self.rules)

    def joined(self, other: "Gates") -> "Gates":
        """Gates of both; where both bound one value on one side, the other's bound."""
        return Gates(
            minimum={**self.minimum, **other.minimum},
            maximum={**self.maximum, **other.maximum},
            rules=self.rules + other.rules,
        )

    def beside(self, directory: Path) -> "Gates":
        """The same gates, with baseline files resolved relative to `directory`."""
        rules = (
            rule.model_copy(update={"file": str(directory / rule.file)}) if isinstance(rule, AgainstBaseline) else rule
            for rule in self.rules
        )
        return self.model_copy(update={"rules": tuple(rules)})


def _bounds(texts: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, bound in map(_bound, texts):
        if found.setdefault(name, bound) != bound:
            raise RecipeError(f"gates {name}={found[name]:g} and {name}={bound:g} bound the same value: leave one out")
    return found


def _bound(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        bound = float(value)
        if not math.isfinite(bound):
            raise ValueError
        return checked(name.strip()), bound
    except ValueError:
        raise RecipeError(f"gate {text!r}: write TASK.METRIC=VALUE, for example winogrande.acc=0.7") from None


class EvaluateConfig(Spec):
    """Measurements of the parent and of every model made from it."""

    perplexity: bool = True
    """Measure loss, perplexity and KL to the parent on the validation blocks."""
    blocks: Annotated[int, Field(gt=0)] | None = 64
    """Largest number of validation blocks, evenly spaced; all if null."""
    cloze: Cloze | None = None
    """Also ask a multiple-choice task made from the validation text."""
    suite: Literal["minitron"] | None = None
    """Set of tasks before those of `tasks`: minitron has the nine of the paper, with their shots."""
    tasks: tuple[RequestedTask, ...] = ()
    """lm-eval tasks."""
    include_path: str | None = Field(None, exclude=True)
    """Directory of further lm-eval task YAMLs. Code in them runs only with `--allow-code-execution`."""
    apply_chat_template: bool = False
    """Ask the tasks through the tokenizer's chat template, as instruct models expect it (lm-eval's option)."""
    fewshot_as_multiturn: bool = False
    """With `apply_chat_template`, give each solved example as a turn of the conversation (lm-eval's option)."""
    task_data: str | None = Field(None, exclude=True)
    """Directory with task data, such as `winogrande/validation.jsonl`; missing data are downloaded."""
    speed: Speed | None = None
    """Measure generation speed in alternation with the parent, and peak memory."""
    batch_size: int = Field(8, gt=0)
    """Sequences per forward pass."""
    others: tuple[RequestedOther, ...] = Field((), exclude=True)
    """Models that were measured elsewhere, to stand beside those that are measured."""
    gates: Gates = Field(Gates(), exclude=True)
    """Bounds on measured values; a miss ends with exit code 4."""

    @model_validator(mode="after")
    def _has_turns(self) -> Self:
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn needs apply_chat_template: true, which writes the turns")
        return self

    def requested(self, *, allow_code: bool) -> tuple[Task, ...]:
        """Every task, the suite's first; an entry of `tasks` replaces the suite's of the same name. The suite's tasks
        that run code are left out unless `allow_code`."""
        named = {task.name for task in self.tasks}
        suite = SUITES[self.suite] if self.suite else ()
        return *(t for t in suite if t.name not in named and (allow_code or t.name not in CODE_TASKS)), *self.tasks
