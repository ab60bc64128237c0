"""The report: one HTML page that needs nothing but itself. Its head is made here, the rest in `sections`.

Whatever is not in the data leaves no trace on the page. The same data is the same bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from minitron_cli.report import plots
from minitron_cli.report.data import Measure, ReportData, ResultRow
from minitron_cli.report.sections import loss_of, sections
from minitron_cli.report.text import clean, measure, percent, short, signed, size

TEMPLATE = "page.html.j2"


@dataclass(frozen=True)
class KeyFigure:
    value: str
    label: str
    note: str


def render(data: ReportData) -> str:
    """The page as HTML text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    context: dict[str, Any] = {
        "title": data.title,
        "lead": _lead(data),
        "figures": list(_key_figures(data)),
        "sections": sections(data),
        "series": len(plots.SERIES),
    }
    return environment.get_template(TEMPLATE).render(context)


# the head of the page


def _outcome(data: ReportData) -> tuple[ResultRow | None, ...]:
    return data.first("parent"), data.first("pruned"), data.first("distilled")


def _lead(data: ReportData) -> str:
    """The result in a sentence or two."""
    sentences = []
    if data.parent and data.child:
        share = data.child.parameters / data.parent.parameters
        sentences.append(
            f"{data.parent.name} was cut from {short(data.parent.parameters)} to {short(data.child.parameters)} "
            f"parameters, {percent(share)} of its size."
        )
    parent, pruned, distilled = map(loss_of, _outcome(data))
    if parent is not None and pruned is not None:
        sentences.append(f"The cut raised its loss from {parent:.3f} to {pruned:.3f} nats per token.")
    if distilled is not None:
        sentences.append(f"After distillation the loss is {distilled:.3f}{_against_controls(data, distilled)}.")
    return " ".join(sentences)


def _against_controls(data: ReportData, distilled: float) -> str:
    controls = [(row.label, loss_of(row)) for row in data.results if row.kind == "control"]
    return "".join(
        f"; {label} has {loss:.3f} ({signed(loss - distilled)})" for label, loss in controls if loss is not None
    )


def _key_figures(data: ReportData) -> Iterator[KeyFigure]:
    parent, child = data.parent, data.child
    if parent and child:
        share = percent(child.parameters / parent.parameters)
        yield KeyFigure(short(child.parameters), "parameters", f"{share} of the parent's {short(parent.parameters)}")
    result, reference = data.first("distilled", "pruned"), data.first("parent")
    if (loss := loss_of(result)) is not None:
        yield KeyFigure(f"{loss:.3f}", "loss (nats)", _beside(loss, loss_of(reference)))
    if (regained := _regained(data)) is not None:
        yield KeyFigure(percent(regained), "damage undone", "of the loss that the cut cost")
    if result and result.kl_to_parent and result.kl_to_parent.value is not None:
        yield KeyFigure(measure(Measure(result.kl_to_parent.value)), "KL to the parent", "nats per token")
    if parent and child and parent.kv_cache_bytes_per_token and child.kv_cache_bytes_per_token:
        share = percent(child.kv_cache_bytes_per_token / parent.kv_cache_bytes_per_token)
        yield KeyFigure(size(child.kv_cache_bytes_per_token), "KV cache a token", f"{share} of the parent's")
    if result and result.tokens_trained:
        yield KeyFigure(short(result.tokens_trained), "training tokens", "after the cut")


def _beside(loss: float, parent: float | None) -> str:
    return "" if parent is None else f"{signed(loss - parent)} against the parent's {parent:.3f}"


def _regained(data: ReportData) -> float | None:
    parent, pruned, distilled = map(loss_of, _outcome(data))
    if parent is None or pruned is None or distilled is None or pruned <= parent:
        return None
    return (pruned - distilled) / (pruned - parent)
