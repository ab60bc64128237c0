"""What an evaluation is asked for. Importable without torch."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from minitron_cli.errors import RecipeError
from minitron_cli.spec import Spec

PERPLEXITY = "perplexity"  # the name our own measurements go by, beside the tasks


class Task(Spec):
    """One lm-eval task or group. In a recipe `winogrande:5` is short for `{name: winogrande, num_fewshot: 5}`."""

    name: str = Field(min_length=1)
    """A task, group or tag of lm-eval, or one defined under `include_path`."""
    num_fewshot: int | None = Field(None, ge=0)
    """Solved examples shown before each question; the task's own default if absent."""
    limit: int | float | None = Field(None, gt=0)
    """The first so many items; below 1 a fraction of them. All if absent."""
    document: str | None = None
    """A column of the task's data: items with the same value there share a document, and are not independent."""

    @classmethod
    def parse(cls, text: str) -> "Task":
        """`winogrande` or `winogrande:5`. RecipeError if what follows the colon is not a number of shots."""
        return cls(**_split_shots(text))

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name == PERPLEXITY:
            raise ValueError(f"a task cannot be called {PERPLEXITY!r}, the name of our own measurements; rename it")
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
"""What Minitron measures (Sreenivas et al. 2024, table 1). HumanEval: 20 answers at temperature 0.2, top-p 0.95."""
CODE_TASKS = frozenset({"mbpp", "humaneval"})  # those of the suites that run what the model writes


class Cloze(Spec):
    """Multiple choice made from the user's own held-out text: which continuation is the true one?"""

    items: int = Field(200, gt=0)
    """Questions at most; fewer where the text is short."""
    choices: int = Field(4, ge=2)
    """Continuations to choose from; the wrong ones come from the same document."""
    context_words: int = Field(48, gt=0)
    """Words (or runs of punctuation) shown."""
    continuation_words: int = Field(12, gt=0)
    """Words in each continuation."""
    seed: int = 0
    """Which passages are asked about, and where the true one stands."""


class Speed(Spec):
    """How speed is measured."""

    batch_size: int = Field(1, gt=0)
    """Sequences generated at once."""
    prompt_tokens: int = Field(512, gt=0)
    """Tokens read before the first new one."""
    new_tokens: int = Field(64, ge=2)
    """Tokens generated after the prompt."""
    rounds: int = Field(5, gt=0)
    """Times that parent and child each generate, in turns; figures are medians."""
    cache: Literal["dynamic", "static"] = "dynamic"
    """transformers' key-value cache: grown token by token, or of its final size from the start."""


_METRIC = r"^.+\..+$"


def _metric(name: str) -> str:
    if not re.match(_METRIC, name):
        raise ValueError("a value is named TASK.METRIC, such as winogrande.acc")
    return name


MetricName = Annotated[str, AfterValidator(_metric), WithJsonSchema({"type": "string", "pattern": _METRIC})]


class _Gate(Spec):
    """What every kind of gate has."""

    metric: MetricName
    """What is measured, as `task.metric`: winogrande.acc, perplexity.loss."""
    confidence: float | None = Field(None, gt=0, lt=1)
    """Not the value but the nearer end of its interval at this confidence must pass, such as 0.95: a value that passes
    by luck does not."""

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        names = [name for name in type(self).model_fields if name.startswith(("min", "max"))]
        if all(getattr(self, name) is None for name in names):
            raise ValueError(f"a gate needs a bound; give one of {', '.join(names)}")
        return self


class Absolute(_Gate):
    """The value itself."""

    kind: Literal["absolute"] = "absolute"
    min: float | None = None
    """At least this."""
    max: float | None = None
    """At most this."""


class _Relative(_Gate):
    """The value less another model's, or over it."""

    min_difference: float | None = None
    """The value less the other's is at least this: -0.01 lets an accuracy lose a point."""
    max_difference: float | None = None
    """The value less the other's is at most this."""
    min_ratio: float | None = None
    """The value over the other's is at least this: 0.95 keeps 95 % of it."""
    max_ratio: float | None = None
    """The value over the other's is at most this."""


class AgainstParent(_Relative):
    """Against the parent on the same items, whose difference is far surer than either value."""

    kind: Literal["parent"] = "parent"


