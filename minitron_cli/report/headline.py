"""The result in a few sentences and numbers, for the head of the page.

A difference is always true; a share only of a whole that is worth dividing by. A repaired model may be as good as its
parent, and then whatever training changes is a huge share of nothing.
"""

from collections.abc import Iterator

from minitron_cli.evaluate import metrics
from minitron_cli.evaluate.statistics import exponential
from minitron_cli.figures import Estimate, Figure, fixed, short
from minitron_cli.report.data import ReportData
from minitron_cli.report.evaluation import KL, LOSS, STARTS, Evaluated
from minitron_cli.report.shapes import CACHE
from minitron_cli.report.view import KeyFigure

CLEAR_GAP = 0.02  # nats, about 2 % of perplexity: a smaller loss leaves nothing worth recovering
CHANGE = Figure("change", style="fixed", is_change=True)


def share_closed(gap: float, left: float, at_least: float | None = None) -> float | None:
    """Share of a gap that is closed; None if the gap is too small to tell, grew, or was more than closed.

    `at_least`: lower end of the gap's interval, where it is known.
    """
    is_clear = (gap if at_least is None else at_least) >= CLEAR_GAP
    return 1 - left / gap if is_clear and 0 <= left <= gap else None


def percent(share: float) -> str:
    """Share as a whole percentage: `54 %`."""
    return f"{100 * share:.0f} %"


def headline(data: ReportData) -> str:
    """The product in one sentence: its size, and its quality beside its parent's or the original's; empty if nothing
    was made smaller."""
    made = _made(data)
    result = data.first("distilled", *STARTS)
    if not made or result is None or result.value(LOSS) is None:
        return made and f"{made}; its quality has not been measured."
    better = [one.label for one in data.models if one.kind == "control" and _is_better(one, result)]
    beaten = f"; {' and '.join(better)} {'is' if len(better) == 1 else 'are'} better" if better else ""
    return f"{made} {beside(result, data.first('original', 'parent'))}{beaten}."


def _made(data: ReportData) -> str:
    """`Big-8B at 54 % of its size`."""
    size = f" at {percent(data.sizes[-1] / data.sizes[0])} of its size" if data.sizes else ""
    zeros = f" with {percent(data.sparsity.sparsity)} zeros in its pruned matrices" if data.sparsity else ""
    return f"{data.model or 'The model'}{size}{zeros}" if size or zeros else ""


def beside(model: Evaluated, reference: Evaluated | None) -> str:
    """What a model's loss says of it beside another one's, as a predicate; one that is certain where there is an
    interval."""
    loss, its = model.value(LOSS), reference.value(LOSS) if reference else None
    if loss is None or reference is None or its is None:
        return f"has a loss of {loss:.3f} nats per token" if loss is not None else "has no finite loss"
    if apart := model.difference(LOSS, reference.kind):
        return against(apart.difference, apart.low, apart.high, reference.label)
    return against(loss - its, None, None, reference.label)


def against(more: float, low: float | None, high: float | None, reference: str) -> str:
    """What a difference in loss from a reference says, as a predicate: the mean probability (geometric) of a token that
    is kept, or that no difference can be seen."""
    change = f"loss {CHANGE.cell(Estimate(more, low, high))} nats per token"
    if low is not None and high is not None and low <= 0 <= high:
        return f"is not measurably worse or better than the {reference} ({change})"
    share = percent(exponential(-more))
    if more <= 0:
        return f"gives a token of held-out text {share} of the probability that the {reference} gives it ({change})"
    return f"keeps {share} of the probability that the {reference} gives a token of held-out text ({change})"


def _is_better(control: Evaluated, result: Evaluated) -> bool:
    """Whether the loss of a control is lower, with certainty where the two were compared."""
    apart, own, its = control.difference(LOSS, result.label), control.value(LOSS), result.value(LOSS)
    if apart and apart.high is not None:
        return apart.high < 0
    return own is not None and its is not None and own < its


def lead(data: ReportData) -> str:
    """The result in one to three sentences."""
    return " ".join(_sentences(data))


