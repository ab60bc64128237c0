"""Every command line in the documentation is one: it is given to the program itself, in which the stages do nothing.

Options, verbs, values and recipe keys are checked by what checks them for users. The commands of a page are given in
order, in one empty directory, so that `recipes cp` makes the file that a later line runs.
"""

import re
import shlex
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
import yaml
from pydantic import TypeAdapter, ValidationError

from minitron_cli import device, dry_run, pipeline, recipe
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.manifest import Manifest
from minitron_cli.artifacts.workspace import Workspace, remember
from minitron_cli.cli import data, push, show, torchrun
from minitron_cli.cli import evaluate as evaluate_verb
from minitron_cli.cli.app import COMMANDS
from minitron_cli.cli.demo import NEXT
from minitron_cli.cli.sessions import Session
from minitron_cli.data.sources import DataConfig, PythonStdlib
from minitron_cli.evaluate.config import Gates
from minitron_cli.inputs import family_check, source_model
from minitron_cli.recipe import Recipe
from minitron_cli.report.product import Product
from minitron_cli.stages import (
    correct,
    distill,
    evaluate,
    importance,
    landscape,
    prune,
    report,
    search,
    sparsify_rounds,
    supermask,
    teach,
    teacher,
    ticket,
    transfer,
)
from minitron_cli.study import definition
from minitron_cli.study.definition import StudyDefinition
from minitron_cli.study.runner import Runner
from tests.cli.program import invoke
from tests.docs import examples
from tests.docs.commands import SHELLS, commands, of_minitron, scripts
from tests.docs.pages import PAGES, ROOT, code, name
from tests.quick import slow

FAST = ("README.md", "quickstart.md")
ANY_RECIPE = "llama-3.1-minitron-4b-width"
SETTINGS = {"model": "llama-3.1-8b", "data": {"sources": [{"kind": "files", "paths": ["corpus.jsonl"]}]}}
NO_COMMAND = ("[", "...", "…")  # what stands in text for something else
CALL = re.compile(r"(?<![\w./`'\"-])minitron(?::\w+)? (?=[a-z])|-m minitron_cli(?= )")

Read = Callable[[list[str]], str]


def said(page: Path) -> list[list[str]]:
    """The arguments of every call of the program on a page: in blocks, and in text where it has arguments."""
    pieces = list(code(page))
    blocks = [words for piece in pieces if piece.is_block for script in scripts(piece) for words in of_minitron(script)]
    in_text = [words for piece in pieces if not piece.is_block for words in of_minitron(_as_said(piece.text))]
    return [*blocks, *(words for words in in_text if len(words) > 1)]


def _as_said(text: str) -> str:
    """With the program's name, where a verb stands without it."""
    if any(mark in text for mark in NO_COMMAND) or names_an_option(text):
        return ""
    whole = f"minitron {text}" if is_verb(text) else text
    return whole.replace("RECIPE", ANY_RECIPE) if whole.startswith("minitron ") else ""


def is_verb(text: str) -> bool:
    return text.partition(" ")[0] in COMMANDS and " " in text


def names_an_option(text: str) -> bool:
    """Whether it is a verb and one option of it, such as `prune --repair`, and no whole command."""
    return re.fullmatch(r"(minitron )?[a-z]+ --[a-z-]+", text) is not None


def accept(*arguments: Any, **options: Any) -> None:
    """In place of the work: the command line has been read and found good."""
    raise typer.Exit


def something(*arguments: Any, **options: Any) -> Any:
    """In place of a parent."""
    return SimpleNamespace(path=Path())


def an_artifact(*arguments: Any, **options: Any) -> Artifact:
    """In place of an artifact."""
    return Artifact(Path(), Manifest.model_construct())


