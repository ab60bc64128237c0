"""Tables of an evaluation: every model's metrics, their differences from the parent's, speed and gates."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from minitron_cli.evaluate import estimates
from minitron_cli.evaluate.config import PERPLEXITY
from minitron_cli.evaluate.gate import Outcome
from minitron_cli.evaluate.metrics import SPEED_FIGURES, TEXT_FIGURES, metric_figure
from minitron_cli.figures import Estimate, Figure
from minitron_cli.report.view import Cell, Section, Table, is_empty
from minitron_cli.results.evaluation import (
    ORIGINAL,
    PARENT,
    STUDENT,
    Difference,
    EvaluationResult,
    MetricResult,
    ModelEvaluation,
    OtherEvaluation,
)
from minitron_cli.results.run_record import ModelSpeed, SpeedRecord

Kind = Literal["original", "parent", "teacher", "pruned", "sparse", "student", "distilled", "control", "other"]
Name = tuple[str, str]  # task and metric

LOSS, KL, KL_ORIGINAL = (PERPLEXITY, "loss"), (PERPLEXITY, "kl"), (PERPLEXITY, "kl_original")
LABELS: Mapping[str, Kind] = {
    ORIGINAL: "original",
    PARENT: "parent",
    "corrected": "teacher",
    "pruned": "pruned",
    "sparse": "sparse",
    STUDENT: "student",
    "distilled": "distilled",
}
STARTS: tuple[Kind, ...] = ("sparse", "pruned", "student")
"""What training starts from: the first of them that there is. A student is a model that was not pruned here."""
PARAMETERS = Figure("parameters", style="short", better="lower")
TOKENS = Figure("training tokens", style="short")
ITEMS = Figure("items", style="count")
CHANCE = Figure("chance", style="fixed")
MORE_DOCUMENTS = "evaluate more documents to know about other texts"


@dataclass(frozen=True)
class Evaluated:
    """One evaluated model and its part in the result."""

    label: str
    kind: Kind
    found: ModelEvaluation
    tokens_trained: int | None = None

    def metric(self, name: Name) -> MetricResult | None:
        """One metric, if it was measured."""
        return self.found.results.get(name[0], {}).get(name[1])

    def value(self, name: Name) -> float | None:
        """Value of a metric, if it was measured and is finite."""
        metric = self.metric(name)
        return metric.value if metric else None

    def difference(self, name: Name, reference: str = PARENT) -> Difference | None:
        """Comparison of a metric with that of the model called `reference` on the same items, if there is one."""
        return self.against(reference).get(name[0], {}).get(name[1])

    def against(self, reference: str) -> Mapping[str, Mapping[str, Difference]]:
        """Task -> metric -> comparison with the parent, the original, or a model that was named before this one."""
        found = self.found
        return {**found.against, PARENT: found.against_parent, ORIGINAL: found.against_original}.get(reference, {})

    @property
    def parameters(self) -> int | None:
        """Number of parameters; None if it is not known."""
        return self.found.model.parameters or None


def evaluated(result: EvaluationResult) -> list[Evaluated]:
    """All models of an evaluation; their parts are those that their labels say."""
    return [Evaluated(label, LABELS.get(label, "control"), found) for label, found in result.models.items()]


def metric_names(models: Iterable[Evaluated]) -> dict[Name, MetricResult]:
    """Names of all metrics, those on text first, each with the first model's measurement; members of a group are left
    out."""
    found = {
        (task, name): metric
        for model in reversed(list(models))
        for task, metrics in model.found.results.items()
        for name, metric in metrics.items()
        if metric.part_of is None
    }
    order = {(PERPLEXITY, metric): i for i, metric in enumerate(TEXT_FIGURES)}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def row_title(name: Name, metric: MetricResult) -> str:
    """Name of a metric: on text that of its figure with its unit, of a task as gates spell it, with its shots:
    `winogrande.acc, 5-shot`."""
    if name[0] == PERPLEXITY:
        return metric_figure(*name).heading
    return ".".join(name) + ("" if metric.shots is None else f", {metric.shots}-shot")


def evaluation_tables(models: Sequence[Evaluated], references: Collection[str] | None = None) -> list[Table]:
    """Size and metrics of every model with 95 % intervals, their paired differences, and remarks.

    `references`: models besides the parent and the original from which differences are shown; None for all.
    """
    names = metric_names(models)
    labels = [model.label for model in models if references is None or model.label in references]
    found = (
        _metrics(models, names),
        *(_differences(label, names, models) for label in dict.fromkeys((PARENT, ORIGINAL, *labels))),
        _elsewhere(models),
        _one_document(models),
        _other_tokenizers(models),
    )
    return [table for table in found if table.rows]


def _metrics(models: Sequence[Evaluated], names: Mapping[Name, MetricResult]) -> Table:
    """Facts and metrics, a row each, with the value that guessing has where it is known."""
    facts: list[list[Cell]] = [
        [PARAMETERS.title, None, None, *(Estimate(model.parameters, figure=PARAMETERS) for model in models)],
        [TOKENS.title, None, None, *(Estimate(model.tokens_trained, figure=TOKENS) for model in models)],
    ]
    values: list[list[Cell]] = [
        [row_title(name, x), x.n, x.chance, *(_cell(name, model, x) for model in models)] for name, x in names.items()
    ]
    rows = [*_known(facts, 3), *values]
    columns = (Figure("metric"), ITEMS, CHANCE, *(Figure(model.label) for model in models))
    shown = zip(columns, zip(*rows, strict=True), strict=True) if rows else ()
    return Table.of_columns("Metrics (95 % interval)", *shown)


def _cell(name: Name, model: Evaluated, first: MetricResult) -> Cell:
    """Value with its interval, and the shots if they are not those of the row."""
    metric, found = model.metric(name), interval_of(name, model)
    is_other = metric and metric.shots is not None and metric.shots != first.shots
    return found._replace(note=f"{metric.shots}-shot") if metric and is_other else found


def _differences(reference: str, names: Mapping[Name, MetricResult], models: Sequence[Evaluated]) -> Table:
    """Differences from the model called `reference` of those models that were compared with it."""
    compared = [model for model in models if model.against(reference)]
    cells = {name: [_apart(name, model.difference(name, reference)) for model in compared] for name in names}
    rows = [(row_title(name, x), x.n, *cells[name]) for name, x in names.items()]
    columns = (Figure("metric"), ITEMS, *(Figure(f"{model.label} - {reference}") for model in compared))
    return Table(f"Difference from {reference} on the same items (95 % interval)", columns, _known(rows, 2))


def _elsewhere(models: Sequence[Evaluated]) -> Table:
    """Where the values of models that were measured elsewhere are from."""
    rows = ((model.label, model.found.source) for model in models if isinstance(model.found, OtherEvaluation))
    title = "Measured elsewhere, perhaps on other items and prompts"
    return Table.of_words(title, ("model", "source"), rows)


def _one_document(models: Sequence[Evaluated]) -> Table:
    """Tasks whose intervals cannot be over documents, and why."""
    documents = {
        task: metric.clusters
        for model in models
        for task, metrics in model.found.results.items()
        for metric in metrics.values()
        if metric.is_of_one_document and metric.part_of is None
    }
    why = {
        task: "there is one document" if count == 1 else f"one of {count:,} documents outweighs the others"
        for task, count in documents.items()
    }
    title = "Intervals for other parts of the same documents, not for other documents"
    return Table.of_words(title, ("task", "why"), ((task, f"{x}; {MORE_DOCUMENTS}") for task, x in why.items()))


def _other_tokenizers(models: Sequence[Evaluated]) -> Table:
    title = "Compared per byte only, because the tokenizer is not the parent's"
    rows = ((model.label, model.found.other_tokenizer) for model in models if model.found.other_tokenizer)
    return Table.of_words(title, ("model", "difference"), rows)


def _known(rows: Sequence[Sequence[Cell]], first: int) -> list[Sequence[Cell]]:
    """Rows with the value of at least one model; columns of models begin with the number `first`."""
    return [row for row in rows if not all(map(is_empty, row[first:]))]


def interval_of(name: Name, model: Evaluated) -> Estimate:
    """A metric of a model with its 95 % interval; no value if it was not measured."""
    metric = model.metric(name)
    if metric is None:
        return Estimate(None)
    low, high = estimates.of_metric(metric).interval() or (None, None)
    return Estimate(metric.value, low, high, figure=metric_figure(*name))


def _apart(name: Name, found: Difference | None) -> Cell:
    if found is None:
        return None
    note = "" if found.mcnemar is None else f"p {found.mcnemar:.2g}"
    figure = replace(metric_figure(*name), style="fixed", is_change=True)
    return Estimate(found.difference, found.low, found.high, note, figure)


def results_section(models: Sequence[Evaluated], to_evaluate: str = "") -> Section:
    """Section on every metric of every model, or the command that measures them."""
    if to_evaluate:
        return Section("results", "Results", "This model has not been evaluated. To evaluate it:", code=to_evaluate)
    text = (
        "All models on the same held-out text and tasks. Differences count for more than values: both models answered "
        "the same items, so their difference is far more certain than either value. Items of one document are counted "
        "together. p is McNemar's exact two-sided p-value."
    )
    references = [model.label for model in models if model.kind in (*STARTS, "distilled")]
    return Section("results", "Results", text, tuple(evaluation_tables(models, references)))


def speed_table(found: SpeedRecord) -> Table:
    """Speed and memory of every model, with the ratios to the parent's speed and their range over the rounds."""
    labels = sorted(found.models, key=lambda label: label != PARENT)
    models = [found.models[label] for label in labels]
    names = ("prefill_tokens_per_second", "prefill_ratio", "decode_tokens_per_second", "decode_ratio")
    columns = [_speed_column(name, models) for name in (*names, "time_to_first_token_seconds", "peak_bytes")]
    settings = found.settings
    title = f"Speed: {settings['batch_size']} x {settings['prompt_tokens']} + {settings['new_tokens']} tokens"
    return Table.of_columns(title, (Figure("model"), labels), *columns)


