"""What contributors, packagers and CI rely on: the files beside the code agree with it and with each other."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

import minitron_cli

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def parsed(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path)


def file_name(path: Path) -> str:
    return path.name


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines) if version
    }


def test_a_workflow_checks_and_tests_on_linux_and_macos() -> None:
    systems: dict[str, set[str]] = {}
    for job in (job for path in WORKFLOWS for job in parsed(path)["jobs"].values()):
        for one in job.get("strategy", {}).get("matrix", {}).get("include", []):
            systems.setdefault(one["os"], set()).update(step.get("run", "") for step in job["steps"])
    for system in ("ubuntu-latest", "macos-latest"):
        assert {"make check", "make test"} <= systems[system]


@pytest.mark.parametrize("path", WORKFLOWS, ids=file_name)
def test_a_workflow_may_only_read(path: Path) -> None:
    assert parsed(path)["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("path", [path for path in FORMS if path.stem != "config"], ids=file_name)
def test_an_issue_form_asks_named_questions(path: Path) -> None:
    form = parsed(path)
    assert form["name"]
    assert form["description"]
    questions = [part for part in form["body"] if part["type"] != "markdown"]
    assert questions
    assert all(part["attributes"]["label"] for part in questions)
    assert len({part["id"] for part in questions}) == len(questions)


def test_checks_include_types_as_macos_has_them() -> None:
    _, _, rest = (ROOT / "Makefile").read_text().partition("\ncheck:")
    assert "mypy --platform darwin" in rest.partition("\n\n")[0]


def test_hooks_run_in_any_environment() -> None:
    hooks = [hook for repository in parsed(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    assert len(hooks) == 4
    assert all(hook["entry"].startswith("python ") for hook in hooks)


def test_the_citation_is_of_this_version_and_names_both_papers() -> None:
    citation = parsed(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == minitron_cli.__version__
    assert citation["license"] == PROJECT["license"]
    dois = {reference["doi"].lower() for reference in citation["references"]}
    assert dois == {"10.48550/arxiv.2407.14679", "10.48550/arxiv.2408.11796"}


def test_the_changelog_has_this_version_with_the_date_of_the_citation() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    date = parsed(ROOT / "CITATION.cff")["date-released"]
    assert headings[0] == "Unreleased"
    assert headings[1] == f"{minitron_cli.__version__} - {date}"


def test_the_package_says_that_it_is_typed() -> None:
    assert (files(minitron_cli) / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]


@pytest.mark.parametrize("dependency", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
def test_the_tested_version_of_a_dependency_is_within_its_bounds(dependency: str) -> None:
    requirement = Requirement(dependency)
    assert pinned()[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize(
    ("name", "vulnerable"),
    [
        ("filelock", "3.20.2"),
        ("jinja2", "3.1.5"),
        ("pyarrow", "23.0.0"),
        ("torch", "2.5.1"),
        ("tqdm", "4.66.2"),
    ],
)
def test_no_release_with_a_known_vulnerability_is_accepted(name: str, vulnerable: str) -> None:
    [specifier] = [one.specifier for one in map(Requirement, PROJECT["dependencies"]) if one.name == name]
    assert vulnerable not in specifier


def test_a_source_distribution_holds_what_its_tests_read() -> None:
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    read = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "constraints.txt"}
    assert read | {
        ".github",
        ".pre-commit-config.yaml",
        "docs",
        "tests",
        "examples",
        "Dockerfile",
        ".dockerignore",
    } <= set(targets["sdist"]["include"])
