"""The candidates of a search or a cut as tables of text: their order, their rungs, and what their quality costs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minitron_cli.cli.text_plot import Point, scatter
from minitron_cli.cli.text_table import Sheet, number
from minitron_cli.search.candidates import cost_of, judged, score_of

AXES = ("layer", "hidden", "head", "kv_head", "expert", "ffn")


def search_sheets(found: Mapping[str, Any]) -> Iterable[Sheet]:
    targets = dict.fromkeys(row["target"] for row in found["candidates"])
    for target in targets:
        rows = [row for row in found["candidates"] if row["target"] == target]
        for sheet in _one_search(found, rows, found["summary"]["winners"][target]["stability"]):
            title = f"{sheet.title}, target {target}" if len(targets) > 1 else sheet.title
            yield sheet._replace(title=title)
    if len(compared := judged(found["candidates"])) > 1:
        for cost in ("parameters", *compared[0]["costs"]):
            if cost != "mass":
                yield _pareto_sheet(compared, cost, found)


def _one_search(found: Mapping[str, Any], rows: Sequence[dict[str, Any]], stability: Sequence[Any]) -> Iterable[Sheet]:
    objective = found["objective"]
    yield candidate_sheet(rows, objective["name"])
    if any(row["rungs"] for row in rows):
        yield _rung_sheet(rows, found["rung_tokens"])
    if stability:
        cells = [[f"{t['from']} to {t['to']}", f"{t['tau']:+.2f}", str(t["candidates"])] for t in stability]
        yield Sheet("rank stability (Kendall)", ["", "tau", "candidates"], cells)


def _rung_sheet(rows: Sequence[Mapping[str, Any]], tokens: Sequence[int]) -> Sheet:
    columns = ["", "zero-shot", *(f"{_short(n)} tokens" for n in tokens)]
    shown = [[str(i + 1), number(row["zero_shot"]), *map(number, row["rungs"])] for i, row in enumerate(rows)]
    cells = [[*some, *["-"] * (len(columns) - len(some))] for some in shown if len(some) > 2]
    return Sheet("retraining, rung by rung", columns, cells)


def _short(count: int) -> str:
    unit, name = next((u, n) for u, n in ((10**9, "B"), (10**6, "M"), (10**3, "k"), (1, "")) if count >= u)
    return f"{count / unit:.3g}{name}"


def _pareto_sheet(rows: Sequence[dict[str, Any]], cost: str, found: Mapping[str, Any]) -> Sheet:
    """Quality after equal training against one cost: a text plot."""
    chosen = {row["target"]: row for row in reversed(found["candidates"])}.values()
    points = [Point(cost_of(row, cost), score_of(row), "o" if cost in row["unsurpassed"] else ".") for row in rows]
    points += [Point(cost_of(row, cost), score_of(row), "#") for row in chosen if row in rows]
    lines = scatter(points, lambda x: _spelled(cost, x), number)
    when = f" after {_short(found['rung_tokens'][0])} tokens" if rows[0]["rungs"] else ", zero-shot,"
    title = f"{found['objective']['name']}{when} against {cost}: # chosen, o unsurpassed in both, . the others"
    return Sheet(title, [""], [[line] for line in lines])


def _spelled(cost: str, value: float) -> str:
    match cost:
        case "memory":
            return f"{value / 2**30:,.2f} GiB" if value >= 2**30 else f"{value / 2**20:,.2f} MiB"
        case "latency":
            return f"{value:.3g} ms"
        case "throughput":
            return f"{value:,.4g} tokens/s"
        case _:
            return _short(round(value))


def candidate_sheet(candidates: Sequence[Mapping[str, Any]], objective: str = "loss") -> Sheet:
    varied = [a for a in AXES if len({c["shape"].get(a) for c in candidates}) > 1] or ["hidden", "ffn"]
    costs = [name for name in candidates[0]["costs"] if name != "mass"]
    columns: dict[str, list[str]] = {axis: [f"{c['shape'][axis]:,}" for c in candidates] for axis in varied}
    columns["parameters counted"] = [f"{c['parameters']:,}" for c in candidates]
    columns["off target"] = ["-" if c["error"] is None else f"{c['error']:+.1%}" for c in candidates]
    columns |= {name: [_spelled(name, c["costs"][name]) for c in candidates] for name in costs}
    if "mass" in candidates[0]["costs"]:
        columns["importance kept"] = [f"{math.exp(c['costs']['mass']):.1%}" for c in candidates]
    columns[f"zero-shot {objective}"] = [number(c["zero_shot"]) for c in candidates]
    columns[f"retrained {objective}"] = [number(c["retrained"]) for c in candidates]
    shown = {title: cells for title, cells in columns.items() if any(cell != "-" for cell in cells)}
    rows = [[str(i + 1), *cells] for i, cells in enumerate(zip(*shown.values(), strict=True))]
    return Sheet("candidates, best first", ["", *shown], rows)