def _speed_column(name: str, models: Sequence[ModelSpeed]) -> tuple[Figure, list[Cell]]:
    if not name.endswith("_ratio"):
        return SPEED_FIGURES[name], [getattr(model, name) for model in models]
    ranges = [getattr(model, name.replace("_ratio", "_range")) or () for model in models]
    figure = replace(SPEED_FIGURES[name], style="fixed")
    return figure, [Estimate(getattr(model, name), *ends) for model, ends in zip(models, ranges, strict=True)]


def speed_section(found: SpeedRecord) -> Section:
    """Section on generation speed."""
    cache = found.settings.get("cache", "dynamic")
    text = (
        f"Generation with transformers on {found.device} with a {cache} cache: batch size, prompt and new tokens are "
        "given with the table. Medians of rounds in which parent and child alternate; in brackets, the lowest and "
        "highest ratio of a round. Peak memory is that of a process that does nothing else."
    )
    return Section("speed", "Speed", text, (speed_table(found),))


def gate_table(found: Sequence[Outcome]) -> Table:
    """Every gate with the value that was compared with its bound, and the margin."""
    margin = Figure("margin", is_change=True)
    columns = (Figure("gate"), Figure("value"), Figure("compared"), margin, Figure("outcome"))
    rows = [(x.title, x.value, x.compared, x.margin, "met" if x.passed else "MISSED") for x in found]
    return Table("Gates", columns, rows)
