"""What an evaluation is asked for. Importable without torch."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

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

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return _split_shots(value) if isinstance(value, str) else value

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


class Gates(Spec):
    """Bounds on measured values, by `task.metric`; `perplexity.loss` and the like for our own measurements."""

    minimum: Mapping[str, float] = {}
    """The value must be at least this: `{winogrande.acc: 0.7}`."""
    maximum: Mapping[str, float] = {}
    """The value must be at most this: `{perplexity.loss: 2.5}`."""

    @classmethod
    def parse(cls, minimum: Sequence[str] = (), maximum: Sequence[str] = ()) -> "Gates":
        """From `task.metric=value` strings, as on the command line."""
        return cls(minimum=dict(map(_bound, minimum)), maximum=dict(map(_bound, maximum)))


def _bound(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        if not name:
            raise ValueError
        return name.strip(), float(value)
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
    tasks: tuple[Task, ...] = ()
    """lm-eval tasks."""
    include_path: str | None = None
    """A directory of further lm-eval task YAMLs. They may run Python of their own: name only what you trust."""
    task_data: str | None = None
    """A directory with the data of tasks, `winogrande/validation.jsonl` and so on; what is not there is fetched."""
    batch_size: int = Field(8, gt=0)
    """Sequences per forward pass."""
    gates: Gates = Gates()
    """What the measured values must reach; missing one ends in exit code 4."""

    def asked(self, *, allow_code: bool) -> tuple[Task, ...]:
        """Every task, those of the suite first, unless `tasks` names one otherwise. Without leave to run code, the
        suite is asked without the tasks that do."""
        named = {task.name for task in self.tasks}
        suite = SUITES[self.suite] if self.suite else ()
        return *(t for t in suite if t.name not in named and (allow_code or t.name not in CODE_TASKS)), *self.tasks
