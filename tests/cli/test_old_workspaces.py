"""Artifacts that an earlier version wrote: one sentence with the command that makes them again, never a traceback."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.cli.program import invoke, runs_with

STAGES = {"importance": "minitron importance", "prune": "minitron prune"}
PRUNE = ("prune", "--shape", "ffn=64", "--repair", "none")
OF_IMPORTANCE = [("show", "importance"), PRUNE]
OF_PRUNE = [("show", "prune"), ("distill", "--steps", "1"), ("eval", "blocks=2"), ("report",), ("push", "me/small")]


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs directory with scores and a pruned model, as this version writes them."""
    return runs_with(tmp_path_factory.mktemp("made") / "runs", tiny, PRUNE)


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs", symlinks=True))


def artifact(runs: Path, stage: str) -> Path:
    (manifest,) = runs.glob(f"*/{stage}/*/manifest.json")
    return manifest.parent


def write_schema_1(directory: Path) -> None:
    """Rewrite a manifest as version 0.1.0 wrote it: schema 1, figures in `summary`, sealed with its own hash."""
    content = json.loads((directory / "manifest.json").read_text())
    content = {key: value for key, value in content.items() if key != "sha256"}
    content |= {"schema_version": 1, "summary": {"parameters": 1}}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    sealed = content | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(sealed, indent=2, sort_keys=True))


def write_result(directory: Path, **changes: Any) -> None:
    """Change fields of a result, and the records that the manifest holds of the file, as an earlier version would."""
    content = json.loads((directory / "result.json").read_text()) | changes
    data = json.dumps(content, indent=2).encode()
    (directory / "result.json").write_bytes(data)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"]["result.json"] = [hashlib.sha256(data).hexdigest(), len(data)]
    manifest.pop("sha256")
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    manifest["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True))


def assert_one_sentence(result: Result, command: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == result.stderr.splitlines()[-1:], result.stderr
    assert f"run `{command}" in errors[0]
    assert "to make it again" in errors[0]


@pytest.mark.parametrize("words", OF_IMPORTANCE, ids=" ".join)
def test_old_scores_are_refused_with_the_command_that_makes_them_again(runs: Path, words: tuple[str, ...]) -> None:
    write_schema_1(artifact(runs, "importance"))
    assert_one_sentence(invoke(*words, "--runs-dir", runs), "minitron importance")


@pytest.mark.parametrize("words", OF_PRUNE, ids=" ".join)
def test_an_old_model_is_refused_with_the_command_that_makes_it_again(runs: Path, words: tuple[str, ...]) -> None:
    write_schema_1(artifact(runs, "prune"))
    assert_one_sentence(invoke(*words, "--runs-dir", runs), "minitron prune")


@pytest.mark.slow
def test_the_command_that_an_old_workspace_names_works(runs: Path, tiny: Path) -> None:
    for stage in STAGES:
        write_schema_1(artifact(runs, stage))
    words = ("--data", tiny / "text.jsonl", "--sequence-length", 16, "--samples", 4)
    for command in (("importance", tiny / "model", *words), PRUNE, ("show", "prune")):
        result = invoke(*command, "--runs-dir", runs)
        assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("schema", ["prune/0", "importance/0", "other/1", None])
def test_a_result_of_another_schema_is_refused_with_the_command(runs: Path, stage: str, schema: str | None) -> None:
    write_result(artifact(runs, stage), schema=schema)
    result = invoke("show", stage, "--runs-dir", runs)
    assert_one_sentence(result, f"{STAGES[stage]} --overwrite")
    assert f"has schema {schema!r}" in result.stderr


def test_what_was_rewritten_here_is_read_as_long_as_the_schema_is_the_same(runs: Path) -> None:
    """Nothing but the schema is refused above."""
    write_result(artifact(runs, "prune"))
    assert invoke("show", "prune", "--runs-dir", runs).exit_code == 0
