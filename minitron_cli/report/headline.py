"""The result in a few sentences and figures, for the head of the page.

A difference is always true; a share is true only of a whole that is worth dividing by. A cut that was mended may be as
good as its parent, and then whatever training does is a huge share of nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from minitron_cli.report.data import Measure, ReportData, ResultRow
from minitron_cli.report.text import measure, percent, short, signed, size

CLEAR_GAP = 0.02  # nats, about 2 % of perplexity: a cut that cost less leaves nothing to speak of to undo


@dataclass(frozen=True)
class KeyFigure:
    value: str
    label: str
    note: str


def loss_of(row: ResultRow | None) -> float | None:
    return row.loss.value if row and row.loss else None


def share_closed(gap: float, left: float, surely: float | None = None) -> float | None:
    """How much of a gap is gone; None where the gap is too small to tell, or was not narrowed, or was more than closed.

    `surely`: what the gap is at least, where that is known.
    """
    is_clear = (gap if surely is None else surely) >= CLEAR_GAP
    return 1 - left / gap if is_clear and 0 <= left <= gap else None


def lead(data: ReportData) -> str:
    """The result in a sentence or two."""
    return " ".join(_sentences(data))


def _sentences(data: ReportData) -> Iterator[str]:
    if data.parent and data.child:
        share = data.child.parameters / data.parent.parameters
        yield (
            f"{data.parent.name} was cut from {short(data.parent.parameters)} to {short(data.child.parameters)} "
            f"parameters, {percent(share)} of its size."
        )
    parent, pruned, distilled = map(loss_of, _outcome(data))
    if parent is not None and pruned is not None:
        cut = "The cut, mended without training," if data.repair else "The cut"
        yield f"{cut} {_moved('its loss', parent, pruned)} nats per token."
    if distilled is not None:
        outcome = f"After distillation the loss is {distilled:.3f}"
        if pruned is not None:
            outcome = f"Distillation {_moved('it', pruned, distilled, is_told=True)}"
        below = ", below the parent's" if parent is not None and distilled < parent else ""
        yield f"{outcome}{below}{_against_controls(data, distilled)}."


def _moved(what: str, before: float, after: float, *, is_told: bool = False) -> str:
    """Raised it from 2.412 to 4.913; without the start if the reader has been told."""
    if f"{before:.3f}" == f"{after:.3f}":
        return f"left {what} at {after:.3f}"
    start = "" if is_told else f" from {before:.3f}"
    return f"{'raised' if after > before else 'lowered'} {what}{start} to {after:.3f}"


def _against_controls(data: ReportData, distilled: float) -> str:
    controls = [(row.label, loss_of(row)) for row in data.results if row.kind == "control"]
    return "".join(
        f"; {label} has {loss:.3f} ({signed(loss - distilled)})" for label, loss in controls if loss is not None
    )


def key_figures(data: ReportData) -> Iterator[KeyFigure]:
    parent, child = data.parent, data.child
    if parent and child:
        share = percent(child.parameters / parent.parameters)
        yield KeyFigure(short(child.parameters), "parameters", f"{share} of the parent's {short(parent.parameters)}")
    result, reference = data.first("distilled", "pruned"), data.first("parent")
    if (loss := loss_of(result)) is not None:
        yield KeyFigure(f"{loss:.3f}", "loss (nats)", _against_parent(loss, loss_of(reference)))
    yield from _training(data)
    if result and result.kl_to_parent and result.kl_to_parent.value is not None:
        yield KeyFigure(measure(Measure(result.kl_to_parent.value)), "KL to the parent", "nats per token")
    if parent and child and parent.kv_cache_bytes_per_token and child.kv_cache_bytes_per_token:
        share = percent(child.kv_cache_bytes_per_token / parent.kv_cache_bytes_per_token)
        yield KeyFigure(size(child.kv_cache_bytes_per_token), "KV cache a token", f"{share} of the parent's")
    if result and result.tokens_trained:
        yield KeyFigure(short(result.tokens_trained), "training tokens", "after the cut")


def _against_parent(loss: float, parent: float | None) -> str:
    return "" if parent is None else f"{signed(loss - parent)} against the parent's {parent:.3f}"


def _training(data: ReportData) -> Iterator[KeyFigure]:
    """By how much training moved the loss, and what share of the cut's damage that is, where there is a damage."""
    parent, pruned, distilled = map(loss_of, _outcome(data))
    if pruned is None or distilled is None:
        return
    note = f"in loss, from {pruned:.3f} to {distilled:.3f}"
    if parent is not None and (share := share_closed(pruned - parent, distilled - parent, _surely(data))) is not None:
        note += f": {percent(share)} of what the cut had cost"
    yield KeyFigure(signed(distilled - pruned), "change by training", note)


def _surely(data: ReportData) -> float | None:
    """What the cut cost at least: the near end of the interval, where models were compared item by item."""
    pruned = data.first("pruned")
    return pruned.loss_from_parent.low if pruned and pruned.loss_from_parent else None


def _outcome(data: ReportData) -> tuple[ResultRow | None, ...]:
    return data.first("parent"), data.first("pruned"), data.first("distilled")
