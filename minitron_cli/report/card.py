"""The model card: Markdown with the hub's metadata in front. Knows no network; uploading is another matter."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from minitron_cli.report.data import Measure, ModelFacts, ReportData, ResultRow, TaskResult
from minitron_cli.report.markdown import code, inline, table
from minitron_cli.report.text import axis_title, clean, cost_rows, cost_total, exact, hours, measure, percent, short

TAGS = ("minitron", "pruning", "knowledge-distillation")
RELATION = "finetune"  # of the hub's four, the one that is true of a smaller model with its own weights


@dataclass(frozen=True)
class HubFacts:
    """What the hub is told of a model, in its terms, where known."""

    base_model: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    @classmethod
    def of_card(cls, text: str, base_model: str | None = None) -> "HubFacts":
        """What a model made from another inherits from its parent's card. A card that cannot be read gives nothing."""
        if not text.lstrip().startswith("---"):  # no metadata, of which the library would warn
            return cls(base_model)
        try:
            found = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
        except Exception:  # YAML of somebody else's making
            found = {}
        known = {name: found[name] for name in ("license", "license_name", "license_link") if _is_word(found.get(name))}
        if not _is_link(known.get("license_link", "")):
            del known["license_link"]
        language = found.get("language") or ()
        languages = tuple(filter(_is_word, [language] if isinstance(language, str) else language))
        return cls(base_model, **known, language=languages)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_link(text: str) -> bool:
    """To a page or to a file beside the card, and not something that a browser would run."""
    scheme = re.match(r"[^/?#]*:", re.sub(r"[\x00-\x20]", "", text))  # as browsers do
    return scheme is None or scheme[0].lower() in ("http:", "https:")


NOTHING_KNOWN = HubFacts()


def model_card(data: ReportData, *, name: str, hub: HubFacts = NOTHING_KNOWN) -> str:
    """The card of `data.child`."""
    metadata = ModelCardData(
        **_cleaned(hub),
        base_model_relation=RELATION if hub.base_model else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(TAGS),
        model_name=clean(name),
        eval_results=list(_eval_results(data.first("distilled", "pruned"))) or None,
    )
    parts = ("---\n" + metadata.to_yaml() + "\n---", *_body(data, name))
    return clean("\n\n".join(parts)) + "\n"


def _cleaned(hub: HubFacts) -> dict[str, Any]:
    return {
        name: clean(value) if isinstance(value, str) else [clean(text) for text in value or ()] or None
        for name, value in vars(hub).items()
    }


def _eval_results(row: ResultRow | None) -> Iterator[EvalResult]:
    for task in row.tasks if row else ():
        if task.measure.value is not None:
            yield EvalResult(
                task_type="text-generation",
                dataset_type=clean(task.dataset or task.task),
                dataset_name=clean(task.task) + _shots(task),
                dataset_config=task.config and clean(task.config),
                dataset_split=task.split and clean(task.split),
                dataset_args=None if task.shots is None else {"num_few_shot": task.shots},
                metric_type=clean(task.metric),
                metric_value=round(task.measure.value, 6),
            )


def _shots(task: TaskResult) -> str:
    return "" if task.shots is None else f" ({task.shots}-shot)"


def _body(data: ReportData, name: str) -> Iterator[str]:
    yield f"# {inline(name)}"
    yield _summary(data)
    if data.parent and data.child:
        yield "## Shape"
        yield _shape_table(data.parent, data.child)
    if data.results:
        yield "## Results"
        yield "Loss and KL are in nats per token on held-out text; ± is one standard error."
        yield _results_table(data.results)
    if needed := [row for row in data.costs if row.is_needed]:
        yield "## Cost"
        rows = (*cost_rows(needed), ("total", "", *cost_total(needed)))
        yield table(("stage", "work", "tokens", "FLOPs"), rows)
        if text := hours(data.device_hours):
            yield inline(text)
    yield "## Use"
    yield code("python", _usage(name))
    if data.commands:
        yield "## How it was made"
        yield code("sh", "\n".join(data.commands))
    yield "## Limits"
    yield (
        "Knowledge and skills are lost with parameters, and not evenly: measure what your use needs. "
        "Biases and risks of the parent model remain."
    )


def _summary(data: ReportData) -> str:
    if not (data.parent and data.child):
        return "A language model compressed by structured pruning and knowledge distillation."
    share = percent(data.child.parameters / data.parent.parameters)
    text = (
        f"{inline(data.parent.name)} cut from {short(data.parent.parameters)} to {short(data.child.parameters)} "
        f"parameters ({share}) by structured pruning"
    )
    row = data.first("distilled", "pruned")
    if row and row.kind == "distilled":
        tokens = f" on {short(row.tokens_trained)} tokens" if row.tokens_trained else ""
        text += f", then trained{tokens} to predict what its parent predicts"
    return text + "."


def _shape_table(parent: ModelFacts, child: ModelFacts) -> str:
    rows = [(axis_title(axis), exact(size), exact(child.sizes.get(axis))) for axis, size in parent.sizes.items()]
    rows.append(("parameters", exact(parent.parameters), exact(child.parameters)))
    return table(("axis", "parent", "this model"), rows)


def _results_table(results: Sequence[ResultRow]) -> str:
    titles = list(dict.fromkeys(_title(task) for row in results for task in row.tasks))
    header = ("model", "parameters", "loss", "perplexity", "KL to parent", *titles)
    return table(header, [_result_cells(row, titles) for row in results])


def _result_cells(row: ResultRow, titles: Sequence[str]) -> tuple[str, ...]:
    tasks: dict[str, Measure] = {_title(task): task.measure for task in row.tasks}
    own = (short(row.parameters), measure(row.loss), measure(row.perplexity), measure(row.kl_to_parent))
    return (row.label, *own, *(measure(tasks.get(title)) for title in titles))


def _title(task: TaskResult) -> str:
    return f"{task.task} {task.metric}{_shots(task)}"


def _usage(name: str) -> str:
    quoted = json.dumps(name, ensure_ascii=False)
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({quoted})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({quoted})"
    )
