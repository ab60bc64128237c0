"""JUnit XML of gates, as CI systems read it."""

import xml.etree.ElementTree as ET

import pytest

from minitron_cli.evaluate.gate import Outcome
from minitron_cli.report.gate_summary import junit

MET = Outcome("text.loss", "absolute", "text.loss", True, 1.0, 2.5, None, 2.5)
MISSED = Outcome("quiz.acc", "absolute", "quiz.acc", True, 0.75, 0.7, None, 0.7)


@pytest.mark.parametrize(("found", "passes"), [(MET, True), (MISSED, False)], ids=["met", "missed"])
def test_a_missed_gate_is_a_failure_and_a_met_one_is_not(found, passes):
    assert found.passed is passes
    (case,) = ET.fromstring(junit([found], "child")).iter("testcase")
    assert (case.find("failure") is None) is passes


def test_junit_is_what_ci_reads():
    root = ET.fromstring(junit([MISSED, MET], "child"))
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    assert {key: suite.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "2",
        "failures": "1",
        "errors": "0",
    }
    assert suite[0].find("failure").get("message") == str(MISSED)
