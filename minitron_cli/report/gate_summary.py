"""Evaluations and gates for CI: JUnit XML, and Markdown for a summary page."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from minitron_cli.evaluate.gate import Outcome
from minitron_cli.report.evaluation import Evaluated, evaluation_tables, gate_table
from minitron_cli.report.markdown import inline, table, tables
from minitron_cli.report.text import clean


def junit(found: Sequence[Outcome], label: str) -> bytes:
    """JUnit XML with one test case per gate; a missed gate is a failure that says by how much."""
    failures = str(sum(not outcome.passed for outcome in found))
    suites = ET.Element("testsuites", name="minitron eval", tests=str(len(found)), failures=failures)
    suite = ET.SubElement(suites, "testsuite", name=clean(label), tests=str(len(found)), failures=failures, errors="0")
    for outcome in found:
        case = ET.SubElement(suite, "testcase", classname=clean(f"minitron.eval.{label}"), name=clean(outcome.title))
        if not outcome.passed:
            ET.SubElement(case, "failure", type=outcome.kind, message=clean(str(outcome))).text = clean(str(outcome))
    ET.indent(suites)
    return ET.tostring(suites, encoding="utf-8", xml_declaration=True) + b"\n"


def summary(models: Sequence[Evaluated], found: Sequence[Outcome], label: str) -> str:
    """Markdown for a CI summary page: the gates, every model's metrics, and their differences from the parent's."""
    missed = sum(not outcome.passed for outcome in found)
    outcome = f"**{missed} of {len(found)} gates missed.**" if missed else f"All {len(found)} gates are met."
    gates = (outcome, table(gate_table(found))) if found else ()
    parts = (f"## minitron eval: {inline(label)}", *gates, *tables(evaluation_tables(models)))
    return clean("\n\n".join(parts)) + "\n"
