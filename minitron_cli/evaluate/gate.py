"""Gates: bounds on measured values. Knows no model: typed results in, one outcome per bound out."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from minitron_cli import progress, strict_json
from minitron_cli.errors import ArtifactError, GateMissed, RecipeError
from minitron_cli.evaluate.config import PERPLEXITY, Absolute, AgainstBaseline, AgainstParent, Gates
from minitron_cli.evaluate.estimates import (
    Estimate,
    of_difference,
    of_metric,
    of_ratio,
    unpaired_difference,
    unpaired_ratio,
)
from minitron_cli.evaluate.metrics import TEXT_FIGURES
from minitron_cli.results.evaluation import ORIGINAL, PARENT, EvaluationResult, MetricResult, ModelEvaluation

Models = Mapping[str, ModelEvaluation]
"""Label -> evaluated model."""
Rule = Absolute | AgainstParent | AgainstBaseline
Value = TypeVar("Value")

QUANTITIES = {"": "{}", "difference": "{} - {}", "ratio": "{} / {}"}


@dataclass(frozen=True)
class Outcome:
    """One bound, and the value that it was checked against."""

    metric: str
    kind: str
    what: str
    """Bounded quantity, in words: `mmlu.acc / parent`."""
    is_minimum: bool
    bound: float
    value: float | None
    """None if there is no finite value, which misses every bound."""
    confidence: float | None = None
    compared: float | None = None
    """Value that is compared with the bound: the near end of the interval if a confidence is given, else `value`."""

    @property
    def margin(self) -> float | None:
        """Distance from the bound on the passing side; negative for a miss, None without a value."""
        if self.compared is None:
            return None
        return self.compared - self.bound if self.is_minimum else self.bound - self.compared

    @property
    def passed(self) -> bool:
        """Whether the bound is met."""
        return self.margin is not None and self.margin >= 0

    @property
    def title(self) -> str:
        """The gate in words: `quiz.acc >= 0.7 (0.95 sure)`."""
        sure = f" ({self.confidence:.4g} sure)" if self.confidence else ""
        return f"{self.what} {'>=' if self.is_minimum else '<='} {self.bound:g}{sure}"

    def __str__(self) -> str:
        side = "minimum" if self.is_minimum else "maximum"
        if self.compared is None or self.margin is None:
            return f"{self.what} has no value where its {side} is {self.bound:g}"
        low_or_high = "" if self.confidence is None else f", {self.compared:.6g} at {self.confidence:.4g} confidence"
        beyond = f"{abs(self.margin):.3g} {'below' if self.is_minimum else 'above'}"
        if self.passed:
            beyond = f"{self.margin:.3g} {'above' if self.is_minimum else 'below'}"
        return f"{self.what} is {self.value:.6g}{low_or_high}, {beyond} its {side} {self.bound:g}"

    def json(self) -> dict[str, Any]:
        """Plain values, with whether the gate passed."""
        return {
            "gate": self.title,
            "kind": self.kind,
            "metric": self.metric,
            "passed": self.passed,
            "bound": self.bound,
            "value": self.value,
            "compared": self.compared,
            "margin": self.margin,
        }


def check(gates: Gates) -> None:
    """Raise RecipeError for a gate that will not have a value, whatever is measured: reads the files of baselines."""
    for rule in gates.all():
        task, _, metric = rule.metric.rpartition(".")
        if task == PERPLEXITY and metric not in TEXT_FIGURES:
            raise RecipeError(f"gate {rule.metric!r}: no such value is measured; {_hint(metric, TEXT_FIGURES)}")
        if isinstance(rule, AgainstBaseline):
            read_models(Path(rule.file))


def outcomes(gates: Gates, models: Models, label: str) -> list[Outcome]:
    """Outcome of every bound on the model `label`. RecipeError for a bound on a value that was not measured."""
    return [outcome for rule in gates.all() for outcome in _of_rule(rule, models, label)]


def require(found: Sequence[Outcome]) -> None:
    """Raise GateMissed, which lists the misses, unless every bound is met."""
    if missed := [outcome for outcome in found if not outcome.passed]:
        raise GateMissed(f"{len(missed)} of {len(found)} gates missed: " + "; ".join(map(str, missed)))


def _of_rule(rule: Rule, models: Models, label: str) -> Iterator[Outcome]:
    for name, bound in rule.model_dump(include=_bounds(rule)).items():
        side, _, quantity = name.partition("_")
        if bound is not None:
            found = _estimate(rule, quantity, models, label)
            what = QUANTITIES[quantity].format(rule.metric, _reference(rule, models))
            compared = _compared(rule, found, what, is_minimum=side == "min")
            yield Outcome(rule.metric, rule.kind, what, side == "min", bound, found.value, rule.confidence, compared)


def _reference(rule: Rule, models: Models) -> str:
    """What a relative rule compares with, in words: `original`, `parent` or `baseline`."""
    if not isinstance(rule, AgainstParent):
        return rule.kind
    return ORIGINAL if rule.of != "step" and ORIGINAL in models else PARENT


def _bounds(rule: Rule) -> set[str]:
    return {name for name in type(rule).model_fields if name.startswith(("min", "max"))}


def _compared(rule: Rule, found: Estimate, what: str, *, is_minimum: bool) -> float | None:
    if rule.confidence is None or found.value is None:
        return found.value
    ends = found.interval(rule.confidence)
    if ends is None:
        raise RecipeError(
            f"gate on {what}: it has no standard error, so confidence {rule.confidence:g} cannot be checked; "
            "evaluate more items or drop confidence"
        )
    return ends[0] if is_minimum else ends[1]


def _estimate(rule: Rule, quantity: str, models: Models, label: str) -> Estimate:
    own = _measured(rule.metric, models[label])
    unpaired = unpaired_difference if quantity == "difference" else unpaired_ratio
    if isinstance(rule, Absolute):
        return of_metric(own)
    if isinstance(rule, AgainstBaseline):
        return unpaired(own, _alike(rule, own, _baseline(rule, label)))
    reference = _reference(rule, models)
    if label == reference:
        raise RecipeError(
            f"gate on {rule.metric}: the {reference} cannot be compared with itself; name a model made from it"
        )
    known = models[label].against_original if reference == ORIGINAL else models[label].against_parent
    paired = _by_name(known).get(rule.metric)
    if paired is None:  # the metric is no mean over items
        return unpaired(own, _measured(rule.metric, models[reference]))
    return of_difference(paired) if quantity == "difference" else of_ratio(paired)


def _baseline(rule: AgainstBaseline, label: str) -> MetricResult:
    models = read_models(Path(rule.file))
    found = chosen(models, label, rule.model)
    if found is None:
        raise RecipeError(
            f"gate on {rule.metric}: {rule.file} measures {', '.join(sorted(models))}; choose one with model: NAME"
        )
    return _measured(rule.metric, found)


def _alike(rule: AgainstBaseline, own: MetricResult, its: MetricResult) -> MetricResult:
    """The baseline's value. RecipeError if it had another prompt; a warning if it had another number of items."""
    if own.shots != its.shots:
        raise RecipeError(
            f"gate on {rule.metric}: {rule.file} has it with {its.shots} shots, and this evaluation with {own.shots}; "
            "measure both with the same"
        )
    if own.n != its.n:
        progress.warn_once(
            f"gate on {rule.metric}: {rule.file} has it of {its.n} items, and this evaluation of {own.n}"
        )
    return its


