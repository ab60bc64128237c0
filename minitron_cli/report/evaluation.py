"""Tables of an evaluation: every model's metrics, their differences from the parent's, speed, gates."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from minitron_cli.evaluate.config import PERPLEXITY
from minitron_cli.evaluate.gate import PARENT, Outcome
from minitron_cli.evaluate.statistics import interval
from minitron_cli.figures import TIMES, Estimate, Figure
from minitron_cli.report.view import Cell, Quantity, Section, Table
from minitron_cli.results.evaluate import Difference, Metric, ModelResult, Speed

Kind = Literal["parent", "teacher", "pruned", "distilled", "control"]
Name = tuple[str, str]  # task, metric

METRICS = {
    (PERPLEXITY, "loss"): Figure("loss", "nats/token", "fixed", "lower"),
    (PERPLEXITY, "perplexity"): Figure("perplexity", style="fixed", better="lower"),
    (PERPLEXITY, "kl"): Figure("KL to the parent", "nats/token", "fixed", "lower"),
}
LOSS, PPL, KL = METRICS
PARAMETERS = Figure("parameters", style="short", better="lower")
TOKENS = Figure("training tokens", style="short")
CHANGE = Figure("loss against parent", "nats/token", "fixed", "lower", is_change=True)
ITEMS = Figure("items", style="count")


@dataclass(frozen=True)
class Evaluated:
    """One evaluated model and its part in the result."""

    label: str
    kind: Kind
    found: ModelResult
    tokens_trained: int | None = None

    def metric(self, name: Name) -> Metric | None:
        """One metric, if it was measured."""
        return self.found.results.get(name[0], {}).get(name[1])

    def value(self, name: Name) -> float | None:
        """Value of a metric, if it was measured and is finite."""
        metric = self.metric(name)
        return metric.value if metric else None

    def difference(self, name: Name) -> Difference | None:
        """Comparison of a metric with the parent's on the same items, if there is one."""
        return self.found.against_parent.get(name[0], {}).get(name[1])


def metric_names(models: Iterable[Evaluated]) -> dict[Name, Metric]:
    """Names of all metrics, perplexity's first, each with one measurement; members of a group are left out."""
    found = {
        (task, name): metric
        for model in models
        for task, metrics in model.found.results.items()
        for name, metric in metrics.items()
        if metric.part_of is None
    }
    order = list(METRICS)
    return dict(sorted(found.items(), key=lambda x: (order.index(x[0]) if x[0] in order else len(order), x[0])))


def figure_of(name: Name, metric: Metric) -> Figure:
    """Quantity of a metric: its task's name, metric and shots where it has no figure of its own."""
    shots = "" if metric.shots is None else f", {metric.shots}-shot"
    return METRICS.get(name, Figure(f"{name[0]} {name[1]}{shots}", style="fixed"))


def overview(title: str, models: Sequence[Evaluated], *, has_tasks: bool) -> Table:
    """Models down; parameters, metrics with their standard errors and training tokens across."""
    parent = next((model.value(LOSS) for model in models if model.kind == "parent"), None)
    names = {name: metric for name, metric in metric_names(models).items() if has_tasks or name in METRICS}
    columns = [
        (figure_of(name, metric), [_with_error(model.metric(name)) for model in models])
        for name, metric in names.items()
    ]
    change = [None if model.kind == "parent" else _less(model.value(LOSS), parent) for model in models]
    return Table.of_columns(
        title,
        (Figure("model"), [model.label for model in models]),
        (PARAMETERS, [model.found.parameters for model in models]),
        *columns[:1],
        (CHANGE, change),
        *columns[1:],
        (TOKENS, [model.tokens_trained for model in models]),
        marked=[i for i, model in enumerate(models) if model.kind == "distilled"],
    )


def _with_error(metric: Metric | None) -> Estimate | None:
    return None if metric is None else Estimate(metric.value, metric.stderr)


def _less(value: float | None, parent: float | None) -> float | None:
    return None if value is None or parent is None else value - parent


def metrics_table(models: Sequence[Evaluated]) -> Table:
    """Metrics down, models across, with 95 % intervals."""
    rows = [
        (
            row_title(name, metric),
            metric.n,
            *(Quantity(figure_of(name, metric), _with_interval(m.metric(name))) for m in models),
        )
        for name, metric in metric_names(models).items()
    ]
    return Table("Values (95 % interval)", (Figure(""), ITEMS, *(Figure(m.label) for m in models)), tuple(rows))


def row_title(name: Name, metric: Metric) -> str:
    """Name of a metric as gates spell it, with its unit and shots: `winogrande.acc, 5-shot`."""
    unit = METRICS[name].unit if name in METRICS else ""
    shots = "" if metric.shots is None else f", {metric.shots}-shot"
    return f"{'.'.join(name)}{f' ({unit})' if unit else ''}{shots}"


def _with_interval(metric: Metric | None) -> Estimate | None:
    if metric is None or metric.value is None:
        return None
    ends = interval(metric.value, metric.stderr, metric.clusters or metric.n)
    return Estimate(metric.value, None, *(ends or ()))


def differences_table(models: Sequence[Evaluated]) -> Table | None:
    """Metrics down, models but the parent across: differences from the parent on the same items."""
    others = [model for model in models if model.found.against_parent]
    rows = []
    for name, metric in metric_names(models).items():
        figure = Figure(name[1], style="fixed", is_change=True)
        cells = [Quantity(figure, _paired(model.difference(name))) for model in others]
        if any(cell.value is not None for cell in cells):
            rows.append((row_title(name, metric), *cells))
    columns = (Figure(""), *(Figure(model.label) for model in others))
    return Table("Difference from the parent on the same items (95 % interval)", columns, tuple(rows)) if rows else None


def _paired(found: Difference | None) -> Estimate | None:
    if found is None:
        return None
    note = "" if found.mcnemar is None else f"p {found.mcnemar:.2g}"
    return Estimate(found.difference, None, found.low, found.high, note)


def evaluation_tables(models: Sequence[Evaluated]) -> list[Table]:
    """Metrics of every model, and their differences from the parent's if there are any."""
    differences = differences_table(models)
    return [metrics_table(models), *([differences] if differences else [])]


def gate_table(found: Sequence[Outcome]) -> Table:
    """Every gate with the value that was compared with its bound, and the margin."""
    margin = Figure("margin", is_change=True)
    return Table(
        "Gates",
        (Figure("gate"), Figure("value"), Figure("compared"), margin, Figure("outcome")),
        tuple((x.title, x.value, x.compared, x.margin, "met" if x.passed else "MISSED") for x in found),
    )


def speed_table(found: Speed) -> Table:
    """Generation speed and memory of every model, with the ratios to the parent's and their range over the rounds."""
    models = in_order(found.models)
    rates = [(f"{phase} (tokens/s)", f"{phase} against parent", phase) for phase in ("prefill", "decode")]
    ratio = Figure("ratio", TIMES, "fixed", "higher")


def in_order(models: Mapping[str, ModelResult]) -> list[str]:
    """Labels with the parent first, then pruned, distilled and the others by name."""
    rank = {label: i for i, label in enumerate(KINDS)}
    return sorted(models, key=lambda label: (rank.get(label, len(rank)), label))
