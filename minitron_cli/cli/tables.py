"""What an artifact has to tell: as plain values, and as tables of text. Prints nothing."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.cli.candidate_sheets import AXES, candidate_sheet, search_sheets
from minitron_cli.cli.text_table import Sheet, number, share

if TYPE_CHECKING:
    from torch import Tensor

    from minitron_cli.artifacts.workspace import Workspace
    from minitron_cli.evaluate.gate import Outcome

SCORED = ("head", "ffn", "hidden")
DEFAULT_WAY = "l2 of mean"


def values(artifact: Artifact) -> dict[str, Any]:
    """An artifact for programs."""
    return {
        "stage": artifact.stage,
        "label": artifact.label,
        "path": str(artifact.path),
        "key": artifact.key,
        "summary": artifact.summary,
        "run": artifact.run,
        **_details(artifact),
    }


def _details(artifact: Artifact) -> dict[str, Any]:
    reader = {"importance": _layers, "search": _candidates, "prune": _candidates, "evaluate": _results}.get(
        artifact.stage
    )
    return reader(artifact) if reader else {}


def _layers(artifact: Artifact) -> dict[str, Any]:
    from minitron_cli.checkpoint.reader import read_safetensors

    scores = read_safetensors(artifact.file("scores.safetensors"))
    layers = {name.removeprefix("layer."): t.tolist() for name, t in scores.items() if name.startswith("layer.")}
    return {"layers": {name: [_finite(x) for x in column] for name, column in layers.items()}}


def ranked(artifact: Artifact) -> dict[str, Any]:
    """Of an importance result: how each axis is spread, and how far the aggregations agree on its order."""
    from minitron_cli.scores.rank_correlation import agreement
    from minitron_cli.scores.scores import Scores

    scores = Scores.load(artifact.path)
    return {
        "axes": {axis: _spread(scores.activation(axis)) for axis in (*SCORED, *["expert"] * scores.has_experts)},
        "agreement": {axis: agreement(scores, axis) for axis in SCORED},
    }


def _spread(score: "Tensor") -> dict[str, float]:
    return {"least": float(score.min()), "median": float(score.median()), "most": float(score.max())}


def ranked_sheets(found: Mapping[str, Any]) -> list[Sheet]:
    axes = [[axis, *(number(value) for value in spread.values())] for axis, spread in found["axes"].items()]
    ways = [
        [way, *(f"{found['agreement'][axis][DEFAULT_WAY][way]:.3f}" for axis in SCORED)]
        for way in found["agreement"][SCORED[0]]
    ]
    return [
        Sheet(f"importance of a channel, {DEFAULT_WAY}", ["", "least", "median", "most"], axes),
        Sheet(f"agreement with {DEFAULT_WAY} (Spearman)", ["samples, of tokens", *SCORED], ways),
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _candidates(artifact: Artifact) -> dict[str, Any]:
    from minitron_cli.search import candidates

    return candidates.read(artifact)


def _results(artifact: Artifact) -> dict[str, Any]:
    return artifact.read_json("results.json")


def sheets(artifact: Artifact) -> list[Sheet]:
    """An artifact for people."""
    makers: dict[str, Callable[[dict[str, Any]], Iterable[Sheet]]] = {
        "importance": _importance,
        "search": search_sheets,
        "prune": _prune,
        "correct": _trained,
        "distill": _trained,
        "evaluate": _evaluate,
    }
    maker = makers.get(artifact.stage)
    return list(maker(values(artifact))) if maker else []


def costs(workspace: "Workspace", product: Artifact) -> dict[str, Any]:
    """What it took to make it, with everything that it was made of."""
    from minitron_cli.cost import compute
    from minitron_cli.cost.lineage import device_hours, lineage, spent

    made_of = lineage(workspace, product)
    return {
        "of": product.stage,
        "ledger": {f"{one.stage}-{one.key[:8]}": compute.as_json(spent(one)) for one in made_of},
        "total": compute.as_json([compute.total(entry for one in made_of for entry in spent(one))]),
        "device_hours": device_hours(made_of),
    }


def cost_sheet(found: Mapping[str, Any]) -> Sheet:
    spent = [(name.partition("-")[0], entry) for name, entries in found["ledger"].items() for entry in entries]
    rows = [[f"{stage}: {e['work']}", f"{e['tokens']:,}", number(e["flops"])] for stage, e in spent]
    rows += [["total", f"{e['tokens']:,}", number(e["flops"])] for e in found["total"]]
    rows += [[f"hours of {device}", "", number(hours)] for device, hours in found["device_hours"].items()]
    return Sheet(f"cost of the {found['of']} result and all that it was made of", ["", "tokens", "FLOPs"], rows)


def _importance(found: Mapping[str, Any]) -> Iterable[Sheet]:
    columns = {"block_importance": "block importance", "nll": "loss without it", "perplexity": "perplexity gained"}
    measured = {name: found["layers"][name] for name in columns if name in found["layers"]}
    rows = [
        [str(i), *(number(column[i]) for column in measured.values())]
        for i in range(len(next(iter(measured.values()), [])))
    ]
    yield Sheet("layers", ["layer", *(columns[name] for name in measured)], rows)


def _prune(found: Mapping[str, Any]) -> Iterable[Sheet]:
    if found.get("candidates"):
        yield candidate_sheet(found["candidates"])
    parent, child = found["summary"]["parent"], found["summary"]["child"]
    axes = [
        [a, f"{parent['sizes'][a]:,}", f"{child['sizes'][a]:,}", share(child["sizes"][a], parent["sizes"][a])]
        for a in AXES
        if a in parent["sizes"]
    ]
    total = ["parameters", f"{parent['parameters']:,}", f"{child['parameters']:,}"]
    yield Sheet(
        "cut", ["", "parent", "child", "kept"], [*axes, [*total, share(child["parameters"], parent["parameters"])]]
    )
    mended = found["summary"].get("repair", {})
    if "after" in mended:
        rows = [[name, number(mended["before"][name]), number(mended["after"][name])] for name in ("loss", "kl")]
        yield Sheet(f"repair: {', '.join(mended['repairs'])}", ["held out", "before", "after"], rows)

    if check := found["run"].get("export_check"):
        passed = ", ".join(found["summary"]["checks"])
        yield Sheet("export check", ["", ""], [[f"{check['compared']}, in {check['seconds']:.1f} s", passed]])
    remarks = [row for row in found["summary"].get("serving", ()) if row["level"] != "ok"]
    if remarks:
        yield serving_sheet(remarks)


def serving_sheet(findings: Sequence[Mapping[str, Any]]) -> Sheet:
    """What those who load or quantise the model will make of its shape (docs/serving.md)."""
    rows = [[row["reader"], row["level"], row["reason"], _nearest(row)] for row in findings]
    return Sheet("to serve it", ["", "", "because", "nearest shape without"], rows)


def _nearest(finding: Mapping[str, Any]) -> str:
    if finding["level"] in ("slower", "fails") and not finding["nearest"]:
        return "none"
    return ",".join(f"{axis}={size}" for axis, size in finding["nearest"].items())


def _trained(found: Mapping[str, Any]) -> Iterable[Sheet]:
    summary = found["summary"]
    before, after = summary.get("before", {}), summary.get("after", {})
    rows = [[name, number(before.get(name)), number(after[name])] for name in ("loss", "kl") if name in after]
    kept = summary.get("weights_of_step", summary["steps"])  # older results have the last
    best = f", the weights of step {kept:,}" if kept != summary["steps"] else ""
    yield Sheet(
        f"{found['label']}: {summary['steps']:,} steps, {summary['tokens']:,} tokens{best}",
        ["held out", "before", "after"],
        rows,
    )


def _evaluate(found: Mapping[str, Any]) -> Iterable[Sheet]:
    models = {label: found["models"][label] for label in found["summary"]["models"]}  # JSON objects come back sorted
    metrics = {
        f"{task}.{metric}": None
        for m in models.values()
        for task, some in m["results"].items()
        for metric, value in some.items()
        if "part_of" not in value  # a group's members are in the JSON
    }
    rows = [["parameters", *(f"{m['parameters']:,}" for m in models.values())]]
    rows += [[name, *(_measured(m["results"], name) for m in models.values())] for name in metrics]
    yield Sheet("measured", ["", *models], rows)
    others = {label: m["against_parent"] for label, m in models.items() if m.get("against_parent")}
    apart = [[name, *(_apart(some, name) for some in others.values())] for name in metrics]
    if apart := [row for row in apart if set(row[1:]) != {"-"}]:
        yield Sheet("less the parent's, on the same items (95 % interval)", ["", *others], apart)
    if timed := found["run"].get("speed"):
        yield _speed(timed)


def _measured(results: Mapping[str, Any], name: str) -> str:
    found = _metric(results, name)
    if not found:
        return "-"
    return number(found["value"]) + (f" ± {found['stderr']:.2g}" if found["stderr"] is not None else "")


def _metric(results: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    task, _, metric = name.partition(".")
    return results.get(task, {}).get(metric)


def _apart(against: Mapping[str, Any], name: str) -> str:
    found = _metric(against, name)
    if not found:
        return "-"
    ends = f" ({found['low']:+.3g} to {found['high']:+.3g})" if found["low"] is not None else ""
    chance = f", p {found['mcnemar']:.2g}" if found["mcnemar"] is not None else ""
    return f"{found['difference']:+.4g}{ends}{chance}"


def _speed(timed: Mapping[str, Any]) -> Sheet:
    settings, models = timed["settings"], timed["models"]
    figures = {
        "prefill tokens/s": lambda m: _times(m, "prefill"),
        "decode tokens/s": lambda m: _times(m, "decode"),
        "first token, ms": lambda m: number(1000 * m["time_to_first_token_seconds"]),
        "peak memory, MiB": lambda m: number(m["peak_bytes"] / 2**20) if "peak_bytes" in m else "-",
    }
    title = f"speed: {settings['batch_size']} x {settings['prompt_tokens']} + {settings['new_tokens']} tokens"
    order = sorted(models, key=lambda label: label != "parent")
    return Sheet(title, ["", *order], [[name, *(cell(models[m]) for m in order)] for name, cell in figures.items()])


def _times(figures: Mapping[str, Any], phase: str) -> str:
    """Tokens per second, how many times the parent's that is, and between what and what the rounds were."""
    value = number(figures[f"{phase}_tokens_per_second"])
    if f"{phase}_ratio" not in figures:
        return value
    ends = figures.get(f"{phase}_range")
    return f"{value} ({figures[f'{phase}_ratio']:.2f} x{f', {ends[0]:.2f} to {ends[1]:.2f}' if ends else ''})"


def gate_sheet(found: "Sequence[Outcome]") -> Sheet:
    """Every bound, the value held against it, and by how much it was met or missed."""
    rows = [
        [
            outcome.title,
            number(outcome.value),
            number(outcome.compared),
            "-" if outcome.margin is None else f"{outcome.margin:+.3g}",
            "met" if outcome.passed else "MISSED",
        ]
        for outcome in found
    ]
    return Sheet("gates", ["", "value", "compared", "margin", ""], rows)


def file_sheet(title: str, sizes: Mapping[str, int]) -> Sheet:
    """Files and their sizes, and what they come to."""
    rows = [[name, f"{size:,}"] for name, size in sorted(sizes.items())]
    return Sheet(title, ["", "bytes"], [*rows, [f"{len(sizes)} files", f"{sum(sizes.values()):,}"]])