def chosen(models: Models, label: str, named: str | None = None) -> ModelEvaluation | None:
    """The model called `named`; if that is not given, the one called `label`, or the only one besides the parent."""
    others = [name for name in models if name not in (PARENT, ORIGINAL)]
    return models.get(named or (label if label in models else others[0] if len(others) == 1 else ""))


def read_models(file: Path) -> Models:
    """Models of an earlier evaluation, by label. RecipeError for any other file."""
    if not file.is_file():
        raise RecipeError(f"baseline {file} does not exist: keep one with `minitron eval --json > {file.name}`")
    content = strict_json.load(file)
    stored = content.get("result", content)  # output of `--json`, or a result.json
    try:
        return EvaluationResult.of_json(stored, file).models
    except (ArtifactError, AttributeError):
        raise RecipeError(
            f"baseline {file} holds no evaluation that this version of minitron reads: "
            f"keep one with `minitron eval --json > {file.name}`"
        ) from None


def _measured(name: str, model: ModelEvaluation) -> MetricResult:
    values = _by_name(model.results)
    if name in values:
        return values[name]
    raise RecipeError(f"gate {name!r}: no such value was measured; {_hint(name, values)}")


def _by_name(values: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """Values of tasks and metrics by `task.metric`, which is not divided again: a task's name may hold dots."""
    return {f"{task}.{metric}": value for task, metrics in values.items() for metric, value in metrics.items()}


def _hint(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, or all of them."""
    known = sorted(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {close[0]!r}?"
    return f"gates can name {', '.join(known)}" if known else "nothing was measured"
