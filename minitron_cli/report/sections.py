"""What the page says, section by section, in its order. Each is left out where there is nothing to say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from markupsafe import Markup

from minitron_cli.report import plots
from minitron_cli.report.data import (
    Benchmark,
    Candidate,
    Measure,
    ModelFacts,
    ReportData,
    ResultRow,
    ServingRow,
    TaskResult,
    TrainingRun,
)
from minitron_cli.report.headline import loss_of, share_closed
from minitron_cli.report.text import (
    MINUS,
    NOTHING,
    TIMES,
    axis_title,
    channel_title,
    cost_rows,
    cost_total,
    decimal,
    exact,
    hours,
    interval,
    measure,
    percent,
    ranges,
    short,
    signed,
    signed_percent,
    size,
)

CANDIDATES_SHOWN = 40
CANDIDATES_DRAWN = 200

Legend = tuple[tuple[int, str], ...]  # the number of a series' colour, and what it stands for


@dataclass(frozen=True)
class Table:
    """The first column names the row; the others are numbers unless `is_text`."""

    label: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: tuple[int, ...] = ()
    """Rows that stand out."""
    is_text: bool = False


@dataclass(frozen=True)
class Panel:
    svg: Markup
    caption: str
    legend: Legend = ()


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    text: str
    """What the reader sees."""
    tables: tuple[Table, ...] = ()
    panels: tuple[Panel, ...] = ()
    legend: Legend = ()
    """Of all its panels."""
    code: str = ""


def sections(data: ReportData) -> list[Section]:
    """Those that have something to say."""
    return [section for make in ALL if (section := make(data))]


def _results(data: ReportData) -> Section | None:
    if not data.results:
        return None
    parent = loss_of(data.first("parent"))
    columns = {
        "parameters": [short(row.parameters) for row in data.results],
        "loss": [measure(row.loss) for row in data.results],
        "against parent": [_against(row, parent) for row in data.results],
        "perplexity": [measure(_alone(row.perplexity)) for row in data.results],
        "KL to parent": [measure(row.kl_to_parent) for row in data.results],
    }
    if not data.benchmarks:
        columns |= {_task_title(task): [_task(row, task) for row in data.results] for task in _tasks(data.results)}
    columns["tokens trained"] = [short(row.tokens_trained) for row in data.results]
    shown = {title: cells for title, cells in columns.items() if any(cell != NOTHING for cell in cells)}
    rows = tuple(zip([row.label for row in data.results], *shown.values(), strict=True))
    marked = tuple(i for i, row in enumerate(data.results) if row.kind == "distilled")
    text = (
        "Every model on the same held-out text and tasks. Loss and KL are in nats per token, lower is better; "
        "task scores are higher-is-better unless they are perplexities; ± is one standard error."
    )
    return Section("results", "Results", text, (Table("Results", ("model", *shown), rows, marked),))


def _alone(value: Measure | None) -> Measure | None:
    """Without the error, which the loss beside it shows already."""
    return Measure(value.value) if value else None


def _against(row: ResultRow, parent: float | None) -> str:
    loss = loss_of(row)
    return NOTHING if row.kind == "parent" or loss is None or parent is None else signed(loss - parent)


def _tasks(rows: Sequence[ResultRow]) -> list[TaskResult]:
    """One example of each column, in the order in which they first come."""
    return list({_task_title(task): task for row in rows for task in row.tasks}.values())


def _task_title(task: TaskResult) -> str:
    return f"{task.task} {task.metric}" + (f", {task.shots}-shot" if task.shots is not None else "")


def _task(row: ResultRow, column: TaskResult) -> str:
    found = [task.measure for task in row.tasks if _task_title(task) == _task_title(column)]
    return measure(found[0]) if found else NOTHING


def _benchmarks(data: ReportData) -> Section | None:
    if not data.benchmarks:
        return None
    known = [row.label for row in data.results]
    named = dict.fromkeys(label for row in data.benchmarks for label in row.values)
    labels = [*(label for label in known if label in named), *(label for label in named if label not in known)]
    values = tuple(
        (row.title, exact(row.items), *(interval(row.values.get(m)) for m in labels)) for row in data.benchmarks
    )
    tables = [Table("Values", ("", "items", *labels), values)]
    others = [label for label in labels if any(label in row.differences for row in data.benchmarks)]
    if others:
        apart = tuple((row.title, *(_apart(row, m) for m in others)) for row in data.benchmarks if row.differences)
        tables.append(Table("Less the parent's", ("", *others), apart))
    text = (
        "In brackets, 95 % intervals. What counts is the second table: both models answered the same items, so their "
        "difference is far surer than either value. Items of one document are counted together. p is McNemar's exact "
        "probability of such a difference between equals."
    )
    return Section("benchmarks", "Benchmarks", text, tuple(tables))


def _apart(row: Benchmark, label: str) -> str:
    chance = f", p {row.chances[label]:.2g}" if label in row.chances else ""
    return interval(row.differences.get(label), is_difference=True) + chance


def _speed(data: ReportData) -> Section | None:
    if not data.speed:
        return None
    columns = {
        "prefill tokens/s": [short(row.prefill_tokens_per_second) for row in data.speed],
        "prefill against parent": [_times(row.prefill_ratio, row.prefill_range) for row in data.speed],
        "decode tokens/s": [short(row.decode_tokens_per_second) for row in data.speed],
        "decode against parent": [_times(row.decode_ratio, row.decode_range) for row in data.speed],
        "first token": [f"{1000 * row.time_to_first_token_seconds:.4g} ms" for row in data.speed],
        "peak memory": [NOTHING if row.peak_bytes is None else size(row.peak_bytes) for row in data.speed],
    }
    rows = tuple(zip([row.label for row in data.speed], *columns.values(), strict=True))
    text = (
        "Generation with transformers, medians of rounds in which parent and child took turns; in brackets, the lowest "
        "and the highest of the rounds. Memory is the peak of a process that loads the model and generates once. "
        f"{data.speed_settings}"
    )
    return Section("speed", "Speed", text, (Table("Speed", ("model", *columns), rows),))


def _times(ratio: float | None, ends: Sequence[float] | None) -> str:
    if ratio is None:
        return NOTHING
    return f"{ratio:.2f} {TIMES}" + (f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else "")


def _shape(data: ReportData) -> Section | None:
    models = [model for model in (data.parent, data.child) if model]
    if not models:
        return None
    rows = [
        ("family", *(model.family for model in models)),
        *(_size_row(axis, models) for axis in models[0].sizes),
        ("parameters", *(exact(model.parameters) for model in models), *_kept([m.parameters for m in models])),
    ]
    if all(model.non_embedding for model in models):
        counts = [model.non_embedding or 0 for model in models]
        rows.append(("… without embeddings", *map(exact, counts), *_kept(counts)))
    if all(model.kv_cache_bytes_per_token for model in models):
        counts = [model.kv_cache_bytes_per_token or 0 for model in models]
        rows.append(("KV cache per token", *map(size, counts), *_kept(counts)))
    header = ("", *(model.name for model in models), *(("kept",) if len(models) > 1 else ()))
    padded = tuple(tuple(row) + ("",) * (len(header) - len(row)) for row in rows)
    text = "What the model measures along each axis, before and after the cut." if data.child else "What the model is."
    return Section("shape", "Shape", text, (Table("Shape", header, padded),))


def _size_row(axis: str, models: Sequence[ModelFacts]) -> tuple[str, ...]:
    sizes = [model.sizes.get(axis) for model in models]
    return (axis_title(axis), *map(exact, sizes), *_kept([s for s in sizes if s is not None]))


def _kept(counts: Sequence[int]) -> tuple[str, ...]:
    return (percent(counts[1] / counts[0]),) if len(counts) == 2 else ()


def _importance(data: ReportData) -> Section | None:
    if not data.importance:
        return None
    panels = [_importance_panel(axis, scores, data) for axis, scores in data.importance.items()]
    shares, legend = _kept_shares(data)
    if shares:
        svg = plots.kept_shares("importance-kept", shares)
        panels.append(Panel(Markup(svg), "Share of each layer's total importance that survives.", legend))
    text = f"How much each part matters{_by(data.importance_metric)}; in the maps, a brighter cell matters more."
    if data.kept:
        text += " What lies beyond the red line, or carries a red cross, is gone; a blank row is a dropped layer."
    title = "What was kept" if data.kept else "What matters"
    return Section("importance", title, text, panels=tuple(panels))


def _by(metric: str) -> str:
    return f", by {metric}" if metric else ""


def _importance_panel(axis: str, scores: np.ndarray, data: ReportData) -> Panel:
    name, channels = f"importance-{list(data.importance).index(axis)}", scores.shape[-1]
    everything = np.broadcast_to(np.arange(channels), scores.shape)
    kept = np.asarray(data.kept.get(axis, everything))
    caption = f"{channels:,} {channel_title(axis)}"
    if axis in data.kept:
        caption = f"{kept.shape[-1]:,} of {caption} kept"
    if scores.ndim == 1:
        return Panel(Markup(plots.sorted_curve(name, scores, kept)), f"{caption}, the same in all layers.")
    kept = np.broadcast_to(kept, (len(scores), kept.shape[-1]))
    draw = plots.grid_map if scores.size <= plots.CELLS else plots.sorted_map
    return Panel(Markup(draw(name, scores, kept, _dropped(data))), f"{caption} in each layer.")


def _dropped(data: ReportData) -> tuple[int, ...]:
    return data.layers.dropped if data.layers else ()


def _kept_shares(data: ReportData) -> tuple[dict[int, np.ndarray], Legend]:
    shares: dict[int, np.ndarray] = {}
    legend = []
    for axis, scores in data.importance.items():
        if scores.ndim == 2 and axis in data.kept and np.ndim(data.kept[axis]) == 2:
            number = len(shares)
            kept_L = np.take_along_axis(scores, np.asarray(data.kept[axis]).astype(int), axis=1).sum(axis=1)
            total_L = scores.sum(axis=1)
            share_L = np.divide(kept_L, total_L, out=np.ones(len(scores)), where=total_L > 0)
            share_L[list(_dropped(data))] = np.nan
            shares[number] = share_L
            legend.append((number, channel_title(axis)))
    return shares, tuple(legend)


def _layers(data: ReportData) -> Section | None:
    curves = data.layers
    if curves is None:
        return None
    panels = []
    if curves.block_importance is not None:
        svg = plots.layer_bars("block-importance", curves.block_importance, "block importance", curves.dropped)
        panels.append(
            Panel(Markup(svg), f"Block importance: how much a layer turns the hidden state (1 {MINUS} cosine).")
        )
    if curves.perplexity is not None:
        svg = plots.layer_bars("layer-perplexity", curves.perplexity, "rise of perplexity", curves.dropped)
        panels.append(Panel(Markup(svg), "By how much perplexity rises when the layer alone is taken out."))
    if not panels and not curves.dropped:
        return None
    text = "How much the model depends on each layer; low bars are the layers it can best do without. "
    if curves.dropped:
        plural = "s" if len(curves.dropped) > 1 else ""
        text += f"Dropped: layer{plural} {ranges(curves.dropped)}, in red."
    else:
        text += "All layers were kept."
    return Section("layers", "Layers", text, panels=tuple(panels))


def _candidates(data: ReportData) -> Section | None:
    if not data.candidates:
        return None
    shown = data.candidates[:CANDIDATES_SHOWN]
    axes = _varying_axes(data.candidates)
    columns = {
        "target": [c.target or NOTHING for c in shown] if len({c.target for c in shown}) > 1 else [NOTHING],
        **{axis_title(axis): [exact(c.sizes.get(axis)) for c in shown] for axis in axes},
        data.candidate_parameters: [exact(c.parameters) for c in shown],
        "against target": [NOTHING if c.error is None else signed_percent(c.error) for c in shown],
        **{_cost_title(name): [_cost(name, c.costs.get(name)) for c in shown] for name in _costs_of(data.candidates)},
        f"zero-shot {data.comparison.objective}": [_decimals(c.zero_shot) for c in shown],
        f"retrained {data.comparison.objective}": [_decimals(c.retrained) for c in shown],
    }
    columns = {title: cells for title, cells in columns.items() if any(cell != NOTHING for cell in cells)}
    rows = tuple(zip(map(str, range(1, len(shown) + 1)), *columns.values(), strict=True))
    marked = tuple(i for i, c in enumerate(shown) if c.is_chosen)
    tables = [Table("Candidate shapes", ("rank", *columns), rows, marked), *_stability(data)]
    panels = (*_halving(data), *_paretos(data))
    return Section("candidates", "Candidate shapes", _about_candidates(data), tuple(tables), panels)


COSTS = {"memory": "bytes of memory", "flops": "FLOP per token", "latency": "latency (ms)", "throughput": "tokens/s"}


def _cost_title(name: str) -> str:
    return COSTS.get(name, name)


def _cost(name: str, value: float | None) -> str:
    if value is None:
        return NOTHING
    return size(round(value)) if name == "memory" else short(round(value)) if name == "flops" else decimal(value)


def _costs_of(candidates: Sequence[Candidate]) -> list[str]:
    return list(candidates[0].costs)


def _stability(data: ReportData) -> list[Table]:
    several = len({row.target for row in data.comparison.stability}) > 1
    rows = tuple(
        (f"{row.before} to {row.after}{f', {row.target}' if several else ''}", signed(row.tau), exact(row.candidates))
        for row in data.comparison.stability
    )
    return [Table("Rank stability", ("", "Kendall's τ", "candidates"), rows)] if rows else []


def _halving(data: ReportData) -> list[Panel]:
    lines = [
        ((0, *data.comparison.rung_tokens[: len(c.rungs)]), (c.zero_shot, *c.rungs), c.is_chosen)
        for c in data.candidates
        if c.rungs and c.zero_shot is not None
    ]
    if not lines:
        return []
    svg = plots.halving_curves("halving", lines[:CANDIDATES_SHOWN], "score")
    name = data.comparison.objective.capitalize()
    caption = f"{name} in light retraining, a line for each candidate, until it was dropped."
    return [Panel(Markup(svg), caption)]


def _paretos(data: ReportData) -> list[Panel]:
    """Of candidates that were judged alike: those that were retrained, if any were."""
    drawn = list(islice(data.candidates, CANDIDATES_DRAWN))
    judged = [c for c in drawn if c.rungs] or [c for c in drawn if c.zero_shot is not None]
    return [_pareto(data, judged, cost) for cost in ("parameters", *_costs_of(judged))] if len(judged) > 1 else []


def _pareto(data: ReportData, judged: Sequence[Candidate], cost: str) -> Panel:
    points = [
        (float(c.parameters if cost == "parameters" else c.costs[cost]), score, c.is_chosen, cost in c.pareto_optimal)
        for c in judged
        if (score := c.rungs[0] if c.rungs else c.zero_shot) is not None
    ]
    svg = plots.pareto_scatter(f"candidates-{cost}", points, _cost_title(cost), "score")
    name = data.comparison.objective.capitalize()
    when = "after the first rung" if judged[0].rungs else "zero-shot"
    caption = f"{name} {when} against {_cost_title(cost)}; the ring marks the choice, the line what none surpasses."
    return Panel(Markup(svg), caption)


def _about_candidates(data: ReportData) -> str:
    count = exact(len(data.candidates))
    text = f"{count} shapes that meet every constraint, best first; zero-shot: cut and not yet trained."
    if any(c.retrained is not None for c in data.candidates):
        text += " The best few were retrained briefly, because the order can change, and ranked again."
    if any(c.is_chosen for c in data.candidates):
        text += " The shape that was built is highlighted."
    if len(data.candidates) > CANDIDATES_SHOWN:
        text += f" The table shows the first {CANDIDATES_SHOWN}."
    return text


def _repair(data: ReportData) -> Section | None:
    found = data.repair
    if found is None:
        return None
    gaps = found.before[0] - found.parent_loss, found.before[1]
    left = found.after[0] - found.parent_loss, found.after[1]
    rows = tuple(
        (name, _decimals(before), _decimals(after), _percent(share_closed(start, end)))
        for name, before, after, start, end in zip(
            ("loss", "KL to the parent"), found.before, found.after, gaps, left, strict=True
        )
    )
    text = f"The cut was mended before any training: {', '.join(found.repairs).replace('_', ' ')}. In nats per token."
    table = Table("Repair", ("", "plain cut", "mended", "gap closed"), rows)
    return Section("repair", "Repair", text, (table,))


def _percent(share: float | None) -> str:
    return NOTHING if share is None else percent(share)


def _varying_axes(candidates: Sequence[Candidate]) -> list[str]:
    axes = list(candidates[0].sizes)
    varying = [axis for axis in axes if len({c.sizes.get(axis) for c in candidates}) > 1]
    return varying or axes


def _decimals(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _serving(data: ReportData) -> Section | None:
    if not data.serving and not data.checks:
        return None
    rows = tuple((row.reader, row.level, row.reason, _nearest(row)) for row in data.serving)
    text = "What the programs that load or quantise the pruned model will make of its shape."
    if data.checks:
        text += f" Before it was kept, it was compared with the parent, cut in memory: {', '.join(data.checks)}."
    table = Table("Serving", ("", "level", "because", "nearest shape without"), rows, is_text=True)
    return Section("serving", "Serving", text, (table,) if rows else ())


def _nearest(row: ServingRow) -> str:
    if row.level in ("slower", "fails") and not row.nearest:
        return "none"
    return ", ".join(f"{axis_title(axis)} {exact(size)}" for axis, size in row.nearest.items())


def _training(data: ReportData) -> Section | None:
    if not data.runs:
        return None
    parent = loss_of(data.first("parent"))
    validated = {i: (run.validation_tokens, run.validation_loss) for i, run in enumerate(data.runs)}
    kl = {i: (run.validation_tokens, run.validation_kl) for i, run in enumerate(data.runs)}
    training = {i: (run.tokens, run.loss) for i, run in enumerate(data.runs)}
    rate = {i: (run.tokens, run.learning_rate) for i, run in enumerate(data.runs)}
    panels = [
        *_curve_panel("validation-loss", "validation loss (nats)", validated, _validation_caption(parent), parent),
        *_curve_panel("validation-kl", "KL to the teacher (nats)", kl, "KL(teacher ‖ student) on held-out text."),
        *_curve_panel("training-loss", "objective", training, "The training objective, which may differ between runs."),
        *_curve_panel("learning-rate", "learning rate", rate, "Learning rate."),
    ]
    text = f"How {_runs(data.runs)} went, against the number of training tokens."
    legend = tuple((i, run.label) for i, run in enumerate(data.runs))
    return Section("training", "Training", text, panels=tuple(panels), legend=legend)


def _runs(runs: Sequence[TrainingRun]) -> str:
    return "the training run" if len(runs) == 1 else f"the {len(runs)} training runs"


def _validation_caption(parent: float | None) -> str:
    return "Loss on held-out text" + ("; the dashed line is the parent's." if parent is not None else ".")


def _curve_panel(
    name: str,
    label: str,
    runs: Mapping[int, tuple[Sequence[float], Sequence[float]]],
    caption: str,
    reference: float | None = None,
) -> list[Panel]:
    runs = {i: (tokens, values) for i, (tokens, values) in runs.items() if len(values) and len(tokens) == len(values)}
    return [Panel(Markup(plots.curves(name, label, runs, reference)), caption)] if runs else []


def _costs(data: ReportData) -> Section | None:
    if not data.costs:
        return None
    needed = [row for row in data.costs if row.is_needed]
    beside = [row for row in data.costs if not row.is_needed]
    rows = (*cost_rows(needed), ("total", "", *cost_total(needed)))
    columns = ("stage", "work", "tokens", "FLOPs")
    tables = [Table("Cost", columns, rows, marked=(len(rows) - 1,))]
    if beside:
        tables.append(Table("Controls and measurements, which the result did not need", columns, cost_rows(beside)))
    text = (
        "What the result took, stage by stage, back to the model that was given. A forward pass counts two FLOPs per "
        "weight that multiplies and four per head channel and position attended to, a backward pass twice that."
    )
    return Section("cost", "Cost", " ".join(filter(None, (text, hours(data.device_hours)))), tuple(tables))


def _lineage(data: ReportData) -> Section | None:
    if not data.lineage:
        return None
    rows = tuple((row.stage, row.label or NOTHING, row.key8, ", ".join(row.inputs) or NOTHING) for row in data.lineage)
    text = "Which result was made from which. A key is a hash of a stage's settings and of everything it read."
    return Section(
        "lineage", "Lineage", text, (Table("Lineage", ("stage", "label", "key", "made from"), rows, is_text=True),)
    )


def _commands(data: ReportData) -> Section | None:
    if not data.commands:
        return None
    text = "These commands make the same results again; on a CPU, the same bytes."
    return Section("reproduce", "Reproduce", text, code="\n".join(data.commands))


ALL = (
    _results,
    _benchmarks,
    _speed,
    _shape,
    _serving,
    _importance,
    _layers,
    _candidates,
    _repair,
    _training,
    _costs,
    _lineage,
    _commands,
)
