"""An evaluation and its gates as other programs read them: JUnit's XML for CI, Markdown for a summary page."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minitron_cli.evaluate.gate import PARENT, Outcome
from minitron_cli.evaluate.statistics import interval
from minitron_cli.report.markdown import inline, table
from minitron_cli.report.text import NOTHING, clean


def junit(found: Sequence[Outcome], label: str) -> bytes:
    """One test case per gate; a missed one is a failure that says by how much."""
    failures = str(sum(not outcome.passed for outcome in found))
    suites = ET.Element("testsuites", name="minitron eval", tests=str(len(found)), failures=failures)
    suite = ET.SubElement(suites, "testsuite", name=clean(label), tests=str(len(found)), failures=failures, errors="0")
    for outcome in found:
        case = ET.SubElement(suite, "testcase", classname=clean(f"minitron.eval.{label}"), name=clean(outcome.title))
        if not outcome.passed:
            ET.SubElement(case, "failure", type=outcome.kind, message=clean(str(outcome))).text = clean(str(outcome))
    ET.indent(suites)
    return ET.tostring(suites, encoding="utf-8", xml_declaration=True) + b"\n"


def summary(models: Mapping[str, Mapping[str, Any]], found: Sequence[Outcome], label: str) -> str:
    """Every value beside the parent's, the differences with their intervals, and the gates."""
    return clean("\n\n".join(_summary(models, found, label))) + "\n"


def _summary(models: Mapping[str, Mapping[str, Any]], found: Sequence[Outcome], label: str) -> Iterator[str]:
    yield f"## minitron eval: {inline(label)}"
    if found:
        missed = sum(not outcome.passed for outcome in found)
        yield f"**{missed} of {len(found)} gates missed.**" if missed else f"All {len(found)} gates are met."
        yield table(("gate", "value", "compared", "margin", "outcome"), [_gate(outcome) for outcome in found])
    others = [name for name in models if name != PARENT]
    yield "Values with their standard errors; differences from the parent on the same items with 95 % intervals."
    header = ("metric", PARENT, *(title for name in others for title in (name, f"{name} - parent")))
    yield table(header, list(_rows(models, others)))


def _gate(outcome: Outcome) -> tuple[str, ...]:
    numbers = (outcome.value, outcome.compared, outcome.margin)
    return (outcome.title, *map(_number, numbers), "met" if outcome.passed else "MISSED")


def _rows(models: Mapping[str, Mapping[str, Any]], others: Sequence[str]) -> Iterator[tuple[str, ...]]:
    names = dict.fromkeys(
        (t, m) for model in models.values() for t, metrics in model["results"].items() for m in metrics
    )
    for task, metric in names:
        cells = [_value(models[PARENT], task, metric)]
        for name in others:
            cells += [_value(models[name], task, metric), _difference(models[name], task, metric)]
        yield (f"{task}.{metric}", *cells)


def _value(model: Mapping[str, Any], task: str, metric: str) -> str:
    found = model["results"].get(task, {}).get(metric)
    if found is None or found["value"] is None:
        return NOTHING
    return _number(found["value"]) + (f" ± {found['stderr']:.2g}" if found["stderr"] is not None else "")


def _difference(model: Mapping[str, Any], task: str, metric: str) -> str:
    found = model.get("against_parent", {}).get(task, {}).get(metric)
    if found is None:
        return NOTHING
    ends = interval(found["difference"], found["stderr"], found["clusters"])
    return f"{found['difference']:+.4g}" + (f" ({ends[0]:+.4g} to {ends[1]:+.4g})" if ends else "")


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"
