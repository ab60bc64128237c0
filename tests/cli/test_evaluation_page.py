"""docs/evaluation.md: its gate file and its workflow do what they say."""

import os
import re
import shlex
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

from minitron_cli import yaml_document
from minitron_cli.evaluate.config import SUITES, EvaluateConfig, Gates
from tests.cli.program import Run, invoke
from tests.tiny import write_tiny

PAGE = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()


def block(mark: str) -> str:
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


def steps() -> list[dict[str, Any]]:
    workflow = yaml.safe_load(block("workflow"))
    assert workflow[True] == ["push"]  # YAML 1.1 reads `on` so, and GitHub knows
    (job,) = workflow["jobs"].values()
    return job["steps"]


def kept() -> list[str]:
    """Files that the workflow keeps."""
    (upload,) = [step["with"]["path"] for step in steps() if "upload-artifact" in str(step.get("uses"))]
    return upload.split()


def test_every_step_of_the_workflow_can_be_run() -> None:
    runs = [str(step["run"]) for step in steps() if "run" in step]
    assert [line.split()[0] for line in runs] == ["pip", "minitron", "minitron"]
    assert Path(__file__).parents[2].joinpath("constraints.txt").is_file()
    assert all("run" in step or re.fullmatch(r"[\w-]+/[\w-]+@v\d+", str(step["uses"])) for step in steps())


@pytest.mark.slow
def test_the_workflow_measures_and_gates(run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step itself, beside the page's own gate file, with a baseline made as the page says."""
    page = tmp_path / "step_summary"
    page.write_text("")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    shutil.copytree(tiny / "model", "models/parent")
    write_tiny(tmp_path / "models/child", vocab_size=300, hidden_size=48, intermediate_size=96, seed=3)
    for file in (tiny / "tokenizer").iterdir():
        shutil.copy(file, "models/child")
    shutil.copy(tiny / "text.jsonl", "held-out.jsonl")
    Path("gates.yaml").write_text(block("gates.yaml"))
    lines = [str(step["run"]) for step in steps() if str(step.get("run", "")).startswith("minitron")]
    words, report = (shlex.split(os.path.expandvars(line))[1:] for line in lines)
    missing = invoke(*words)
    assert missing.exit_code == 2
    assert (
        "baseline baseline.json does not exist: keep one with `minitron eval --json > baseline.json`" in missing.stderr
    )
    without_gates = [word for word in words if word not in ("--gate", "gates.yaml")]
    Path("baseline.json").write_text(invoke(*without_gates, "--json").stdout)
    result = invoke(*words)
    assert result.exit_code == 0, result.stderr
    suites = ET.parse("junit.xml").getroot()
    assert (suites.get("tests"), suites.get("failures")) == ("6", "0")
    assert "All 6 gates are met." in page.read_text()
    assert invoke(*words, "--min", "cloze.acc=1.1").exit_code == 4  # said last, said louder
    Path("gates.yaml").write_text(block("gates.yaml").replace("max: 60", "max: 0.001"))
    missed = invoke(*words)
    assert missed.exit_code == 4
    assert ET.parse("junit.xml").getroot().get("failures") == "1"
    written = invoke(*report)
    assert written.exit_code == 0, written.stderr
    assert set(kept()) <= {file.name for file in Path().iterdir()}
    assert "perplexity" in Path("report.html").read_text()


def test_the_gate_file_is_read_strictly() -> None:
    gates = yaml_document.check(Gates, yaml_document.parse(block("gates.yaml"), "gates.yaml"))
    assert {rule.kind for rule in gates.rules} == {"absolute", "parent", "baseline"}


def test_the_example_of_models_measured_elsewhere_is_read_strictly() -> None:
    config = EvaluateConfig.model_validate(yaml.safe_load(block("others"))["evaluate"])
    assert [(other.name, other.file, other.parameters) for other in config.others] == [
        ("llama-1b", "results.json", None),
        ("smaller", "eval.json", None),
        ("published", None, 1_240_000_000),
    ]


def test_the_table_of_the_suite_is_the_suite() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+)", PAGE, re.MULTILINE)
    assert [(name, int(shots)) for name, shots in rows] == [(t.name, t.num_fewshot) for t in SUITES["minitron"]]
