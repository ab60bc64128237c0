"""Model card: Markdown with the hub's metadata in front. Uploads nothing."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urljoin

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from minitron_cli.evaluate.config import PERPLEXITY
from minitron_cli.figures import listed
from minitron_cli.report.data import ReportData
from minitron_cli.report.evaluation import STARTS, Evaluated, metric_names
from minitron_cli.report.markdown import code, inline, section
from minitron_cli.report.sections import view
from minitron_cli.report.text import clean
from minitron_cli.results.evaluation import TaskSource

SECTIONS = ("results", "scratch", "metrics", "shape", "sparsity", "cost", "reproduce")  # of the page
USAGE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({name})
tokenizer = AutoTokenizer.from_pretrained({name})"""
USAGE_OF_WRAPPER = (
    USAGE.replace("ForCausalLM", "ForImageTextToText")
    .replace("Tokenizer", "Processor")
    .replace("tokenizer", "processor")
)
RELATION = "finetune"  # of the hub's four relations, the one that fits a smaller model with its own weights


@dataclass(frozen=True)
class HubFacts:
    """Metadata of a model in the hub's terms, as far as known."""

    base_model: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    @classmethod
    def of_card(cls, text: str, base_model: str | None = None) -> "HubFacts":
        """Metadata that a model inherits from its parent's card; nothing from a card that cannot be read."""
        if not text.lstrip().startswith("---"):  # the library would warn about missing metadata
            return cls(base_model)
        try:
            found = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
        except Exception:  # invalid YAML raises many types
            found = {}
        known = {name: found[name] for name in ("license", "license_name", "license_link") if _is_word(found.get(name))}
        if not _is_link(known.get("license_link", "")):
            del known["license_link"]
        elif base_model and "license_link" in known:  # which may be a file of the parent's repository
            known["license_link"] = urljoin(f"https://huggingface.co/{base_model}/blob/main/", known["license_link"])
        language = found.get("language") or ()
        languages = tuple(filter(_is_word, language if isinstance(language, list | tuple) else [language]))
        return cls(base_model, **known, language=languages)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_link(text: str) -> bool:
    """Whether it leads to a page or a file, and is not a script that a browser would run."""
    scheme = re.match(r"[^/?#]*:", re.sub(r"[\x00-\x20]", "", text))  # as browsers do
    return scheme is None or scheme[0].lower() in ("http:", "https:")


NOTHING_KNOWN = HubFacts()


def model_card(data: ReportData, *, name: str, loaded_as: str = "", hub: HubFacts = NOTHING_KNOWN) -> str:
    """Card of the product under a name. `loaded_as`: hub id or path of the checkpoint, if that is not the name."""
    metadata = ModelCardData(
        **_cleaned(hub),
        base_model_relation=RELATION if hub.base_model else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text" if data.wrapper else "text-generation",
        tags=list(_tags(data)),
        model_name=clean(name),
        eval_results=list(_eval_results(data.first("distilled", *STARTS))) or None,
    )
    parts = ("---\n" + metadata.to_yaml() + "\n---", *_body(data, name, loaded_as or name))
    return clean("\n\n".join(parts)) + "\n"


def _tags(data: ReportData) -> Iterator[str]:
    yield "minitron"
    if data.prune or data.sparsity:
        yield "pruning"
    if data.sparsity:
        yield "sparse"
    if data.is_taught:
        yield "knowledge-distillation"


def _about(data: ReportData) -> str:
    """What was done to the model, in a sentence; empty if nothing was."""
    pruned = ["structured pruning"] * bool(data.prune) + ["pruning of single weights"] * bool(data.sparsity)
    trained = [] if data.is_taught is None else ["knowledge distillation" if data.is_taught else "further training"]
    how = listed([*pruned, *trained]) if pruned or trained else ""
    return how and f"A language model {'compressed' if pruned else 'made'} by {how}."


def _cleaned(hub: HubFacts) -> dict[str, Any]:
    return {
        name: clean(value) if isinstance(value, str) else [clean(text) for text in value or ()] or None
        for name, value in vars(hub).items()
    }


def _eval_results(model: Evaluated | None) -> Iterator[EvalResult]:
    for (task, name), metric in metric_names([model] if model else []).items():
        if task != PERPLEXITY and metric.value is not None and model:
            source, shots = model.found.sources.get(task, TaskSource()), metric.shots
            yield EvalResult(
                task_type="text-generation",
                dataset_type=clean(source.dataset or task),
                dataset_name=clean(task) + ("" if shots is None else f" ({shots}-shot)"),
                dataset_config=source.config and clean(source.config),
                dataset_split=source.split and clean(source.split),
                dataset_args=None if shots is None else {"num_few_shot": shots},
                metric_type=clean(name),
                metric_value=round(metric.value, 6),
            )


def _body(data: ReportData, name: str, loaded_as: str) -> Iterator[str]:
    shown = view(replace(data, other_costs=()))
    yield f"# {inline(name)}"
    if about := _about(data):
        yield about
    if shown.lead:
        yield inline(shown.lead)
    yield from (section(one) for one in shown.sections if one.anchor in SECTIONS)
    yield "## Use"
    quoted = json.dumps(loaded_as, ensure_ascii=False)
    yield code("python", (USAGE_OF_WRAPPER if data.wrapper else USAGE).format(name=quoted))
    yield "## Limits"
    yield (
        "Pruning loses knowledge and skills unevenly: evaluate what your use needs. "
        "Biases and risks of the parent model remain."
    )