def nothing(*arguments: Any, **options: Any) -> None:
    """In place of what may be absent."""


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Gives the program a command line; returns what it has against it."""
    for stage in (
        importance,
        search,
        prune,
        sparsify_rounds,
        correct,
        teach,
        distill,
        evaluate,
        landscape,
        report,
        supermask,
        teacher,
        ticket,
        transfer,
    ):
        monkeypatch.setattr(stage, "run", accept)
    replaced = ((pipeline, "run"), (dry_run, "plan"), (dry_run, "shape_of"), (family_check, "family_check"))
    for module, work in replaced:
        monkeypatch.setattr(module, work, accept)
    monkeypatch.setattr(Runner, "results", accept)
    for verb, read_from in ((data, "_read"), (push, "_made"), (show, "_current"), (Product, "current")):
        monkeypatch.setattr(verb, read_from, accept)
    for owner, given in ((Session, "parent"), (source_model, "open_source_model")):
        monkeypatch.setattr(owner, given, something)
    monkeypatch.setattr(Session, "require", an_artifact)
    for owner, given in ((correct, "of"), (torchrun, "if_requested"), (evaluate_verb, "_check_made_here")):
        monkeypatch.setattr(owner, given, nothing)
    monkeypatch.setattr(device, "resolve", lambda name, **_: "cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MINITRON_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path / "runs" / "llama-3.1-8b")
    workspace.save_settings(**SETTINGS)
    remember(workspace)

    def given(words: list[str]) -> str:
        _put_files(words)
        result = invoke(*words)
        if result.exit_code == 0:
            _put_copies(words)
        return "" if result.exit_code == 0 else result.output

    return given


def _put_copies(words: list[str]) -> None:
    """The directory that a command copies its checkpoint to, which a later line of the page evaluates."""
    if words[0] in ("prune", "sparsify", "correct", "distill"):
        for after in (after for word, after in pairwise(words) if word in ("-o", "--output")):
            Path(after).mkdir()


def _put_files(words: list[str]) -> None:
    """What a command line is about and a page does not make: recipes, gates, checkpoints, a baseline."""
    recipes = [words[1]] if words[0] == "run" and len(words) > 1 else []
    recipes += [after for word, after in pairwise(words) if word == "--recipe"]
    for file in (Path(one) for one in recipes if one.endswith(".yaml")):
        if not file.exists():
            shutil.copy(recipe.shipped()[ANY_RECIPE], file)
    if words[0] == "study" and len(words) > 1 and words[1].endswith(".yaml"):
        shutil.copy(definition.shipped()["losses"], words[1])
    for file in (Path(after) for word, after in pairwise(words) if word == "--gate"):
        file.write_text("{}")
    if words[0] == "eval":
        placeholders = [word for word in words[1:] if word.isidentifier() and word.isupper()]
        for directory in map(Path, [*placeholders, *(word for word in words[1:] if word.startswith("models/"))]):
            directory.mkdir(parents=True, exist_ok=True)


DATA = DataConfig(sources=(PythonStdlib(),))


@pytest.mark.parametrize("page", [page if page.name in FAST else slow(page) for page in PAGES], ids=name)
def test_every_command_on_a_page_is_one(page: Path, read: Read) -> None:
    wrong = {shlex.join(words): found for words in said(page) if (found := read(words))}
    assert not wrong, "\n".join(f"minitron {line}\n{found}" for line, found in wrong.items())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prnue", "Did you mean"),
        ("prune --taget 4B", "No such option"),
        ("prune --target 4X", "is not a quantity"),
        ("prune --width", "add --target"),
        ("prune --shape hiden=3072", "did you mean hidden?"),
        ("distill --tokens 2B distill.losses=[]", "distill.distill is not a known key"),
        ("distill 'losses=[{kind: forward_lk}]'", "did you mean forward_kl?"),
        ("eval --min winogrande", "write TASK.METRIC=VALUE"),
        ("importance data.sequence_length=1", "data.sequence_length"),
        ("run my.yaml distill.tokns=3", "did you mean tokens?"),
        ("run llama-3.1-minitron-4b-wdth", "did you mean"),
        ("recipes copy demo", "No such command"),
    ],
)
def test_what_is_no_command_would_be_noticed(line: str, message: str, read: Read) -> None:
    assert message in read(shlex.split(line))


@pytest.mark.parametrize("name", examples.calls())
def test_every_command_of_an_example_is_one(name: str, read: Read) -> None:
    wrong = {shlex.join(words): found for words in examples.calls()[name] if (found := read(words))}
    assert not wrong


def test_every_command_that_the_demo_ends_with_is_one(read: Read) -> None:
    wrong = {line: found for line in NEXT if (found := read(shlex.split(line)[1:]))}
    assert not wrong


def test_no_command_in_a_block_goes_unread() -> None:
    for block in (piece for page in PAGES for piece in code(page) if piece.is_block and piece.language != "output"):
        calls = CALL.findall(re.sub(r"(?m)(^|\s)#.*", "", block.text))
        found = [words for script in scripts(block) for words in of_minitron(script)]
        assert len(calls) == len(found), f"{name(block.page)}:{block.line}"


def test_commands_are_found_as_a_shell_finds_them() -> None:
    script = """
        $ minitron eval --min a.b=1 > out.json  # not minitron show
        A=1 minitron run x.yaml \\
            data.sources.0.paths='[c/*.jsonl]' | tee log && minitron report; cd runs
        torchrun --nnodes 4 -m minitron_cli distill --tokens 2B
        torchrun --no-python minitron distill --run small
        srun bash -c 'RANK=$SLURM_PROCID minitron distill --gpus 8'
        git clone x minitron && ls minitron
    """
    assert [" ".join(words) for words in of_minitron(script)] == [
        "eval --min a.b=1",
        "run x.yaml data.sources.0.paths=[c/*.jsonl]",
        "report",
        "distill --tokens 2B",
        "distill --run small",
        "distill --gpus 8",
    ]


def test_make_targets_and_scripts_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pieces = [piece for page in PAGES for piece in code(page) if not piece.is_block or piece.language in SHELLS]
    for piece, words in ((one, words) for one in pieces for words in _commands(one.text)):
        where = f"{name(piece.page)}:{piece.line} {words}"
        if words[0] == "make":
            assert set(words[1:]) <= targets, where
        if words[0] == "python" and words[1:2] and words[1].startswith(("scripts/", "tests/", "benchmarks/")):
            assert (ROOT / words[1]).is_file(), where


OF_OTHERS = {"--model-impl", "--no-nextn", "--revision", "--nnodes", "--nproc-per-node", "--torch-backend"}
"""Options of vLLM, llama.cpp, hf, torchrun and uv that stand alone."""


def test_options_and_keys_that_text_names_are_there() -> None:
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    options = set(re.findall(r"`(--[a-z-]+)`", reference)) | OF_OTHERS
    keys = set(re.findall(r"^\| `(?:[\w.]+\.)?(\w+)` \|", reference, re.MULTILINE)) | set(Recipe.model_fields)
    for piece in (piece for page in PAGES for piece in code(page) if not piece.is_block):
        where = f"{name(piece.page)}:{piece.line} {piece.text}"
        if found := re.match(r"--[a-z][a-z-]+", piece.text):
            assert found[0] in options, where
        if names_an_option(piece.text):
            verb, option = piece.text.removeprefix("minitron ").split()
            assert f"`{option}`" in (ROOT / "docs" / "reference" / f"{verb}.md").read_text(), where
        if found := re.fullmatch(r"([a-z_]+(?:\.[a-z_0-9]+)+)=.*", piece.text):
            assert {part for part in found[1].split(".") if not part.isdecimal()} <= keys | {"kind"}, where


def _commands(text: str) -> list[list[str]]:
    try:
        return list(commands(text))
    except ValueError:  # a piece of text in backticks that no shell would read
        return []


def test_python_blocks_compile() -> None:
    for block in (piece for page in PAGES for piece in code(page) if piece.language == "python"):
        compile(block.text, f"{name(block.page)}:{block.line}", "exec")


def test_yaml_blocks_hold_valid_keys_and_values() -> None:
    """A block may be a part of a recipe: missing sections are no fault."""
    for page, block in ((one, piece) for one in PAGES for piece in code(one) if piece.language == "yaml"):
        values = yaml.safe_load(block.text)
        if True in values or values.keys() <= Gates.model_fields.keys():  # a workflow; a file of gates
            continue
        if "arms" in values:
            study = StudyDefinition.model_validate(values)
            assert all(study.recipe_of(arm, "model", DATA, 0, {}) for arm in study.arms)
            continue
        assert values.keys() <= Recipe.model_fields.keys(), f"{name(page)}:{block.line}"
        if "model" in values:
            Recipe.model_validate(values)  # a whole one
        for key, value in values.items():
            field = Recipe.model_fields[key]
            assert not _faults(field.annotation, value), f"{name(page)}:{block.line} {key}"


def _faults(kind: Any, value: Any) -> list[Any]:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as e:
        return [error for error in e.errors() if error["type"] not in ("missing", "value_error") or error["loc"][1:]]
    return []
