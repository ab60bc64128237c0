"""Batch size and warm-up of runs with few tokens, for which the published values are made too large. Imports no torch.

One step of the published batch (1,152 sequences of 8,192 tokens) is more than a short run has in all. Values that the
user set are never changed: where they contradict the length of the run or the text, the run is refused.
"""

from collections.abc import Collection
from typing import Any, Protocol, Self, TypeVar

from minitron_cli import progress
from minitron_cli.errors import RecipeError

MIN_STEPS = 100  # for which a batch is lowered: a quarter of the steps of the shortest published training
WARMUP_SHARE = 10  # the warm-up is at most one step in so many


class Settings(Protocol):
    """Settings of a training whose batch and warm-up may be fitted: `distill`, `correct`, `search.retrain`."""

    @property
    def section(self) -> str:
        """Section of the recipe, for messages."""
        ...

    @property
    def tokens(self) -> int | None:
        """Length in tokens, if it is set so."""
        ...

    @property
    def batch_size(self) -> int:
        """Sequences per optimizer step."""
        ...

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""
        ...

    @property
    def model_fields_set(self) -> Collection[str]:
        """Keys that the user set."""
        ...

    def total_steps(self, sequence_length: int) -> int:
        """Length of the run in optimizer steps."""
        ...

    def model_copy(self, *, update: dict[str, Any]) -> Self:
        """The same settings with some values changed."""
        ...


AnySettings = TypeVar("AnySettings", bound=Settings)


def fitted(settings: AnySettings, sequence_length: int, blocks: int | None = None) -> tuple[AnySettings, str | None]:
    """Settings whose batch and warm-up fit the run, and a remark on what was changed; None if nothing was.

    A batch that the user did not set is lowered to at most the text's number of `blocks` and to what leaves at least
    MIN_STEPS steps; a warm-up likewise to a tenth of the steps. RecipeError if a value that was set cannot work.
    """
    _refuse_batch(settings, sequence_length, blocks)
    changes: dict[str, int] = {}
    if "batch_size" not in settings.model_fields_set:
        most = [settings.batch_size, *([blocks] if blocks else [])]
        if settings.tokens is not None:
            most.append(settings.tokens // (MIN_STEPS * sequence_length))
        changes["batch_size"] = max(1, min(most))
    steps = settings.model_copy(update=dict(changes)).total_steps(sequence_length)
    _refuse_warmup(settings, steps)
    if "warmup_steps" not in settings.model_fields_set:
        changes["warmup_steps"] = min(settings.warmup_steps, steps // WARMUP_SHARE)
    changed = {name: value for name, value in changes.items() if value != getattr(settings, name)}
    return (settings.model_copy(update=changed), _remark(settings, changed, steps)) if changed else (settings, None)


def _refuse_batch(settings: Settings, sequence_length: int, blocks: int | None) -> None:
    section, batch = settings.section, settings.batch_size
    if "batch_size" not in settings.model_fields_set or batch == 1:
        return
    if settings.tokens is not None and batch * sequence_length > settings.tokens:
        raise RecipeError(
            f"{section}.batch_size {batch:,} x {sequence_length:,} tokens is more than {section}.tokens "
            f"{settings.tokens:,}, so the run is less than one step: lower {section}.batch_size, raise "
            f"{section}.tokens, or leave batch_size out to have it fitted"
        )
    if blocks and batch > blocks:
        raise RecipeError(
            f"{section}.batch_size {batch:,} is more than the {blocks:,} blocks of the training text: lower "
            f"{section}.batch_size or data.sequence_length, add text, or leave batch_size out to have it fitted"
        )


def _refuse_warmup(settings: Settings, steps: int) -> None:
    if "warmup_steps" in settings.model_fields_set and settings.warmup_steps > steps:
        section = settings.section
        raise RecipeError(
            f"{section}.warmup_steps {settings.warmup_steps:,} is more than the run's {steps:,} steps, so the learning "
            f"rate never reaches its peak: lower {section}.warmup_steps, raise {section}.tokens, or leave warmup_steps "
            "out to have it fitted"
        )


def _remark(settings: Settings, changed: dict[str, int], steps: int) -> str:
    parts = [f"{name} is {value:,} instead of {getattr(settings, name):,}" for name, value in changed.items()]
    return (
        f"{settings.section}: {' and '.join(parts)}, to fit {steps:,} step{'s' * (steps != 1)}; set "
        f"{' and '.join(f'{settings.section}.{name}' for name in changed)} to choose yourself"
    )


def fit(settings: AnySettings, sequence_length: int, blocks: int) -> AnySettings:
    """Settings that fit the run, as `fitted` returns them; the remark is said."""
    found, remark = fitted(settings, sequence_length, blocks)
    if remark:
        progress.say(remark)
    return found
