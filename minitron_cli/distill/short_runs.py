"""Batch size, warm-up and learning rate of runs for which the published values are made too large. Imports no torch.

One step of the published batch (1,152 sequences of 8,192 tokens) is more than a short run has in all. A smaller batch
needs a lower learning rate: with the published one, the first steps of a batch of one sequence take a child of
0.5 B parameters further from its parent than pruning did. Values that the user set are never changed: where they
contradict the length of the run or the text, the run is refused.
"""

import math
from collections.abc import Collection
from typing import Any, Protocol, Self, TypeVar, cast

from pydantic import BaseModel

from minitron_cli import progress
from minitron_cli.errors import RecipeError
from minitron_cli.figures import listed

MIN_STEPS = 100  # for which a batch is lowered: a quarter of the steps of the shortest published training
WARMUP_SHARE = 10  # the warm-up is at most one step in so many
RATES = ((50_000_000, 1e-4), (math.inf, 1e-5))
"""Parameters up to which the learning rate is not lowered further than to this one, measured with batches of one
sequence (docs/distillation.md)."""


class Settings(Protocol):
    """Settings of a training that may be fitted: `distill`, `correct`, `search.retrain`."""

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
    def learning_rate(self) -> float:
        """Peak learning rate."""
        ...

    @property
    def starts_trained(self) -> bool:
        """Whether the weights are those of a trained model, which a high learning rate spoils."""
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


def fitted(
    settings: AnySettings, sequence_length: int, blocks: int | None = None, parameters: int | None = None
) -> tuple[AnySettings, str | None]:
    """Settings that fit the run, and a remark on what was changed; None if nothing was.

    A batch that the user did not set is lowered to at most the text's number of `blocks` and to what leaves at least
    MIN_STEPS steps; a warm-up likewise to a tenth of the steps; and the learning rate of a trained model with so many
    `parameters` with the square root of the batch (Malladi et al. 2022), as far as RATES says. RecipeError if a value
    that was set cannot work.
    """
    _refuse_batch(settings, sequence_length, blocks)
    changes: dict[str, float] = {}
    if "batch_size" not in settings.model_fields_set:
        most = [settings.batch_size, *([blocks] if blocks else [])]
        if settings.tokens is not None:
            most.append(settings.tokens // (MIN_STEPS * sequence_length))
        changes["batch_size"] = max(1, min(most))
    steps = settings.model_copy(update=dict(changes)).total_steps(sequence_length)
    _refuse_warmup(settings, steps)
    if "warmup_steps" not in settings.model_fields_set:
        changes["warmup_steps"] = min(settings.warmup_steps, steps // WARMUP_SHARE)
    changes |= _rates(settings, int(changes.get("batch_size", settings.batch_size)), parameters)
    changed = {name: value for name, value in changes.items() if value != getattr(settings, name)}
    return (settings.model_copy(update=changed), _remark(settings, changed, steps)) if changed else (settings, None)


def _rates(settings: Settings, batch: int, parameters: int | None) -> dict[str, float]:
    """Learning rates for a batch, to two digits: the peak unless it was set, and with it the last one."""
    fields = cast("type[BaseModel]", type(settings)).model_fields
    usual = {name: fields[name].default for name in ("learning_rate", "min_learning_rate") if name in fields}
    given = {name: getattr(settings, name) for name in usual.keys() & settings.model_fields_set}
    peak, share = usual["learning_rate"], 1.0
    if "learning_rate" in given:
        if given["learning_rate"] < usual.get("min_learning_rate", 0):  # and would end above its peak
            share = given["learning_rate"] / peak
    elif parameters is not None and settings.starts_trained:
        lowest = next(rate for size, rate in RATES if parameters <= size)
        share = min(max(math.sqrt(batch / fields["batch_size"].default), lowest / peak), 1.0)
    rates = {name: float(f"{share * rate:.2g}") for name, rate in usual.items()}
    if "min_learning_rate" in given:  # the peak is not below it
        rates["learning_rate"] = max(rates["learning_rate"], given["min_learning_rate"])
    return {name: rate for name, rate in rates.items() if name not in given}


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


def _remark(settings: Settings, changed: dict[str, float], steps: int) -> str:
    parts = [
        f"{name} is {_shown(value)} instead of {_shown(getattr(settings, name))}" for name, value in changed.items()
    ]
    return (
        f"{settings.section}: {listed(parts)}, to fit {steps:,} step{'s' * (steps != 1)}; set "
        f"{listed([f'{settings.section}.{name}' for name in changed])} to choose yourself"
    )


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def fit(
    settings: AnySettings, sequence_length: int, blocks: int, parameters: int | None = None, processes: int = 1
) -> AnySettings:
    """Settings that fit the run, as `fitted` returns them; the remark is said.

    RecipeError if a batch has fewer sequences than there are processes to share it.
    """
    found, remark = fitted(settings, sequence_length, blocks, parameters)
    if found.batch_size < processes:
        section, size = settings.section, found.batch_size
        is_set = "batch_size" in settings.model_fields_set
        was, more = ("", "") if is_set else (", fitted to the run", "train on more tokens, ")
        raise RecipeError(
            f"{section}.batch_size is {size:,}{was}, and {processes} processes share a batch: start at most {size:,} "
            f"of them (--gpus), {more}or set a larger {section}.batch_size"
        )
    if remark:
        progress.say(remark)
    return found