def _sentences(data: ReportData) -> Iterator[str]:
    is_chain = len(data.sizes) > 2
    if data.sizes:
        sizes, steps = " to ".join(map(short, data.sizes)), f" in {len(data.sizes) - 1} steps" if is_chain else ""
        share, name = percent(data.sizes[-1] / data.sizes[0]), data.model or "The parent"
        yield f"{name} was pruned{steps} from {sizes} parameters, {share} of its size."
    if is_chain and data.steps and all(data.steps):
        yield f"Its last step, {data.steps[-1]}, pruned what step {data.steps[-2]} had made."
    parent, pruned, distilled = data.loss("parent"), data.loss("pruned"), data.loss("distilled")
    sparse, start = data.loss("sparse"), data.loss(*STARTS)
    if parent is not None and pruned is not None:
        repair = data.prune and data.prune.repair
        what = "Pruning and repair" if repair and repair.effect and repair.is_kept else "Pruning"
        loss = "the loss of its parent" if is_chain else "the loss"
        yield f"{what} {_moved(loss, parent, pruned)} nats per token."
    if sparse is not None and pruned is not None:
        yield f"Making weights zero {_moved('it', pruned, sparse, has_start=False)}."
    elif sparse is not None and parent is not None:
        yield f"Making weights zero {_moved('the loss', parent, sparse)} nats per token."
    if distilled is not None:
        outcome = f"After distillation the loss is {distilled:.3f}"
        if start is not None:
            trained = data.first("distilled")
            on_tokens = f" on {short(trained.tokens_trained)} tokens" if trained and trained.tokens_trained else ""
            is_known = pruned is not None or sparse is not None  # from a sentence before
            what = "it" if is_known else "the student's loss"
            outcome = f"Distillation{on_tokens} {_moved(what, start, distilled, has_start=not is_known)}"
        original = data.loss("original")
        below = ", below the parent's" if parent is not None and distilled < parent else ""
        controls = [(model.label, model.value(LOSS)) for model in data.models if model.kind == "control"]
        others = [f"; {label} has {x:.3f} ({CHANGE.cell(x - distilled)})" for label, x in controls if x is not None]
        yield f"{outcome}{below}{''.join(others)}."
        if original is not None:
            yield f"The original's loss is {original:.3f} ({CHANGE.cell(distilled - original)} since)."
    if data.worse:
        what = "made it worse" if data.worse.is_above_start else "ended above its lowest evaluation"
        yield f"Training {what}: {data.worse}."
    if data.wrapper:
        yield (
            f"Everything was scored, trained and measured on text alone: of this {data.wrapper} model, what is not the "
            "text model is its parent's, and how well it reads images was not measured."
        )
    if data.teacher:
        yield f"The teacher was {data.teacher}."
    if data.signals:
        yield f"The student learned from what the teacher had said of the text once ({data.signals} of each position)."


def _moved(what: str, before: float, after: float, *, has_start: bool = True) -> str:
    """`raised it from 2.412 to 4.913`."""
    if f"{before:.3f}" == f"{after:.3f}":
        return f"left {what} at {after:.3f}"
    start = f" from {before:.3f}" if has_start else ""
    return f"{'raised' if after > before else 'lowered'} {what}{start} to {after:.3f}"


def key_figures(data: ReportData) -> Iterator[KeyFigure]:
    """Numbers for the head of the page, as far as they are known."""
    if data.sizes:
        before, after = data.sizes[0], data.sizes[-1]
        whose = "original's" if len(data.sizes) > 2 else "parent's"
        yield KeyFigure(short(after), "parameters", f"{percent(after / before)} of the {whose} {short(before)}")
    parent, result = data.loss("parent"), data.first("distilled", *STARTS)
    if result and (loss := result.value(LOSS)) is not None:
        note = "" if parent is None else f"{CHANGE.cell(loss - parent)} against the parent's {parent:.3f}"
        yield KeyFigure(f"{loss:.3f}", metrics.LOSS.heading, note)
    yield from _training(data)
    if result and (kl := result.value(KL)) is not None:
        yield KeyFigure(fixed(kl), metrics.KL.title, metrics.KL.unit)
    if data.cache_bytes and all(data.cache_bytes):
        before, after = data.cache_bytes
        yield KeyFigure(CACHE.cell(after), CACHE.title, f"{percent(after / before)} of the parent's")
    if result and result.tokens_trained:
        note = "after pruning" if data.prune or data.sparsity else ""
        yield KeyFigure(short(result.tokens_trained), "training tokens", note)


def _training(data: ReportData) -> Iterator[KeyFigure]:
    """Change of the loss by training and, if pruning did damage, the share of the damage that it undid."""
    parent, start, distilled = data.loss("parent"), data.loss(*STARTS), data.loss("distilled")
    if start is None or distilled is None:
        return
    note = f"in loss, from {start:.3f} to {distilled:.3f}"
    model, gap = data.first(*STARTS), None
    if parent is not None and model and model.kind != "student":
        apart = model.difference(LOSS)
        gap = share_closed(start - parent, distilled - parent, apart.low if apart else None)
    damage = "" if gap is None else f": {percent(gap)} of the damage by pruning"
    yield KeyFigure(CHANGE.cell(distilled - start), "change by training", note + damage)
