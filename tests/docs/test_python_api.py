"""The Python example of the documentation is run, and the command line continues from what it made."""

import os
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from minitron_cli import api
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.errors import EnvironmentFault, InputError
from minitron_cli.results.prune import PruneResult
from tests.cli.program import invoke
from tests.docs.pages import ROOT, code
from tests.unit.stages.place import write_place


def example() -> str:
    """The only Python block of docs/python-api.md."""
    (block,) = (piece.text for piece in code(ROOT / "docs" / "python-api.md") if piece.language == "python")
    return block


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_place(tmp_path)
    (tmp_path / "models").mkdir()
    shutil.move(tmp_path / "model", tmp_path / "models" / "parent")
    library = Path(os.__file__).parent
    text = "\n\n".join((library / name).read_text() for name in ("argparse.py", "ast.py", "inspect.py"))
    (tmp_path / "corpus.txt").write_text(text)  # enough for several documents, one of which is held out
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_example_runs_and_its_results_are_what_the_command_line_finds(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(example(), "docs/python-api.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"^[\d,]+ -> [\d,]+ parameters, checked: headers, files, ", printed, re.MULTILINE)
    assert {line.split(":")[0] for line in printed.splitlines()[1:]} == {"parent", "pruned", "distilled"}
    child = Workspace(place / "runs" / "small").current("prune")
    assert child is not None
    model = AutoModelForCausalLM.from_pretrained(child.path)
    assert model.config.intermediate_size == child.result(PruneResult).child.sizes["ffn"] == 32
    shown = invoke("show", "prune", "--run", "small")
    assert shown.exit_code == 0
    assert "32" in shown.output


@pytest.mark.slow
def test_a_call_that_was_made_before_does_no_work(place: Path) -> None:
    names: dict[str, object] = {}
    exec(compile(example(), "docs/python-api.md", "exec"), names)
    before = {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*") if path.is_file()}
    exec(compile(example(), "docs/python-api.md", "exec"), names)
    after = {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*") if path.is_file()}
    assert {path for path in before if before[path] != after.get(path)} <= {place / "runs" / "small" / ".lock"}


def test_errors_are_those_of_the_command_line(place: Path) -> None:
    with pytest.raises(EnvironmentFault, match="device 'abacus' is missing"), api.workspace("runs/x", device="abacus"):
        pytest.fail("a workspace was opened")
    with api.workspace("runs/x") as context, pytest.raises(InputError, match="nowhere"):
        api.importance(context, "./nowhere", names_data())


def names_data():
    from minitron_cli.data.sources import DataConfig, TextFiles

    return DataConfig(sources=(TextFiles(paths=("corpus.txt",)),), sequence_length=32)