class AgainstBaseline(_Relative):
    """Against what was measured before, and kept in a file. Items are not paired, so confidence is cautious."""

    kind: Literal["baseline"] = "baseline"
    file: str
    """`results.json` of an earlier evaluation, or what `minitron eval --json` printed; relative to the gate file."""
    model: str | None = None
    """Which of its models; the one of the same name, or the only one beside the parent, if absent."""


Gate = Annotated[Absolute | AgainstParent | AgainstBaseline, Field(discriminator="kind")]


class Gates(Spec):
    """What measured values must reach, by `task.metric`; `perplexity.loss` and the like for our own measurements."""

    minimum: Mapping[MetricName, float] = {}
    """The value must be at least this: `{winogrande.acc: 0.7}`."""
    maximum: Mapping[MetricName, float] = {}
    """The value must be at most this: `{perplexity.loss: 2.5}`."""
    rules: tuple[Gate, ...] = ()
    """Gates of every kind: absolute, against the parent, against a baseline, each with confidence or without."""

    @classmethod
    def parse(cls, minimum: Sequence[str] = (), maximum: Sequence[str] = ()) -> "Gates":
        """From `task.metric=value` strings, as on the command line."""
        return cls(minimum=dict(map(_bound, minimum)), maximum=dict(map(_bound, maximum)))

    def all(self) -> tuple[Absolute | AgainstParent | AgainstBaseline, ...]:
        """Every gate, in the one form that has room for all."""
        least = (Absolute(metric=name, min=bound) for name, bound in self.minimum.items())
        most = (Absolute(metric=name, max=bound) for name, bound in self.maximum.items())
        return (*least, *most, *self.rules)

    def joined(self, other: "Gates") -> "Gates":
        """Both; of two bounds on one side of one value, the other's."""
        return Gates(
            minimum={**self.minimum, **other.minimum},
            maximum={**self.maximum, **other.maximum},
            rules=self.rules + other.rules,
        )

    def beside(self, directory: Path) -> "Gates":
        """With the files of baselines found from `directory`."""
        rules = (
            rule.model_copy(update={"file": str(directory / rule.file)}) if isinstance(rule, AgainstBaseline) else rule
            for rule in self.rules
        )
        return self.model_copy(update={"rules": tuple(rules)})


def _bound(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        bound = float(value)
        if not math.isfinite(bound):
            raise ValueError
        return _metric(name.strip()), bound
    except ValueError:
        raise RecipeError(f"gate {text!r}: write TASK.METRIC=VALUE, for example winogrande.acc=0.7") from None


class EvaluateConfig(Spec):
    """What is measured on the parent and on every model made from it."""

    perplexity: bool = True
    """Whether loss, perplexity and KL to the parent are measured on the validation blocks."""
    blocks: Annotated[int, Field(gt=0)] | None = 64
    """Validation blocks at most, evenly apart; all if null."""
    cloze: Cloze | None = None
    """Make a multiple-choice task of the validation text, and ask it too."""
    suite: Literal["minitron"] | None = None
    """Tasks that belong together, before those of `tasks`: the nine that Minitron is measured on, with their shots."""
    tasks: tuple[RequestedTask, ...] = ()
    """lm-eval tasks."""
    include_path: str | None = Field(None, exclude=True)
    """A directory of further lm-eval task YAMLs. They may run Python of their own: name only what you trust."""
    task_data: str | None = Field(None, exclude=True)
    """A directory with the data of tasks, `winogrande/validation.jsonl` and so on; what is not there is fetched."""
    speed: Speed | None = None
    """Time generation beside the parent, and measure memory."""
    batch_size: int = Field(8, gt=0)
    """Sequences per forward pass."""
    gates: Gates = Field(Gates(), exclude=True)
    """What the measured values must reach; missing one ends in exit code 4."""

    def requested(self, *, allow_code: bool) -> tuple[Task, ...]:
        """Every task, those of the suite first, unless `tasks` names one otherwise. Without leave to run code, the
        suite is asked without the tasks that do."""
        named = {task.name for task in self.tasks}
        suite = SUITES[self.suite] if self.suite else ()
        return *(t for t in suite if t.name not in named and (allow_code or t.name not in CODE_TASKS)), *self.tasks
